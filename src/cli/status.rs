//! `nightshift status`: how far a job is, from its output alone.

use std::path::Path;

use clap::Args;

use super::exit::Exit;
use super::terminal;
use crate::output::Status;
use crate::pipeline::RunError;
use crate::storage::Storage;

/// Shows how far a job is, from its output folder alone.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// The output folder: a path or URL.
    output: String,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn status(args: StatusArgs) -> Exit {
    match read(&args.output) {
        Err(error) => {
            terminal::report(&error, error.hint());
            Exit::Error
        }
        Ok(status) => {
            let text = match args.json {
                true => serde_json::to_string_pretty(&status).expect("a status has text keys only"),
                false => terminal::escaped(described(&status)),
            };
            terminal::data(&text);
            Exit::Ok
        }
    }
}

fn read(output: &str) -> Result<Status, RunError> {
    let storage = Storage::new()?;
    let root = storage.locate(output, Path::new("."))?;
    Ok(Status::read(&storage, &root)?)
}

fn described(status: &Status) -> String {
    let Status { parts, rows, .. } = status;
    let mut lines = vec![
        format!(
            "output  {} ({})",
            status.output,
            if status.complete { "complete" } else { "not complete" }
        ),
        format!("model   {}", status.record.model),
        format!("parts   {} of {}, {} bytes", parts.committed, parts.total, parts.bytes),
        format!("rows    {} ok, {} failed, {} in all", rows.ok, rows.failed, rows.total),
    ];
    lines.extend(status.failures.iter().map(|(code, count)| format!("        {count} {code}")));
    lines.extend(status.damaged.iter().map(|name| format!("damaged {name}")));
    lines.extend(status.unknown.iter().map(|name| format!("unknown {name}")));
    lines.join("\n")
}
