//! What the weight files say about themselves, without reading a weight.

use std::path::Path;

use super::weights::Checkpoint;
use super::{Config, ModelError};

/// A checkpoint's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Tensors in all files.
    pub tensors: usize,
    /// Bytes of all files.
    pub bytes: u64,
}

impl Header {
    /// Reads the headers of a folder's weight files and compares the tables' shapes with the config.
    pub fn read(folder: &Path, config: &Config) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(folder)?;
        checkpoint
            .elements("model.embed_tokens.weight", &[config.vocab_size, config.hidden_size])?;
        checkpoint.elements("model.norm.weight", &[config.hidden_size])?;
        Ok(Self { tensors: checkpoint.tensors(), bytes: checkpoint.bytes() })
    }
}
