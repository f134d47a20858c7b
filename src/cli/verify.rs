//! `nightshift verify` and `nightshift merge`: an output proved, and put in order.

use bytesize::ByteSize;
use clap::{Args, ValueEnum};

use super::exit::Exit;
use super::terminal;
use crate::pipeline::{self, MergeFormat, RunError, Verification};
use crate::storage::Storage;

/// Proves an output: every input row has exactly one outcome, and nothing was changed.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The output folder: a path or URL.
    output: String,
    /// Checks the parts alone; the input is not read.
    #[arg(long)]
    parts_only: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Writes an output as one ordered dataset, and verifies it on the way.
#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// The output folder: a path or URL.
    output: String,
    /// A new folder: a path or URL.
    to: String,
    /// What is written.
    #[arg(long, value_enum, default_value_t = FormatArg::Parquet)]
    format: FormatArg,
    /// About how large each file is.
    #[arg(long, default_value = "256MiB")]
    file_size: ByteSize,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    /// Parquet with zstd.
    Parquet,
    /// One JSON object a line.
    Jsonl,
}

pub(super) fn verify(args: VerifyArgs) -> Exit {
    let verified = Storage::new().map_err(RunError::from);
    told(verified.and_then(|s| pipeline::verify(&s, &args.output, !args.parts_only)), args.json)
}

pub(super) fn merge(args: MergeArgs) -> Exit {
    let format = match args.format {
        FormatArg::Parquet => MergeFormat::Parquet,
        FormatArg::Jsonl => MergeFormat::Jsonl,
    };
    let bytes = args.file_size.as_u64();
    let merged = Storage::new().map_err(RunError::from);
    let merged = merged.and_then(|s| pipeline::merge(&s, &args.output, &args.to, format, bytes));
    if let Ok((_, files)) = &merged {
        terminal::say(&format!("{files} files in {}", args.to));
    }
    told(merged.map(|(verification, _)| verification), args.json)
}

fn told(result: Result<Verification, RunError>, json: bool) -> Exit {
    let found = match result {
        Ok(found) => found,
        Err(error) => {
            terminal::report(&error, error.hint());
            return Exit::Error;
        }
    };
    let text = match json {
        true => serde_json::to_string_pretty(&found).expect("it has text keys only"),
        false => terminal::escaped(described(&found)),
    };
    terminal::data(&text);
    if found.sound { Exit::Ok } else { Exit::Error }
}

fn described(found: &Verification) -> String {
    let Verification { objects, rows, parts, samples, failed_rows, missing_rows, .. } = found;
    let mut lines = vec![
        format!("input    {rows} rows in {objects} objects"),
        format!("parts    {parts} sound, {samples} output rows, {failed_rows} input rows failed"),
        format!("missing  {missing_rows} rows"),
    ];
    lines.extend(found.problems.iter().map(|problem| format!("problem  {problem}")));
    let more = found.problem_count - found.problems.len() as u64;
    if more > 0 {
        lines.push(format!("         and {more} more"));
    }
    let verdict = if found.sound { "every row has exactly one outcome" } else { "not sound" };
    lines.push(format!("verdict  {verdict}"));
    lines.join("\n")
}
