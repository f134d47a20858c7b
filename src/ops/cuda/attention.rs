//! Multi-head latent attention: prompts through expanded keys and values, generated tokens in the latent
//! space; on tensor cores where heads and latents have DeepSeek-V2's shape.

use candle_core::{DType, Result, Tensor};

use super::gemm::{Operand, Product, Weight};
use super::launch::{NULL, Shape, float, int, launch, pointer, unfilled};
use super::suffixed;
use crate::ops::accelerator::{DeviceMetadata, GeneratedTables, PromptTables, TILE_QUERIES};
use crate::ops::latent::BLOCK_TOKENS;
use crate::ops::shapes::Heads;

/// Positions of one block of threads' share of a generated token's attention. Fixed, so that sums run in
/// one order whatever else is in the step.
const SPLIT: usize = 1024;
/// Bytes of unmerged splits that are held at a time.
const PARTIAL_BYTES: usize = 256 << 20;

/// One layer's attention over one step.
pub(super) struct Attend<'a> {
    /// Rotated queries, `[tokens, heads * (nope + rope)]`.
    pub(super) q: &'a Tensor,
    pub(super) heads: Heads,
    /// `kv_b_proj`: `[heads * (nope + value), latent]`.
    pub(super) weight: &'a Tensor,
    /// The layer's cache rows, `[slots, stride]`.
    pub(super) pool: &'a Tensor,
}

impl Attend<'_> {
    pub(super) fn step(&self, metadata: &DeviceMetadata) -> Result<Tensor> {
        let prompts = match metadata.prompts.is_empty() {
            true => None,
            false => Some(self.prompts(&metadata.prompts)?),
        };
        let generated =
            metadata.generated.as_ref().map(|tables| self.generated(tables)).transpose()?;
        match (prompts, generated, &metadata.order) {
            (Some(prompts), Some(generated), Some(order)) => {
                Tensor::cat(&[prompts, generated], 0)?.index_select(order, 0)
            }
            (Some(rows), None, _) | (None, Some(rows), _) => Ok(rows),
            _ => candle_core::bail!("a step without tokens has no attention"),
        }
    }

    fn stride(&self) -> Result<usize> {
        self.pool.dim(1)
    }

    /// All prompt tokens: `[tokens, heads * value]`; rows of generated tokens are left unfilled.
    fn prompts(&self, calls: &[PromptTables]) -> Result<Tensor> {
        let Heads { count, nope, rope, value, latent, scale } = self.heads;
        let (tokens, stride) = (self.q.dim(0)?, self.stride()?);
        let out = unfilled(&[tokens, count * value], DType::F32, self.q)?;
        let logs = unfilled(&[tokens, count], DType::F32, self.q)?;
        for call in calls {
            let latents = self.pool.index_select(&call.slots, 0)?;
            let expanded = self.expand(&latents)?;
            let (q, tiles) = (pointer(self.q)?, call.tiles.dim(0)?);
            let (rows, shared) = (pointer(&expanded)?, pointer(&latents)?);
            let (table, out, logs) = (pointer(&call.tiles)?, pointer(&out)?, pointer(&logs)?);
            // SAFETY: the shapes are those of the kernels' comments; a span's pieces are in different calls.
            unsafe {
                if self.is_deepseek() && nope == 128 && value == 128 {
                    let shape = Shape { grid: [tiles, count, 1], threads: 128, shared: 68608 };
                    let sizes = [int(count), int(latent), int(stride), float(scale)];
                    let arguments = [&[q, rows, shared, table, out, logs][..], &sizes].concat();
                    launch("mla_prefill", shape, self.q, &arguments)?;
                } else {
                    let grid = [tiles, count, TILE_QUERIES];
                    let shape = Shape { grid, threads: 128, shared: 4 * value };
                    let sizes = [count, nope, rope, value, latent, stride].map(int);
                    let arguments =
                        [&[q, rows, shared, table, out, logs][..], &sizes, &[float(scale)]]
                            .concat();
                    let names = ["attend_expanded_f32", "attend_expanded_bf16"];
                    launch(suffixed(names, self.pool)?, shape, self.q, &arguments)?;
                }
            }
        }
        Ok(out)
    }

    /// Keys and values of some latents: `[rows, stride]` → `[rows, heads * (nope + value)]`.
    fn expand(&self, latents: &Tensor) -> Result<Tensor> {
        let (rows, outputs) = (latents.dim(0)?, self.weight.dim(0)?);
        let out = unfilled(&[rows, outputs], self.weight.dtype(), latents)?;
        let weight = (Operand::rows(self.weight)?, Weight::OutputsByInputs);
        let (x, target) = (Operand::rows(latents)?, Operand::rows(&out)?);
        let inputs = self.heads.latent;
        Product { x, weight, out: target, rows, inputs, outputs, batch: 1 }.compute()?;
        Ok(out)
    }

    /// All generated tokens: `[n, heads * value]`.
    fn generated(&self, tables: &GeneratedTables) -> Result<Tensor> {
        let Heads { count, nope, value, latent, .. } = self.heads;
        let rows = tables.rows.dim(0)?;
        let queries = self.absorb(tables)?;
        let latents = unfilled(&[rows, count * latent], queries.dtype(), self.q)?;
        match self.is_deepseek() {
            true => self.decode(&queries, tables, &latents)?,
            false => self.decode_plainly(&queries, tables, &latents)?,
        }
        let out = unfilled(&[rows, count * value], DType::F32, self.q)?;
        let weight = (nope * latent, Weight::OutputsByInputs);
        self.by_head((&latents, latent), weight, (&out, value), (rows, value))?;
        Ok(out)
    }

    /// Queries in the latent space: `[n, heads * stride]`.
    fn absorb(&self, tables: &GeneratedTables) -> Result<Tensor> {
        let Heads { count, nope, rope, latent, .. } = self.heads;
        let (rows, stride, dtype) = (tables.rows.dim(0)?, self.stride()?, self.weight.dtype());
        let plain = unfilled(&[rows, count * nope], dtype, self.q)?;
        let absorbed = unfilled(&[rows, count * stride], dtype, self.q)?;
        let tensors =
            [pointer(self.q)?, pointer(&tables.rows)?, pointer(&plain)?, pointer(&absorbed)?];
        let sizes = [count, nope, rope, latent, stride].map(int);
        let name = suffixed(["split_queries_f32", "split_queries_bf16"], &absorbed)?;
        // SAFETY: the shapes are those of the kernel's comment.
        unsafe {
            launch(name, Shape::row(rows, 256), self.q, &[&tensors[..], &sizes].concat())?;
        }
        let weight = (0, Weight::InputsByOutputs);
        self.by_head((&plain, nope), weight, (&absorbed, stride), (rows, latent))?;
        Ok(absorbed)
    }

    /// Each head's inputs times its part of the weight, which begins `first` elements into the head's own:
    /// `rows` rows of `x`, as wide as all heads' inputs, into those of `out`, where a head has `room`.
    fn by_head(
        &self,
        (x, inputs): (&Tensor, usize),
        (first, form): (usize, Weight),
        (out, room): (&Tensor, usize),
        (rows, outputs): (usize, usize),
    ) -> Result<()> {
        let Heads { count, nope, value, latent, .. } = self.heads;
        let matrix = (nope + value) * latent;
        let weight = (Operand { tensor: self.weight, first, row: latent, matrix }, form);
        let x = Operand { matrix: inputs, ..Operand::rows(x)? };
        let out = Operand { matrix: room, ..Operand::rows(out)? };
        Product { x, weight, out, rows, inputs, outputs, batch: count }.compute()
    }

    /// Whether the tensor cores' kernels know these latents.
    fn is_deepseek(&self) -> bool {
        let Heads { rope, latent, .. } = self.heads;
        self.pool.dtype() == DType::BF16 && latent == 512 && rope == 64
    }

    /// Softmax-weighted latents on tensor cores, a group of tokens at a time.
    fn decode(&self, queries: &Tensor, tables: &GeneratedTables, out: &Tensor) -> Result<()> {
        let Heads { count, latent, scale, .. } = self.heads;
        let (name, tile) = if count >= 64 { ("mla_decode_64", 64) } else { ("mla_decode_16", 16) };
        // Queries and two steps' latents of 584 bf16 a row, scores of 36 f32, weights of 40 bf16, state.
        let shared = 2 * 584 * (tile + 64) + tile * (4 * 36 + 2 * 40 + 12);
        let splits = tables.longest.div_ceil(SPLIT);
        let tokens = tables.rows.dim(0)?;
        let most = match splits {
            1 => 65535,
            _ => (PARTIAL_BYTES / (splits * count * latent * 4)).clamp(1, 65535),
        };
        for first in (0..tokens).step_by(most) {
            let group = most.min(tokens - first);
            let queries = queries.narrow(0, first, group)?;
            let seen = tables.tokens.narrow(0, first, group)?;
            let out = out.narrow(0, first, group)?;
            let partial = match splits {
                1 => None,
                _ => Some((
                    unfilled(&[group * splits * count, latent], DType::F32, self.q)?,
                    unfilled(&[group * splits * count], DType::F32, self.q)?,
                )),
            };
            let (sums, logs) = match &partial {
                Some((sums, logs)) => (pointer(sums)?, pointer(logs)?),
                None => (NULL, NULL),
            };
            let grid = [count.div_ceil(tile), group, splits];
            let (table, cache) = (pointer(&tables.blocks)?, pointer(self.pool)?);
            let tensors = [pointer(&queries)?, cache, table, pointer(&seen)?, pointer(&out)?];
            let sizes = [int(count), int(BLOCK_TOKENS), int(SPLIT), float(scale)];
            let arguments = [&tensors[..], &[sums, logs], &sizes].concat();
            // SAFETY: the shapes are those of the kernels' comments.
            unsafe {
                launch(name, Shape { grid, threads: 256, shared }, self.q, &arguments)?;
                if splits > 1 {
                    let shape = Shape { grid: [count, group, 1], threads: 128, shared: 0 };
                    let sizes = [int(count), int(splits), int(SPLIT)];
                    let tensors = [sums, logs, pointer(&seen)?, pointer(&out)?];
                    launch("merge_splits", shape, self.q, &[&tensors[..], &sizes].concat())?;
                }
            }
        }
        Ok(())
    }

    /// The same for other shapes, and in f32.
    fn decode_plainly(
        &self,
        queries: &Tensor,
        tables: &GeneratedTables,
        out: &Tensor,
    ) -> Result<()> {
        let Heads { count, rope, latent, scale, .. } = self.heads;
        let grid = [count, tables.rows.dim(0)?, 1];
        let shape = Shape { grid, threads: 128, shared: 4 * latent };
        let (blocks, tokens) = (pointer(&tables.blocks)?, pointer(&tables.tokens)?);
        let tensors = [pointer(queries)?, pointer(self.pool)?, blocks, tokens, pointer(out)?];
        let sizes = [count, latent, rope, self.stride()?, BLOCK_TOKENS].map(int);
        let arguments = [&tensors[..], &sizes, &[float(scale)]].concat();
        let name = suffixed(["attend_latents_f32", "attend_latents_bf16"], self.pool)?;
        // SAFETY: the shapes are those of the kernel's comment.
        unsafe { launch(name, shape, self.q, &arguments) }
    }
}
