//! Why the engine stops.

use crate::model::ModelError;
use crate::parallel::Place;

/// Stops the run; what is wrong with one row is a failure of that row instead.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The threads could not be started.
    #[error("cannot start {threads} threads")]
    Threads { threads: usize, source: rayon::ThreadPoolBuildError },
    /// A rank's thread could not be started.
    #[error("cannot start the thread of {place}")]
    Spawn { place: Place, source: std::io::Error },
    /// A rank's thread is gone.
    #[error("the thread of {place} has ended")]
    RankEnded { place: Place },
    /// The cache is too small for a single block.
    #[error(
        "a latent cache of {bytes} bytes holds no block of {block_bytes} bytes for each of {ranks} ranks"
    )]
    Cache { bytes: u64, block_bytes: u64, ranks: usize },
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
            Self::Threads { .. } | Self::Spawn { .. } => {
                Some("set `devices.threads` or `devices.ranks` lower".into())
            }
            Self::Cache { .. } => Some("set `batch.cache` higher, or to \"auto\"".into()),
            Self::Panicked { .. } | Self::RankEnded { .. } | Self::Everything { .. } => {
                Some("what was done is committed; the same command goes on".into())
            }
            Self::Model(error) => error.hint(),
        }
    }
}
