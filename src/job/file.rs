//! The job file as it is written: every key with its default. Doc comments are the schema's texts.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::BatchSpec;
use super::eval_section::EvalSection;
use super::setting::Setting;

/// A nightshift job. Relative paths are relative to the job file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "nightshift job")]
pub(super) struct JobFile {
    /// The model.
    pub(super) model: ModelSection,
    /// What computes.
    pub(super) devices: DevicesSection,
    /// Where rows come from and which of their columns mean what.
    pub(super) input: InputSection,
    /// How tokens are chosen. Each key may instead name a column: `{ column = "n_out", default = 128 }`.
    pub(super) sampling: SamplingSection,
    /// How rows are batched: speed only, never a completion.
    pub(super) batch: BatchSection,
    /// How a run begins again and when it gives up; never a completion.
    pub(super) run: RunSection,
    /// Where completions go and what they carry.
    pub(super) output: OutputSection,
    /// How completions are scored, by `nightshift eval`; never a completion.
    pub(super) eval: EvalSection,
}

/// `[model]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ModelSection {
    /// Hugging Face folder: config.json, safetensors, tokenizer.json, tokenizer_config.json. Required.
    pub(super) path: Option<String>,
    /// How weights are held in memory: `f32`, `bf16` or `int8`. BF16 halves the memory of released models
    /// and computes the same. INT8 halves it again and is faster, but rounds: all matrices but
    /// router and embedding are held in 8 bits, and their activations quantised token by token.
    pub(super) dtype: Dtype,
    /// What products with BF16 weights compute with: `f32`, exactly, or `bf16`, which rounds activations
    /// and is faster where the processor has BF16 dot products (AVX512-BF16); other processors refuse it.
    pub(super) compute: Compute,
    /// How the latent cache holds what it keeps: `f32`, as it was computed, or `bf16`, rounded, in half the
    /// memory: twice the tokens fit.
    pub(super) cache_dtype: CacheDtype,
}

/// How weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits.
    Bf16,
    /// 8 bits with scales.
    Int8,
}

/// What products with BF16 weights compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// Activations as they are.
    #[default]
    F32,
    /// Activations rounded to BF16.
    Bf16,
}

/// How the latent cache holds what it keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheDtype {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits.
    Bf16,
}

/// `[devices]`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DevicesSection {
    /// `cpu`, or `cuda` in a build with the feature of that name: one GPU for each rank.
    pub(super) kind: DeviceKind,
    /// Compute threads; 0: all cores.
    pub(super) threads: usize,
    /// Expert-parallel ranks of each stage: each holds a share of the routed experts, and has sequences and
    /// cache of its own. `ranks` × `stages` devices are used.
    pub(super) ranks: usize,
    /// Pipeline stages: each holds a share of the layers.
    pub(super) stages: usize,
}

impl Default for DevicesSection {
    fn default() -> Self {
        Self { kind: DeviceKind::Cpu, threads: 0, ranks: 1, stages: 1 }
    }
}

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DeviceKind {
    Cpu,
    Cuda,
}

/// `[input]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct InputSection {
    /// Files, globs and folders: .jsonl, .jsonl.gz, .jsonl.zst and .parquet, several and mixed. Required.
    pub(super) paths: Vec<String>,
    /// `auto` (by extension), `jsonl` or `parquet`.
    pub(super) format: Format,
    /// Column of conversations: lists of {role, content}, or ShareGPT's {from, value}. Exactly one of
    /// `messages`, `prompt`, `prompt_token_ids` and `template` is given.
    pub(super) messages: Option<String>,
    /// Column of texts to continue.
    pub(super) prompt: Option<String>,
    /// Column of lists of token ids, taken as they are.
    pub(super) prompt_token_ids: Option<String>,
    /// Jinja template over all columns of the row, whose text is continued. Beside them `_file` is the name
    /// of the row's file up to its first dot, and `_folder` that of its folder.
    pub(super) template: Option<String>,
    /// With `template`: makes its text the user's turn of a chat that begins with this system turn.
    pub(super) system: Option<String>,
    /// With `template`: files of worked examples, in the formats of `paths`, that it sees as the list
    /// `examples`, for few-shot prompts.
    pub(super) examples: Vec<String>,
    /// How many examples each row sees, the first ones of their files; 0: all.
    pub(super) shots: usize,
    /// Column in which a row and its examples agree, such as `subject`.
    pub(super) examples_by: Option<String>,
    /// Texts that are scored after the prompt instead of generating, such as `[" A", " B", " C", " D"]`:
    /// each becomes a sample with its log-probabilities. Jinja over all columns if there is a `template`;
    /// empty ones at the end are left out.
    pub(super) continuations: Vec<String>,
    /// Column that identifies rows; by default a row's position does.
    pub(super) id: Option<String>,
    /// Columns that are passed through with their names and types.
    pub(super) keep: Vec<String>,
    /// What happens to prompts longer than the model's context: `fail`, `truncate_left` or
    /// `truncate_right`.
    pub(super) too_long: TooLongChoice,
    /// Takes only so many rows; 0: all.
    pub(super) limit: u64,
}

/// How an input file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    #[default]
    Auto,
    Jsonl,
    Parquet,
}

/// What happens to prompts that are too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TooLongChoice {
    #[default]
    Fail,
    TruncateLeft,
    TruncateRight,
}

/// `[sampling]`
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SamplingSection {
    /// Most tokens to generate, the stopping token included; at least 1. Default 128.
    pub(super) max_tokens: Option<Setting<u32>>,
    /// 0 is greedy. Default 0.
    pub(super) temperature: Option<Setting<f32>>,
    /// Keeps the k most probable tokens; 0 keeps all. Default 0.
    pub(super) top_k: Option<Setting<u32>>,
    /// Keeps the fewest most probable tokens that reach this probability; in (0, 1]. Default 1.
    pub(super) top_p: Option<Setting<f32>>,
    /// Drops tokens less probable than this times the most probable one; 0 to 1. Default 0.
    pub(super) min_p: Option<Setting<f32>>,
    /// Makes tokens of prompt and completion less likely; above 0, 1 changes nothing. Default 1.
    pub(super) repetition_penalty: Option<Setting<f32>>,
    /// Subtracted from the logits of tokens generated before; -2 to 2. Default 0.
    pub(super) presence_penalty: Option<Setting<f32>>,
    /// Subtracted from the logits of generated tokens for each time; -2 to 2. Default 0.
    pub(super) frequency_penalty: Option<Setting<f32>>,
    /// Added to the logits of token ids: `{ "17" = -5.0 }`; each -100 to 100.
    pub(super) logit_bias: Option<Setting<Biases>>,
    /// Strings that end a completion and are cut from it.
    pub(super) stop: Option<Setting<Vec<String>>>,
    /// Leaves the stop string in the completion. Default false.
    pub(super) include_stop: Option<Setting<bool>>,
    /// Token ids that end a completion.
    pub(super) stop_token_ids: Option<Setting<Vec<u32>>>,
    /// Goes on after the end-of-sequence token. Default false.
    pub(super) ignore_eos: Option<Setting<bool>>,
    /// Neither end-of-sequence nor stop before so many tokens. Default 0.
    pub(super) min_tokens: Option<Setting<u32>>,
    /// JSON Schema that completions must satisfy: a table, or JSON text. At most one of `json_schema`,
    /// `regex` and `choice` is given.
    pub(super) json_schema: Option<Setting<SchemaText>>,
    /// Regular expression that whole completions must match.
    pub(super) regex: Option<Setting<String>>,
    /// Texts of which each completion must be one.
    pub(super) choice: Option<Setting<Vec<String>>>,
    /// Completions of each row, 1 to 1024. Default 1.
    pub(super) n: Option<Setting<u32>>,
    /// Seed of the random draws. Default 0.
    pub(super) seed: Option<Setting<u64>>,
}

/// Token ids, as the strings that TOML keys are, with what is added to their logits.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema)]
pub(super) struct Biases(pub(super) BTreeMap<u32, f32>);

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let biases = BTreeMap::<String, f32>::deserialize(deserializer)?;
        let id = |(id, bias): (String, f32)| match id.parse() {
            Ok(id) => Ok((id, bias)),
            Err(_) => Err(D::Error::custom(format!("`{id}` is no token id"))),
        };
        biases.into_iter().map(id).collect::<Result<_, _>>().map(Self)
    }
}

/// A JSON Schema as JSON text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SchemaText(pub(super) String);

impl<'de> Deserialize<'de> for SchemaText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text,
            table => table.to_string(),
        }))
    }
}

impl JsonSchema for SchemaText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SchemaText".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "object"] })
    }
}

/// `[batch]`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct BatchSection {
    /// Most running sequences.
    pub(super) max_sequences: usize,
    /// Most tokens of a step, prompt chunks and decoded tokens together.
    pub(super) max_step_tokens: usize,
    /// Memory of the latent cache: bytes (`"2GiB"`, `536870912`), or `"auto"`: a quarter of free memory,
    /// but no more than the batch can use.
    pub(super) cache: CacheChoice,
    /// Rows that are read ahead and ordered together.
    pub(super) window_rows: u64,
    /// Computes shared beginnings of prompts once.
    pub(super) share_prefixes: bool,
}

impl Default for BatchSection {
    fn default() -> Self {
        let BatchSpec { max_sequences, max_step_tokens, window_rows, share_prefixes, .. } =
            BatchSpec::default();
        let cache = CacheChoice::default();
        Self { max_sequences, max_step_tokens, cache, window_rows, share_prefixes }
    }
}

/// A number of bytes with or without unit, or `auto`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct CacheChoice(pub(super) Option<toml::Value>);

impl JsonSchema for CacheChoice {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CacheChoice".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "integer"], "default": "auto" })
    }
}

/// `[run]`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RunSection {
    /// Seconds between two journals of work in flight, from which an interrupted run goes on token by
    /// token; 0: none.
    pub(super) journal_seconds: f64,
    /// Seconds after the first Ctrl-C or SIGTERM in which finished parts are committed and the rest is
    /// journalled; then the run ends at once.
    pub(super) drain_seconds: f64,
    /// Failed rows of one run at which it stops: a count (`100`), or a share of its rows (`"5%"`, looked
    /// at from 100 rows on). Default: never.
    pub(super) max_errors: MaxErrors,
}

impl Default for RunSection {
    fn default() -> Self {
        Self { journal_seconds: 30.0, drain_seconds: 20.0, max_errors: MaxErrors::default() }
    }
}

/// A count, a percentage as text, or nothing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct MaxErrors(pub(super) Option<toml::Value>);

impl JsonSchema for MaxErrors {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "MaxErrors".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "integer", "null"], "default": null })
    }
}

/// `[output]`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct OutputSection {
    /// Folder of this job alone. Required.
    pub(super) path: Option<String>,
    /// Input rows of each part: the unit of committing and resuming.
    pub(super) rows_per_part: u64,
    /// Optional columns: `token_ids`, `logprobs`, `top_logprobs`, `routed_experts`, `messages`, `prompt`.
    pub(super) include: Vec<Extra>,
    /// How many of the most probable tokens `top_logprobs` has; 1 to 100.
    pub(super) top_logprobs: u32,
    /// `zstd`, `snappy`, `gzip`, `lz4` or `none`.
    pub(super) compression: CompressionChoice,
}

impl Default for OutputSection {
    fn default() -> Self {
        Self {
            path: None,
            rows_per_part: 1000,
            include: Vec::new(),
            top_logprobs: 0,
            compression: CompressionChoice::Zstd,
        }
    }
}

/// An optional output column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Extra {
    TokenIds,
    Logprobs,
    TopLogprobs,
    RoutedExperts,
    Messages,
    Prompt,
}

/// How parts are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CompressionChoice {
    Zstd,
    Snappy,
    Gzip,
    Lz4,
    None,
}
