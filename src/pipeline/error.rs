//! Every way in which a run ends early.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::evaluate::EvalError;
use crate::bench::BenchError;
use crate::engine::EngineError;
use crate::input::InputError;
use crate::model::ModelError;
use crate::ops::DeviceError;
use crate::output::OutputError;
use crate::prompt::PromptError;
use crate::sizing::LayoutError;
use crate::storage::StorageError;

/// Stops a run. What was committed before stays; the same command continues it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Prompt(#[from] PromptError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error("cannot fetch the model to `{}`", folder.display())]
    Fetch { folder: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error("cannot make the grid: {0}")]
    Niah(String),
    #[error("cannot merge into `{file}`: {cause}")]
    Merge { file: String, cause: String },
    #[error("{failed} rows failed, more than `run.max_errors` allows: {}", counted(failures))]
    TooManyErrors { failed: u64, failures: BTreeMap<String, u64> },
}

fn counted(failures: &BTreeMap<String, u64>) -> String {
    let counts: Vec<String> =
        failures.iter().map(|(code, count)| format!("{count} {code}")).collect();
    counts.join(", ")
}

impl RunError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Storage(error) => error.hint(),
            Self::Input(error) => error.hint(),
            Self::Prompt(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Device(error) => Some(error.hint().into()),
            Self::Layout(error) => error.hint(),
            Self::Engine(error) => error.hint(),
            Self::Output(error) => error.hint(),
            Self::Bench(error) => error.hint(),
            Self::Eval(error) => error.hint(),
            Self::Merge { .. } | Self::Niah(_) => None,
            Self::Fetch { .. } => Some(
                "NIGHTSHIFT_CACHE names the cache's folder; the same command goes on where this stopped".into(),
            ),
            Self::TooManyErrors { .. } => Some(
                "see `error_message` of the failed rows; what was done is committed, and the same command goes on"
                    .into(),
            ),
        }
    }
}
