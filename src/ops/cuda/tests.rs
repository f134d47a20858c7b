//! The operations on a GPU and on the CPU agree on the same cases. Without a GPU the tests say so and pass.

use candle_core::{DType, Device, Tensor};

use super::{Accelerator, Cuda};
use crate::ops::attention::Form;
use crate::ops::{
    self, Choice, DeviceKind, Experts, FeedForwardWeights, Frame, HeadWeights, Heads, Held,
    KeyValueWeights, LatentPool, Matrix, Rotation, Routes, Span, Weight,
};

fn gpu() -> Option<Device> {
    DeviceKind::Cuda.open(0).map_err(|error| eprintln!("skipped: {error}")).ok()
}

/// Numbers between -1 and 1 that repeat late.
fn numbers(seed: usize, count: usize) -> Vec<f32> {
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
    (0..count).map(number).collect()
}

fn tensor(seed: usize, rows: usize, width: usize) -> Tensor {
    Tensor::from_vec(numbers(seed, rows * width), (rows, width), &Device::Cpu).unwrap()
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    let values = |x: &Tensor| {
        let x = x.to_dtype(DType::F32).unwrap().to_device(&Device::Cpu).unwrap();
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(found.dims(), expected.dims(), "{what}");
    for (i, (found, expected)) in values(found).iter().zip(values(expected)).enumerate() {
        let difference = (found - expected).abs();
        assert!(difference <= tolerance * (1.0 + expected.abs()), "{what} {i}: {found} {expected}");
    }
}

/// How far products may be from the CPU's: sums in another order, or activations rounded to BF16.
fn tolerance(held: Held) -> f32 {
    if held == Held::F32 { 1e-4 } else { 2e-2 }
}

/// A weight `[outputs, inputs]` on both, small enough for products of about 1.
fn weight(
    gpu: &Device,
    seed: usize,
    [outputs, inputs]: [usize; 2],
    held: Held,
) -> (Weight, Weight) {
    let values = scaled(seed, outputs * inputs, inputs, held);
    let host = Matrix::pack(outputs, inputs, held, |o, i| values[o * inputs + i]);
    (Weight::Host(host), Weight::Device(upload(gpu, values, [outputs, inputs], held)))
}

fn scaled(seed: usize, count: usize, inputs: usize, held: Held) -> Vec<f32> {
    let scale = 1.0 / (inputs as f32).sqrt();
    let values = numbers(seed, count).into_iter().map(|x| x * scale);
    match held {
        Held::F32 => values.collect(),
        _ => values.map(|x| half::bf16::from_f32(x).to_f32()).collect(),
    }
}

fn upload(gpu: &Device, values: Vec<f32>, [rows, width]: [usize; 2], held: Held) -> Tensor {
    let tensor = Tensor::from_vec(values, (rows, width), gpu).unwrap();
    tensor.to_dtype(if held == Held::F32 { DType::F32 } else { DType::BF16 }).unwrap()
}

fn feed_forward(
    gpu: &Device,
    seed: usize,
    [width, hidden]: [usize; 2],
    held: Held,
) -> (FeedForwardWeights, FeedForwardWeights) {
    let gate = scaled(seed, width * hidden, hidden, held);
    let up = scaled(seed + 1, width * hidden, hidden, held);
    let packed = Matrix::pack_gated(
        width,
        hidden,
        held,
        |o, i| gate[o * hidden + i],
        |o, i| up[o * hidden + i],
    );
    let both = upload(gpu, [gate, up].concat(), [2 * width, hidden], held);
    let (down, device_down) = weight(gpu, seed + 2, [hidden, width], held);
    (
        FeedForwardWeights { gate_up: Weight::Host(packed), down },
        FeedForwardWeights { gate_up: Weight::Device(both), down: device_down },
    )
}

#[test]
fn norms_and_products_agree() {
    let Some(gpu) = gpu() else { return };
    let (x, norm) =
        (tensor(1, 37, 200), Tensor::from_vec(numbers(2, 200), 200, &Device::Cpu).unwrap());
    let (there, norm_there) = (x.to_device(&gpu).unwrap(), norm.to_device(&gpu).unwrap());
    let expected = ops::rms_norm(&x, &norm, 1e-6).unwrap();
    assert_close("norm", &ops::rms_norm(&there, &norm_there, 1e-6).unwrap(), &expected, 1e-5);
    let expected = ops::add_bias(&x, &norm).unwrap();
    assert_close("bias", &ops::add_bias(&there, &norm_there).unwrap(), &expected, 1e-6);
    for held in [Held::F32, Held::Bf16] {
        let (host, device) = weight(&gpu, 3, [72, 200], held);
        let expected = host.product(&x).unwrap();
        assert_close("product", &device.product(&there).unwrap(), &expected, tolerance(held));
        let (host, device) = feed_forward(&gpu, 4, [96, 200], held);
        let expected = host.forward(&x).unwrap();
        assert_close("feed-forward", &device.forward(&there).unwrap(), &expected, tolerance(held));
    }
}

#[test]
fn routes_and_experts_agree() {
    let Some(gpu) = gpu() else { return };
    for (tokens, groups) in [(5, None), (300, Some((8, 3)))] {
        let choice = Choice { experts_per_token: 6, groups, normalise: false, scale: 2.0 };
        let logits = tensor(5, tokens, 64);
        let expected = Routes::choose(&logits, choice).unwrap().into_routing().unwrap();
        let routes = Routes::choose(&logits.to_device(&gpu).unwrap(), choice).unwrap();
        for held in [Held::F32, Held::Bf16] {
            let experts = (0..64).map(|e| feed_forward(&gpu, 10 + 3 * e, [40, 136], held));
            let (host, device): (Vec<_>, Vec<_>) = experts.unzip();
            let (host, device) = (Experts::new(host).unwrap(), Experts::new(device).unwrap());
            let Experts::Host(host) = &host else { panic!("experts of the CPU") };
            let x = tensor(6, tokens, 136);
            let expected = ops::routed_experts(&x, host, &expected).unwrap();
            let found = device.mix(&x.to_device(&gpu).unwrap(), &routes).unwrap().unwrap();
            assert_close("experts", &found, &expected, tolerance(held));
        }
        let found = routes.into_routing().unwrap();
        assert_eq!(found.expert_ids, expected.expert_ids);
        for (found, expected) in found.weights.iter().zip(&expected.weights) {
            assert!((found - expected).abs() <= 1e-5 * (1.0 + expected), "{found} {expected}");
        }
    }
}

#[test]
fn routes_stay_in_their_order_when_sorted() {
    let Some(gpu) = gpu() else { return };
    let ids: Vec<u32> = (0..700 * 2).map(|i| (i * 31 % 17) as u32).collect();
    let expected =
        ops::RoutesByExpert::new(17, ids.iter().enumerate().map(|(i, &e)| (i as u32 / 2, e)));
    let ids = Tensor::from_vec(ids, (700, 2), &gpu).unwrap();
    let sorted = Cuda.sort_routes(&ids, 17).unwrap();
    assert_eq!(sorted.rows.to_vec1::<u32>().unwrap(), expected.rows());
    assert_eq!(sorted.places.to_vec1::<u32>().unwrap(), expected.places());
    let starts: Vec<u32> = expected.starts().iter().map(|&start| start as u32).collect();
    assert_eq!(sorted.starts.to_vec1::<u32>().unwrap(), starts);
}

#[test]
fn attention_agrees_for_both_forms_alone_and_together() {
    let Some(gpu) = gpu() else { return };
    let small = Heads { count: 3, nope: 10, rope: 6, value: 12, latent: 24, scale: 0.3 };
    let lite = Heads { count: 16, nope: 128, rope: 64, value: 128, latent: 512, scale: 0.07 };
    let wide = Heads { count: 128, ..lite };
    // (tokens, first position, form) of each span.
    let prompts = [(70, 0, Form::Prompt), (5, 40, Form::Prompt)];
    let generated = [(1, 17, Form::Generated), (3, 1100, Form::Generated)];
    let together = [prompts[0], generated[0], prompts[1], generated[1]];
    for (heads, held) in
        [(small, Held::F32), (small, Held::Bf16), (lite, Held::Bf16), (wide, Held::Bf16)]
    {
        for spans in [&prompts[..], &generated, &together] {
            let difference = attend_on_both(&gpu, heads, held, spans);
            let what = format!("{} heads {held:?} {spans:?}", heads.count);
            assert_close(&what, &difference.0, &difference.1, tolerance(held));
        }
    }
}

/// Stores latents and attends on the GPU and on the CPU: (found, expected).
fn attend_on_both(
    gpu: &Device,
    heads: Heads,
    held: Held,
    spans: &[(usize, usize, Form)],
) -> (Tensor, Tensor) {
    let Heads { count, nope, rope, value, latent, .. } = heads;
    let mut all = Vec::new();
    let (mut rows, mut blocks) = (0, 0u32);
    for &(count, first_position, form) in spans {
        let own = (first_position + count).div_ceil(ops::BLOCK_TOKENS) as u32;
        let table = (blocks..blocks + own).rev().collect();
        all.push(Span { first_row: rows, count, first_position, form, blocks: table });
        (rows, blocks) = (rows + count, blocks + own);
    }
    let width = count * (nope + value);
    let values = scaled(7, width * latent, latent, held);
    let at = |row: usize, i: usize| values[row * latent + i];
    let head = |h: usize| {
        let first = h * (nope + value);
        HeadWeights {
            key: Matrix::pack(nope, latent, held, |o, i| at(first + o, i)),
            key_transposed: Matrix::pack(latent, nope, held, |o, i| at(first + i, o)),
            value: Matrix::pack(value, latent, held, |o, i| at(first + nope + o, i)),
        }
    };
    let host = KeyValueWeights::Host((0..count).map(head).collect());
    let device = KeyValueWeights::Device(upload(gpu, values.clone(), [width, latent], held));
    let norm = Tensor::from_vec(numbers(8, latent), latent, &Device::Cpu).unwrap();
    let on = |device: &Device, weights: &KeyValueWeights| {
        let dtype = if held == Held::F32 { DType::F32 } else { DType::BF16 };
        let size = (blocks as usize, latent + rope);
        let mut pool = LatentPool::on(device, dtype, 1, size).unwrap();
        let norm = norm.to_device(device).unwrap();
        let frequencies: Vec<f32> = (0..rope / 2).map(|i| 0.7 / (i + 1) as f32).collect();
        // All slots are filled first, as steps before would have.
        let filled: Vec<u32> = (0..blocks * ops::BLOCK_TOKENS as u32).collect();
        let rotation = Rotation::new(&filled, &frequencies, 1.0);
        let frame = Frame::new(rotation, &filled, &[], device).unwrap();
        let kv = tensor(9, filled.len(), latent + rope).to_device(device).unwrap();
        ops::store_latents(&kv, &norm, 1e-6, &frame, (&mut pool, 0)).unwrap();
        let positions: Vec<u32> = all
            .iter()
            .flat_map(|s| (s.first_position..s.first_position + s.count).map(|p| p as u32))
            .collect();
        let slots: Vec<u32> = positions.clone();
        let rotation = Rotation::new(&positions, &frequencies, 1.0);
        let frame = Frame::new(rotation, &slots, &all, device).unwrap();
        let q = tensor(10, rows, count * (nope + rope)).to_device(device).unwrap();
        let q = ops::rotate_queries(&q, count, &frame).unwrap();
        ops::attend(&q, heads, weights, &frame, (&pool, 0)).unwrap()
    };
    (on(gpu, &device), on(&Device::Cpu, &host))
}
