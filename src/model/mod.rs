//! DeepSeek-V2: from a Hugging Face folder to logits, one flat step of tokens at a time.
//!
//! Knows layers and weights; does not know sequences, sampling or text.

mod config;
mod error;
mod weights;

pub use config::{Config, MoeConfig, Yarn};
pub use error::ModelError;
