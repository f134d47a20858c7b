//! Why prompts cannot be made at all; what is wrong with one row is a `RowFailure` instead.

use std::path::PathBuf;

/// Stops the job before weights are loaded.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// A file of the model folder is missing or unreadable.
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// A file of the model folder is not what it should be.
    #[error("`{}`: {message}", path.display())]
    Invalid { path: PathBuf, message: String },
    /// A template does not parse.
    #[error("{what} is not a valid template: {message}")]
    Template { what: String, message: String },
    /// The job has conversations and the model has no chat template.
    #[error("the model in `{}` has no chat template", folder.display())]
    NoChatTemplate { folder: PathBuf },
    /// The tokenizer's tokens have no text that a constraint could be checked against.
    #[error("constraints cannot be used with the tokenizer of `{}`: {message}", folder.display())]
    Grammars { folder: PathBuf, message: String },
    /// The job's own constraint cannot be used.
    #[error("the job's constraint cannot be used: {message}")]
    Constraint { message: String },
}

impl PromptError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => {
                Some("`model.path` must be a Hugging Face folder with tokenizer.json".into())
            }
            Self::NoChatTemplate { .. } => Some(
                "add chat_template.jinja to the folder, or give text with `input.prompt`".into(),
            ),
            Self::Constraint { .. } => {
                Some("see `sampling.json_schema`, `sampling.regex` and `sampling.choice`".into())
            }
            Self::Invalid { .. } | Self::Template { .. } | Self::Grammars { .. } => None,
        }
    }
}
