//! One row's columns, as JSON, to what it asks for. Every way in which that fails is a row failure.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{InputSpec, PromptColumns};
use crate::row::{
    FailureCode, Message, PromptRequest, PromptRow, PromptSource, RowFailure, RowRef,
};
use crate::sampling::Sampling;

/// Makes a row of its columns, or of the reason why there are none.
pub(super) fn prompt_row(
    spec: &InputSpec,
    row: RowRef,
    row_index: u64,
    place: String,
    columns: Result<Map<String, Value>, RowFailure>,
) -> PromptRow {
    let mut id = row_index.to_string();
    let request = columns.and_then(|columns| {
        // The id is taken first, so that a failed row still has it.
        if let Some(column) = &spec.id {
            id = identity(present(&columns, column)?, column)?;
        }
        let sampling = sampling(spec, &columns)?;
        Ok(PromptRequest { source: source(spec, columns)?, sampling })
    });
    let request = request.map_err(|failure| RowFailure {
        message: format!("{place}: {}", failure.message),
        ..failure
    });
    PromptRow { row, row_index, id, place, request }
}

fn fail<T>(code: FailureCode, message: String) -> Result<T, RowFailure> {
    Err(RowFailure::new(code, message))
}

fn wrong_type<T>(what: &str, value: &Value, expected: &str) -> Result<T, RowFailure> {
    fail(FailureCode::WrongType, format!("{what} is {}, expected {expected}", kind(value)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A column that the row must have.
fn present<'a>(columns: &'a Map<String, Value>, column: &str) -> Result<&'a Value, RowFailure> {
    match columns.get(column) {
        None => fail(FailureCode::MissingColumn, format!("column `{column}` is missing")),
        Some(Value::Null) => fail(FailureCode::NullValue, format!("column `{column}` is null")),
        Some(value) => Ok(value),
    }
}

fn identity(value: &Value, column: &str) -> Result<String, RowFailure> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        _ => wrong_type(&format!("column `{column}`"), value, "a string or a number"),
    }
}

fn source(spec: &InputSpec, columns: Map<String, Value>) -> Result<PromptSource, RowFailure> {
    match &spec.prompt {
        PromptColumns::Messages(column) => {
            messages(present(&columns, column)?, column).map(PromptSource::Messages)
        }
        PromptColumns::Text(column) => match present(&columns, column)? {
            Value::String(text) if text.is_empty() => {
                fail(FailureCode::EmptyPrompt, format!("column `{column}` is empty"))
            }
            Value::String(text) => Ok(PromptSource::Text(text.clone())),
            other => wrong_type(&format!("column `{column}`"), other, "a string"),
        },
        PromptColumns::TokenIds(column) => {
            token_ids(present(&columns, column)?, column).map(PromptSource::TokenIds)
        }
        PromptColumns::Template => Ok(PromptSource::Columns(columns)),
    }
}

fn token_ids(value: &Value, column: &str) -> Result<Vec<u32>, RowFailure> {
    let Value::Array(values) = value else {
        return wrong_type(&format!("column `{column}`"), value, "a list of token ids");
    };
    if values.is_empty() {
        return fail(FailureCode::EmptyPrompt, format!("column `{column}` is an empty list"));
    }
    let id = |value: &Value| match whole(value) {
        Some(id) => u32::try_from(id).or_else(|_| {
            fail(
                FailureCode::InvalidTokenId,
                format!("column `{column}` has {value}, which is no token id"),
            )
        }),
        None => wrong_type(&format!("a value of column `{column}`"), value, "a token id"),
    };
    values.iter().map(id).collect()
}

/// A whole number, also if it is written as 3.0.
fn whole(value: &Value) -> Option<i128> {
    let exact = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
    exact.or_else(|| {
        value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15).map(|x| x as i128)
    })
}

fn messages(value: &Value, column: &str) -> Result<Vec<Message>, RowFailure> {
    let Value::Array(turns) = value else {
        return wrong_type(&format!("column `{column}`"), value, "a list of messages");
    };
    if turns.is_empty() {
        return fail(FailureCode::EmptyMessages, format!("column `{column}` has no message"));
    }
    turns
        .iter()
        .enumerate()
        .map(|(index, turn)| message(turn, &format!("message {index} of column `{column}`")))
        .collect()
}

fn message(turn: &Value, what: &str) -> Result<Message, RowFailure> {
    let Value::Object(fields) = turn else {
        return wrong_type(what, turn, "an object with role and content");
    };
    let field = |names: [&str; 2]| {
        let value =
            names.iter().find_map(|name| fields.get(*name).filter(|value| !value.is_null()));
        let null = || names.iter().find(|name| fields.contains_key(**name));
        value.ok_or_else(|| match null() {
            Some(name) => {
                RowFailure::new(FailureCode::NullValue, format!("`{name}` of {what} is null"))
            }
            None => RowFailure::new(
                FailureCode::MissingColumn,
                format!("`{}` of {what} is missing", names[0]),
            ),
        })
    };
    let role = match field(["role", "from"])? {
        Value::String(role) => role.as_str(),
        other => return wrong_type(&format!("the role of {what}"), other, "a string"),
    };
    let role = match role {
        "system" | "user" | "assistant" => role,
        // ShareGPT's names.
        "human" => "user",
        "gpt" => "assistant",
        other => {
            let message = format!(
                "the role of {what} is `{other}`, expected `system`, `user` or `assistant`"
            );
            return fail(FailureCode::UnknownRole, message);
        }
    };
    let content = text_content(field(["content", "value"])?, what)?;
    Ok(Message { role: role.into(), content })
}

/// A message's text: a string, or a list of text parts.
fn text_content(value: &Value, what: &str) -> Result<String, RowFailure> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let part = |part: &Value| match &part["text"] {
                Value::String(text) => Ok(text.clone()),
                _ => fail(
                    FailureCode::WrongType,
                    format!("the content of {what} has a part that is no text"),
                ),
            };
            parts.iter().map(part).collect()
        }
        other => wrong_type(&format!("the content of {what}"), other, "a string"),
    }
}

/// The job's sampling with the row's own values.
fn sampling(spec: &InputSpec, columns: &Map<String, Value>) -> Result<Sampling, RowFailure> {
    let mut sampling = spec.sampling.defaults();
    macro_rules! put {
        ($($name:ident: $read:ident),+ $(,)?) => {
            $(if let Some((column, value)) = own(columns, &spec.sampling.$name.column) {
                sampling.$name = $read(value, column)?;
            })+
        };
    }
    put! {
        max_tokens: count, temperature: number, top_k: count, top_p: number, min_p: number,
        repetition_penalty: number, presence_penalty: number, frequency_penalty: number,
        logit_bias: biases, stop: strings, include_stop: flag, stop_token_ids: ids, ignore_eos: flag,
        min_tokens: count, json_schema: schema, regex: text, choice: strings, n: count, seed: seed,
    }
    match sampling.problems() {
        problems if problems.is_empty() => Ok(sampling),
        problems => fail(FailureCode::InvalidSampling, problems.join("; ")),
    }
}

/// A column's name and the row's value in it, if it has one.
fn own<'a>(
    columns: &'a Map<String, Value>,
    column: &'a Option<String>,
) -> Option<(&'a str, &'a Value)> {
    let column = column.as_deref()?;
    columns.get(column).filter(|value| !value.is_null()).map(|value| (column, value))
}

fn count(value: &Value, column: &str) -> Result<u32, RowFailure> {
    match whole(value) {
        Some(count) => u32::try_from(count).or_else(|_| {
            fail(
                FailureCode::InvalidSampling,
                format!("column `{column}` is {value}, expected 0 to {}", u32::MAX),
            )
        }),
        None => wrong_type(&format!("column `{column}`"), value, "a whole number"),
    }
}

fn seed(value: &Value, column: &str) -> Result<u64, RowFailure> {
    match whole(value) {
        Some(seed) => u64::try_from(seed).or_else(|_| {
            fail(
                FailureCode::InvalidSampling,
                format!("column `{column}` is {value}, expected 0 or more"),
            )
        }),
        None => wrong_type(&format!("column `{column}`"), value, "a whole number"),
    }
}

fn number(value: &Value, column: &str) -> Result<f32, RowFailure> {
    match value.as_f64() {
        Some(number) => Ok(number as f32),
        None => wrong_type(&format!("column `{column}`"), value, "a number"),
    }
}

fn flag(value: &Value, column: &str) -> Result<bool, RowFailure> {
    value
        .as_bool()
        .map_or_else(|| wrong_type(&format!("column `{column}`"), value, "a boolean"), Ok)
}

fn strings(value: &Value, column: &str) -> Result<Vec<String>, RowFailure> {
    let string = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        other => wrong_type(&format!("a value of column `{column}`"), other, "a string"),
    };
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Array(values) => values.iter().map(string).collect(),
        other => wrong_type(&format!("column `{column}`"), other, "a list of strings"),
    }
}

fn text(value: &Value, column: &str) -> Result<Option<String>, RowFailure> {
    match value {
        Value::String(text) => Ok(Some(text.clone())),
        other => wrong_type(&format!("column `{column}`"), other, "a string"),
    }
}

/// A JSON Schema, as JSON text or as the object itself.
fn schema(value: &Value, column: &str) -> Result<Option<String>, RowFailure> {
    match value {
        Value::Object(_) => Ok(Some(value.to_string())),
        other => text(other, column),
    }
}

/// `{"17": -5.0}`: token ids with what is added to their logits.
fn biases(value: &Value, column: &str) -> Result<BTreeMap<u32, f32>, RowFailure> {
    let Value::Object(fields) = value else {
        return wrong_type(&format!("column `{column}`"), value, "an object of token ids");
    };
    let bias = |(id, bias): (&String, &Value)| match id.parse::<u32>() {
        Ok(id) => Ok((id, number(bias, column)?)),
        Err(_) => fail(
            FailureCode::InvalidSampling,
            format!("column `{column}` has the key `{id}`, which is no token id"),
        ),
    };
    fields.iter().map(bias).collect()
}

fn ids(value: &Value, column: &str) -> Result<Vec<u32>, RowFailure> {
    match value {
        Value::Array(values) => values.iter().map(|value| count(value, column)).collect(),
        other => wrong_type(&format!("column `{column}`"), other, "a list of token ids"),
    }
}
