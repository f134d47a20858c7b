//! Each operation agrees with a plain computation in f64, on the CPU and on a GPU if this program was built for
//! one and there is one.
//!
//! CUDA's kernels are checked without a GPU too: each is compiled for this machine's processor, with
//! `src/ops/cuda/check/emulated.h` in the place of a GPU's threads.

use std::path::Path;
use std::process::Command;

use candle_core::{Device, Tensor};
use half::bf16;
use nightshift::ops::{
    self, AttentionMetadata, BLOCK_TOKENS, CacheFormat, Choice, Compute, DeviceKind, Expert,
    Experts, Form, Heads, Held, KeyValueWeights, LatentPool, Numerics, Rotation, Routes, Span,
    Weight,
};

/// Relative and absolute difference of f32 sums in different orders.
const EXACT: f64 = 1e-4;
/// The same where activations or latents are rounded to BF16.
const ROUNDED: f64 = 2e-2;

fn devices() -> Vec<Device> {
    let gpu = DeviceKind::Cuda.open(0).map_err(|error| eprintln!("CUDA is skipped: {error}"));
    std::iter::once(Device::Cpu).chain(gpu.ok()).collect()
}

/// Numbers between -1 and 1 that repeat late.
fn numbers(seed: usize, count: usize) -> Vec<f32> {
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
    (0..count).map(number).collect()
}

fn tensor(device: &Device, values: &[f32], width: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / width, width), device).unwrap()
}

fn vector(device: &Device, values: &[f32]) -> Tensor {
    Tensor::from_slice(values, values.len(), device).unwrap()
}

fn assert_close(what: &str, found: &Tensor, expected: &[f64], tolerance: f64) {
    let found = found.to_device(&Device::Cpu).unwrap().flatten_all().unwrap();
    let found = found.to_vec1::<f32>().unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(found) - expected).abs();
        assert!(difference <= tolerance * (1.0 + expected.abs()), "{what} {i}: {found} {expected}");
    }
}

/// A weight `[outputs, inputs]` as it is held, small enough for products of about 1.
struct Plain {
    inputs: usize,
    values: Vec<f32>,
}

impl Plain {
    fn new(seed: usize, [outputs, inputs]: [usize; 2], held: Held) -> Self {
        let scale = 1.0 / (inputs as f32).sqrt();
        let held = |x: f32| if held == Held::F32 { x } else { bf16::from_f32(x).to_f32() };
        let values = numbers(seed, outputs * inputs).into_iter().map(|x| held(x * scale));
        Self { inputs, values: values.collect() }
    }

    fn row(&self, output: usize) -> &[f32] {
        &self.values[output * self.inputs..(output + 1) * self.inputs]
    }

    fn shape(&self) -> [usize; 2] {
        [self.values.len() / self.inputs, self.inputs]
    }

    fn fill(&self) -> impl Fn(usize, &mut [f32]) + Sync {
        |output, row| row.copy_from_slice(self.row(output))
    }

    fn product(&self, x: &[f64]) -> Vec<f64> {
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
        self.values.chunks(self.inputs).map(dot).collect()
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// One row, divided by its root mean square and weighted.
fn normalised(row: &[f64], weight: &[f32]) -> Vec<f64> {
    let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    let scale = 1.0 / (mean + 1e-6).sqrt();
    row.iter().zip(weight).map(|(x, &w)| x * scale * f64::from(w)).collect()
}

#[test]
fn norms_and_sums() {
    let (width, weight) = (200, numbers(2, 200));
    let (x, y) = (numbers(1, 37 * width), numbers(3, 37 * width));
    let sums: Vec<f64> = wide(&x).iter().zip(wide(&y)).map(|(x, y)| x + y).collect();
    let norms = |rows: &[f64], weight: &[f32]| -> Vec<f64> {
        rows.chunks(width).flat_map(|row| normalised(&row[..weight.len()], weight)).collect()
    };
    for device in devices() {
        let (rows, more) = (tensor(&device, &x, width), tensor(&device, &y, width));
        let w = vector(&device, &weight);
        for part in [width, 72] {
            let w = vector(&device, &weight[..part]);
            let found = ops::rms_norm(&rows, &w, 1e-6).unwrap();
            assert_close("norm", &found, &norms(&wide(&x), &weight[..part]), EXACT);
        }
        let (sum, normed) = ops::add_rms_norm(&rows, &more, &w, 1e-6).unwrap();
        assert_close("sum", &sum, &sums, EXACT);
        assert_close("norm of a sum", &normed, &norms(&sums, &weight), EXACT);
        assert_close("sum alone", &ops::add(&rows, &more).unwrap(), &sums, EXACT);
        let biased = wide(&x).into_iter().zip(wide(&weight).into_iter().cycle());
        let biased: Vec<f64> = biased.map(|(x, bias)| x + bias).collect();
        assert_close("bias", &ops::add_bias(&rows, &w).unwrap(), &biased, EXACT);
    }
}

/// Gate, up and down.
struct PlainExpert([Plain; 3]);

impl PlainExpert {
    fn new(seed: usize, [width, hidden]: [usize; 2], held: Held) -> Self {
        let inner = |seed| Plain::new(seed, [width, hidden], held);
        Self([inner(seed), inner(seed + 1), Plain::new(seed + 2, [hidden, width], held)])
    }

    fn on(&self, device: &Device, held: Held) -> Expert {
        let [gate, up, down] = &self.0;
        let gate_up = Weight::gated(device, gate.shape(), held, gate.fill(), up.fill()).unwrap();
        Expert { gate_up, down: Weight::new(device, down.shape(), held, down.fill()).unwrap() }
    }

    fn forward(&self, x: &[f64]) -> Vec<f64> {
        let [gate, up, down] = &self.0;
        let silu = |gate: f64| gate / (1.0 + (-gate).exp());
        let inner = gate.product(x).into_iter().zip(up.product(x));
        down.product(&inner.map(|(gate, up)| silu(gate) * up).collect::<Vec<_>>())
    }
}

/// How far a product with such weights may be off.
fn tolerance(device: &Device, held: Held) -> f64 {
    if device.is_cpu() || held == Held::F32 { EXACT } else { ROUNDED }
}

#[test]
fn products() {
    let hidden = 200;
    let x = numbers(1, 37 * hidden);
    for held in [Held::F32, Held::Bf16] {
        let (plain, expert) =
            (Plain::new(3, [72, hidden], held), PlainExpert::new(4, [96, hidden], held));
        let all = |of: &dyn Fn(&[f64]) -> Vec<f64>| -> Vec<f64> {
            wide(&x).chunks(hidden).flat_map(of).collect()
        };
        for device in devices() {
            let (rows, tolerance) = (tensor(&device, &x, hidden), tolerance(&device, held));
            let weight = Weight::new(&device, plain.shape(), held, plain.fill()).unwrap();
            let expected = all(&|x| plain.product(x));
            assert_close("product", &weight.product(&rows).unwrap(), &expected, tolerance);
            let found = expert.on(&device, held).forward(&rows).unwrap();
            assert_close("feed-forward", &found, &all(&|x| expert.forward(x)), tolerance);
        }
    }
}

/// A token's experts, ascending, and their weights.
fn chosen(logits: &[f32], choice: Choice) -> Vec<(usize, f64)> {
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let scores: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp() / sum).collect();
    let (groups, kept) = choice.groups.unwrap_or((1, 1));
    let size = scores.len() / groups;
    let best = |group: &usize| {
        scores[group * size..(group + 1) * size].iter().copied().fold(0.0, f64::max)
    };
    let mut by_best: Vec<usize> = (0..groups).collect();
    by_best.sort_by(|a, b| best(b).total_cmp(&best(a)));
    let mut open: Vec<usize> =
        by_best[..kept].iter().flat_map(|g| g * size..(g + 1) * size).collect();
    open.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    open.truncate(choice.experts_per_token);
    open.sort_unstable();
    let total: f64 = open.iter().map(|&id| scores[id]).sum();
    let factor = if choice.normalise { 1.0 / total } else { f64::from(choice.scale) };
    open.into_iter().map(|id| (id, scores[id] * factor)).collect()
}

#[test]
fn routes_and_experts() {
    let (count, hidden) = (64, 136);
    for (tokens, groups, normalise) in
        [(5, None, false), (300, Some((8, 3)), false), (9, None, true)]
    {
        let choice = Choice { experts_per_token: 6, groups, normalise, scale: 2.0 };
        let (logits, x) = (numbers(5, tokens * count), numbers(6, tokens * hidden));
        let expected: Vec<_> = logits.chunks(count).map(|logits| chosen(logits, choice)).collect();
        for held in [Held::F32, Held::Bf16] {
            let plain: Vec<_> =
                (0..count).map(|e| PlainExpert::new(10 + 3 * e, [40, hidden], held)).collect();
            let mixed = |(x, routes): (&[f64], &Vec<(usize, f64)>)| {
                let mut sum = vec![0.0; hidden];
                for &(id, weight) in routes {
                    let y = plain[id].forward(x);
                    sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += weight * y);
                }
                sum
            };
            let sums: Vec<f64> = wide(&x).chunks(hidden).zip(&expected).flat_map(mixed).collect();
            for device in devices() {
                let experts = plain.iter().map(|plain| plain.on(&device, held)).collect();
                let experts = Experts::new(experts).unwrap();
                let routes = Routes::choose(&tensor(&device, &logits, count), choice).unwrap();
                let rows = tensor(&device, &x, hidden);
                let found = ops::routed_experts(&rows, &experts, &routes).unwrap();
                assert_close("experts", &found, &sums, tolerance(&device, held));
                let routing = routes.into_routing().unwrap();
                let routes = expected.iter().flatten();
                for ((id, weight), found) in
                    routes.zip(routing.expert_ids.iter().zip(&routing.weights))
                {
                    assert_eq!(*id as u32, *found.0);
                    assert!((weight - f64::from(*found.1)).abs() <= 1e-5 * (1.0 + weight));
                }
            }
        }
    }
}

/// A token that attends: its sequence, its position and its form.
struct Sequence {
    tokens: usize,
    first_position: usize,
    form: Form,
}

const fn sequence(tokens: usize, first_position: usize, form: Form) -> Sequence {
    Sequence { tokens, first_position, form }
}

/// Spans of sequences that own blocks one after another, each in descending order; and all slots.
fn spans(sequences: &[Sequence]) -> (Vec<Span>, Vec<u32>) {
    let (mut first_row, mut block) = (0, 0u32);
    let span = |s: &Sequence| {
        let own = (s.first_position + s.tokens).div_ceil(BLOCK_TOKENS) as u32;
        let Sequence { tokens: count, first_position, form } = *s;
        let blocks = (block..block + own).rev().collect();
        let span = Span { first_row, count, first_position, form, blocks };
        (first_row, block) = (first_row + count, block + own);
        span
    };
    let spans = sequences.iter().map(span).collect();
    (spans, (0..block * BLOCK_TOKENS as u32).collect())
}

fn frequencies(heads: Heads) -> Vec<f32> {
    (0..heads.rope / 2).map(|i| 0.7 / (i + 1) as f32).collect()
}

/// Turns the last elements of a head by a position.
fn turn(pairs: &mut [f64], position: usize) {
    for (i, pair) in pairs.chunks_mut(2).enumerate() {
        // The angle is a product in f32, as the model's.
        let (sin, cos) = f64::from(position as f32 * (0.7 / (i + 1) as f32)).sin_cos();
        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
    }
}

/// Attention of one query over the cache's rows, all heads, in the latent space: `[heads * value]`.
fn attended(heads: Heads, kv_b: &Plain, query: &[f64], rows: &[&[f64]]) -> Vec<f64> {
    let Heads { nope, value, latent, scale, .. } = heads;
    let head = |(head, query): (usize, &[f64])| {
        let first = head * (nope + value);
        let mut absorbed = vec![0.0; latent];
        for (i, q) in query[..nope].iter().enumerate() {
            let row = kv_b.row(first + i);
            absorbed.iter_mut().zip(row).for_each(|(x, w)| *x += q * f64::from(*w));
        }
        absorbed.extend(&query[nope..]);
        let dot = |row: &&[f64]| -> f64 { row.iter().zip(&absorbed).map(|(a, b)| a * b).sum() };
        let scores: Vec<f64> = rows.iter().map(|row| dot(row) * f64::from(scale)).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
        let mut sum = vec![0.0; latent];
        for (row, score) in rows.iter().zip(&scores) {
            let weight = (score - top).exp() / total;
            sum.iter_mut().zip(*row).for_each(|(sum, x)| *sum += weight * x);
        }
        (0..value)
            .map(move |o| {
                kv_b.row(first + nope + o)
                    .iter()
                    .zip(&sum)
                    .map(|(w, x)| f64::from(*w) * x)
                    .sum::<f64>()
            })
            .collect::<Vec<_>>()
    };
    query.chunks(nope + heads.rope).enumerate().flat_map(head).collect()
}

fn check_attention(heads: Heads, held: Held, sequences: &[Sequence]) {
    let Heads { count, nope, rope, value, latent, .. } = heads;
    let (spans, slots) = spans(sequences);
    let tokens: usize = sequences.iter().map(|s| s.tokens).sum();
    let kv_b = Plain::new(7, [count * (nope + value), latent], held);
    let (norm, kv) = (numbers(8, latent), numbers(9, slots.len() * (latent + rope)));
    let q = numbers(10, tokens * count * (nope + rope));
    // Slots are filled as if each stood at the position of its number.
    let cached = |(slot, row): (usize, &[f64])| {
        let mut cached = normalised(&row[..latent], &norm);
        cached.extend(&row[latent..]);
        turn(&mut cached[latent..], slot);
        cached
    };
    let cached: Vec<Vec<f64>> = wide(&kv).chunks(latent + rope).enumerate().map(cached).collect();
    let (mut expected, mut positions) = (Vec::new(), Vec::new());
    for span in &spans {
        for i in 0..span.count {
            let position = span.first_position + i;
            let width = count * (nope + rope);
            let mut query = wide(&q[(span.first_row + i) * width..][..width]);
            query.chunks_mut(nope + rope).for_each(|head| turn(&mut head[nope..], position));
            let slot =
                |p: usize| span.blocks[p / BLOCK_TOKENS] as usize * BLOCK_TOKENS + p % BLOCK_TOKENS;
            let rows: Vec<&[f64]> = (0..=position).map(|p| &cached[slot(p)][..]).collect();
            expected.extend(attended(heads, &kv_b, &query, &rows));
            positions.push(position as u32);
        }
    }
    let (cache, tolerance) = match held {
        Held::F32 => (CacheFormat::F32, EXACT),
        _ => (CacheFormat::Bf16, ROUNDED),
    };
    for device in devices() {
        let size = (slots.len() / BLOCK_TOKENS, latent + rope);
        let mut pool = LatentPool::on(&device, 1, size, cache).unwrap();
        let numerics = Numerics { held, compute: Compute::F32, cache };
        let weights = KeyValueWeights::new(&device, heads, numerics, kv_b.fill()).unwrap();
        let rotation = |positions: &[u32]| Rotation::new(positions, &frequencies(heads), 1.0);
        let metadata = AttentionMetadata::new(&device, rotation(&slots), &slots, &[]).unwrap();
        let (rows, norm) = (tensor(&device, &kv, latent + rope), vector(&device, &norm));
        ops::store_latents(&rows, &norm, 1e-6, &metadata, (&mut pool, 0)).unwrap();
        // Nothing is stored: each token's slot may be any.
        let slots = &positions;
        let metadata =
            AttentionMetadata::new(&device, rotation(&positions), slots, &spans).unwrap();
        let queries = tensor(&device, &q, count * (nope + rope));
        let found = ops::attend(&queries, heads, &weights, &metadata, (&pool, 0)).unwrap();
        let what = format!("{count} heads {held:?} {} spans", spans.len());
        assert_close(&what, &found, &expected, tolerance);
    }
}

#[test]
fn attention_in_both_forms_alone_and_together() {
    let small = Heads { count: 3, nope: 10, rope: 6, value: 12, latent: 24, scale: 0.3 };
    let lite = Heads { count: 16, nope: 128, rope: 64, value: 128, latent: 512, scale: 0.07 };
    let many = Heads { count: 64, ..lite };
    let prompts = [sequence(70, 0, Form::Prompt), sequence(5, 40, Form::Prompt)];
    // The last one sees more positions than a block of a GPU's threads takes.
    let generated = [sequence(1, 17, Form::Generated), sequence(3, 1100, Form::Generated)];
    let together = [
        sequence(7, 0, Form::Prompt),
        sequence(1, 17, Form::Generated),
        sequence(5, 40, Form::Prompt),
        sequence(2, 33, Form::Generated),
    ];
    for (heads, held) in
        [(small, Held::F32), (small, Held::Bf16), (lite, Held::Bf16), (many, Held::Bf16)]
    {
        for sequences in [&prompts[..], &generated, &together] {
            check_attention(heads, held, sequences);
        }
    }
}

#[test]
fn kernels_agree_with_a_plain_computation_where_a_gpu_is_emulated() {
    let checks = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/cuda/check");
    if Command::new("c++").arg("--version").output().is_err() {
        eprintln!("skipped: there is no C++ compiler");
        return;
    }
    let folder = tempfile::TempDir::new().unwrap();
    let names = ["norm", "rope", "router", "experts", "attend", "mla_decode", "mla_prefill"];
    std::thread::scope(|scope| {
        for name in names {
            let (program, source) = (folder.path().join(name), checks.join(format!("{name}.cpp")));
            scope.spawn(move || {
                let built = Command::new("c++")
                    .args(["-std=c++17", "-O2", "-Wno-unknown-pragmas", "-o"])
                    .args([&program, &source])
                    .output()
                    .unwrap();
                assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
                let ran = Command::new(&program).output().unwrap();
                assert!(ran.status.success(), "{name}: {}", String::from_utf8_lossy(&ran.stderr));
            });
        }
    });
}
