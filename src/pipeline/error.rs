//! Every way in which a run ends early.

use crate::engine::EngineError;
use crate::input::InputError;
use crate::model::ModelError;
use crate::output::OutputError;
use crate::prompt::PromptError;
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
    Engine(#[from] EngineError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl RunError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Storage(error) => error.hint(),
            Self::Input(error) => error.hint(),
            Self::Prompt(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Engine(error) => error.hint(),
            Self::Output(error) => error.hint(),
        }
    }
}
