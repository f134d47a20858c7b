//! Multi-head latent attention over the cache's blocks, in two formulations.
//!
//! *Prompt* tokens attend through keys and values expanded from the latents, head by head; *generated*
//! tokens score their query against the latents directly. What a token is decides its formulation,
//! never when it is computed. Softmax is online over blocks of sixteen positions from position 0 on,
//! so a token's result depends on its own positions only.
//!
//! Source: DeepSeek-V2 (arXiv:2405.04434) §2.1 and appendix C.

use std::cell::RefCell;

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::devices;
use super::host::{Shared, from_host, host};
use super::latent::{BLOCK_TOKENS, CachedRows, GatherScratch, LatentPool};
use super::matmul::{Matrix, Rows};
use super::metadata::AttentionMetadata;
use super::numerics::Numerics;
use super::online_softmax::{GROUP, Run, SoftmaxRows, SoftmaxState};
use super::rotation::Rotation;
use super::shapes::{Form, Heads, Span};
use super::weight::{bytes, upload};

/// Positions whose keys and values are expanded at a time.
const EXPANDED_POSITIONS: usize = 16 * BLOCK_TOKENS;

/// The key and value weights of one head, cut from `kv_b_proj`.
#[derive(Debug)]
pub struct HeadWeights {
    /// Latent to key: `[nope, latent]`.
    pub key: Matrix,
    /// Query to latent, the same weight transposed: `[latent, nope]`.
    pub key_transposed: Matrix,
    /// Latent to value: `[value, latent]`.
    pub value: Matrix,
}

/// `kv_b_proj`, the key and value weights of all heads.
#[derive(Debug)]
pub enum KeyValueWeights {
    /// Cut and packed for the CPU, head by head.
    Host(Vec<HeadWeights>),
    /// As it is, on a device: `[heads * (nope + value), latent]`, a head's keys first.
    Device(Tensor),
}

impl KeyValueWeights {
    /// Holds the weights where `device` computes; `fill(row, values)` writes a row of `kv_b_proj`, of
    /// which each head has its keys' first, then its values'.
    pub fn new(
        device: &Device,
        heads: Heads,
        numerics: impl Into<Numerics>,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        let (numerics, rows) = (numerics.into(), heads.nope + heads.value);
        if !device.is_cpu() {
            let shape = [heads.count * rows, heads.latent];
            return Ok(Self::Device(upload(device, shape, numerics.held, fill)?));
        }
        let head = |h: usize| {
            HeadWeights::pack(heads, numerics, |row, values: &mut [f32]| {
                fill(h * rows + row, values);
            })
        };
        Ok(Self::Host((0..heads.count).into_par_iter().map(head).collect()))
    }

    /// Bytes of weights held.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Host(heads) => heads.iter().map(HeadWeights::bytes).sum(),
            Self::Device(weight) => bytes(weight),
        }
    }

    /// Bytes of weights that a step reads: on the CPU prompts and generated tokens read keys in forms of
    /// their own.
    pub fn step_bytes(&self) -> usize {
        match self {
            Self::Host(heads) => heads.iter().map(|head| head.bytes() - head.key.bytes()).sum(),
            Self::Device(weight) => bytes(weight),
        }
    }
}

impl HeadWeights {
    /// Packs one head's rows of `kv_b_proj`.
    fn pack(heads: Heads, numerics: Numerics, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let Heads { nope, value, latent, .. } = heads;
        let mut keys = vec![0.0; nope * latent];
        keys.chunks_mut(latent).enumerate().for_each(|(row, key)| fill(row, key));
        let column = |o: usize, column: &mut [f32]| {
            column.iter_mut().zip(keys[o..].iter().step_by(latent)).for_each(|(x, key)| *x = *key);
        };
        Self {
            key: Matrix::pack(nope, latent, numerics, &fill),
            key_transposed: Matrix::pack(latent, nope, numerics, column),
            value: Matrix::pack(value, latent, numerics, |o, row| fill(nope + o, row)),
        }
    }

    fn fits(&self, heads: Heads) -> bool {
        let shape = |matrix: &Matrix| (matrix.outputs(), matrix.inputs());
        let Heads { nope, value, latent, .. } = heads;
        shape(&self.key) == (nope, latent)
            && shape(&self.key_transposed) == (latent, nope)
            && shape(&self.value) == (value, latent)
    }

    fn bytes(&self) -> usize {
        self.key.bytes() + self.key_transposed.bytes() + self.value.bytes()
    }
}

/// What one task needs; kept from call to call, so that a token costs no allocation.
#[derive(Default)]
struct Scratch {
    softmax: SoftmaxState,
    gather: GatherScratch,
    block: Vec<f32>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    attended: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Attends: queries `[tokens, count * (nope + rope)]`, each head's rotated part last and not rotated
/// yet → `[tokens, count * value]`.
///
/// The step's own latents must be in the cache already.
pub fn attend(
    q: &Tensor,
    heads: Heads,
    weights: &KeyValueWeights,
    metadata: &AttentionMetadata,
    cache: (&LatentPool, usize),
) -> Result<Tensor> {
    let (tokens, width) = q.dims2()?;
    let Heads { count, nope, rope, .. } = heads;
    if width != count * (nope + rope) {
        bail!("queries of {width} do not fit {count} heads of {nope} + {rope}")
    }
    let AttentionMetadata { rotation, spans, on_device, .. } = metadata;
    if !rotation.fits(tokens, rope) {
        bail!("a rotation does not fit {tokens} queries with {rope} rotated elements")
    }
    if cache.0.stride() < heads.latent + rope {
        bail!("a cache of {} does not hold {} + {rope}", cache.0.stride(), heads.latent)
    }
    let weights = match (weights, devices::of(q), on_device) {
        (KeyValueWeights::Host(weights), None, None)
            if weights.len() == count && weights.iter().all(|head| head.fits(heads)) =>
        {
            weights
        }
        (KeyValueWeights::Device(weight), Some(device), Some(metadata)) => {
            return device.attend(q, heads, weight, metadata, cache.0.on_device(cache.1)?);
        }
        _ => bail!("queries, weights of {count} heads and step are not on one device"),
    };
    let q = &*host(q)?;
    let (cached, stride) = (cache.0.layer(cache.1)?, cache.0.stride());
    let step = Step { q, rotation, heads, weights, cached, stride };
    let mut out = vec![0.0f32; tokens * heads.count * heads.value];
    step.attend_prompts(spans, Shared::new(&mut out));
    step.attend_generated(spans, &mut out);
    from_host(out, tokens, heads.count * heads.value)
}

struct Step<'a> {
    q: &'a [f32],
    rotation: &'a Rotation,
    heads: Heads,
    weights: &'a [HeadWeights],
    /// The layer's cache rows.
    cached: CachedRows<'a>,
    stride: usize,
}

impl Step<'_> {
    /// One task for each span and head: expands tiles of keys and values, all queries attend to each.
    fn attend_prompts(&self, spans: &[Span], out: Shared<f32>) {
        let heads = self.heads;
        let prompts = spans.iter().filter(|span| span.form == Form::Prompt);
        let mut tasks: Vec<(&Span, usize)> =
            prompts.flat_map(|span| (0..heads.count).map(move |h| (span, h))).collect();
        tasks.sort_by_key(|(span, _)| {
            std::cmp::Reverse(span.count * (span.first_position + span.count))
        });
        tasks.into_par_iter().with_max_len(1).for_each(|(span, head)| {
            SCRATCH.with_borrow_mut(|scratch| {
                self.attend_prompt_head(span, head, scratch);
                let rows = scratch.attended.chunks(heads.value.next_multiple_of(16));
                for (i, row) in rows.enumerate() {
                    let column = ((span.first_row + i) * heads.count + head) * heads.value;
                    // SAFETY: each task writes the columns of its own head in the rows of its own span.
                    unsafe { out.at(column).copy_from_nonoverlapping(row.as_ptr(), heads.value) }
                }
            });
        });
    }

    /// Leaves `[span.count, value]`, rows in whole lanes, in `scratch.attended`.
    fn attend_prompt_head(&self, span: &Span, head: usize, scratch: &mut Scratch) {
        let heads = self.heads;
        let key_width = (heads.nope + heads.rope).next_multiple_of(16);
        let value_width = heads.value.next_multiple_of(16);
        let Scratch { softmax, gather, queries, keys, values, attended, .. } = scratch;
        self.pad_queries(span, head, key_width, queries);
        zeros(attended, span.count * value_width);
        let end = span.first_position + span.count;
        let tile = EXPANDED_POSITIONS.min(end.next_multiple_of(BLOCK_TOKENS));
        zeros(keys, tile * key_width);
        zeros(values, tile * value_width);
        let mut rows = SoftmaxRows::new(softmax, attended, value_width);
        for start in (0..end).step_by(EXPANDED_POSITIONS) {
            let filled = EXPANDED_POSITIONS.min(end - start);
            let blocks = &span.blocks[start / BLOCK_TOKENS..];
            let latents = self.cached.positions(blocks, filled, gather);
            self.expand(latents, filled, head, (keys, key_width), (values, value_width));
            for first in (0..span.count).step_by(GROUP) {
                let visible =
                    |i: usize| (span.first_position + i + 1).saturating_sub(start).min(filled);
                let run = Run {
                    keys,
                    key_stride: key_width,
                    key_width,
                    values,
                    value_stride: value_width,
                    scale: heads.scale,
                };
                rows.attend(queries, first..span.count.min(first + GROUP), visible, &run);
            }
        }
        rows.finish();
    }

    /// One head's queries of a span, rotated, in rows of `key_width`.
    fn pad_queries(&self, span: &Span, head: usize, key_width: usize, queries: &mut Vec<f32>) {
        let head_width = self.heads.nope + self.heads.rope;
        zeros(queries, span.count * key_width);
        for (i, query) in queries.chunks_mut(key_width).enumerate() {
            let row = span.first_row + i;
            let start = (row * self.heads.count + head) * head_width;
            query[..head_width].copy_from_slice(&self.q[start..start + head_width]);
            self.rotation.rotate(row, &mut query[self.heads.nope..head_width]);
        }
    }

    /// Expands one head's keys and values of `count` latents.
    fn expand(
        &self,
        latents: Rows,
        count: usize,
        head: usize,
        (keys, key_width): (&mut [f32], usize),
        (values, value_width): (&mut [f32], usize),
    ) {
        let Heads { nope, rope, latent, .. } = self.heads;
        let weights = &self.weights[head];
        // SAFETY: `keys` and `values` have a row for each position.
        unsafe {
            weights.key.product_into(latents, count, keys.as_mut_ptr(), key_width);
            weights.value.product_into(latents, count, values.as_mut_ptr(), value_width);
        }
        for (position, key) in keys.chunks_mut(key_width).take(count).enumerate() {
            let rotated = &latents.row(position, latent + rope)[latent..];
            key[nope..nope + rope].copy_from_slice(rotated);
        }
    }

    fn attend_generated(&self, spans: &[Span], out: &mut [f32]) {
        let spans = spans.iter().filter(|span| span.form == Form::Generated);
        let tokens: Vec<(&Span, usize)> =
            spans.flat_map(|span| (0..span.count).map(move |i| (span, i))).collect();
        if tokens.is_empty() {
            return;
        }
        let rows: Vec<u32> = tokens.iter().map(|(span, i)| (span.first_row + i) as u32).collect();
        let queries = self.absorb_queries(&rows);
        let latents = self.attend_latents(&tokens, &queries);
        let values = self.expand_outputs(rows.len(), &latents);
        let width = self.heads.count * self.heads.value;
        for (&row, values) in rows.iter().zip(values.chunks(width)) {
            out[row as usize * width..(row as usize + 1) * width].copy_from_slice(values);
        }
    }

    /// Queries in the latent space: `[rows, heads, stride]`.
    fn absorb_queries(&self, rows: &[u32]) -> Vec<f32> {
        let Heads { count, nope, rope, latent, .. } = self.heads;
        let (head_width, stride) = (nope + rope, self.stride);
        let mut queries = vec![0.0f32; rows.len() * count * stride];
        let target = Shared::new(&mut queries);
        (0..count).into_par_iter().for_each(|head| {
            let source = &self.q[head * head_width..];
            // SAFETY: each head writes its own columns of every row.
            unsafe {
                let x = Rows::gathered(source, count * head_width, rows);
                self.weights[head].key_transposed.product_into(
                    x,
                    rows.len(),
                    target.at(head * stride),
                    count * stride,
                );
                for (i, &row) in rows.iter().enumerate() {
                    let row = row as usize;
                    let plain = &source[row * count * head_width + nope..][..rope];
                    let place = target.at((i * count + head) * stride + latent);
                    let place = std::slice::from_raw_parts_mut(place, rope);
                    place.copy_from_slice(plain);
                    self.rotation.rotate(row, place);
                }
            }
        });
        queries
    }

    /// Softmax-weighted latents: `[tokens, heads, latent in whole lanes]`.
    fn attend_latents(&self, tokens: &[(&Span, usize)], queries: &[f32]) -> Vec<f32> {
        let (count, stride) = (self.heads.count, self.stride);
        let width = self.heads.latent.next_multiple_of(16);
        // Few tokens: their heads are divided too, so that every thread has work.
        let divided = tokens.len() < 2 * rayon::current_num_threads();
        let per_task = if divided { GROUP.min(count) } else { count };
        let mut out = vec![0.0f32; tokens.len() * count * width];
        let target = Shared::new(&mut out);
        // The longest first, so that no thread ends late.
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|&token| std::cmp::Reverse(tokens[token].0.first_position));
        let heads = || (0..count).step_by(per_task);
        let tasks: Vec<(usize, usize)> =
            order.into_iter().flat_map(|token| heads().map(move |head| (token, head))).collect();
        tasks.into_par_iter().with_max_len(1).for_each(|(token, first_head)| {
            let heads = per_task.min(count - first_head);
            let start = (token * count + first_head) * stride;
            let queries = &queries[start..start + heads * stride];
            let place = (token * count + first_head) * width;
            // SAFETY: each task writes its own heads of its own token.
            let out = unsafe { std::slice::from_raw_parts_mut(target.at(place), heads * width) };
            SCRATCH.with_borrow_mut(|scratch| {
                self.attend_token(tokens[token], queries, out, scratch);
            });
        });
        out
    }

    /// Adds up one token's latents in `out`, which holds zeros: `[heads, latent in whole lanes]`.
    fn attend_token(
        &self,
        (span, i): (&Span, usize),
        queries: &[f32],
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let heads = queries.len() / self.stride;
        let visible = span.first_position + i + 1;
        let width = self.heads.latent.next_multiple_of(16);
        let mut rows = SoftmaxRows::new(&mut scratch.softmax, out, width);
        for (index, &block) in span.blocks.iter().enumerate().take(visible.div_ceil(BLOCK_TOKENS)) {
            let cached = self.cached.block(block, &mut scratch.block);
            let run = Run {
                keys: cached,
                key_stride: self.stride,
                key_width: self.stride,
                values: cached,
                value_stride: self.stride,
                scale: self.heads.scale,
            };
            let visible = (visible - index * BLOCK_TOKENS).min(BLOCK_TOKENS);
            for first in (0..heads).step_by(GROUP) {
                rows.attend(queries, first..heads.min(first + GROUP), |_| visible, &run);
            }
        }
        rows.finish();
    }

    /// Latents back to values: `[tokens, heads * value]`.
    fn expand_outputs(&self, tokens: usize, latents: &[f32]) -> Vec<f32> {
        let Heads { count, value, latent, .. } = self.heads;
        let width = latent.next_multiple_of(16);
        let mut out = vec![0.0f32; tokens * count * value];
        let target = Shared::new(&mut out);
        (0..count).into_par_iter().for_each(|head| {
            let rows = Rows::dense(&latents[head * width..], count * width);
            // SAFETY: each head writes its own columns of every row.
            unsafe {
                self.weights[head].value.product_into(
                    rows,
                    tokens,
                    target.at(head * value),
                    count * value,
                )
            }
        });
        out
    }
}

fn zeros(buffer: &mut Vec<f32>, len: usize) {
    buffer.clear();
    buffer.resize(len, 0.0);
}
