//! Continues a text on the library's own types: folder, engine, prompt, step by step.
//!
//! `cargo run --release --example complete -- "Once upon a time"`

#![allow(clippy::print_stdout, reason = "an example talks to its user")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use nightshift::engine::{Engine, EngineSpec, Logprobs};
use nightshift::model::Model;
use nightshift::ops::Held;
use nightshift::prompt::{TextModel, complete};
use nightshift::row::{DrawKey, PartitionId, Prompt, RowRef};
use nightshift::sampling::Sampling;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tiny");
    let text = Arc::new(TextModel::load(&folder)?);
    let model = Model::load(&folder, Held::Bf16, &|_, _| {})?;
    let spec = EngineSpec {
        threads: 0,
        max_sequences: 8,
        max_step_tokens: 512,
        cache_bytes: 16 << 20,
        share_prefixes: true,
        logprobs: Logprobs::default(),
        routed_experts: false,
    };
    let mut engine = Engine::new(model, text.clone(), spec)?;
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "Once upon a time".into());
    let prompt = Prompt {
        row: RowRef { partition: PartitionId(0), offset: 0 },
        draw_key: DrawKey(0),
        tokens: text.encode_completion(&prompt)?.into(),
        sampling: Arc::new(Sampling {
            max_tokens: 32,
            temperature: 0.7,
            n: 2,
            ..Sampling::default()
        }),
        continuations: Arc::default(),
    };
    engine.submit(prompt, Instant::now());
    while !engine.is_idle() {
        for generation in engine.step()? {
            let completion = complete(&text, generation);
            println!("sample {}: {:?}", completion.generation.sample_index, completion.text);
        }
    }
    Ok(())
}
