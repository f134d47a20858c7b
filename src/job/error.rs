//! Why a job file is refused: everything that is wrong with it, at once.

use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `section.key`; empty where the text itself is wrong.
    pub key: String,
    /// 1-based line of the job file.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

/// A refused job.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The file cannot be read.
    #[error("cannot read job file `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// Options of a command that stand for a job's keys are wrong.
    #[error("the options have {}", Listed(problems))]
    Options { problems: Vec<Problem> },
    /// The file is wrong.
    #[error("job file `{}` has {}", path.display(), Listed(problems))]
    Invalid { path: PathBuf, problems: Vec<Problem> },
}

struct Listed<'a>(&'a [Problem]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "" } else { "s" };
        write!(f, "{} problem{plural}:", self.0.len())?;
        for Problem { key, line, message, hint } in self.0 {
            write!(f, "\n  ")?;
            if let Some(line) = line {
                write!(f, "line {line}: ")?;
            }
            if !key.is_empty() {
                write!(f, "`{key}`: ")?;
            }
            write!(f, "{message}")?;
            if let Some(hint) = hint {
                write!(f, "; {hint}")?;
            }
        }
        Ok(())
    }
}

impl JobError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some("`nightshift schema job` prints every key with its meaning".into())
    }
}
