//! `nightshift run`: the main job.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::display::Display;
use super::exit::Exit;
use super::{JobArgs, LogArgs, summary, terminal};
use crate::job::Job;
use crate::pipeline::{
    self, RunChoice, RunError, Shard, Stop, progress::Progress, report::RunReport,
};
use crate::row::FailureCode;
use crate::storage::Storage;

/// Runs a job, or continues it: generates what its output lacks.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The job file.
    job: PathBuf,
    #[command(flatten)]
    overrides: JobArgs,
    /// Takes only this share of the parts: `0/8` to `7/8`, or `auto` in a Slurm array or a Kubernetes
    /// indexed job.
    #[arg(long, value_name = "I/N")]
    shard: Option<String>,
    /// Removes and does again what was made from input objects that changed or are gone.
    #[arg(long)]
    redo_changed: bool,
    /// Prints the report as JSON to stdout.
    #[arg(long)]
    pub(super) json: bool,
    /// Shows neither progress nor summary.
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    log: LogArgs,
}

/// Does the failed rows of a job again, and puts those that succeed now in their places.
#[derive(Debug, Args)]
pub(super) struct RetryArgs {
    /// Only rows that failed with this code; may be given several times.
    #[arg(long, value_name = "CODE", value_parser = code)]
    code: Vec<FailureCode>,
    #[command(flatten)]
    run: RunArgs,
}

fn code(text: &str) -> Result<FailureCode, String> {
    let known = FailureCode::ALL.iter().find(|code| code.as_str() == text);
    known.copied().ok_or_else(|| {
        let codes: Vec<&str> = FailureCode::ALL.iter().map(|code| code.as_str()).collect();
        format!("expected one of {}", codes.join(", "))
    })
}

pub(super) fn run(args: RunArgs) -> Exit {
    start(args, None)
}

pub(super) fn retry(args: RetryArgs) -> Exit {
    start(args.run, Some(args.code))
}

fn start(args: RunArgs, retry: Option<Vec<FailureCode>>) -> Exit {
    let done = load(&args).and_then(|job| carry_out(&args, &job, retry));
    let Done { report, .. } = match done {
        Ok(done) => done,
        Err(exit) => return exit,
    };
    if args.json {
        terminal::data(
            &serde_json::to_string_pretty(&report).expect("a report has text keys only"),
        );
    }
    match () {
        () if report.interrupted => Exit::Interrupted,
        () if report.rows.failed > 0 || report.rows.failed_before > 0 => Exit::SomeFailed,
        () => Exit::Ok,
    }
}

/// A run that came to its end.
pub(super) struct Done {
    pub(super) report: RunReport,
    /// Requested when the process shall end.
    pub(super) stop: Stop,
}

/// Starts the log and reads the job file.
pub(super) fn load(args: &RunArgs) -> Result<Job, Exit> {
    args.log.start(args.quiet);
    Job::load(&args.job, &args.overrides.overrides()).map_err(|error| {
        terminal::report(&error, error.hint());
        Exit::Usage
    })
}

/// Runs a job and says on stderr what became of it.
pub(super) fn carry_out(
    args: &RunArgs,
    job: &Job,
    retry: Option<Vec<FailureCode>>,
) -> Result<Done, Exit> {
    let shard =
        args.shard.as_deref().map(|text| Shard::parse(text, |name| std::env::var(name).ok()));
    let shard = shard.transpose().map_err(|message| {
        terminal::say(&format!("error: --shard: {message}"));
        Exit::Usage
    })?;
    let choice = RunChoice { shard, redo_changed: args.redo_changed, retry };
    let (progress, stop) = (Progress::default(), Stop::default());
    watch_signals(stop.clone(), job.run.drain);
    let result = std::thread::scope(|scope| {
        let display = Display::start(scope, &progress, args.quiet);
        let storage = Storage::new().map_err(RunError::from);
        let result = storage.and_then(|s| pipeline::run(&s, job, choice, &progress, &stop));
        display.end();
        result
    });
    let report = result.map_err(|error| {
        terminal::report(&error, error.hint());
        Exit::Error
    })?;
    if !args.quiet {
        terminal::say(&summary::of_run(&report));
    }
    Ok(Done { report, stop })
}

/// The first SIGINT or SIGTERM ends the run politely, the second at once, as does the end of the time
/// that the first one has.
fn watch_signals(stop: Stop, drain: Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else {
        tracing::warn!("signals cannot be watched: an interrupt ends the process at once");
        return;
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            signal().await;
            stop.request();
            terminal::say(
                "stopping: finished parts are committed, the rest is journalled; again to stop at once",
            );
            if tokio::time::timeout(drain, signal()).await.is_err() {
                terminal::say("stopping took too long: the run ends without its last journal");
            }
            std::process::exit(Exit::Interrupted as i32);
        });
    });
}

async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}
