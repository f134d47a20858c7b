//! Words to and from the terminal: one file for each command. Nothing else prints.

mod bench;
mod check;
mod confine;
mod display;
mod eval;
mod exit;
mod niah;
mod plan;
mod run;
mod status;
mod summary;
mod terminal;
mod verify;

use std::io::IsTerminal;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::job::{Overrides, input_row_schema, job_schema};
use crate::output::completion_schema_json;

pub use exit::Exit;

/// Batch offline generation with DeepSeek-V2 models.
///
/// Exit codes: 0 all rows answered, 1 job error, 2 bad usage or job file, 3 done but some rows failed,
/// 130 interrupted.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    RetryFailed(run::RetryArgs),
    Eval(eval::EvalArgs),
    Niah(niah::NiahArgs),
    Check(check::CheckArgs),
    Plan(plan::PlanArgs),
    Status(status::StatusArgs),
    Verify(verify::VerifyArgs),
    Merge(verify::MergeArgs),
    Bench(bench::BenchArgs),
    Schema(SchemaArgs),
    #[command(hide = true)]
    Confine(confine::ConfineArgs),
}

/// Replaces values of the job file.
#[derive(Debug, Args)]
struct JobArgs {
    /// Sets any key, such as `batch.max_sequences=8`.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Takes only so many rows.
    #[arg(long, value_name = "ROWS")]
    limit: Option<u64>,
    /// Reads these files, globs or folders.
    #[arg(long, value_name = "PATH")]
    input: Vec<String>,
    /// Writes to this folder.
    #[arg(long, value_name = "PATH")]
    output: Option<String>,
}

impl JobArgs {
    fn overrides(self: &JobArgs) -> Overrides {
        let Self { set, limit, input, output } = self;
        Overrides { set: set.clone(), limit: *limit, input: input.clone(), output: output.clone() }
    }
}

#[derive(Debug, Args)]
struct LogArgs {
    /// What is logged to stderr: a level (`debug`) or a filter (`nightshift=debug,object_store=info`).
    #[arg(long, value_name = "FILTER", env = "NIGHTSHIFT_LOG")]
    log: Option<String>,
}

impl LogArgs {
    fn start(&self, quiet: bool) {
        // Bars and log lines would write over each other.
        let usual = if quiet || std::io::stderr().is_terminal() { "warn" } else { "info" };
        let filter = EnvFilter::builder().parse_lossy(self.log.as_deref().unwrap_or(usual));
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(colour);
        // A second start, as in tests, keeps the first one's settings.
        let _ = log.with_target(false).try_init();
    }
}

/// Prints a JSON schema.
#[derive(Debug, Args)]
struct SchemaArgs {
    /// Of what.
    #[arg(value_enum)]
    of: SchemaOf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SchemaOf {
    /// Job files.
    Job,
    /// JSONL input rows.
    InputRow,
    /// Output columns.
    Completion,
}

/// Does what the command line says.
pub fn main() -> Exit {
    // Bad usage exits here, with 2.
    match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::RetryFailed(args) => run::retry(args),
        Command::Eval(args) => eval::eval(args),
        Command::Niah(args) => niah::niah(args),
        Command::Confine(args) => confine::confine(args),
        Command::Check(args) => check::check(args),
        Command::Plan(args) => plan::plan(args),
        Command::Status(args) => status::status(args),
        Command::Verify(args) => verify::verify(args),
        Command::Merge(args) => verify::merge(args),
        Command::Bench(args) => bench::bench(args),
        Command::Schema(SchemaArgs { of }) => {
            let schema = match of {
                SchemaOf::Job => job_schema(),
                SchemaOf::InputRow => input_row_schema(),
                SchemaOf::Completion => completion_schema_json(),
            };
            terminal::data(
                &serde_json::to_string_pretty(&schema).expect("a schema has text keys only"),
            );
            Exit::Ok
        }
    }
}
