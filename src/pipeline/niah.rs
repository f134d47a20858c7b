//! The prompts of a needle-in-a-haystack grid, measured with a model's own tokenizer and chat template.

use std::path::Path;

use serde_json::{Value, json};

use super::progress::Progress;
use super::{RunError, fetch};
use crate::eval::{Grid, Haystack, NeedleText, NiahRow};
use crate::prompt::TextModel;
use crate::row::Message;
use crate::storage::Storage;

/// What the grid is made of.
#[derive(Clone, Debug)]
pub struct NiahSpec {
    /// The model whose tokens count: a folder or URL.
    pub model: String,
    /// The text in which needles are hidden: a file or URL.
    pub haystack: String,
    /// Lengths, depths and repeats.
    pub grid: Grid,
    /// What is hidden and asked.
    pub needle: NeedleText,
}

/// Makes the grid and hands its rows on, as JSON: `messages` if the model has a chat template, else
/// `prompt`; beside them `id`, `context_tokens`, `depth_percent`, `prompt_tokens` and `reference`.
pub fn niah(
    storage: &Storage,
    spec: &NiahSpec,
    mut each: impl FnMut(Value) -> Result<(), String>,
) -> Result<u64, RunError> {
    let here = Path::new(".");
    let folder = fetch::model_folder(storage, &spec.model, here, &Progress::default())?;
    let text = TextModel::load(&folder)?;
    let bytes = storage.get(&storage.locate(&spec.haystack, here)?)?;
    let count = |prompt: &str| tokens(&text, prompt);
    let haystack =
        Haystack::new(&String::from_utf8_lossy(&bytes), &count).map_err(RunError::Niah)?;
    let mut rows = 0;
    for row in haystack.rows(&spec.grid, &spec.needle, &count) {
        let row = row.map_err(RunError::Niah)?;
        each(written(&row, text.chat().is_some())).map_err(RunError::Niah)?;
        rows += 1;
    }
    Ok(rows)
}

/// Tokens of a prompt as the model gets it.
fn tokens(text: &TextModel, prompt: &str) -> Result<usize, String> {
    let ids = match text.chat() {
        Some(chat) => text.encode(&chat.render(&[turn(prompt)], true)?)?,
        None => text.encode_completion(prompt)?,
    };
    Ok(ids.len())
}

fn turn(content: &str) -> Message {
    Message { role: "user".into(), content: content.into() }
}

fn written(row: &NiahRow, chat: bool) -> Value {
    let NiahRow { context_tokens, depth_percent, repeat, prompt, prompt_tokens, reference } = row;
    // Whole percents are written as such: they label the heat map.
    let depth = match depth_percent.fract() == 0.0 {
        true => json!(*depth_percent as i64),
        false => json!(depth_percent),
    };
    let mut value = json!({
        "id": format!("{context_tokens}-{depth_percent}-{repeat}"),
        "context_tokens": context_tokens,
        "depth_percent": depth,
        "prompt_tokens": prompt_tokens,
        "reference": reference,
    });
    match chat {
        true => value["messages"] = json!([turn(prompt)]),
        false => value["prompt"] = json!(prompt),
    }
    value
}
