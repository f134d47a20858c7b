//! The only place that knows the order of the stages: a job to its committed parts.
//!
//! ```text
//! read + encode ──prompts──▶ engine ──generations──▶ detokenize + collect + commit
//!       └───────────opened partitions───────────────────────▲
//! ```
//! Two threads beside the engine's; the window bounds what lies between reading and committing.

mod bench;
mod commit;
mod error;
mod evaluate;
mod experts;
mod fetch;
mod generate;
mod memory;
mod merge;
mod niah;
mod percentiles;
pub mod plan;
mod prepare;
pub mod progress;
mod read;
pub mod report;
mod shard;
mod stop;
mod verify;
mod window;

use std::path::Path;
use std::sync::mpsc::{channel, sync_channel};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use candle_core::Device;

use self::commit::Tally;
use self::progress::{Phase, Progress};
use self::read::{Outlets, Task};
use self::report::{Occupancy, Parts, Rows, RunReport, Seconds, ShardReport, Throughput, Tokens};
use self::window::RowWindow;
use crate::engine::{Engine, EngineSpec, EngineStats, Logprobs};
use crate::input::Partition;
use crate::job::Job;
use crate::model::ModelParts;
use crate::ops::{self, DeviceError, DeviceKind};
use crate::output::{Output, Status};
use crate::row::FailureCode;
use crate::storage::Storage;

pub use bench::bench;
pub use error::RunError;
pub use evaluate::{EvalError, evaluate, expect_scorable};
pub use merge::{MergeFormat, merge};
pub use niah::{NiahSpec, niah};
pub use prepare::Prepared;
pub use shard::Shard;
pub use stop::Stop;
pub use verify::{Verification, verify};

/// Partitions that are read ahead of the engine, beside those that it holds.
const PARTITIONS_AHEAD: usize = 2;
/// The part of this machine's free memory that `cache = "auto"` takes at most: one of so many.
const AUTO_CACHE_SHARE: u64 = 4;
/// Of the memory that weights leave on a device, one of so many parts is for activations.
const DEVICE_ACTIVATION_SHARE: u64 = 5;
/// Free memory assumed where the system does not tell.
const UNKNOWN_FREE: u64 = 4 << 30;

/// What one run does of its job.
#[derive(Clone, Debug, Default)]
pub struct RunChoice {
    /// Its share of the parts; none: all.
    pub shard: Option<Shard>,
    /// Does parts again whose input objects changed, instead of refusing to run.
    pub redo_changed: bool,
    /// Does nothing but the rows that failed with one of these codes (none: with any) again.
    pub retry: Option<Vec<FailureCode>>,
}

/// Runs a job: what its output lacks is generated and committed.
pub fn run(
    storage: &Storage,
    job: &Job,
    choice: RunChoice,
    progress: &Progress,
    stop: &Stop,
) -> Result<RunReport, RunError> {
    let (start, began) = (Instant::now(), SystemTime::now());
    let run_id = run_id();
    let prepared = Prepared::new(storage, job, progress)?;
    let output = prepared.open_output(job, choice.redo_changed)?;
    let shard = choice.shard;
    let committed = prepared.committed(&output)?;
    let partitions = prepared.input.partitions();
    let open: Vec<Task> = match &choice.retry {
        Some(codes) => failed(&prepared, &output, &committed, codes)?,
        None => {
            let open = partitions.iter().zip(&committed).filter(|(_, done)| !**done);
            open.map(|(partition, _)| Task { partition, only: None }).collect()
        }
    };
    let (open_parts, open_rows) = (open.len(), open.iter().map(Task::rows).sum());
    let own = |task: &Task| shard.is_none_or(|s| s.has(&prepared.part(task.partition)));
    let pending: Vec<Task> = open.into_iter().filter(own).collect();
    let mut report = planned(job, partitions, open_parts as u64, open_rows);
    report.output = output.root().to_string();
    Progress::add(&progress.rows_total, report.rows.total);
    Progress::add(&progress.rows_before, report.rows.before);
    report.seconds.plan = start.elapsed().as_secs_f64();
    if report.parts.before > 0 {
        tracing::info!(
            parts = report.parts.before,
            of = report.parts.total,
            rows = report.rows.before,
            "continuing: these are committed already"
        );
    }
    let mut too_many_errors = false;
    if !pending.is_empty() && !stop.requested() {
        let mut engine = load(job, &prepared, progress)?;
        report.seconds.load = start.elapsed().as_secs_f64() - report.seconds.plan;
        progress.enter(Phase::Generating);
        let begin = Instant::now();
        let place = (&pending[..], &output, run_id.as_str());
        let replace = choice.retry.is_some();
        let tally = drive(job, &prepared, place, (&mut engine, replace), (progress, stop))?;
        too_many_errors = tally.too_many_errors;
        report.seconds.generate = begin.elapsed().as_secs_f64();
        fill(&mut report, tally, engine.stats());
        report.memory.weight_bytes = engine.weight_bytes();
        report.memory.cache_bytes = engine.cache_bytes();
        report.experts = experts::summary(engine.ledger());
        output.write_experts(&run_id, &experts::loads(engine.ledger()))?;
    }
    progress.enter(Phase::Done);
    report.complete = report.rows.before + report.rows.ok + report.rows.failed == report.rows.total
        && report.parts.before + report.parts.committed + report.parts.found_committed
            == report.parts.total;
    if choice.retry.is_some() {
        report.complete &= committed.iter().all(|done| *done);
    }
    if report.complete && report.parts.before > 0 {
        // Earlier runs' failures decide the exit code too, and only their parts know of them.
        let failed = Status::read(&prepared.storage, output.root())?.rows.failed;
        report.rows.failed_before = failed.saturating_sub(report.rows.failed);
    }
    if report.complete {
        output.tidy(began)?;
    }
    let done = report.parts.committed + report.parts.found_committed;
    report.shard = shard.map(|Shard { index, of }| ShardReport {
        index,
        of,
        parts: pending.len() as u64,
        done,
    });
    report.interrupted = stop.requested() && done < pending.len() as u64;
    report.seconds.total = start.elapsed().as_secs_f64();
    report.memory.peak_bytes = memory::peak_bytes();
    let json = serde_json::to_string_pretty(&report).expect("a report has text keys only");
    output.write_report(&run_id, &json)?;
    if too_many_errors {
        return Err(RunError::TooManyErrors {
            failed: report.rows.failed,
            failures: report.failures,
        });
    }
    Ok(report)
}

fn planned(job: &Job, partitions: &[Partition], open: u64, left: u64) -> RunReport {
    let total: u64 = partitions.iter().map(|partition| partition.rows).sum();
    RunReport {
        parts: Parts {
            total: partitions.len() as u64,
            before: partitions.len() as u64 - open,
            ..Parts::default()
        },
        rows: Rows { total, before: total - left, ..Rows::default() },
        occupancy: Occupancy {
            max_sequences: job.batch.max_sequences as u64,
            ..Occupancy::default()
        },
        ..RunReport::default()
    }
}

/// The rows of committed parts that failed with one of these codes.
fn failed<'a>(
    prepared: &'a Prepared,
    output: &Output,
    committed: &[bool],
    codes: &[FailureCode],
) -> Result<Vec<Task<'a>>, RunError> {
    let mut tasks = Vec::new();
    let there = prepared.input.partitions().iter().zip(committed).filter(|(_, done)| **done);
    for (partition, _) in there.filter(|(partition, _)| partition.rows > 0) {
        let rows = output.failed_rows(&prepared.part(partition), partition.rows, codes)?;
        if !rows.is_empty() {
            tasks.push(Task { partition, only: Some(rows) });
        }
    }
    Ok(tasks)
}

fn load(job: &Job, prepared: &Prepared, progress: &Progress) -> Result<Engine, RunError> {
    let devices = open_devices(job)?;
    plan::refuse_what_does_not_fit(job, &devices, &prepared.config)?;
    let model = load_model(job, &devices, &prepared.model_folder, progress)?;
    let spec = EngineSpec {
        threads: job.threads,
        max_sequences: job.batch.max_sequences,
        max_step_tokens: job.batch.max_step_tokens,
        cache_bytes: job.batch.cache_bytes.unwrap_or_else(|| auto_cache(&model, job, &devices)),
        share_prefixes: job.batch.share_prefixes,
        routed_experts: job.output.include.routed_experts,
        logprobs: Logprobs { chosen: job.output.include.logprobs, top: job.top_logprobs as usize },
    };
    Ok(Engine::new(model, prepared.text.clone(), spec)?)
}

/// A device for each rank; the CPU is one for all.
fn open_devices(job: &Job) -> Result<Vec<Device>, DeviceError> {
    let count = if job.device == DeviceKind::Cpu { 1 } else { job.topology.ranks() };
    (0..count).map(|index| job.device.open(index)).collect()
}

fn load_model(
    job: &Job,
    devices: &[Device],
    folder: &Path,
    progress: &Progress,
) -> Result<ModelParts, RunError> {
    progress.enter(Phase::Loading);
    let numerics = job.numerics();
    Ok(ModelParts::load_on(devices, folder, numerics, job.topology, &|bytes, of| {
        progress.load_bytes.store(bytes, std::sync::atomic::Ordering::Relaxed);
        progress.load_bytes_total.store(of, std::sync::atomic::Ordering::Relaxed);
    })?)
}

fn auto_cache(model: &ModelParts, job: &Job, devices: &[Device]) -> u64 {
    let share = match job.device {
        DeviceKind::Cpu => memory::free_bytes().unwrap_or(UNKNOWN_FREE) / AUTO_CACHE_SHARE,
        DeviceKind::Cuda => {
            // The fullest device decides for all.
            let free = devices.iter().filter_map(ops::free_bytes).min().unwrap_or(UNKNOWN_FREE);
            (free - free / DEVICE_ACTIVATION_SHARE) * devices.len() as u64
        }
    };
    Engine::useful_cache_bytes(model, job.batch.max_sequences).min(share)
}

/// Runs the three threads until the last partition is committed, one fails, or the run shall stop.
fn drive(
    job: &Job,
    prepared: &Prepared,
    (pending, output, run_id): (&[Task<'_>], &Output, &str),
    (engine, replace): (&mut Engine, bool),
    (progress, stop): (&Progress, &Stop),
) -> Result<Tally, RunError> {
    let window = RowWindow::new(job.batch.window_rows);
    let journal = output.read_journals()?;
    if journal.samples() > 0 {
        tracing::info!(samples = journal.samples(), "continuing samples of the journal");
    }
    let (send_work, work) = sync_channel(PARTITIONS_AHEAD);
    // Not bounded itself: the window bounds the rows that can be in it.
    let (send_arrivals, arrivals) = channel();
    std::thread::scope(|scope| {
        let window = &window;
        let outlets = Outlets { work: send_work, arrivals: send_arrivals.clone() };
        let reader = scope.spawn(move || {
            let include = job.output.include;
            read::read(prepared, pending, journal, include, (window, progress), &outlets)
        });
        let committer = scope.spawn(move || {
            let output = (output, run_id);
            let whole = || pending.iter().map(|t| (prepared.part(t.partition), t.partition.rows));
            let rules = (job.run.max_errors, replace.then(|| whole().collect()));
            let text = &prepared.text;
            let watched = (window, progress, stop);
            let result = commit::commit(arrivals, output, text, rules, watched);
            // The reader may wait for room that will not come any more.
            window.close();
            result
        });
        let every = job.run.journal_every;
        let generated = generate::generate(engine, &work, &send_arrivals, every, (progress, stop));
        // The end of these lets the other threads end: the reader first, then the committer.
        window.close();
        drop((work, send_arrivals));
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let committed = committer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let tally = committed?;
        generated?;
        read?;
        Ok(tally)
    })
}

fn fill(report: &mut RunReport, tally: Tally, stats: EngineStats) {
    report.parts.committed = tally.parts;
    report.parts.found_committed = tally.parts_found;
    report.rows.ok = tally.rows_ok;
    report.rows.failed = tally.rows_failed;
    report.failures =
        tally.failures.iter().map(|(code, count)| (code.as_str().to_owned(), *count)).collect();
    report.tokens = Tokens {
        prompt: tally.prompt_tokens,
        cached: tally.cached_tokens,
        completion: tally.completion_tokens,
        recomputed: stats.recomputed_tokens,
        reused_samples: stats.reused_samples,
        carried_samples: tally.restored_samples + stats.carried_samples,
        carried_tokens: stats.carried_tokens,
    };
    report.ttft_ms = tally.ttft.percentiles();
    report.tpot_ms = tally.tpot.percentiles();
    let Seconds { generate, .. } = report.seconds;
    report.throughput = Throughput {
        prefill_tokens_per_second: stats.prefilled_tokens as f64 / generate,
        decode_tokens_per_second: stats.generated_tokens as f64 / generate,
    };
    let mean_running = stats.sequence_steps as f64 / stats.steps.max(1) as f64;
    report.occupancy.steps = stats.steps;
    report.occupancy.mean_running = mean_running;
    report.occupancy.fraction = mean_running / report.occupancy.max_sequences as f64;
    report.occupancy.tail_steps = stats.tail_steps;
    report.occupancy.preemptions = stats.preemptions;
}

/// A name that no other run has: when it began, and which process it was.
fn run_id() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:013}-{}", since.as_millis(), std::process::id())
}
