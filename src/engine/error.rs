//! Why the engine stops.

use crate::model::ModelError;

/// Stops the run; what is wrong with one row is a failure of that row instead.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The threads could not be started.
    #[error("cannot start {threads} threads")]
    Threads { threads: usize, source: rayon::ThreadPoolBuildError },
    /// The cache is too small for a single block.
    #[error("a latent cache of {bytes} bytes holds no block of {block_bytes} bytes")]
    Cache { bytes: u64, block_bytes: u64 },
    /// A step panicked.
    #[error("a step failed: {message}")]
    Panicked { message: String },
    /// Every sequence fails: it is not one of them that is at fault.
    #[error("{sequences} sequences failed one by one, the last with: {message}")]
    Everything { sequences: usize, message: String },
    /// A step failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl EngineError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Threads { .. } => Some("set `devices.threads` lower".into()),
            Self::Cache { .. } => Some("set `batch.cache` higher, or to \"auto\"".into()),
            Self::Panicked { .. } | Self::Everything { .. } => {
                Some("what was done is committed; the same command goes on".into())
            }
            Self::Model(error) => error.hint(),
        }
    }
}
