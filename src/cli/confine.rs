//! `nightshift confine`: hidden; limits itself and becomes the command that scores a program.

use std::ffi::OsString;

use clap::Args;

use super::exit::Exit;
use super::terminal;
use crate::eval::sandbox::{self, ProcessLimits};

/// Becomes a command under limits.
#[derive(Debug, Args)]
pub(super) struct ConfineArgs {
    /// The limits, as JSON.
    #[arg(value_parser = limits)]
    limits: ProcessLimits,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn limits(text: &str) -> Result<ProcessLimits, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

pub(super) fn confine(args: ConfineArgs) -> Exit {
    let error = sandbox::confine(args.limits, &args.command);
    terminal::report(&error, None);
    Exit::Error
}
