//! Whole prefills and decode steps beside candle-transformers' DeepSeek-V2, which expands keys and values
//! and loops over experts. `NIGHTSHIFT_BENCH_MODEL` names another model's folder, with F32 weights in one
//! file.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::deepseek2::{DeepSeekV2, DeepSeekV2Config};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nightshift::model::{Model, Step};
use nightshift::ops::{BLOCK_TOKENS, Form, Held, Span};

fn models(criterion: &mut Criterion) {
    let folder = std::env::var_os("NIGHTSHIFT_BENCH_MODEL").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/b_litelike"),
        PathBuf::from,
    );
    let model = Model::load(&folder, Held::F32, &|_, _| {}).expect("the model loads");
    let mut other = candle_model(&folder);
    let vocabulary = model.config().vocab_size as u32;
    let tokens: Vec<u32> = (0..128).map(|i| i * 3 % vocabulary).collect();
    // Room for the prompt and the token after it.
    let blocks = tokens.len() / BLOCK_TOKENS + 1;
    let mut pool = model.cache(blocks).expect("there is room for a cache");
    let mut group = criterion.benchmark_group("prefill_128_tokens");
    group.sample_size(10).throughput(Throughput::Elements(tokens.len() as u64));
    let step = span(&tokens, 0, Form::Prompt);
    group.bench_function("nightshift", |b| {
        b.iter(|| black_box(model.forward(&step, &mut pool).map(|output| output.logits)))
    });
    let input = batch_of_one(&tokens);
    group.bench_function("candle-transformers", |b| {
        b.iter(|| {
            other.clear_kv_cache();
            black_box(other.forward(&input, 0))
        })
    });
    group.finish();
    let mut group = criterion.benchmark_group("decode_after_128_tokens");
    group.sample_size(10).throughput(Throughput::Elements(1));
    let step = span(&[7], tokens.len(), Form::Generated);
    group.bench_function("nightshift", |b| {
        b.iter(|| black_box(model.forward(&step, &mut pool).map(|output| output.logits)))
    });
    let next = batch_of_one(&[7]);
    // Its cache grows with each token, so each one begins behind a fresh prefill that is not timed.
    let prefilled = |other: &mut DeepSeekV2| {
        other.clear_kv_cache();
        other.forward(&input, 0).expect("the prompt fits");
    };
    group.bench_function("candle-transformers", |b| {
        b.iter_custom(|times| {
            let decode = |_| {
                prefilled(&mut other);
                let begin = Instant::now();
                black_box(other.forward(&next, tokens.len())).expect("the token fits");
                begin.elapsed()
            };
            (0..times).map(decode).sum()
        })
    });
    group.finish();
}

fn batch_of_one(tokens: &[u32]) -> Tensor {
    let tokens = Tensor::new(tokens, &Device::Cpu).and_then(|tokens| tokens.unsqueeze(0));
    tokens.expect("the shape fits")
}

fn candle_model(folder: &std::path::Path) -> DeepSeekV2 {
    let config =
        std::fs::read_to_string(folder.join("config.json")).expect("the fixture has a config");
    let config: DeepSeekV2Config =
        serde_json::from_str(&config).expect("the fixture's config is valid");
    let weights = std::fs::read(folder.join("model.safetensors")).expect("the fixture has weights");
    let builder = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu)
        .expect("the weights are valid");
    DeepSeekV2::new(&config, builder).expect("the fixture loads")
}

/// Neighbouring tokens of one sequence from a position on, the only ones of their step.
fn span(tokens: &[u32], first_position: usize, form: Form) -> Step {
    let end = first_position + tokens.len();
    let positions = first_position as u32..end as u32;
    let blocks = (0..end.div_ceil(BLOCK_TOKENS) as u32).collect();
    Step {
        tokens: tokens.to_vec(),
        positions: positions.clone().collect(),
        slots: positions.collect(),
        spans: vec![Span { first_row: 0, count: tokens.len(), first_position, form, blocks }],
        outputs: vec![tokens.len() as u32 - 1],
    }
}

criterion_group!(benches, models);
criterion_main!(benches);
