//! Multi-head latent attention over the cache's blocks, in two formulations.
//!
//! *Prompt* tokens attend through keys and values expanded from the latents, head by head; *generated*
//! tokens score their query against the latents directly. What a token is decides its formulation,
//! never when it is computed. Softmax is online over blocks of sixteen positions from position 0 on,
//! so a token's result depends on its own positions only.
//!
//! Source: DeepSeek-V2 (arXiv:2405.04434) §2.1 and appendix C.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::host::{Shared, from_host, host};
use super::latent::{BLOCK_TOKENS, LatentPool};
use super::matmul::{Matrix, Rows};
use super::online_softmax::{GROUP, Run, SoftmaxRows};
use super::rope::Rotation;

/// Positions whose keys and values are expanded at a time.
const EXPANDED_POSITIONS: usize = 16 * BLOCK_TOKENS;

/// Shapes of one layer's attention.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Heads.
    pub count: usize,
    /// Elements of a head's query and key without position.
    pub nope: usize,
    /// Elements of the rotated part.
    pub rope: usize,
    /// Elements of a head's value.
    pub value: usize,
    /// Elements of the latent.
    pub latent: usize,
    /// Factor of the scores.
    pub scale: f32,
}

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

/// How a token attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A prompt token: through expanded keys and values.
    Prompt,
    /// A generated token: in the latent space.
    Generated,
}

/// Neighbouring tokens of one sequence in a step, all of one form.
#[derive(Clone, Debug)]
pub struct Span {
    /// Row of the first token in the step.
    pub first_row: usize,
    /// Tokens.
    pub count: usize,
    /// Position of the first token in its sequence.
    pub first_position: usize,
    /// How they attend.
    pub form: Form,
    /// The sequence's blocks, as far as its positions need them.
    pub blocks: Vec<u32>,
}

impl Span {
    /// The row of the cache that holds a position.
    fn cache_row(&self, position: usize) -> u32 {
        self.blocks[position / BLOCK_TOKENS] * BLOCK_TOKENS as u32
            + (position % BLOCK_TOKENS) as u32
    }
}

/// Attends: queries `[tokens, count * (nope + rope)]`, each head's rotated part last and not rotated
/// yet → `[tokens, count * value]`.
///
/// The step's own latents must be in the cache already.
pub fn attend(
    (q, rotation): (&Tensor, &Rotation),
    heads: Heads,
    weights: &[HeadWeights],
    spans: &[Span],
    cache: (&LatentPool, usize),
) -> Result<Tensor> {
    let (tokens, width) = q.dims2()?;
    let Heads { count, nope, rope, .. } = heads;
    if width != count * (nope + rope) || weights.len() != count {
        bail!("queries of {width} do not fit {count} heads of {nope} + {rope}")
    }
    if !rotation.fits(tokens, rope) {
        bail!("a rotation does not fit {tokens} queries with {rope} rotated elements")
    }
    let q = &*host(q)?;
    let (rows, stride) = (cache.0.layer(cache.1), cache.0.stride());
    let step = Step { q, rotation, heads, weights, rows, stride };
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
    rows: &'a [f32],
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
            let result = self.attend_prompt_head(span, head);
            for (i, row) in result.chunks(heads.value.next_multiple_of(16)).enumerate() {
                let column = (span.first_row + i) * heads.count * heads.value + head * heads.value;
                // SAFETY: each task writes the columns of its own head in the rows of its own span.
                unsafe { out.at(column).copy_from_nonoverlapping(row.as_ptr(), heads.value) }
            }
        });
    }

    /// `[span.count, value]`, rows in whole lanes.
    fn attend_prompt_head(&self, span: &Span, head: usize) -> Vec<f32> {
        let heads = self.heads;
        let key_width = (heads.nope + heads.rope).next_multiple_of(16);
        let value_width = heads.value.next_multiple_of(16);
        let queries = self.padded_queries(span, head, key_width);
        let mut rows = SoftmaxRows::new(span.count, value_width);
        let mut keys = vec![0.0f32; EXPANDED_POSITIONS * key_width];
        let mut values = vec![0.0f32; EXPANDED_POSITIONS * value_width];
        let end = span.first_position + span.count;
        for start in (0..end).step_by(EXPANDED_POSITIONS) {
            let filled = EXPANDED_POSITIONS.min(end - start);
            self.expand(
                span,
                head,
                start..start + filled,
                (&mut keys, key_width),
                (&mut values, value_width),
            );
            for first in (0..span.count).step_by(GROUP) {
                let visible =
                    |i: usize| (span.first_position + i + 1).saturating_sub(start).min(filled);
                let run = Run {
                    keys: &keys,
                    key_stride: key_width,
                    key_width,
                    values: &values,
                    value_stride: value_width,
                    scale: heads.scale,
                };
                rows.attend(&queries, first..span.count.min(first + GROUP), visible, &run);
            }
        }
        rows.finish()
    }

    fn padded_queries(&self, span: &Span, head: usize, key_width: usize) -> Vec<f32> {
        let head_width = self.heads.nope + self.heads.rope;
        let mut queries = vec![0.0f32; span.count * key_width];
        for (i, query) in queries.chunks_mut(key_width).enumerate() {
            let row = span.first_row + i;
            let start = (row * self.heads.count + head) * head_width;
            query[..head_width].copy_from_slice(&self.q[start..start + head_width]);
            self.rotation.rotate(row, &mut query[self.heads.nope..head_width]);
        }
        queries
    }

    /// Expands one head's keys and values of some positions from the cache.
    fn expand(
        &self,
        span: &Span,
        head: usize,
        positions: std::ops::Range<usize>,
        (keys, key_width): (&mut [f32], usize),
        (values, value_width): (&mut [f32], usize),
    ) {
        let Heads { nope, rope, latent, .. } = self.heads;
        let weights = &self.weights[head];
        let cached: Vec<u32> = positions.map(|position| span.cache_row(position)).collect();
        let rows = Rows::gathered(self.rows, self.stride, &cached);
        // SAFETY: `keys` and `values` have a row for each position.
        unsafe {
            weights.key.product_into(rows, cached.len(), keys.as_mut_ptr(), key_width);
            weights.value.product_into(rows, cached.len(), values.as_mut_ptr(), value_width);
        }
        for (&row, key) in cached.iter().zip(keys.chunks_mut(key_width)) {
            let rotated = &self.rows[row as usize * self.stride + latent..][..rope];
            key[nope..nope + rope].copy_from_slice(rotated);
        }
    }

    fn block_rows(&self, block: u32) -> &[f32] {
        let size = BLOCK_TOKENS * self.stride;
        &self.rows[block as usize * size..(block as usize + 1) * size]
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
            let result = self.attend_token(tokens[token], &queries[start..start + heads * stride]);
            let place = (token * count + first_head) * width;
            // SAFETY: each task writes its own heads of its own token.
            unsafe { target.at(place).copy_from_nonoverlapping(result.as_ptr(), result.len()) }
        });
        out
    }

    fn attend_token(&self, (span, i): (&Span, usize), queries: &[f32]) -> Vec<f32> {
        let heads = queries.len() / self.stride;
        let visible = span.first_position + i + 1;
        let mut rows = SoftmaxRows::new(heads, self.heads.latent.next_multiple_of(16));
        for (index, &block) in span.blocks.iter().enumerate().take(visible.div_ceil(BLOCK_TOKENS)) {
            let cached = self.block_rows(block);
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
        rows.finish()
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
