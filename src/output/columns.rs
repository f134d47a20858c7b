//! The columns of the output in one table: name, type, meaning, and how each is filled from the rows of
//! a finished partition. Whoever needs the order of columns takes it from here.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, ListArray,
    StringArray, StructArray, UInt16Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Fields};

use super::{FinishedPartition, Include, PartId, RowOutcome};
use crate::row::{Completion, Generated, Generation, RowFailure, TokenLogprob};

/// One column of the output.
pub(super) struct Column {
    /// Its name, which is also its switch in `output.include` if it is optional.
    pub(super) name: &'static str,
    pub(super) data_type: fn() -> DataType,
    pub(super) nullable: bool,
    /// What it depends on.
    pub(super) kind: Kind,
    /// What it means, for documentation.
    pub(super) meaning: &'static str,
    /// Fills it: one value per output row.
    pub(super) values: fn(&[Row<'_>]) -> ArrayRef,
}

/// What a column depends on.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Always there, and the same in every run of a job.
    Content,
    /// Always there; tells how the run went and differs from run to run.
    Measured,
    /// There if asked for, and the same in every run of a job.
    Optional(fn(&Include) -> bool),
}

/// One output row: a sample, or a row that has none.
pub(super) struct Row<'a> {
    part: &'a PartId,
    outcome: &'a RowOutcome,
    sample: Result<&'a Completion, &'a RowFailure>,
    /// The input row's offset in its partition.
    pub(super) offset: u32,
}

/// What an ok row has and a failed one has not.
struct Answer<'a> {
    generation: &'a Generation,
    generated: &'a Generated,
    text: &'a str,
}

/// Gives the output rows of a partition in order: input rows, and the samples of each.
pub(super) fn rows(part: &FinishedPartition) -> impl Iterator<Item = Row<'_>> {
    part.outcomes.iter().zip(0u32..).flat_map(move |(outcome, offset)| {
        let (samples, failure) = match &outcome.result {
            Ok(samples) => (samples.as_slice(), None),
            Err(failure) => ([].as_slice(), Some(Err(failure))),
        };
        let samples = samples.iter().map(Ok).chain(failure);
        samples.map(move |sample| Row { part: &part.id, outcome, sample, offset })
    })
}

impl<'a> Row<'a> {
    fn answer(&self) -> Option<Answer<'a>> {
        let sample = self.sample.ok()?;
        let generated = sample.generation.result.as_ref().ok()?;
        Some(Answer { generation: &sample.generation, generated, text: &sample.text })
    }

    fn generated(&self) -> Option<&'a Generated> {
        self.answer().map(|answer| answer.generated)
    }

    fn failure(&self) -> Option<&'a RowFailure> {
        self.sample.map_or_else(Some, |sample| sample.generation.result.as_ref().err())
    }

    fn prompt_tokens(&self) -> Option<i32> {
        let known = self.sample.ok().map(|sample| sample.generation.prompt_tokens);
        known.filter(|tokens| *tokens > 0).map(int32)
    }

    /// The turns of the conversation, the completion being the last.
    fn turns(&self) -> Option<Vec<(&'a str, &'a str)>> {
        let messages = self.outcome.echo.messages.as_ref()?;
        let asked =
            messages.iter().map(|message| (message.role.as_str(), message.content.as_str()));
        Some(asked.chain(self.answer().map(|answer| ("assistant", answer.text))).collect())
    }

    /// About how many bytes of text it brings to the columns.
    pub(super) fn text_bytes(&self) -> usize {
        let echo = &self.outcome.echo;
        let messages =
            echo.messages.iter().flatten().map(|message| message.content.len()).sum::<usize>();
        messages
            + echo.prompt.as_ref().map_or(0, String::len)
            + self.sample.map_or(0, |sample| sample.text.len())
    }
}

/// Every column, in the order of the output; kept columns follow.
pub(super) const COLUMNS: &[Column] = &[
    Column {
        name: "input",
        data_type: || DataType::Utf8,
        nullable: false,
        kind: Kind::Content,
        meaning: "The input object, as the job names it.",
        values: |rows| strings(rows, |row| Some(row.part.object_name.as_str())),
    },
    Column {
        name: "row_index",
        data_type: || DataType::Int64,
        nullable: false,
        kind: Kind::Content,
        meaning: "The row's 0-based position in its object.",
        values: |rows| {
            let index =
                |row: &Row| i64::try_from(row.outcome.row_index).expect("no object has 2^63 rows");
            Arc::new(Int64Array::from_iter_values(rows.iter().map(index)))
        },
    },
    Column {
        name: "id",
        data_type: || DataType::Utf8,
        nullable: false,
        kind: Kind::Content,
        meaning: "The value of the job's `id` column, else the row's position as text.",
        values: |rows| strings(rows, |row| Some(row.outcome.id.as_str())),
    },
    Column {
        name: "sample_index",
        data_type: || DataType::Int32,
        nullable: false,
        kind: Kind::Content,
        meaning: "0-based number of the sample among the row's `n`; 0 for a row that failed before generation.",
        values: |rows| {
            int32s(rows, |row| {
                Some(int32(row.sample.map_or(0, |sample| sample.generation.sample_index)))
            })
        },
    },
    Column {
        name: "status",
        data_type: || DataType::Utf8,
        nullable: false,
        kind: Kind::Content,
        meaning: "`ok` or `failed`.",
        values: |rows| {
            strings(rows, |row| Some(if row.failure().is_some() { "failed" } else { "ok" }))
        },
    },
    Column {
        name: "completion",
        data_type: || DataType::Utf8,
        nullable: true,
        kind: Kind::Content,
        meaning: "The generated text without the stop that ended it; null if failed.",
        values: |rows| strings(rows, |row| row.answer().map(|answer| answer.text)),
    },
    Column {
        name: "finish_reason",
        data_type: || DataType::Utf8,
        nullable: true,
        kind: Kind::Content,
        meaning: "`stop` or `length`; null if failed.",
        values: |rows| {
            strings(rows, |row| row.answer().map(|answer| answer.generated.stop.finish_reason()))
        },
    },
    Column {
        name: "stop_reason",
        data_type: || DataType::Utf8,
        nullable: true,
        kind: Kind::Content,
        meaning: "`eos`, the stop string, the stop token id, `max_tokens`, `context`, `constraint`, or `given` for a continuation that was scored; null if failed.",
        values: |rows| {
            strings(rows, |row| row.answer().map(|answer| answer.generated.stop.stop_reason()))
        },
    },
    Column {
        name: "error_code",
        data_type: || DataType::Utf8,
        nullable: true,
        kind: Kind::Content,
        meaning: "Why the row failed, one of `error_codes`; null if ok.",
        values: |rows| strings(rows, |row| row.failure().map(|failure| failure.code.as_str())),
    },
    Column {
        name: "error_message",
        data_type: || DataType::Utf8,
        nullable: true,
        kind: Kind::Content,
        meaning: "The same for people, with file and row; null if ok.",
        values: |rows| strings(rows, |row| row.failure().map(|failure| failure.message.as_str())),
    },
    Column {
        name: "prompt_tokens",
        data_type: || DataType::Int32,
        nullable: true,
        kind: Kind::Content,
        meaning: "Tokens of the prompt; null where they are not known.",
        values: |rows| int32s(rows, Row::prompt_tokens),
    },
    Column {
        name: "completion_tokens",
        data_type: || DataType::Int32,
        nullable: true,
        kind: Kind::Content,
        meaning: "Generated tokens, the stopping one included; null if failed.",
        values: |rows| {
            int32s(rows, |row| row.answer().map(|answer| count(&answer.generated.token_ids)))
        },
    },
    Column {
        name: "cached_tokens",
        data_type: || DataType::Int32,
        nullable: true,
        kind: Kind::Measured,
        meaning: "Prompt tokens whose latents were already in the cache; null if failed.",
        values: |rows| {
            int32s(rows, |row| row.answer().map(|answer| int32(answer.generation.cached_tokens)))
        },
    },
    Column {
        name: "reused",
        data_type: || DataType::Boolean,
        nullable: true,
        kind: Kind::Measured,
        meaning: "Whether the answer of an identical greedy request was taken; null if failed.",
        values: |rows| {
            let values = rows.iter().map(|row| row.answer().map(|answer| answer.generation.reused));
            Arc::new(values.collect::<BooleanArray>())
        },
    },
    Column {
        name: "queue_ms",
        data_type: || DataType::Float64,
        nullable: true,
        kind: Kind::Measured,
        meaning: "Milliseconds from entering the queue to admission to the batch; null if failed.",
        values: |rows| milliseconds(rows, |answer| Some(answer.generation.timing.queue)),
    },
    Column {
        name: "ttft_ms",
        data_type: || DataType::Float64,
        nullable: true,
        kind: Kind::Measured,
        meaning: "Milliseconds from admission to the first token; null if failed.",
        values: |rows| milliseconds(rows, |answer| answer.generation.timing.ttft),
    },
    Column {
        name: "tpot_ms",
        data_type: || DataType::Float64,
        nullable: true,
        kind: Kind::Measured,
        meaning: "Mean milliseconds between tokens after the first; null if failed or below two tokens.",
        values: |rows| milliseconds(rows, time_per_token),
    },
    Column {
        name: "total_ms",
        data_type: || DataType::Float64,
        nullable: true,
        kind: Kind::Measured,
        meaning: "Milliseconds from entering the queue to the end; null if failed.",
        values: |rows| milliseconds(rows, |answer| Some(answer.generation.timing.total)),
    },
    Column {
        name: "mean_batch",
        data_type: || DataType::Float32,
        nullable: true,
        kind: Kind::Measured,
        meaning: "Mean running sequences over the sample's steps; null if failed.",
        values: |rows| {
            let values = rows
                .iter()
                .map(|row| row.answer().map(|answer| answer.generation.timing.mean_batch));
            Arc::new(values.collect::<Float32Array>())
        },
    },
    Column {
        name: "token_ids",
        data_type: || DataType::List(element(DataType::Int32)),
        nullable: true,
        kind: Kind::Optional(|include| include.token_ids),
        meaning: "The generated token ids, the stopping one included; null if failed.",
        values: |rows| {
            lists(
                rows,
                |row| row.generated().map(|generated| generated.token_ids.as_slice()),
                |ids| Arc::new(Int32Array::from_iter_values(ids.map(|id| int32(*id)))),
            )
        },
    },
    Column {
        name: "logprobs",
        data_type: || DataType::List(element(DataType::Float32)),
        nullable: true,
        kind: Kind::Optional(|include| include.logprobs),
        meaning: "Natural-log probability of each of `token_ids` before temperature and penalties; null if failed.",
        values: |rows| {
            lists(
                rows,
                |row| row.generated().map(|generated| generated.logprobs.as_slice()),
                |values| Arc::new(Float32Array::from_iter_values(values.copied())),
            )
        },
    },
    Column {
        name: "top_logprobs",
        data_type: || {
            DataType::List(element(DataType::List(element(DataType::Struct(
                token_logprob_fields(),
            )))))
        },
        nullable: true,
        kind: Kind::Optional(|include| include.top_logprobs),
        meaning: "The most probable tokens of each position, best first; null if failed.",
        values: |rows| {
            lists(
                rows,
                |row| row.generated().map(|generated| generated.top_logprobs.as_slice()),
                |positions| {
                    let positions: Vec<&Vec<TokenLogprob>> = positions.collect();
                    lists(
                        &positions,
                        |position| Some(position.as_slice()),
                        |tokens| token_logprobs(tokens.copied()),
                    )
                },
            )
        },
    },
    Column {
        name: "routed_experts",
        data_type: || DataType::List(element(DataType::List(element(DataType::UInt16)))),
        nullable: true,
        kind: Kind::Optional(|include| include.routed_experts),
        meaning: "For each of `token_ids` the experts of the position that chose it, ascending, layer after layer; null if failed.",
        values: |rows| {
            lists(
                rows,
                |row| row.generated().map(|generated| generated.routed_experts.as_slice()),
                |positions| {
                    let positions: Vec<&Vec<u16>> = positions.collect();
                    lists(
                        &positions,
                        |position| Some(position.as_slice()),
                        |experts| Arc::new(UInt16Array::from_iter_values(experts.copied())),
                    )
                },
            )
        },
    },
    Column {
        name: "messages",
        data_type: || DataType::List(element(DataType::Struct(message_fields()))),
        nullable: true,
        kind: Kind::Optional(|include| include.messages),
        meaning: "The conversation with, if ok, the completion as its last turn; null if the prompt is none.",
        values: |rows| {
            let turns: Vec<Option<Vec<(&str, &str)>>> = rows.iter().map(Row::turns).collect();
            lists(&turns, |turns| turns.as_deref(), |turns| messages(turns.copied()))
        },
    },
    Column {
        name: "prompt",
        data_type: || DataType::Utf8,
        nullable: true,
        kind: Kind::Optional(|include| include.prompt),
        meaning: "The prompt's text as the model saw it; null where there is none.",
        values: |rows| strings(rows, |row| row.outcome.echo.prompt.as_deref()),
    },
];

fn element(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("element", data_type, false))
}

fn token_logprob_fields() -> Fields {
    Fields::from(vec![
        Field::new("token_id", DataType::Int32, false),
        Field::new("logprob", DataType::Float32, false),
    ])
}

fn message_fields() -> Fields {
    Fields::from(vec![
        Field::new("role", DataType::Utf8, false),
        Field::new("content", DataType::Utf8, false),
    ])
}

fn int32(value: u32) -> i32 {
    i32::try_from(value).expect("token ids and counts are below 2^31")
}

fn count(tokens: &[u32]) -> i32 {
    i32::try_from(tokens.len()).expect("a context holds fewer than 2^31 tokens")
}

fn time_per_token(answer: &Answer<'_>) -> Option<Duration> {
    let between = u32::try_from(answer.generated.token_ids.len().checked_sub(1)?).ok()?;
    answer.generation.timing.decode.filter(|_| between > 0).map(|decode| decode / between)
}

fn strings<'a, T: AsRef<str>>(rows: &[Row<'a>], value: impl Fn(&Row<'a>) -> Option<T>) -> ArrayRef {
    Arc::new(rows.iter().map(value).collect::<StringArray>())
}

fn int32s<'a>(rows: &[Row<'a>], value: impl Fn(&Row<'a>) -> Option<i32>) -> ArrayRef {
    Arc::new(rows.iter().map(value).collect::<Int32Array>())
}

fn milliseconds(rows: &[Row<'_>], value: impl Fn(&Answer<'_>) -> Option<Duration>) -> ArrayRef {
    let duration =
        |row: &Row<'_>| row.answer().as_ref().and_then(&value).map(|time| time.as_secs_f64() * 1e3);
    Arc::new(rows.iter().map(duration).collect::<Float64Array>())
}

/// Makes a list column: `items` gives each row's slice, `flat` the array of all items in a row.
fn lists<'a, R, T: 'a>(
    rows: &'a [R],
    items: impl Fn(&'a R) -> Option<&'a [T]>,
    flat: impl FnOnce(&mut dyn Iterator<Item = &'a T>) -> ArrayRef,
) -> ArrayRef {
    let slices: Vec<Option<&[T]>> = rows.iter().map(items).collect();
    let values = flat(&mut slices.iter().flat_map(|slice| slice.unwrap_or_default()));
    let offsets =
        OffsetBuffer::from_lengths(slices.iter().map(|slice| slice.map_or(0, <[T]>::len)));
    let nulls: NullBuffer = slices.iter().map(Option::is_some).collect();
    let nulls = Some(nulls).filter(|nulls| nulls.null_count() > 0);
    Arc::new(ListArray::new(element(values.data_type().clone()), offsets, values, nulls))
}

fn token_logprobs(tokens: impl Iterator<Item = TokenLogprob>) -> ArrayRef {
    let (ids, logprobs): (Vec<i32>, Vec<f32>) =
        tokens.map(|token| (int32(token.token_id), token.logprob)).unzip();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(Int32Array::from(ids)), Arc::new(Float32Array::from(logprobs))];
    Arc::new(StructArray::new(token_logprob_fields(), columns, None))
}

fn messages<'a>(turns: impl Iterator<Item = (&'a str, &'a str)>) -> ArrayRef {
    let (roles, contents): (Vec<&str>, Vec<&str>) = turns.unzip();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(StringArray::from(roles)), Arc::new(StringArray::from(contents))];
    Arc::new(StructArray::new(message_fields(), columns, None))
}
