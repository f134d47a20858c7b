//! Each operation beside the candle operations that do the same, on the shapes of a V2-Lite-like layer of
//! half the width: hidden 1024, 64 experts of 512, 16 heads over a latent of 512.

use std::hint::black_box;

use candle_core::{D, DType, Device, Result, Tensor};
use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use nightshift::ops::{
    self, AttentionMetadata, BLOCK_TOKENS, CacheFormat, Choice, Expert, Experts, Form, Heads, Held,
    KeyValueWeights, LatentPool, Matrix, Rotation, Routes, Span, Weight,
};

const HIDDEN: usize = 1024;
const WIDTH: usize = 512;
const EXPERTS: usize = 64;
const VOCABULARY: usize = 32_768;
const HEADS: Heads =
    Heads { count: 16, nope: 128, rope: 64, value: 128, latent: 512, scale: 0.072_168_78 };
const CHOICE: Choice = Choice { experts_per_token: 6, groups: None, normalise: false, scale: 1.0 };

/// Made-up weights around zero.
fn weight(seed: usize) -> impl Fn(usize, usize) -> f32 + Sync + Copy {
    move |o, i| ((o * 31 + i * 17 + seed * 13) % 97) as f32 / 970.0 - 0.05
}

/// The same weights as a [`Matrix`] takes them, row by row.
fn rows(value: impl Fn(usize, usize) -> f32 + Sync) -> impl Fn(usize, &mut [f32]) + Sync {
    move |o, row| row.iter_mut().enumerate().for_each(|(i, x)| *x = value(o, i))
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37).sin()).collect()
}

fn tensor<S: Into<candle_core::Shape>>(shape: S) -> Tensor {
    let shape = shape.into();
    Tensor::from_vec(values(shape.elem_count()), shape, &Device::Cpu).expect("the shape fits")
}

/// A weight as candle multiplies by it: `[inputs, outputs]`.
fn transposed(outputs: usize, inputs: usize, seed: usize) -> Tensor {
    let value = weight(seed);
    let values: Vec<f32> = (0..outputs * inputs).map(|i| value(i / inputs, i % inputs)).collect();
    let weight = Tensor::from_vec(values, (outputs, inputs), &Device::Cpu);
    weight.and_then(|weight| weight.t()).expect("the shape fits")
}

fn compare<T, U>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    parameter: impl std::fmt::Display,
    mut ours: impl FnMut() -> T,
    mut candle: impl FnMut() -> Result<U>,
) {
    let id = BenchmarkId::new("nightshift", &parameter);
    group.bench_function(id, |b| b.iter(|| black_box(ours())));
    let id = BenchmarkId::new("candle", &parameter);
    group.bench_function(id, |b| b.iter(|| black_box(candle().expect("the shapes fit"))));
}

fn products(criterion: &mut Criterion) {
    let ours = [Held::F32, Held::Bf16, Held::Int8]
        .map(|held| (held, Matrix::pack(WIDTH, HIDDEN, held, rows(weight(0)))));
    let theirs = transposed(WIDTH, HIDDEN, 0);
    let mut group = criterion.benchmark_group("product_512x1024");
    for tokens in [1, 6, 12, 64, 512] {
        let x = tensor((tokens, HIDDEN));
        group.throughput(Throughput::Elements((2 * tokens * WIDTH * HIDDEN) as u64));
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

fn expert(seed: usize) -> Expert {
    let (cpu, gated, held) = (Device::Cpu, [WIDTH, HIDDEN], Held::Bf16);
    let (gate, up) = (rows(weight(seed)), rows(weight(seed + 1)));
    let down = Weight::new(&cpu, [HIDDEN, WIDTH], held, rows(weight(seed + 2)));
    Expert {
        gate_up: Weight::gated(&cpu, gated, held, gate, up).expect("the CPU takes it"),
        down: down.expect("the CPU takes it"),
    }
}

/// Gate, up and down of one expert for candle.
fn candle_expert(seed: usize) -> [Tensor; 3] {
    let (gate, up) = (transposed(WIDTH, HIDDEN, seed), transposed(WIDTH, HIDDEN, seed + 1));
    [gate, up, transposed(HIDDEN, WIDTH, seed + 2)]
}

fn gated_products(criterion: &mut Criterion) {
    let (ours, [gate, up, _]) = (expert(0), candle_expert(0));
    let mut group = criterion.benchmark_group("gated_product_512x1024");
    for tokens in [1, 8, 64] {
        let x = tensor((tokens, HIDDEN));
        compare(
            &mut group,
            tokens,
            || ours.gate_up.gated_product(&x),
            || x.matmul(&gate)?.silu()? * x.matmul(&up)?,
        );
    }
    group.finish();
}

fn experts(criterion: &mut Criterion) {
    let ours = Experts::new((0..EXPERTS).map(expert).collect()).expect("the CPU takes them");
    let theirs: Vec<[Tensor; 3]> = (0..EXPERTS).map(candle_expert).collect();
    let mut group = criterion.benchmark_group("experts_6_of_64");
    for tokens in [1, 8, 64] {
        let x = tensor((tokens, HIDDEN));
        let logits: Vec<f32> =
            (0..tokens * EXPERTS).map(|i| ((i * 2_654_435_761) % 1009) as f32 * 0.004).collect();
        let routing = ops::route(&logits, EXPERTS, CHOICE);
        // The loop over experts of candle-transformers.
        let mut rows = vec![Vec::new(); EXPERTS];
        for (route, &id) in routing.expert_ids.iter().enumerate() {
            rows[id as usize].push((route / 6) as u32);
        }
        let looped = || -> Result<Tensor> {
            let mut sum = x.zeros_like()?;
            for ([gate, up, down], rows) in theirs.iter().zip(&rows).filter(|(_, r)| !r.is_empty())
            {
                let rows = Tensor::new(rows.as_slice(), &Device::Cpu)?;
                let x = x.index_select(&rows, 0)?;
                let y = (x.matmul(gate)?.silu()? * x.matmul(up)?)?.matmul(down)?;
                sum = sum.index_add(&rows, &y, 0)?;
            }
            Ok(sum)
        };
        let routes = Routes::Host(routing);
        compare(&mut group, tokens, || ops::routed_experts(&x, &ours, &routes), looped);
    }
    group.finish();
}

fn keys_and_values() -> KeyValueWeights {
    KeyValueWeights::new(&Device::Cpu, HEADS, Held::Bf16, rows(weight(3)))
        .expect("the CPU takes them")
}

fn metadata<'a>(positions: &[u32], slots: &'a [u32], spans: &'a [Span]) -> AttentionMetadata<'a> {
    AttentionMetadata::new(&Device::Cpu, rotation(positions), slots, spans)
        .expect("the CPU takes it as it is")
}

/// A cache of `sequences` sequences of `context` tokens, and each one's blocks.
fn cache(sequences: usize, context: usize) -> (LatentPool, Vec<Vec<u32>>) {
    let blocks = context.div_ceil(BLOCK_TOKENS);
    let width = HEADS.latent + HEADS.rope;
    let mut pool = LatentPool::new(1, sequences * blocks, width, CacheFormat::F32);
    let tokens = sequences * blocks * BLOCK_TOKENS;
    let slots: Vec<u32> = (0..tokens as u32).collect();
    let positions: Vec<u32> = slots.iter().map(|slot| slot % 512).collect();
    let metadata = metadata(&positions, &slots, &[]);
    let (latents, norm) = (tensor((tokens, width)), ones(HEADS.latent));
    ops::store_latents(&latents, &norm, 1e-6, &metadata, (&mut pool, 0)).expect("the shapes fit");
    let own = |s: usize| (s * blocks..(s + 1) * blocks).map(|block| block as u32).collect();
    (pool, (0..sequences).map(own).collect())
}

fn ones(width: usize) -> Tensor {
    Tensor::ones(width, DType::F32, &Device::Cpu).expect("a vector")
}

fn rotation(positions: &[u32]) -> Rotation {
    let frequency = |i: usize| 10_000f32.powf(-(2.0 * i as f32) / HEADS.rope as f32);
    let frequencies: Vec<f32> = (0..HEADS.rope / 2).map(frequency).collect();
    Rotation::new(positions, &frequencies, 1.0)
}

/// Attention as candle-transformers computes it: over expanded keys and values, here of all sequences.
fn expanded_attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let scores = (q.matmul(&k.t()?)? * f64::from(HEADS.scale))?;
    candle_nn::ops::softmax_last_dim(&scores)?.matmul(v)
}

fn attention_decode(criterion: &mut Criterion) {
    let weights = keys_and_values();
    let mut group = criterion.benchmark_group("attention_decode");
    let head_width = HEADS.nope + HEADS.rope;
    for (sequences, context) in [(1, 512), (1, 2048), (64, 128), (64, 512)] {
        let (pool, blocks) = cache(sequences, context);
        let positions = vec![context as u32 - 1; sequences];
        let span = |(row, blocks): (usize, Vec<u32>)| Span {
            first_row: row,
            count: 1,
            first_position: context - 1,
            form: Form::Generated,
            blocks: blocks.into(),
        };
        let spans: Vec<Span> = blocks.into_iter().enumerate().map(span).collect();
        let metadata = metadata(&positions, &[], &spans);
        let q = tensor((sequences, HEADS.count * head_width));
        let (k, v) = (
            tensor((sequences, HEADS.count, context, head_width)),
            tensor((sequences, HEADS.count, context, HEADS.value)),
        );
        let theirs = q.reshape((sequences, HEADS.count, 1, head_width)).expect("the shape fits");
        compare(
            &mut group,
            format!("{sequences}x{context}"),
            || ops::attend(&q, HEADS, &weights, &metadata, (&pool, 0)),
            || expanded_attention(&theirs, &k, &v),
        );
    }
    group.finish();
}

fn attention_prefill(criterion: &mut Criterion) {
    let weights = keys_and_values();
    let mut group = criterion.benchmark_group("attention_prefill");
    group.sample_size(20);
    let (Heads { count, nope, rope, value, latent, .. }, head_width) =
        (HEADS, HEADS.nope + HEADS.rope);
    let expand = transposed(count * (nope + value), latent, 3);
    for tokens in [128, 512] {
        let (pool, mut blocks) = cache(1, tokens);
        let positions: Vec<u32> = (0..tokens as u32).collect();
        let spans = [Span {
            first_row: 0,
            count: tokens,
            first_position: 0,
            form: Form::Prompt,
            blocks: blocks.swap_remove(0).into(),
        }];
        let metadata = metadata(&positions, &[], &spans);
        let q = tensor((tokens, count * head_width));
        let (latents, rotated) = (tensor((tokens, latent)), tensor((count, tokens, rope)));
        let hidden: Vec<f32> = (0..tokens * tokens)
            .map(|i| if i % tokens > i / tokens { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let mask = Tensor::from_vec(hidden, (1, tokens, tokens), &Device::Cpu).expect("it fits");
        let theirs = || -> Result<Tensor> {
            let kv = latents.matmul(&expand)?.reshape((tokens, count, nope + value))?;
            let kv = kv.transpose(0, 1)?;
            let k = Tensor::cat(&[&kv.narrow(2, 0, nope)?.contiguous()?, &rotated], 2)?;
            let v = kv.narrow(2, nope, value)?.contiguous()?;
            let q = q.reshape((tokens, count, head_width))?.transpose(0, 1)?.contiguous()?;
            let scores = (q.matmul(&k.t()?)? * f64::from(HEADS.scale))?.broadcast_add(&mask)?;
            candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)
        };
        let ours = || ops::attend(&q, HEADS, &weights, &metadata, (&pool, 0));
        compare(&mut group, tokens, ours, theirs);
    }
    group.finish();
}

fn norms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("residual_and_norm");
    let weight = tensor(HIDDEN);
    for tokens in [1, 64, 2048] {
        let (x, y) = (tensor((tokens, HIDDEN)), tensor((tokens, HIDDEN)));
        compare(
            &mut group,
            tokens,
            || ops::add_rms_norm(&x, &y, &weight, 1e-6),
            || candle_nn::ops::rms_norm(&(&x + &y)?, &weight, 1e-6),
        );
    }
    group.finish();
}

fn stores(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rope_and_cache_write");
    let (latent, rope, width) = (HEADS.latent, HEADS.rope, HEADS.latent + HEADS.rope);
    let norm = ones(latent);
    for tokens in [1usize, 64, 2048] {
        let kv = tensor((tokens, width));
        let slots: Vec<u32> = (0..tokens as u32).collect();
        let metadata = metadata(&slots, &slots, &[]);
        let mut pool = LatentPool::new(1, tokens.div_ceil(BLOCK_TOKENS), width, CacheFormat::F32);
        let cache = tensor((tokens, width));
        let (cos, sin) = (tensor((tokens, rope / 2)), tensor((tokens, rope / 2)));
        compare(
            &mut group,
            tokens,
            || ops::store_latents(&kv, &norm, 1e-6, &metadata, (&mut pool, 0)),
            || {
                let latents = kv.narrow(D::Minus1, 0, latent)?.contiguous()?;
                let latents = candle_nn::ops::rms_norm(&latents, &norm, 1e-6)?;
                let keys = kv.narrow(D::Minus1, latent, rope)?.contiguous()?;
                let keys = keys.reshape((1, 1, tokens, rope))?;
                let keys = candle_nn::rotary_emb::rope_i(&keys, &cos, &sin)?;
                let row = Tensor::cat(&[&latents, &keys.reshape((tokens, rope))?], 1)?;
                cache.slice_set(&row, 0, 0)
            },
        );
    }
    group.finish();
}

fn router(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("router_6_of_64");
    for tokens in [1, 64, 2048] {
        let logits = values(tokens * EXPERTS);
        let theirs = tensor((tokens, EXPERTS));
        compare(
            &mut group,
            tokens,
            || ops::route(&logits, EXPERTS, CHOICE),
            || {
                let scores = candle_nn::ops::softmax_last_dim(&theirs)?;
                let order = scores.arg_sort_last_dim(false)?;
                let chosen = order.narrow(D::Minus1, 0, 6)?.contiguous()?;
                scores.gather(&chosen, D::Minus1)
            },
        );
    }
    group.finish();
}

/// What sampling does with each token's logits: the largest, or the whole distribution.
fn sampler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sampler_32768");
    let logits = values(VOCABULARY);
    let theirs = tensor(VOCABULARY);
    compare(&mut group, "greedy", || ops::largest(&logits), || theirs.argmax(0));
    let mut terms = vec![0.0; VOCABULARY];
    compare(
        &mut group,
        "softmax",
        || ops::exponentials(&logits, 1.0, 1.25, &mut terms),
        || candle_nn::ops::softmax_last_dim(&(&theirs * 1.25)?.to_dtype(DType::F32)?),
    );
    group.finish();
}

criterion_group!(
    benches,
    products,
    gated_products,
    experts,
    attention_decode,
    attention_prefill,
    norms,
    stores,
    router,
    sampler
);
criterion_main!(benches);
