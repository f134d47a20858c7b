//! How tokens are chosen: the settings of one row, and the job's settings of which some are columns.

use std::collections::BTreeMap;

/// The sampling settings of one row.
///
/// Probabilities are computed from the logits in this order: repetition, presence and frequency
/// penalties, bias, constraint, temperature, top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Sampling {
    /// Most tokens to generate, the stopping token included; at least 1.
    pub max_tokens: u32,
    /// 0 is greedy: the most probable token, the lowest id on a tie.
    pub temperature: f32,
    /// Keeps the k most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of most probable tokens whose probability reaches this; in (0, 1].
    pub top_p: f32,
    /// Drops tokens less probable than this times the most probable one; in [0, 1].
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens of prompt and completion; above 0.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens generated before; in [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted from the logits of generated tokens, times their count; in [-2, 2].
    pub frequency_penalty: f32,
    /// Added to the logits of these token ids; in [-100, 100].
    pub logit_bias: BTreeMap<u32, f32>,
    /// Strings that end the completion; they are cut from its text.
    pub stop: Vec<String>,
    /// Leaves the stop string in the text.
    pub include_stop: bool,
    /// Token ids that end the completion.
    pub stop_token_ids: Vec<u32>,
    /// Goes on after the end-of-sequence token.
    pub ignore_eos: bool,
    /// No end-of-sequence and no stop before this many tokens.
    pub min_tokens: u32,
    /// JSON Schema, as JSON text, that the completion must satisfy.
    pub json_schema: Option<String>,
    /// Regular expression that the whole completion must match.
    pub regex: Option<String>,
    /// Texts of which the completion must be one; none: anything.
    pub choice: Vec<String>,
    /// Completions of each row; at least 1.
    pub n: u32,
    /// Seed of the random draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            max_tokens: 128,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            stop: Vec::new(),
            include_stop: false,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            min_tokens: 0,
            json_schema: None,
            regex: None,
            choice: Vec::new(),
            n: 1,
            seed: 0,
        }
    }
}

/// What a completion must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Constraint<'a> {
    /// It satisfies this JSON Schema.
    JsonSchema(&'a str),
    /// The whole of it matches this regular expression.
    Regex(&'a str),
    /// It is one of these texts.
    Choice(&'a [String]),
}

/// Most completions one row may ask for.
pub const MAX_SAMPLES: u32 = 1024;

impl Sampling {
    /// What the completion must look like, if anything.
    pub fn constraint(&self) -> Option<Constraint<'_>> {
        let choice = Some(self.choice.as_slice()).filter(|texts| !texts.is_empty());
        let schema = self.json_schema.as_deref().map(Constraint::JsonSchema);
        schema.or(self.regex.as_deref().map(Constraint::Regex)).or(choice.map(Constraint::Choice))
    }

    /// Whether another row with these settings and the same prompt has the same completion, whatever
    /// either row is: both are greedy, and differ at most in what only draws look at.
    pub fn same_greedy(&self, other: &Self) -> bool {
        let plain = |sampling: &Self| Self { seed: 0, n: 1, ..sampling.clone() };
        self.temperature == 0.0 && plain(self) == plain(other)
    }

    /// Every setting that is out of its range, as "`name` is …, expected …".
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut expect = |holds: bool, name: &str, value: &dyn std::fmt::Display, range: &str| {
            if !holds {
                problems.push(format!("`{name}` is {value}, expected {range}"));
            }
        };
        let finite = |value: f32, low: f32, high: f32| value >= low && value <= high;
        expect(self.max_tokens >= 1, "max_tokens", &self.max_tokens, "at least 1");
        expect(finite(self.temperature, 0.0, 100.0), "temperature", &self.temperature, "0 to 100");
        expect(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", &self.top_p, "above 0, at most 1");
        expect(finite(self.min_p, 0.0, 1.0), "min_p", &self.min_p, "0 to 1");
        expect(
            self.repetition_penalty > 0.0 && self.repetition_penalty <= 100.0,
            "repetition_penalty",
            &self.repetition_penalty,
            "above 0, at most 100",
        );
        expect(
            finite(self.presence_penalty, -2.0, 2.0),
            "presence_penalty",
            &self.presence_penalty,
            "-2 to 2",
        );
        expect(
            finite(self.frequency_penalty, -2.0, 2.0),
            "frequency_penalty",
            &self.frequency_penalty,
            "-2 to 2",
        );
        expect(
            self.stop.iter().all(|s| !s.is_empty()),
            "stop",
            &"an empty string",
            "non-empty strings",
        );
        let biased = self.logit_bias.iter().find(|(_, bias)| !finite(**bias, -100.0, 100.0));
        expect(
            biased.is_none(),
            "logit_bias",
            &biased.map_or(0.0, |(_, bias)| *bias),
            "-100 to 100",
        );
        let constraints =
            [self.json_schema.is_some(), self.regex.is_some(), !self.choice.is_empty()];
        let constraints = constraints.into_iter().filter(|given| *given).count();
        expect(
            constraints <= 1,
            "json_schema",
            &"given beside another constraint",
            "one of `json_schema`, `regex` and `choice`",
        );
        expect((1..=MAX_SAMPLES).contains(&self.n), "n", &self.n, "1 to 1024");
        expect(
            self.min_tokens <= self.max_tokens,
            "min_tokens",
            &self.min_tokens,
            "at most `max_tokens`",
        );
        problems
    }
}

/// A job's setting: one value for all rows, or a column with a value for rows that have none.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Setting<T> {
    /// The value of rows without their own: no column named, or the row's value missing or null.
    pub default: T,
    /// The column that holds each row's own value.
    pub column: Option<String>,
}

impl<T> From<T> for Setting<T> {
    fn from(default: T) -> Self {
        Self { default, column: None }
    }
}

macro_rules! sampling_spec {
    ($($name:ident: $type:ty),+ $(,)?) => {
        /// The job's `[sampling]`: each setting a value or a column.
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        pub struct SamplingSpec { $(#[doc = concat!("See [`Sampling::", stringify!($name), "`].")] pub $name: Setting<$type>,)+ }

        impl Default for SamplingSpec {
            fn default() -> Self {
                let Sampling { $($name),+ } = Sampling::default();
                Self { $($name: $name.into()),+ }
            }
        }

        impl SamplingSpec {
            /// The settings of a row without values of its own.
            pub fn defaults(&self) -> Sampling {
                Sampling { $($name: self.$name.default.clone()),+ }
            }

            /// The columns that settings are read from, in the order of the settings.
            pub fn columns(&self) -> Vec<&str> {
                let mut columns = Vec::new();
                $(columns.extend(self.$name.column.as_deref());)+
                columns
            }
        }
    };
}

sampling_spec! {
    max_tokens: u32,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    logit_bias: BTreeMap<u32, f32>,
    stop: Vec<String>,
    include_stop: bool,
    stop_token_ids: Vec<u32>,
    ignore_eos: bool,
    min_tokens: u32,
    json_schema: Option<String>,
    regex: Option<String>,
    choice: Vec<String>,
    n: u32,
    seed: u64,
}
