//! The latent cache's memory: for each layer, blocks of rows, one row a token.
//!
//! A row is the normalised latent followed by the rotated shared key, padded with zeros to whole
//! lanes. Who owns which block is the engine's business.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;

use super::host::Shared;
use super::isa::{Isa, per_isa};
use super::lanes::Lanes;
use super::matmul::Rows;
use super::numerics::CacheFormat;

/// Tokens of one block.
pub const BLOCK_TOKENS: usize = 16;

/// The rows of all layers.
#[derive(Debug)]
pub struct LatentPool {
    layers: Vec<Cells>,
    stride: usize,
    blocks: usize,
}

#[derive(Debug)]
enum Cells {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    /// `[slots, stride]` on a device, F32 or BF16.
    Device(Tensor),
}

impl LatentPool {
    /// Reserves `blocks` blocks for each layer; `width` is latent plus shared key, in elements.
    pub fn new(layers: usize, blocks: usize, width: usize, format: CacheFormat) -> Self {
        let stride = stride_of(width);
        let elements = blocks * BLOCK_TOKENS * stride;
        let cells = || match format {
            CacheFormat::F32 => Cells::F32(vec![0.0; elements]),
            CacheFormat::Bf16 => Cells::Bf16(vec![bf16::ZERO; elements]),
        };
        Self { layers: (0..layers).map(|_| cells()).collect(), stride, blocks }
    }

    /// The same where `device` computes.
    pub fn on(
        device: &Device,
        layers: usize,
        (blocks, width): (usize, usize),
        format: CacheFormat,
    ) -> Result<Self> {
        if device.is_cpu() {
            return Ok(Self::new(layers, blocks, width, format));
        }
        let stride = stride_of(width);
        let dtype = match format {
            CacheFormat::F32 => DType::F32,
            CacheFormat::Bf16 => DType::BF16,
        };
        let zeros = |_| Tensor::zeros((blocks * BLOCK_TOKENS, stride), dtype, device);
        let layers = (0..layers).map(|layer| zeros(layer).map(Cells::Device));
        Ok(Self { layers: layers.collect::<Result<_>>()?, stride, blocks })
    }

    /// Bytes that one block takes over all layers.
    pub fn block_bytes(layers: usize, width: usize, format: CacheFormat) -> u64 {
        (layers * BLOCK_TOKENS * stride_of(width)) as u64 * format.element_bytes()
    }

    /// Blocks of each layer.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Elements from one row to the next: the width in whole lanes.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// One layer's rows, to read.
    pub(super) fn layer(&self, layer: usize) -> Result<CachedRows<'_>> {
        let stride = self.stride;
        match &self.layers[layer] {
            Cells::F32(rows) => Ok(CachedRows::F32 { rows, stride }),
            Cells::Bf16(rows) => Ok(CachedRows::Bf16 { rows, stride }),
            Cells::Device(_) => bail!("the latent cache is on a device, activations are not"),
        }
    }

    /// One layer's rows, to write side by side.
    pub(super) fn slots(&mut self, layer: usize) -> Result<Slots> {
        let (rows, stride) = (self.blocks * BLOCK_TOKENS, self.stride);
        let cells = match &mut self.layers[layer] {
            Cells::F32(rows) => SharedCells::F32(Shared::new(rows)),
            Cells::Bf16(rows) => SharedCells::Bf16(Shared::new(rows)),
            Cells::Device(_) => bail!("the latent cache is on a device, activations are not"),
        };
        Ok(Slots { cells, rows, stride })
    }

    /// One layer's rows on a device, to read and to write.
    pub(super) fn on_device(&self, layer: usize) -> Result<&Tensor> {
        match &self.layers[layer] {
            Cells::Device(rows) => Ok(rows),
            _ => bail!("activations are on a device, the latent cache is not"),
        }
    }
}

fn stride_of(width: usize) -> usize {
    width.next_multiple_of(16)
}

/// A layer's rows as they are held.
#[derive(Clone, Copy)]
pub(crate) enum CachedRows<'a> {
    F32 { rows: &'a [f32], stride: usize },
    Bf16 { rows: &'a [bf16], stride: usize },
}

impl<'a> CachedRows<'a> {
    /// The rows of a block, in `scratch` where they have to be widened.
    pub(super) fn block<'s>(self, block: u32, scratch: &'s mut Vec<f32>) -> &'s [f32]
    where
        'a: 's,
    {
        let (start, len) = self.elements(block);
        match self {
            Self::F32 { rows, .. } => &rows[start..start + len],
            Self::Bf16 { rows, .. } => {
                scratch.resize(len, 0.0);
                widen(&rows[start..start + len], scratch);
                scratch
            }
        }
    }

    /// The rows of the first `count` positions of some blocks, where they lie or in `scratch`.
    pub(super) fn positions<'s>(
        self,
        blocks: &[u32],
        count: usize,
        scratch: &'s mut GatherScratch,
    ) -> Rows<'s>
    where
        'a: 's,
    {
        match self {
            Self::F32 { rows, stride } => {
                let row = |position: usize| {
                    let block = blocks[position / BLOCK_TOKENS] as usize;
                    (block * BLOCK_TOKENS + position % BLOCK_TOKENS) as u32
                };
                scratch.indices.clear();
                scratch.indices.extend((0..count).map(row));
                Rows::gathered(rows, stride, &scratch.indices)
            }
            Self::Bf16 { rows, stride } => {
                let blocks = &blocks[..count.div_ceil(BLOCK_TOKENS)];
                scratch.rows.resize(blocks.len() * BLOCK_TOKENS * stride, 0.0);
                let targets = scratch.rows.chunks_mut(BLOCK_TOKENS * stride);
                for (&block, target) in blocks.iter().zip(targets) {
                    let (start, len) = self.elements(block);
                    widen(&rows[start..start + len], target);
                }
                Rows::dense(&scratch.rows, stride)
            }
        }
    }

    /// Where a block begins, and its elements.
    fn elements(self, block: u32) -> (usize, usize) {
        let (Self::F32 { stride, .. } | Self::Bf16 { stride, .. }) = self;
        (block as usize * BLOCK_TOKENS * stride, BLOCK_TOKENS * stride)
    }
}

/// What gathering rows needs, kept from call to call.
#[derive(Default)]
pub(super) struct GatherScratch {
    indices: Vec<u32>,
    rows: Vec<f32>,
}

/// A layer's rows, which tasks write side by side.
#[derive(Clone, Copy)]
pub(super) struct Slots {
    cells: SharedCells,
    /// How many there are.
    rows: usize,
    stride: usize,
}

#[derive(Clone, Copy)]
enum SharedCells {
    F32(Shared<f32>),
    Bf16(Shared<bf16>),
}

impl Slots {
    /// Writes the row of a slot: block number times [`BLOCK_TOKENS`] plus offset.
    ///
    /// # Safety
    /// No other task writes or reads the slot's row; the pool is borrowed as long.
    pub(super) unsafe fn write(self, slot: u32, row: &[f32]) {
        let slot = slot as usize;
        assert!(slot < self.rows && row.len() <= self.stride, "slot {slot} of {}", self.rows);
        // SAFETY: the row lies in the pool, and the caller promises that it is this task's alone.
        unsafe {
            match self.cells {
                SharedCells::F32(cells) => {
                    let target = cells.at(slot * self.stride);
                    target.copy_from_nonoverlapping(row.as_ptr(), row.len());
                }
                SharedCells::Bf16(cells) => {
                    let target = cells.at(slot * self.stride);
                    let target = std::slice::from_raw_parts_mut(target, row.len());
                    target.iter_mut().zip(row).for_each(|(x, value)| *x = bf16::from_f32(*value));
                }
            }
        }
    }
}

fn widen(from: &[bf16], to: &mut [f32]) {
    // SAFETY: plain Rust, compiled for an instruction set that the processor has.
    unsafe { widen_with(Isa::best(), from, to) }
}

#[inline(always)]
unsafe fn widen_on<L: Lanes>(from: &[bf16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f32::from_bits(u32::from(from.to_bits()) << 16);
    }
}

per_isa! { fn widen_with = widen_on(from: &[bf16], to: &mut [f32]) }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_their_format_holds_them() {
        let row = [1.0f32, -2.5, 1.0 + 1.0 / 1024.0];
        for (format, last) in [(CacheFormat::F32, row[2]), (CacheFormat::Bf16, 1.0)] {
            let mut pool = LatentPool::new(2, 3, 3, format);
            // SAFETY: one slot is written at a time.
            unsafe { pool.slots(1).unwrap().write(17, &row) };
            let mut scratch = Vec::new();
            let rows = pool.layer(1).unwrap();
            let block = rows.block(1, &mut scratch);
            assert_eq!(block[16..20], [1.0, -2.5, last, 0.0]);
            let mut scratch = GatherScratch::default();
            let gathered = rows.positions(&[0, 1], 18, &mut scratch);
            assert_eq!(gathered.row(17, 4), [1.0, -2.5, last, 0.0]);
            assert_eq!(LatentPool::block_bytes(2, 3, format), format.element_bytes() * 2 * 16 * 16);
        }
    }
}
