//! The `nightshift` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    nightshift::cli::main().into()
}
