//! Behaviour of nightshift from outside, one module for each subject.

mod output;
