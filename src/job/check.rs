//! A job file that parses → a job that can run: required keys, ranges, contradictions, all at once.

use std::path::Path;
use std::time::Duration;

use super::error::Problem;
use super::eval::eval_spec;
use super::file::{
    BatchSection, Biases, CacheDtype, CompressionChoice, Compute, DeviceKind, DevicesSection,
    Dtype, Extra, Format, InputSection, JobFile, ModelSection, OutputSection, RunSection,
    SamplingSection, SchemaText, TooLongChoice,
};
use super::identity::identity;
use super::report::Report;
use super::setting::Setting;
use super::{BatchSpec, ErrorBudget, ExamplesSpec, Job, RunSpec};
use crate::input::{DEFAULT_MAX_LINE_BYTES, FormatChoice, InputSpec, PromptColumns};
use crate::ops;
use crate::output::{Compression, Include, OutputSpec};
use crate::parallel::Topology;
use crate::prompt::{PromptSpec, TooLong};
use crate::sampling::{MAX_SAMPLES, SamplingSpec};

/// Most ranks of a stage, and most stages.
const MAX_RANKS: usize = 1024;
/// Most alternatives of each position.
const MAX_TOP_LOGPROBS: u32 = 100;

/// Checks a parsed file; `problems` has what the parser found.
pub(super) fn check(
    file: JobFile,
    name: String,
    base: &Path,
    text: &str,
    problems: Vec<Problem>,
) -> Result<Job, Vec<Problem>> {
    let mut report = Report::new(text, problems);
    let JobFile { model, devices, input, sampling, batch, run, output, eval } = file;
    let model_path = report.required("model.path", model.path.clone());
    let output_path = report.required("output.path", output.path.clone());
    report.expect(
        !input.paths.is_empty(),
        "input.paths",
        "is missing: at least one file, glob or folder",
    );
    let (columns, template) = prompt_columns(&input, &mut report);
    report.expect(
        input.system.is_none() || template.is_some(),
        "input.system",
        "needs `input.template`",
    );
    let examples = examples(&input, &mut report);
    let device = device(&devices, &model, &mut report);
    let sampling = sampling_spec(sampling);
    for problem in sampling.defaults().problems() {
        report.problem("sampling", problem);
    }
    check_continuations(&input, &sampling, &mut report);
    check_batch(&batch, &output, &mut report);
    let cache_bytes = cache_bytes(batch.cache.0, &mut report);
    let run = run_spec(run, &mut report);
    let mut include = include(&output, &mut report);
    // What was scored is of no use without its scores.
    include.logprobs |= !input.continuations.is_empty();
    let eval = eval_spec(eval, (&input, &sampling, include), &mut report);
    report.finish()?;
    let identity = identity(&model, devices.kind, &input, (&sampling, &output));
    Ok(Job {
        name,
        base: base.into(),
        model_path,
        dtype: model.dtype,
        compute: model.compute,
        cache_dtype: model.cache_dtype,
        device,
        threads: devices.threads,
        topology: Topology { stages: devices.stages, ranks_per_stage: devices.ranks },
        prompt: PromptSpec {
            template,
            system: input.system,
            continuations: input.continuations,
            too_long: input.too_long.into(),
            draw_by_id: input.id.is_some(),
        },
        examples,
        input: InputSpec {
            base: base.into(),
            paths: input.paths,
            format: input.format.into(),
            prompt: columns,
            id: input.id,
            keep: input.keep,
            limit: input.limit,
            sampling,
            max_line_bytes: DEFAULT_MAX_LINE_BYTES,
        },
        batch: BatchSpec {
            max_sequences: batch.max_sequences,
            max_step_tokens: batch.max_step_tokens,
            cache_bytes,
            window_rows: batch.window_rows,
            share_prefixes: batch.share_prefixes,
        },
        run,
        output_path,
        rows_per_part: output.rows_per_part,
        output: OutputSpec { include, compression: output.compression.into() },
        top_logprobs: output.top_logprobs,
        eval,
        identity,
    })
}

/// The kind of device, checked with what depends on it.
fn device(devices: &DevicesSection, model: &ModelSection, report: &mut Report) -> ops::DeviceKind {
    for (key, count) in [("devices.ranks", devices.ranks), ("devices.stages", devices.stages)] {
        report.expect((1..=MAX_RANKS).contains(&count), key, "expected 1 to 1024");
    }
    let device = ops::DeviceKind::from(devices.kind);
    if !device.is_built() {
        let error = ops::DeviceError::NotBuilt;
        report.problem("devices.kind", format!("{error}; {}", error.hint()));
    }
    match device {
        ops::DeviceKind::Cpu => check_compute(model.dtype, model.compute, report),
        ops::DeviceKind::Cuda => {
            check_cuda((model.dtype, model.compute, model.cache_dtype), report);
        }
    }
    device
}

fn check_batch(batch: &BatchSection, output: &OutputSection, report: &mut Report) {
    report.expect(batch.max_sequences >= 1, "batch.max_sequences", "is 0, expected at least 1");
    report.expect(batch.max_step_tokens >= 1, "batch.max_step_tokens", "is 0, expected at least 1");
    report.expect(batch.window_rows >= 1, "batch.window_rows", "is 0, expected at least 1");
    report.expect(
        (1..=1 << 32).contains(&output.rows_per_part),
        "output.rows_per_part",
        "expected 1 to 4294967296",
    );
}

fn check_compute(dtype: Dtype, compute: Compute, report: &mut Report) {
    report.expect(
        ops::Compute::from(compute).is_available(),
        "model.compute",
        "this processor has no BF16 dot products (AVX512-BF16), and no other has their rounding; use \"f32\"",
    );
    report.expect(
        compute == Compute::F32 || dtype != Dtype::F32,
        "model.compute",
        "`bf16` needs weights that are held so: set `model.dtype` to \"bf16\" or \"int8\"",
    );
}

/// What CUDA has no kernels for.
fn check_cuda((dtype, compute, cache): (Dtype, Compute, CacheDtype), report: &mut Report) {
    report.expect(
        dtype != Dtype::Int8,
        "model.dtype",
        "CUDA has no kernels for INT8 weights; use \"bf16\" or \"f32\"",
    );
    report.expect(
        compute == Compute::F32,
        "model.compute",
        "chooses among the CPU's products; on CUDA activations are rounded to the weights' dtype: leave it out",
    );
    let (same, like_weights) = match dtype {
        Dtype::F32 => {
            (CacheDtype::F32, "CUDA's kernels take F32 latents with F32 weights; use \"f32\"")
        }
        _ => (CacheDtype::Bf16, "CUDA's kernels take BF16 latents with BF16 weights; use \"bf16\""),
    };
    report.expect(cache == same, "model.cache_dtype", like_weights);
}

impl From<CompressionChoice> for Compression {
    fn from(choice: CompressionChoice) -> Self {
        match choice {
            CompressionChoice::Zstd => Self::Zstd,
            CompressionChoice::Snappy => Self::Snappy,
            CompressionChoice::Gzip => Self::Gzip,
            CompressionChoice::Lz4 => Self::Lz4,
            CompressionChoice::None => Self::None,
        }
    }
}

impl From<TooLongChoice> for TooLong {
    fn from(choice: TooLongChoice) -> Self {
        match choice {
            TooLongChoice::Fail => Self::Fail,
            TooLongChoice::TruncateLeft => Self::TruncateLeft,
            TooLongChoice::TruncateRight => Self::TruncateRight,
        }
    }
}

impl From<Format> for FormatChoice {
    fn from(format: Format) -> Self {
        match format {
            Format::Auto => Self::Auto,
            Format::Jsonl => Self::Jsonl,
            Format::Parquet => Self::Parquet,
        }
    }
}

impl From<DeviceKind> for ops::DeviceKind {
    fn from(kind: DeviceKind) -> Self {
        match kind {
            DeviceKind::Cpu => Self::Cpu,
            DeviceKind::Cuda => Self::Cuda,
        }
    }
}

impl From<Compute> for ops::Compute {
    fn from(compute: Compute) -> Self {
        match compute {
            Compute::F32 => Self::F32,
            Compute::Bf16 => Self::Bf16,
        }
    }
}

impl From<CacheDtype> for ops::CacheFormat {
    fn from(dtype: CacheDtype) -> Self {
        match dtype {
            CacheDtype::F32 => Self::F32,
            CacheDtype::Bf16 => Self::Bf16,
        }
    }
}

fn prompt_columns(input: &InputSection, report: &mut Report) -> (PromptColumns, Option<String>) {
    let InputSection { messages, prompt, prompt_token_ids, template, .. } = input;
    match (messages, prompt, prompt_token_ids, template) {
        (Some(column), None, None, None) => (PromptColumns::Messages(column.clone()), None),
        (None, Some(column), None, None) => (PromptColumns::Text(column.clone()), None),
        (None, None, Some(column), None) => (PromptColumns::TokenIds(column.clone()), None),
        (None, None, None, Some(template)) => (PromptColumns::Template, Some(template.clone())),
        _ => {
            let given =
                [messages, prompt, prompt_token_ids, template].into_iter().flatten().count();
            let message = format!(
                "exactly one of `messages`, `prompt`, `prompt_token_ids` and `template` is needed, {given} are given"
            );
            report.problem("input", message);
            (PromptColumns::Template, None)
        }
    }
}

fn examples(input: &InputSection, report: &mut Report) -> Option<ExamplesSpec> {
    let InputSection { examples, shots, examples_by, template, .. } = input;
    let given = !examples.is_empty();
    report.expect(!given || template.is_some(), "input.examples", "needs `input.template`");
    report.expect(given || *shots == 0, "input.shots", "needs `input.examples`");
    report.expect(given || examples_by.is_none(), "input.examples_by", "needs `input.examples`");
    let spec = ExamplesSpec { paths: examples.clone(), shots: *shots, by: examples_by.clone() };
    given.then_some(spec)
}

fn check_continuations(input: &InputSection, sampling: &SamplingSpec, report: &mut Report) {
    if input.continuations.is_empty() {
        return;
    }
    let templated = |text: &String| text.contains("{{") || text.contains("{%");
    let needs_template = input.template.is_none() && input.continuations.iter().any(templated);
    let key = "input.continuations";
    report.expect(!needs_template, key, "are templates only beside `input.template`");
    let n = sampling.n.default == 1 && sampling.n.column.is_none();
    report.expect(n, key, "are the samples of a row: leave `sampling.n` out");
    let constraint =
        [&sampling.json_schema.column, &sampling.regex.column, &sampling.choice.column];
    let free = sampling.defaults().constraint().is_none() && constraint.iter().all(|c| c.is_none());
    report.expect(free, key, "are given, not generated: no constraint can hold for them");
    let count = input.continuations.len() <= MAX_SAMPLES as usize;
    report.expect(count, key, "are more than 1024");
}

fn sampling_spec(section: SamplingSection) -> SamplingSpec {
    fn put<T>(target: &mut crate::sampling::Setting<T>, written: Option<Setting<T>>) {
        if let Some(Setting { column, default }) = written {
            target.column = column;
            if let Some(default) = default {
                target.default = default;
            }
        }
    }
    let mut spec = SamplingSpec::default();
    put(&mut spec.max_tokens, section.max_tokens);
    put(&mut spec.temperature, section.temperature);
    put(&mut spec.top_k, section.top_k);
    put(&mut spec.top_p, section.top_p);
    put(&mut spec.min_p, section.min_p);
    put(&mut spec.repetition_penalty, section.repetition_penalty);
    put(&mut spec.presence_penalty, section.presence_penalty);
    put(&mut spec.frequency_penalty, section.frequency_penalty);
    put(&mut spec.logit_bias, section.logit_bias.map(|written| written.map(|Biases(map)| map)));
    put(&mut spec.stop, section.stop);
    put(&mut spec.include_stop, section.include_stop);
    put(&mut spec.stop_token_ids, section.stop_token_ids);
    put(&mut spec.ignore_eos, section.ignore_eos);
    put(&mut spec.min_tokens, section.min_tokens);
    let json_schema = section.json_schema;
    put(
        &mut spec.json_schema,
        json_schema.map(|written| written.map(|SchemaText(text)| Some(text))),
    );
    put(&mut spec.regex, section.regex.map(|written| written.map(Some)));
    put(&mut spec.choice, section.choice);
    put(&mut spec.n, section.n);
    put(&mut spec.seed, section.seed);
    spec
}

fn cache_bytes(written: Option<toml::Value>, report: &mut Report) -> Option<u64> {
    let bytes = match &written {
        None => return None,
        Some(toml::Value::String(text)) if text == "auto" => return None,
        Some(toml::Value::String(text)) => {
            text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64())
        }
        Some(toml::Value::Integer(bytes)) => u64::try_from(*bytes).ok(),
        Some(_) => None,
    };
    report.expect(
        bytes.is_some_and(|bytes| bytes > 0),
        "batch.cache",
        "expected \"auto\" or bytes such as \"2GiB\"",
    );
    bytes
}

fn run_spec(section: RunSection, report: &mut Report) -> RunSpec {
    let mut seconds = |key: &str, seconds: f64| {
        let duration = Duration::try_from_secs_f64(seconds);
        report.expect(duration.is_ok(), key, "expected seconds, 0 or more");
        duration.unwrap_or_default()
    };
    let journal_every = seconds("run.journal_seconds", section.journal_seconds);
    let drain = seconds("run.drain_seconds", section.drain_seconds);
    let max_errors = match section.max_errors.0 {
        None => None,
        Some(toml::Value::Integer(count)) => u64::try_from(count).ok().map(ErrorBudget::Rows),
        Some(toml::Value::String(text)) => {
            let percent = text.trim().strip_suffix('%').and_then(|text| text.trim().parse().ok());
            let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
            let rows = text.parse().ok().map(ErrorBudget::Rows);
            let budget = percent.map(ErrorBudget::Percent).or(rows);
            let message = "expected a count, or a share such as \"5%\"";
            report.expect(budget.is_some(), "run.max_errors", message);
            budget
        }
        Some(_) => {
            let message = "expected a count, or a share such as \"5%\"";
            report.problem("run.max_errors", message.into());
            None
        }
    };
    let journal_every = Some(journal_every).filter(|every| !every.is_zero());
    RunSpec { journal_every, drain, max_errors }
}

fn include(output: &OutputSection, report: &mut Report) -> Include {
    let has = |extra: Extra| output.include.contains(&extra);
    let top = has(Extra::TopLogprobs);
    let count = output.top_logprobs;
    report.expect(count <= MAX_TOP_LOGPROBS, "output.top_logprobs", "expected at most 100");
    report.expect(
        !top || count > 0,
        "output.top_logprobs",
        "is 0, but `output.include` asks for `top_logprobs`",
    );
    report.expect(
        top || count == 0,
        "output.include",
        "needs `top_logprobs` for `output.top_logprobs` to show",
    );
    Include {
        token_ids: has(Extra::TokenIds),
        logprobs: has(Extra::Logprobs),
        top_logprobs: top,
        routed_experts: has(Extra::RoutedExperts),
        messages: has(Extra::Messages),
        prompt: has(Extra::Prompt),
    }
}
