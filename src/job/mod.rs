//! The job file as written → the job as checked. Nothing further in re-parses or re-checks.

mod check;
mod error;
mod eval;
mod eval_section;
mod file;
mod fingerprint;
mod identity;
mod report;
mod schema;
mod setting;
mod written;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::eval::EvalSpec;
use crate::input::InputSpec;
use crate::ops::{DeviceKind, Held, Numerics};
use crate::output::OutputSpec;
use crate::parallel::Topology;
use crate::prompt::PromptSpec;

pub use error::{JobError, Problem};
pub use file::{CacheDtype, Compute, Dtype};
pub use fingerprint::fingerprint;
pub use schema::{input_row_schema, job_schema};
pub use written::Overrides;

/// A checked job.
#[derive(Clone, Debug)]
pub struct Job {
    /// The job file's name without extension.
    pub name: String,
    /// The folder that relative paths are relative to.
    pub base: PathBuf,
    /// `model.path`.
    pub model_path: String,
    /// How weights are held.
    pub dtype: Dtype,
    /// What products with BF16 weights compute with.
    pub compute: Compute,
    /// How the latent cache holds what it keeps.
    pub cache_dtype: CacheDtype,
    /// What it computes on.
    pub device: DeviceKind,
    /// Compute threads; 0: all cores.
    pub threads: usize,
    /// Over which ranks the model is spread.
    pub topology: Topology,
    /// Where rows come from, sampling included.
    pub input: InputSpec,
    /// How rows become prompts.
    pub prompt: PromptSpec,
    /// The worked examples that prompts show.
    pub examples: Option<ExamplesSpec>,
    /// How rows are batched.
    pub batch: BatchSpec,
    /// How runs begin again and when they give up.
    pub run: RunSpec,
    /// `output.path`.
    pub output_path: String,
    /// Input rows of each part.
    pub rows_per_part: u64,
    /// What parts carry.
    pub output: OutputSpec,
    /// Alternatives of each position that are reported.
    pub top_logprobs: u32,
    /// How completions are scored.
    pub eval: Option<EvalSpec>,
    /// Everything that changes a completion or a part, as resolved.
    pub identity: serde_json::Value,
}

/// Worked examples for few-shot prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExamplesSpec {
    /// Their files, globs and folders.
    pub paths: Vec<String>,
    /// How many each row sees; 0: all.
    pub shots: usize,
    /// The column in which row and examples agree.
    pub by: Option<String>,
}

/// Batching: speed only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSpec {
    /// Most running sequences.
    pub max_sequences: usize,
    /// Most tokens of a step.
    pub max_step_tokens: usize,
    /// Bytes of the latent cache; none: chosen by the machine's memory.
    pub cache_bytes: Option<u64>,
    /// Rows that are read ahead.
    pub window_rows: u64,
    /// Whether shared beginnings are computed once.
    pub share_prefixes: bool,
}

impl Default for BatchSpec {
    fn default() -> Self {
        Self {
            max_sequences: 64,
            max_step_tokens: 2048,
            cache_bytes: None,
            window_rows: 8192,
            share_prefixes: true,
        }
    }
}

/// How runs begin again and when they give up: no completion depends on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunSpec {
    /// Time between two journals; none: no journal.
    pub journal_every: Option<Duration>,
    /// Most time from the first signal to the end.
    pub drain: Duration,
    /// Failed rows at which a run stops.
    pub max_errors: Option<ErrorBudget>,
}

/// How many rows of a run may fail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ErrorBudget {
    /// So many.
    Rows(u64),
    /// So many of a hundred, once a hundred rows have their outcome.
    Percent(f64),
}

impl ErrorBudget {
    /// Whether `failed` of `rows` rows are too many.
    pub fn is_exceeded(self, failed: u64, rows: u64) -> bool {
        match self {
            Self::Rows(most) => failed > most,
            Self::Percent(most) => rows >= 100 && failed as f64 * 100.0 > most * rows as f64,
        }
    }
}

impl Job {
    /// How the model's numbers are held and multiplied.
    pub fn numerics(&self) -> Numerics {
        let held = match self.dtype {
            Dtype::F32 => Held::F32,
            Dtype::Bf16 => Held::Bf16,
            Dtype::Int8 => Held::Int8,
        };
        Numerics { held, compute: self.compute.into(), cache: self.cache_dtype.into() }
    }

    /// Reads and checks a job file.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, JobError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| JobError::Read { path: path.into(), source })?;
        let base =
            path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path
            .file_stem()
            .map_or_else(|| "job".into(), |stem| stem.to_string_lossy().into_owned());
        Self::parse(&text, name, base, overrides)
            .map_err(|problems| JobError::Invalid { path: path.into(), problems })
    }

    /// A model's job without rows, for who wants to know how its model is to be run: `[model]`,
    /// `[devices]` and `[batch]` as the overrides have them.
    pub fn of_model(path: &str, overrides: &Overrides) -> Result<Self, Vec<Problem>> {
        let path = toml::Value::String(path.into());
        let text = format!(
            "[model]\npath = {path}\n[input]\npaths = ['-']\nprompt = '-'\n[output]\npath = '-'\n"
        );
        Self::parse(&text, "model".into(), Path::new(""), overrides)
    }

    /// Checks a job file's text.
    pub fn parse(
        text: &str,
        name: String,
        base: &Path,
        overrides: &Overrides,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let file = written::parse(text, overrides, &mut problems);
        check::check(file, name, base, text, problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str =
        "[model]\npath='m'\n[input]\npaths=['a.jsonl']\nprompt='p'\n[output]\npath='o'\n";

    fn parse(text: &str, set: &[&str]) -> Result<Job, Vec<Problem>> {
        let overrides =
            Overrides { set: set.iter().map(|s| s.to_string()).collect(), ..Overrides::default() };
        Job::parse(text, "job".into(), Path::new("/jobs"), &overrides)
    }

    #[test]
    fn the_least_job_has_the_documented_defaults() {
        let job = parse(LEAST, &[]).unwrap();
        assert_eq!(
            (job.batch.max_sequences, job.batch.window_rows, job.rows_per_part),
            (64, 8192, 1000)
        );
        assert_eq!(job.input.sampling, crate::sampling::SamplingSpec::default());
    }

    #[test]
    fn every_problem_is_reported_at_once_with_the_nearest_key() {
        let text = LEAST.replace("prompt='p'", "prompt='p'\nmessages='m'\nkep=['x']\nlimit='many'");
        let text = text
            + "[sampling]\ntemprature=1\ntop_p=1.5\n[batch]\nmax_sequences=0\ncache='lots'\n[sampler]\n";
        let problems = parse(&text, &["devices.ranks=0"]).unwrap_err();
        let keys: Vec<&str> = problems.iter().map(|p| p.key.as_str()).collect();
        for key in [
            "input.kep",
            "input.limit",
            "sampling.temprature",
            "sampler",
            "input",
            "sampling",
            "batch.max_sequences",
            "batch.cache",
            "devices.ranks",
        ] {
            assert!(keys.contains(&key), "{key} in {problems:#?}");
        }
        let typo = problems.iter().find(|p| p.key == "sampling.temprature").unwrap();
        assert_eq!(typo.hint.as_deref(), Some("did you mean `temperature`?"));
        assert_eq!(typo.line, Some(12));
    }

    #[test]
    fn overrides_replace_any_key() {
        let job = parse(
            LEAST,
            &[
                "batch.max_sequences=8",
                "batch.cache=2GiB",
                "sampling.stop=['x']",
                "model.dtype=bf16",
            ],
        )
        .unwrap();
        assert_eq!(job.batch.max_sequences, 8);
        assert_eq!(job.batch.cache_bytes, Some(2 << 30));
        assert_eq!(job.input.sampling.stop.default, ["x"]);
        assert_eq!(job.dtype, Dtype::Bf16);
    }

    #[test]
    fn speed_is_not_identity_and_sampling_is() {
        let plain = parse(LEAST, &[]).unwrap().identity;
        let fast = parse(
            LEAST,
            &[
                "batch.max_sequences=8",
                "devices.threads=3",
                "devices.ranks=4",
                "devices.stages=2",
                "batch.cache='1GiB'",
            ],
        )
        .unwrap()
        .identity;
        assert_eq!(fingerprint(&plain), fingerprint(&fast));
        for change in [
            "sampling.seed=1",
            "output.rows_per_part=7",
            "input.limit=3",
            "model.dtype='bf16'",
            "model.dtype='int8'",
        ] {
            assert_ne!(
                fingerprint(&plain),
                fingerprint(&parse(LEAST, &[change]).unwrap().identity),
                "{change}"
            );
        }
    }

    #[test]
    fn rounding_activations_is_identity_where_it_is_possible() {
        let exact = parse(LEAST, &["model.dtype=bf16"]).unwrap();
        assert!(exact.identity["model"].get("compute").is_none(), "older outputs keep their name");
        let rounded = parse(LEAST, &["model.dtype=bf16", "model.compute=bf16"]);
        match crate::ops::Compute::Bf16.is_available() {
            true => {
                assert_ne!(fingerprint(&exact.identity), fingerprint(&rounded.unwrap().identity))
            }
            false => assert_eq!(rounded.unwrap_err()[0].key, "model.compute"),
        }
        let wide = parse(LEAST, &["model.compute=bf16"]).unwrap_err();
        assert_eq!(wide[0].key, "model.compute");
    }

    #[test]
    fn cuda_is_identity_and_a_program_without_it_says_how_to_get_it() {
        match (parse(LEAST, &["devices.kind=cuda"]), DeviceKind::Cuda.is_built()) {
            (Ok(job), true) => {
                let cpu = parse(LEAST, &[]).unwrap();
                assert_ne!(fingerprint(&job.identity), fingerprint(&cpu.identity));
            }
            (Err(problems), false) => {
                assert_eq!(problems[0].key, "devices.kind");
                assert!(problems[0].message.contains("--features cuda"), "{}", problems[0].message);
            }
            (found, built) => panic!("built for CUDA: {built}, found {found:?}"),
        }
    }

    #[test]
    fn what_cuda_has_no_kernels_for_is_refused() {
        for (set, key) in [
            (["model.dtype=int8", "model.cache_dtype=bf16"], "model.dtype"),
            (["model.compute=bf16", "model.dtype=f32"], "model.compute"),
            (["model.dtype=bf16", "model.cache_dtype=f32"], "model.cache_dtype"),
            (["model.dtype=f32", "model.cache_dtype=bf16"], "model.cache_dtype"),
        ] {
            let problems = parse(LEAST, &[set[0], set[1], "devices.kind=cuda"]).unwrap_err();
            let mut keys = problems.iter().map(|problem| problem.key.as_str());
            assert!(keys.any(|found| found == key), "{set:?}: {problems:?}");
        }
    }

    #[test]
    fn a_setting_may_be_a_column() {
        let text =
            LEAST.to_owned() + "[sampling]\nmax_tokens = { column = 'n_out', default = 7 }\n";
        let setting = parse(&text, &[]).unwrap().input.sampling.max_tokens;
        assert_eq!((setting.column.as_deref(), setting.default), (Some("n_out"), 7));
    }
}
