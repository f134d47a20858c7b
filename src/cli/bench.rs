//! `nightshift bench`: how fast a model runs here.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::display::Display;
use super::exit::Exit;
use super::{LogArgs, terminal};
use crate::bench::{BenchReport, BenchSpec, Bound, Machine, Measurement, ModelFacts, Phase};
use crate::job::{Job, JobError, Overrides};
use crate::pipeline::{self, RunError, progress::Progress};
use crate::storage::Storage;

/// Measures how fast a model prefills and decodes on this machine.
///
/// The engine runs over made-up prompts, beside the machine's own limits, which are measured first: f32
/// multiply-adds and reading memory, on all threads. `roofline` is the least time that these limits allow
/// for a measurement's necessary operations and bytes (weights, routed experts that were really used, and
/// cache), divided by the time it took. The rest of the machine should be idle.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Hugging Face folder: a path or URL.
    model: String,
    /// Sequences that decode together; several with commas.
    #[arg(long, value_name = "SEQUENCES", value_delimiter = ',', default_value = "1,8,64,256")]
    batch: Vec<NonZeroUsize>,
    /// Tokens in the cache of each sequence before it decodes; several with commas.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "128")]
    context: Vec<NonZeroUsize>,
    /// Prompt lengths to prefill; several with commas. Each is measured with as many prompts as fill a step.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "512")]
    prompt: Vec<NonZeroUsize>,
    /// Measures nothing else.
    #[arg(long, value_name = "PHASE", value_enum)]
    only: Option<PhaseArg>,
    /// How weights are held, as `model.dtype` of a job.
    #[arg(long)]
    dtype: Option<String>,
    /// Compute threads; 0: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Repetitions of each measurement, of which the median counts.
    #[arg(long, value_name = "TIMES", default_value = "5")]
    repetitions: NonZeroUsize,
    /// Sets any key of a job's `[model]`, `[devices]` or `[batch]`, such as `batch.max_step_tokens=512`.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Prints the report as JSON to stdout and the table to stderr, or writes it to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<Option<PathBuf>>,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum PhaseArg {
    /// Whole prompts, to their first tokens.
    Prefill,
    /// Steps of one token for each sequence.
    Decode,
}

impl BenchArgs {
    fn job(&self) -> Result<Job, JobError> {
        let mut set = self.set.clone();
        set.extend(self.dtype.iter().map(|dtype| format!("model.dtype={dtype}")));
        set.extend(self.threads.iter().map(|threads| format!("devices.threads={threads}")));
        let overrides = Overrides { set, ..Overrides::default() };
        Job::of_model(&self.model, &overrides).map_err(|problems| JobError::Options { problems })
    }

    fn spec(&self, job: &Job) -> BenchSpec {
        let sizes = |sizes: &[NonZeroUsize], phase| match self.only.is_none_or(|o| o == phase) {
            true => sizes.iter().map(|size| size.get()).collect(),
            false => Vec::new(),
        };
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        BenchSpec {
            threads: if job.threads == 0 { cores() } else { job.threads },
            max_step_tokens: job.batch.max_step_tokens,
            prompts: sizes(&self.prompt, PhaseArg::Prefill),
            batches: sizes(&self.batch, PhaseArg::Decode),
            contexts: sizes(&self.context, PhaseArg::Decode),
            repetitions: self.repetitions.get(),
        }
    }
}

pub(super) fn bench(args: BenchArgs) -> Exit {
    args.log.start(false);
    let job = match args.job() {
        Ok(job) => job,
        Err(error) => {
            terminal::report(&error, error.hint());
            return Exit::Usage;
        }
    };
    let spec = args.spec(&job);
    let say = if matches!(args.json, Some(None)) { terminal::say } else { terminal::data };
    match measure(&job, &spec, say) {
        Ok(report) => write(&report, args.json.as_ref()),
        Err(error) => {
            terminal::report(&error, error.hint());
            Exit::Error
        }
    }
}

fn measure(job: &Job, spec: &BenchSpec, say: fn(&str)) -> Result<BenchReport, RunError> {
    let progress = Progress::default();
    std::thread::scope(|scope| {
        let mut display = Some(Display::start(scope, &progress, false));
        let mut told = |report: &BenchReport| {
            // The bar of loading is gone before the table begins.
            display.take().into_iter().for_each(Display::end);
            say(&match report.measurements.last() {
                None => heading(report),
                Some(last) => row(last),
            });
        };
        let storage = Storage::new().map_err(RunError::from);
        let report = storage.and_then(|s| pipeline::bench(&s, job, spec, &progress, &mut told));
        display.into_iter().for_each(Display::end);
        report
    })
}

fn write(report: &BenchReport, json: Option<&Option<PathBuf>>) -> Exit {
    let Some(target) = json else { return Exit::Ok };
    let text = serde_json::to_string_pretty(report).expect("a report has text keys only");
    let Some(path) = target else {
        terminal::data(&text);
        return Exit::Ok;
    };
    match std::fs::write(path, text + "\n") {
        Ok(()) => Exit::Ok,
        Err(error) => {
            terminal::say(&format!("error: cannot write `{}`: {error}", Path::display(path)));
            Exit::Error
        }
    }
}

fn heading(report: &BenchReport) -> String {
    let Machine { threads, isa, fma_gflops, read_gbps } = &report.machine;
    let ModelFacts { parameters, weight_bytes, cache_bytes_per_token } = report.model;
    let (millions, mebibytes) = (parameters as f64 / 1e6, weight_bytes as f64 / f64::from(1 << 20));
    format!(
        "machine  {threads} threads, {isa}: {fma_gflops:.0} GFLOP/s f32, {read_gbps:.1} GB/s read\n\
         model    {millions:.1} M parameters, {mebibytes:.0} MiB of weights, {cache_bytes_per_token} bytes of cache a token\n\
         \n\
         {:<8} {:>9} {:>8} {:>10} {:>9} {:>9} {:>7} {:>8} {:>9}",
        "", "sequences", "context", "tokens/s", "ms", "GFLOP/s", "GB/s", "experts", "roofline"
    )
}

fn row(measured: &Measurement) -> String {
    let Measurement { phase, sequences, context, tokens_per_second, seconds, .. } = measured;
    let Measurement { gflops, gbps, experts, roofline, bound, .. } = measured;
    let phase = match phase {
        Phase::Prefill => "prefill",
        Phase::Decode => "decode",
    };
    let bound = match bound {
        Bound::Compute => "compute",
        Bound::Memory => "memory",
    };
    let (ms, percent) = (seconds * 1e3, roofline * 100.0);
    format!(
        "{phase:<8} {sequences:>9} {context:>8.0} {tokens_per_second:>10.1} {ms:>9.2} {gflops:>9.1} {gbps:>7.2} {experts:>8.1} {percent:>7.1} % of {bound}"
    )
}
