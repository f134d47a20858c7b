//! Our operations beside candle's: one product of an expert's shape, and whole prefills and decode steps
//! beside candle-transformers' DeepSeek-V2, which expands keys and values and loops over experts.

use std::hint::black_box;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::deepseek2::{DeepSeekV2, DeepSeekV2Config};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nightshift::model::{Model, Step};
use nightshift::ops::{BLOCK_TOKENS, Form, Held, LatentPool, Matrix, Span};

/// An expert of DeepSeek-V2-Lite's width, halved.
const OUTPUTS: usize = 512;
const INPUTS: usize = 1024;

fn products(criterion: &mut Criterion) {
    let value = |o: usize, i: usize| ((o * 31 + i * 17) % 97) as f32 / 97.0 - 0.5;
    let fill = |o: usize, row: &mut [f32]| {
        row.iter_mut().enumerate().for_each(|(i, x)| *x = value(o, i));
    };
    let ours = [Held::F32, Held::Bf16, Held::Int8]
        .map(|held| (held, Matrix::pack(OUTPUTS, INPUTS, held, fill)));
    let weight: Vec<f32> = (0..OUTPUTS * INPUTS).map(|i| value(i / INPUTS, i % INPUTS)).collect();
    let weight = Tensor::from_vec(weight, (OUTPUTS, INPUTS), &Device::Cpu).expect("the shape fits");
    let theirs = weight.t().expect("a matrix has a transpose");
    let mut group = criterion.benchmark_group("product_512x1024");
    for tokens in [1, 6, 12, 64, 512] {
        let x = Tensor::ones((tokens, INPUTS), DType::F32, &Device::Cpu).expect("the shape fits");
        group.throughput(Throughput::Elements((2 * tokens * OUTPUTS * INPUTS) as u64));
        for (held, matrix) in &ours {
            group.bench_function(BenchmarkId::new(format!("{held:?}"), tokens), |b| {
                b.iter(|| black_box(matrix.product(&x)))
            });
        }
        group.bench_function(BenchmarkId::new("candle", tokens), |b| {
            b.iter(|| black_box(x.matmul(&theirs)))
        });
    }
    group.finish();
}

fn models(criterion: &mut Criterion) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/b_litelike");
    let model = Model::load(&folder, Held::F32, &|_, _| {}).expect("the fixture loads");
    let mut other = candle_model(&folder);
    let tokens: Vec<u32> = (0..128).map(|i| i * 3 % 480).collect();
    let mut group = criterion.benchmark_group("prefill_128_tokens");
    group.throughput(Throughput::Elements(tokens.len() as u64));
    let step = prefill(&tokens);
    let mut pool = LatentPool::new(
        model.config().layers,
        tokens.len() / BLOCK_TOKENS,
        model.config().latent_width(),
    );
    group.bench_function("nightshift", |b| {
        b.iter(|| black_box(model.forward(&step, &mut pool).map(|output| output.logits)))
    });
    let input = Tensor::new(tokens.as_slice(), &Device::Cpu)
        .and_then(|x| x.unsqueeze(0))
        .expect("the shape fits");
    group.bench_function("candle-transformers", |b| {
        b.iter(|| {
            other.clear_kv_cache();
            black_box(other.forward(&input, 0))
        })
    });
    group.finish();
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

fn prefill(tokens: &[u32]) -> Step {
    let all = 0..tokens.len() as u32;
    let blocks = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect();
    Step {
        tokens: tokens.to_vec(),
        positions: all.clone().collect(),
        slots: all.clone().collect(),
        spans: vec![Span {
            first_row: 0,
            count: tokens.len(),
            first_position: 0,
            form: Form::Prompt,
            blocks,
        }],
        outputs: vec![all.end - 1],
    }
}

criterion_group!(benches, products, models);
criterion_main!(benches);
