//! `nightshift check`: whether a job would run, without loading weights.

use std::path::PathBuf;

use clap::Args;

use super::exit::Exit;
use super::{JobArgs, terminal};
use crate::job::Job;
use crate::model::Header;
use crate::pipeline::progress::Progress;
use crate::pipeline::{Prepared, RunError};
use crate::storage::Storage;

/// Checks a job without running it: job file, input columns, model header and tokenizer. Shows the first
/// prompts as the model would get them.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The job file.
    job: PathBuf,
    #[command(flatten)]
    overrides: JobArgs,
    /// Prompts to show.
    #[arg(long, default_value_t = 3)]
    show: usize,
}

pub(super) fn check(args: CheckArgs) -> Exit {
    let job = match Job::load(&args.job, &args.overrides.overrides()) {
        Ok(job) => job,
        Err(error) => {
            terminal::report(&error, error.hint());
            return Exit::Usage;
        }
    };
    match look(&job, args.show) {
        Ok(text) => {
            terminal::data(&terminal::escaped(text));
            Exit::Ok
        }
        Err(error) => {
            terminal::report(&error, error.hint());
            Exit::Error
        }
    }
}

fn look(job: &Job, show: usize) -> Result<String, RunError> {
    let prepared = Prepared::new(&Storage::new()?, job, &Progress::default())?;
    let header = Header::read(&prepared.model_folder, &prepared.config)?;
    let mut lines = vec![
        format!("job     {}: fine", job.name),
        format!(
            "model   {} parameters in {} layers, {} tensors, {} bytes of weights, context {}",
            prepared.config.parameters(),
            prepared.config.layers,
            header.tensors,
            header.bytes,
            prepared.config.max_position_embeddings
        ),
    ];
    let partitions = prepared.input.partitions();
    let rows: u64 = partitions.iter().map(|partition| partition.rows).sum();
    lines.push(format!(
        "input   {rows} rows in {} objects, {} parts",
        prepared.input.objects().len(),
        partitions.len()
    ));
    lines.extend(prepared.input.objects().iter().take(20).map(|object| {
        format!("        {}: {} rows, {} bytes", object.name, object.rows, object.size)
    }));
    if let Some(partition) = partitions.iter().find(|partition| partition.rows > 0) {
        let object = &prepared.input.objects()[partition.object as usize].name;
        for row in prepared.input.read(partition)?.rows.into_iter().take(show) {
            let encoded = prepared.encoder.encode(object, row);
            lines.push(format!("row {}", encoded.row_index));
            match encoded.prompt {
                Err(failure) => lines.push(format!(
                    "        fails: {}: {}",
                    failure.code.as_str(),
                    failure.message
                )),
                Ok(prompt) => {
                    let decoded = |ids: &[u32]| prepared.text.decode(ids, false);
                    let text = encoded.prompt_text.unwrap_or_else(|| decoded(&prompt.tokens));
                    lines.push(format!("        {} tokens: {text:?}", prompt.tokens.len()));
                    lines.extend(prompt.continuations.iter().map(|ids| {
                        let text = decoded(ids);
                        format!("        scored: {} tokens: {text:?}", ids.len())
                    }));
                }
            }
        }
    }
    Ok(lines.join("\n"))
}
