//! The `nightshift` program.

use std::process::ExitCode;

/// A step's large buffers come and go: this allocator keeps their memory, where the C library's gives it back to
/// the system and has it cleared anew, a tenth of a step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    nightshift::cli::main().into()
}
