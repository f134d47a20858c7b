//! What a way of holding and multiplying weights costs: its next-token distributions beside exact
//! arithmetic's, over the prompts of a JSONL file.
//!
//! `cargo run --release --example quality -- MODEL_FOLDER ROWS.jsonl [int8|bf16|bf16-cache]`
//!
//! A row is compared by its `prompt_token_ids`, else its `prompt` or the text of its `messages`.

#![allow(clippy::print_stdout, reason = "an example talks to its user")]

use std::error::Error;
use std::path::Path;

use nightshift::model::{Model, compare};
use nightshift::ops::{CacheFormat, Compute, Held, Numerics};
use nightshift::prompt::TextModel;
use serde_json::Value;

/// Longest stream, tokens.
const MAX_TOKENS: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, rows, rest @ ..] = arguments.as_slice() else {
        return Err("usage: quality MODEL_FOLDER ROWS.jsonl [int8|bf16|bf16-cache]".into());
    };
    let exact = Numerics::from(Held::Bf16);
    let int8 = ("int8", Numerics { held: Held::Int8, ..exact });
    let bf16 = ("bf16", Numerics { compute: Compute::Bf16, ..exact });
    let cache = ("bf16-cache", Numerics { cache: CacheFormat::Bf16, ..exact });
    let asked = |name: &str| rest.is_empty() || rest.iter().any(|other| other == name);
    let folder = Path::new(folder);
    let text = TextModel::load(folder)?;
    let streams = std::fs::read_to_string(rows)?
        .lines()
        .map(|line| stream(&text, &serde_json::from_str(line)?))
        .collect::<Result<Vec<_>, _>>()?;
    let load = |numerics: Numerics| Model::load(folder, numerics, &|_, _| {});
    let exact = load(Held::F32.into())?;
    println!("{:<12}{:>10}{:>12}{:>12}{:>8}", "", "positions", "mean KL", "max KL", "top-1");
    for (name, numerics) in [int8, bf16, cache].into_iter().filter(|(name, _)| asked(name)) {
        if !numerics.compute.is_available() {
            println!("{name:<12}this processor has no BF16 dot products");
            continue;
        }
        let quality = compare(&exact, &load(numerics)?, &streams)?;
        println!(
            "{name:<12}{:>10}{:>12.6}{:>12.4}{:>7.2}%",
            quality.positions,
            quality.mean_kl,
            quality.max_kl,
            quality.top1_agreement * 100.0
        );
    }
    Ok(())
}

fn stream(text: &TextModel, row: &Value) -> Result<Vec<u32>, Box<dyn Error>> {
    let mut ids: Vec<u32> = match &row["prompt_token_ids"] {
        Value::Array(ids) => ids.iter().filter_map(|id| id.as_u64()).map(|id| id as u32).collect(),
        _ => text.encode_completion(&words(row))?,
    };
    ids.truncate(MAX_TOKENS);
    Ok(ids)
}

fn words(row: &Value) -> String {
    let turns = row["messages"].as_array().into_iter().flatten();
    let contents = turns.filter_map(|turn| turn["content"].as_str());
    row["prompt"].as_str().map_or_else(|| contents.collect::<Vec<_>>().join("\n"), str::to_owned)
}
