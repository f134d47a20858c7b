//! Why a model cannot be loaded or run.

use std::path::PathBuf;

use crate::parallel::{CollectiveError, Topology};

/// Stops the job; what is wrong with one row is never a `ModelError`.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the model folder is missing or unreadable.
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// `config.json` or `generation_config.json` does not describe a DeepSeek-V2 model.
    #[error("`{}`: {message}", path.display())]
    Config { path: PathBuf, message: String },
    /// A weight file is damaged.
    #[error("`{}` is not a valid safetensors file: {message}", path.display())]
    Shard { path: PathBuf, message: String },
    /// The folder has no weights.
    #[error("no safetensors file in `{}`", folder.display())]
    NoWeights { folder: PathBuf },
    /// A tensor that the config calls for is not there.
    #[error("tensor `{name}` {expected:?} is missing from `{}`", folder.display())]
    Missing { name: String, expected: Vec<usize>, folder: PathBuf },
    /// A tensor has another shape than the config calls for.
    #[error("tensor `{name}` in `{}` is {found:?}, expected {expected:?}", path.display())]
    Shape { name: String, expected: Vec<usize>, found: Vec<usize>, path: PathBuf },
    /// A tensor has an element type that is not supported.
    #[error("tensor `{name}` in `{}` is {found}, expected BF16, F16 or F32", path.display())]
    Dtype { name: String, found: String, path: PathBuf },
    /// The weights hold tensors that the config does not call for.
    #[error("{count} tensors that `config.json` does not call for, the first is `{name}` in `{}`", path.display())]
    Extra { name: String, count: usize, path: PathBuf },
    /// There are more stages than layers, or more ranks than experts.
    #[error("{topology} cannot share {layers} layers and {experts} routed experts")]
    Topology { topology: Topology, layers: usize, experts: usize },
    /// A step could not be computed.
    #[error("the model could not compute a step")]
    Compute(#[from] candle_core::Error),
    /// Another rank could not go on.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

impl ModelError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read { .. } => {
                "`model.path` must be a Hugging Face folder with config.json, safetensors and tokenizer.json"
            }
            Self::Config { .. } => "only models of the DeepSeek-V2 family can be run",
            Self::Shard { .. } => "the download may be incomplete: fetch the file again",
            Self::NoWeights { .. } => {
                "fetch model.safetensors, or all shards and model.safetensors.index.json"
            }
            Self::Missing { .. } => {
                "a shard may be missing, or config.json belongs to another model"
            }
            Self::Shape { .. } | Self::Extra { .. } => {
                "config.json and the weights belong to different models"
            }
            Self::Dtype { .. } => "quantised checkpoints are not supported: use the BF16 release",
            Self::Topology { .. } => {
                "set `devices.stages` to at most the layers and `devices.ranks` to at most the experts"
            }
            Self::Compute(_) | Self::Collective(_) => return None,
        };
        Some(hint.into())
    }
}
