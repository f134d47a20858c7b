//! The published schemas of what people write: job files and JSONL input rows.

use serde_json::{Value, json};

use super::file::JobFile;
use crate::row::FailureCode;

/// JSON Schema of a job file.
pub fn job_schema() -> Value {
    schemars::schema_for!(JobFile).to_value()
}

/// JSON Schema of a JSONL input row, for each way in which a job may name its prompt.
pub fn input_row_schema() -> Value {
    let turn = |role: &str, text: &str, roles: Value| {
        json!({
            "type": "object",
            "properties": { role: { "enum": roles }, text: { "type": "string" } },
            "required": [role, text],
        })
    };
    let failures: serde_json::Map<String, Value> =
        FailureCode::ALL.iter().map(|code| (code.as_str().into(), code.meaning().into())).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "nightshift input row",
        "description": "One line of a JSONL input. Column names are those that the job names; these are their usual ones. A row that does not fit costs that row only: its output row has status `failed` and one of the codes under `x-failure-codes`.",
        "type": "object",
        "anyOf": [
            { "required": ["messages"] },
            { "required": ["conversations"] },
            { "required": ["prompt"] },
            { "required": ["prompt_token_ids"] },
            { "description": "Any columns, for a job with `input.template`." },
        ],
        "properties": {
            "messages": {
                "description": "With `input.messages`.",
                "type": "array", "minItems": 1,
                "items": turn("role", "content", json!(["system", "user", "assistant"])),
            },
            "conversations": {
                "description": "With `input.messages`, in ShareGPT's form.",
                "type": "array", "minItems": 1,
                "items": turn("from", "value", json!(["system", "human", "gpt", "user", "assistant"])),
            },
            "prompt": { "description": "With `input.prompt`.", "type": "string", "minLength": 1 },
            "prompt_token_ids": {
                "description": "With `input.prompt_token_ids`.",
                "type": "array", "minItems": 1, "items": { "type": "integer", "minimum": 0 },
            },
            "id": { "description": "With `input.id`.", "type": ["string", "integer"] },
        },
        "x-failure-codes": failures,
    })
}
