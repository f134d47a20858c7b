//! Prompts to generations: sequences in a running batch that is refilled at every step.

mod blocks;
mod draw;
mod sampler;

pub use sampler::Logprobs;
