//! Behaviour of nightshift from outside, one module for each subject.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bench;
mod checkpoint;
mod durable;
mod engine;
mod eval;
mod faults;
mod goldens;
mod input;
mod job;
mod kernels;
mod oracle;
mod output;
mod published;
mod ranks;
mod s3;
mod text;
