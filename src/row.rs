//! One row at each station of its road: read, encoded, generated, completed. Plain data that every
//! higher room hands on by value; nothing here does any work.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sampling::Sampling;

/// A partition's number within one run: its place in the list of all partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId(pub u32);

/// Where a row belongs: the partition it was read with and its offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowRef {
    /// The partition the row was read with.
    pub partition: PartitionId,
    /// 0-based offset from the partition's first row.
    pub offset: u32,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The turn's text.
    pub content: String,
}

/// What a row asks for, in the form its columns gave it.
#[derive(Clone, Debug, PartialEq)]
pub enum PromptSource {
    /// A conversation, to be rendered by the model's chat template.
    Messages(Vec<Message>),
    /// A text to be continued.
    Text(String),
    /// Token ids, taken as they are.
    TokenIds(Vec<u32>),
    /// All columns of the row, for the job's own template.
    Columns(serde_json::Map<String, serde_json::Value>),
}

/// A row as read: station 4.
#[derive(Clone, Debug)]
pub struct PromptRow {
    /// Its partition and offset.
    pub row: RowRef,
    /// 0-based position in its input object.
    pub row_index: u64,
    /// The `id` column's value, else the row's position as text.
    pub id: String,
    /// Where a person finds it, for messages: "`a.jsonl` line 17 (row 16)".
    pub place: String,
    /// What to generate and how, or why that cannot be known.
    pub request: Result<PromptRequest, RowFailure>,
}

/// The readable part of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptRequest {
    /// The prompt in its column's form.
    pub source: PromptSource,
    /// The job's sampling with the row's own values put in.
    pub sampling: Sampling,
}

/// A row ready for the engine: station 5.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Its partition and offset.
    pub row: RowRef,
    /// What the random draws of this row depend on besides seed, sample and position.
    pub draw_key: DrawKey,
    /// Prompt token ids, BOS included where the model wants one; never empty.
    pub tokens: Arc<[u32]>,
    /// How to sample.
    pub sampling: Arc<Sampling>,
    /// Token ids of continuations to be scored. Where there are any they are the row's samples: their
    /// tokens are given, not chosen, and nothing of `sampling` counts.
    pub continuations: Arc<[Vec<u32>]>,
}

impl Prompt {
    /// Samples of the row: its continuations, else as many as its sampling asks for.
    pub fn samples(&self) -> u32 {
        match self.continuations.len() {
            0 => self.sampling.n,
            given => given as u32,
        }
    }
}

/// A hash of what identifies a row (its `id` where one is named, else object name and row index),
/// so that shuffling the input does not change a row's draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DrawKey(pub u64);

/// One sample as the engine leaves it: station 7.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The row it belongs to.
    pub row: RowRef,
    /// 0-based index among the row's `n` samples.
    pub sample_index: u32,
    /// Prompt length in tokens.
    pub prompt_tokens: u32,
    /// Prompt tokens whose latents were already in the cache.
    pub cached_tokens: u32,
    /// Whether another row's answer was taken: an identical greedy request was computed once.
    pub reused: bool,
    /// The tokens, or why there are none.
    pub result: Result<Generated, RowFailure>,
    /// When things happened.
    pub timing: Timing,
}

/// A prompt with what earlier runs generated of its samples.
#[derive(Clone, Debug)]
pub struct Work {
    /// The prompt.
    pub prompt: Prompt,
    /// Samples that need nothing any more.
    pub ended: Vec<u32>,
    /// Samples that go on from where they were.
    pub carried: Vec<Carried>,
}

impl From<Prompt> for Work {
    fn from(prompt: Prompt) -> Self {
        Self { prompt, ended: Vec::new(), carried: Vec::new() }
    }
}

/// What an earlier run generated of one sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Carried {
    /// 0-based index among the row's samples.
    pub sample_index: u32,
    /// Prompt length in tokens.
    pub prompt_tokens: u32,
    /// Prompt tokens whose latents were already in the cache.
    pub cached_tokens: u32,
    /// Whether another row's answer was taken.
    pub reused: bool,
    /// The tokens so far; `stop` means something only if it ended.
    pub generated: Generated,
    /// Whether the sample ended.
    pub ended: bool,
    /// When things happened, if it ended.
    pub timing: Timing,
}

/// The tokens of one sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Generated {
    /// Generated ids, the stopping token included.
    pub token_ids: Vec<u32>,
    /// Natural-log probability of each id under the model's own distribution (before temperature,
    /// penalties and truncation); empty unless asked for.
    pub logprobs: Vec<f32>,
    /// The most probable ids of each position, best first; empty unless asked for.
    pub top_logprobs: Vec<Vec<TokenLogprob>>,
    /// For each id the routed experts of the position that chose it: those of each mixture layer, one
    /// layer after the other, ascending; empty unless asked for.
    pub routed_experts: Vec<Vec<u16>>,
    /// Why it ended.
    pub stop: StopReason,
}

/// A token id with its natural-log probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token.
    pub token_id: u32,
    /// Its natural-log probability.
    pub logprob: f32,
}

/// Why a sample ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// The model's end-of-sequence token.
    Eos,
    /// One of the sampling's stop strings; the completion's text ends at byte `text_end`, before the
    /// string or, if asked, behind it.
    StopString {
        /// The string that was met.
        stop: String,
        /// Bytes of text that are the completion's.
        text_end: usize,
    },
    /// One of the sampling's stop token ids.
    StopToken(u32),
    /// `max_tokens` were generated.
    #[default]
    MaxTokens,
    /// The model's context is full.
    Context,
    /// The constraint is met and allows no further token.
    Constraint,
    /// The tokens were given, to be scored.
    Given,
}

impl StopReason {
    /// The `finish_reason` column: `stop` or `length`.
    pub fn finish_reason(&self) -> &'static str {
        match self {
            Self::Eos
            | Self::StopString { .. }
            | Self::StopToken(_)
            | Self::Constraint
            | Self::Given => "stop",
            Self::MaxTokens | Self::Context => "length",
        }
    }

    /// The `stop_reason` column: `eos`, the stop string, the stop token id, `max_tokens`, `context`,
    /// `constraint` or `given`.
    pub fn stop_reason(&self) -> String {
        match self {
            Self::Eos => "eos".into(),
            Self::StopString { stop, .. } => stop.clone(),
            Self::StopToken(id) => id.to_string(),
            Self::MaxTokens => "max_tokens".into(),
            Self::Context => "context".into(),
            Self::Constraint => "constraint".into(),
            Self::Given => "given".into(),
        }
    }
}

/// Durations of one sample, from the monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// From entering the engine's queue to admission to the running batch.
    pub queue: Duration,
    /// From admission to the first generated token; none if there was no token.
    pub ttft: Option<Duration>,
    /// From the first generated token to the last; none below two tokens.
    pub decode: Option<Duration>,
    /// From entering the queue to the end.
    pub total: Duration,
    /// Mean running sequences over this sample's steps.
    pub mean_batch: f32,
}

/// One sample with its text: station 8, one output row.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The sample as generated.
    pub generation: Generation,
    /// Its text; empty where the sample failed.
    pub text: String,
}

/// Why a row has no completion. It is data: it goes to the output beside its neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowFailure {
    /// The stable code.
    pub code: FailureCode,
    /// What is wrong, where (object and row, line for JSONL) and, if it helps, how to fix it.
    pub message: String,
}

impl RowFailure {
    /// Makes a failure from its code and message.
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

macro_rules! failure_codes {
    ($($(#[doc = $doc:literal])+ $variant:ident => $code:literal,)+) => {
        /// The closed list of row failures.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum FailureCode { $($(#[doc = $doc])+ $variant,)+ }

        impl FailureCode {
            /// Every code, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The `error_code` column's value.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code),+ }
            }

            /// What the code means, for documentation.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii()),+ }
            }
        }
    };
}

failure_codes! {
    /// The line is not a JSON object (lone surrogates and trailing text included).
    MalformedJson => "malformed_json",
    /// The line is not UTF-8.
    InvalidUtf8 => "invalid_utf8",
    /// The line is longer than the limit.
    LineTooLong => "line_too_long",
    /// The row has no such field.
    MissingColumn => "missing_column",
    /// The field is null.
    NullValue => "null_value",
    /// The field has another type than the job needs.
    WrongType => "wrong_type",
    /// The prompt is empty.
    EmptyPrompt => "empty_prompt",
    /// The message list is empty.
    EmptyMessages => "empty_messages",
    /// A message's role is none of `system`, `user` and `assistant`.
    UnknownRole => "unknown_role",
    /// A template could not be rendered for this row.
    TemplateFailed => "template_failed",
    /// A sampling value is out of its range.
    InvalidSampling => "invalid_sampling",
    /// A prompt token id is outside of the vocabulary.
    InvalidTokenId => "invalid_token_id",
    /// The prompt is longer than the model's context or the cache allows.
    PromptTooLong => "prompt_too_long",
    /// The constraint cannot be used: no JSON Schema, no regular expression.
    InvalidConstraint => "invalid_constraint",
    /// The completion ended before it met its constraint, or nothing could meet it.
    ConstraintUnmet => "constraint_unmet",
    /// The model's output for this row was not a number.
    Numerics => "numerics",
    /// The engine failed on this row.
    Engine => "engine",
}
