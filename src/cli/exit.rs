//! The process's exit codes: the contract with whoever starts it.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All rows are answered, or the command did what it was asked.
    Ok = 0,
    /// A job error; what was committed stays.
    Error = 1,
    /// Bad usage or a bad job file.
    Usage = 2,
    /// All rows have outcomes, some of them failures.
    SomeFailed = 3,
    /// Interrupted; the same command continues.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}
