//! `nightshift eval`: a job run to its end, and scored.

use std::fmt::Write;

use clap::Args;

use super::exit::Exit;
use super::run::{self, Done, RunArgs};
use super::terminal;
use crate::eval::statistics::Estimate;
use crate::eval::{EvalReport, MeasureReport};
use crate::pipeline::{self, RunError};
use crate::storage::Storage;

/// Scores a job by its `[eval]`: runs what its output lacks, then judges every sample. A job that is
/// complete is only scored, as often as you like.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Runs the command of `[eval]` on what the model wrote.
    #[arg(long)]
    allow_commands: bool,
}

pub(super) fn eval(args: EvalArgs) -> Exit {
    scored(&args).unwrap_or_else(|exit| exit)
}

fn scored(args: &EvalArgs) -> Result<Exit, Exit> {
    let EvalArgs { run, allow_commands } = args;
    let job = run::load(run)?;
    let Some(spec) = &job.eval else {
        terminal::say(
            "error: the job has no `[eval]` with a `scorer`\nhint: `nightshift schema job` prints its keys",
        );
        return Err(Exit::Usage);
    };
    let failed = |error: RunError| {
        terminal::report(&error, error.hint());
        Exit::Error
    };
    let storage = Storage::new().map_err(|error| failed(error.into()))?;
    // Hours of generating should not end with a column that is not there.
    pipeline::expect_scorable(&storage, (&job, spec), *allow_commands).map_err(failed)?;
    let Done { report, stop } = run::carry_out(run, &job, None)?;
    if report.interrupted {
        return Err(Exit::Interrupted);
    }
    if !report.complete {
        terminal::say("not complete yet: it is scored when the other shards are done");
        return Ok(Exit::Ok);
    }
    let found = pipeline::evaluate(&storage, (&job, spec), *allow_commands, &stop);
    let report = found.map_err(failed)?.ok_or(Exit::Interrupted)?;
    let text = match run.json {
        true => serde_json::to_string_pretty(&report).expect("a report has text keys only"),
        false => terminal::escaped(described(&report)),
    };
    terminal::data(&text);
    Ok(if report.failed_rows > 0 { Exit::SomeFailed } else { Exit::Ok })
}

/// The tables, as people read them.
fn described(report: &EvalReport) -> String {
    let mut text = String::new();
    for measure in &report.measures {
        table(&mut text, measure, report);
    }
    let EvalReport { rows, samples, failed_rows, unscored_rows, without_answer, .. } = report;
    let _ = writeln!(
        text,
        "scored   {samples} samples of {rows} rows by `{}`; 95 % intervals",
        report.scorer
    );
    for (count, words) in [
        (failed_rows, "rows failed: what was not generated counts as wrong"),
        (unscored_rows, "rows could not be judged, and count as wrong"),
        (without_answer, "samples have no answer, and are wrong"),
    ] {
        if *count > 0 {
            let _ = writeln!(text, "         {count} {words}");
        }
    }
    for (reason, count) in &report.reasons {
        let _ = writeln!(text, "         {count} {reason}");
    }
    let _ = write!(text, "report   {}/eval", report.output);
    text
}

fn table(text: &mut String, measure: &MeasureReport, report: &EvalReport) {
    let width = measure.groups.iter().map(|group| group.group.chars().count()).max().unwrap_or(0);
    let width = width.clamp(8, 40);
    let _ = writeln!(text, "{:<width$} {:>7}  {}", "", "rows", measure.measure);
    let mut line = |name: &str, rows: String, estimate: &Estimate| {
        let Estimate { value, low, high } = estimate;
        let [value, low, high] = [value, low, high].map(|x| x * 100.0);
        let name: String = name.chars().take(width).collect();
        let _ =
            writeln!(text, "{name:<width$} {rows:>7}  {value:>5.1} %  [{low:>5.1}, {high:>5.1}]");
    };
    for group in &measure.groups {
        line(&group.group, group.rows.to_string(), &group.estimate);
    }
    if let Some(estimate) = &measure.macro_ {
        line("macro", measure.groups.len().to_string(), estimate);
    }
    let name = if measure.macro_.is_some() { "micro" } else { "all" };
    line(name, report.rows.to_string(), &measure.micro);
}
