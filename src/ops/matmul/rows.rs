//! Activation rows: where they lie, and how they are packed for a kernel.
//!
//! A kernel reads a tile of rows word by word, the rows of the tile side by side. A word is one F32
//! value, two values rounded to BF16, or four quantised ones.

use std::ops::Range;

use super::quads::GROUP;
use super::tile::RowGroup;
use crate::ops::isa::{Isa, per_isa};
use crate::ops::lanes::Lanes;

/// Rows of activations: row i begins at `base + index(i) * stride`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    base: &'a [f32],
    indices: Option<&'a [u32]>,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// All rows of a dense buffer.
    pub(crate) fn dense(base: &'a [f32], stride: usize) -> Self {
        Self { base, indices: None, stride }
    }

    /// The rows that `indices` names.
    pub(crate) fn gathered(base: &'a [f32], stride: usize, indices: &'a [u32]) -> Self {
        Self { base, indices: Some(indices), stride }
    }

    /// The first `width` elements of a row.
    pub(crate) fn row(&self, row: usize, width: usize) -> &'a [f32] {
        let row = self.indices.map_or(row, |indices| indices[row] as usize);
        &self.base[row * self.stride..row * self.stride + width]
    }
}

/// What the words of packed rows hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// One F32 value.
    Singles,
    /// Two BF16 values.
    Pairs,
    /// Four signed bytes; each group of inputs has a scale.
    Quads,
}

impl Words {
    /// Words of a row of `inputs` values.
    pub(super) fn of_row(self, inputs: usize) -> usize {
        match self {
            Self::Singles => inputs,
            Self::Pairs => inputs.div_ceil(2),
            Self::Quads => inputs.div_ceil(4),
        }
    }

    /// Groups of a row of `inputs` values.
    pub(super) fn groups_of_row(self, inputs: usize) -> usize {
        match self {
            Self::Singles | Self::Pairs => 0,
            Self::Quads => inputs.div_ceil(GROUP),
        }
    }
}

/// How rows are divided into tiles of nearly equal size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    rows: usize,
    /// How many there are.
    pub(super) count: usize,
}

impl Tiles {
    pub(super) fn new(rows: usize, most: usize) -> Self {
        Self { rows, count: rows.div_ceil(most) }
    }

    /// The rows of a tile.
    pub(super) fn rows(self, tile: usize) -> Range<usize> {
        self.rows * tile / self.count..self.rows * (tile + 1) / self.count
    }
}

/// Packs one tile of rows of `inputs` values.
///
/// `packed` and `groups` hold the tile's words and groups.
pub(super) fn pack_tile(
    words: Words,
    rows: Rows,
    tile: Range<usize>,
    inputs: usize,
    (packed, groups): (&mut [u32], &mut [RowGroup]),
) {
    // SAFETY: plain Rust, compiled for an instruction set that the processor has.
    unsafe { pack_tile_with(Isa::best(), words, rows, tile, inputs, (packed, groups)) }
}

/// Block by block, so that the block of all rows stays in the first-level cache.
#[inline(always)]
unsafe fn pack_tile_on<L: Lanes>(
    words: Words,
    rows: Rows,
    tile: Range<usize>,
    inputs: usize,
    (packed, groups): (&mut [u32], &mut [RowGroup]),
) {
    let count = tile.len();
    for (block, start) in (0..inputs).step_by(GROUP).enumerate() {
        let end = inputs.min(start + GROUP);
        let target = &mut packed[words.of_row(start) * count..];
        let values = |r: usize| &rows.row(tile.start + r, inputs)[start..end];
        let mut first = 0;
        if words == Words::Singles {
            while first + ABREAST <= count {
                let abreast = std::array::from_fn(|i| values(first + i));
                interleave(abreast, &mut target[first..], count);
                first += ABREAST;
            }
        }
        for r in first..count {
            let values = values(r);
            let slots = target[r..].iter_mut().step_by(count);
            match words {
                Words::Singles => slots.zip(values).for_each(|(slot, x)| *slot = x.to_bits()),
                Words::Pairs => {
                    slots.zip(values.chunks(2)).for_each(|(slot, pair)| *slot = round_pair(pair));
                }
                Words::Quads => {
                    let mut bytes = [0i8; GROUP];
                    groups[block * count + r] = quantise(values, &mut bytes);
                    let quads = bytes[..values.len().next_multiple_of(4)].chunks_exact(4);
                    slots.zip(quads).for_each(|(slot, quad)| *slot = word_of(quad));
                }
            }
        }
    }
}

/// Rows that are packed side by side: their words lie together.
const ABREAST: usize = 4;

/// Word i of all rows, then word i + 1, `stride` words on.
#[inline(always)]
fn interleave(rows: [&[f32]; ABREAST], target: &mut [u32], stride: usize) {
    let len = rows[0].len();
    let rows = rows.map(|row| &row[..len]);
    for (i, slots) in target.chunks_mut(stride).take(len).enumerate() {
        slots[..ABREAST].copy_from_slice(&rows.map(|row| row[i].to_bits()));
    }
}

per_isa! { fn pack_tile_with = pack_tile_on(words: Words, rows: Rows, tile: Range<usize>, inputs: usize, target: (&mut [u32], &mut [RowGroup])) }

/// One or two values rounded to BF16, ties to even, the first in the low half.
#[inline(always)]
pub(super) fn round_pair(pair: &[f32]) -> u32 {
    let round = |x: f32| {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
    };
    round(pair[0]) | pair.get(1).map_or(0, |&x| round(x)) << 16
}

#[inline(always)]
fn word_of(quad: &[i8]) -> u32 {
    u32::from_le_bytes([quad[0] as u8, quad[1] as u8, quad[2] as u8, quad[3] as u8])
}

/// Quantises one group of a row to signed bytes.
///
/// Values that are not finite make the whole group NaN, as they would make the product.
#[inline(always)]
fn quantise(group: &[f32], bytes: &mut [i8; GROUP]) -> RowGroup {
    // Magnitudes compare as integers, and what is not finite is the largest of them.
    let largest = group.iter().fold(0, |largest, x| u32::max(largest, x.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut sum = 0i32;
    for (byte, x) in bytes.iter_mut().zip(group) {
        *byte = nearest(x * inverse);
        sum += i32::from(*byte);
    }
    let scale = if largest.is_finite() { largest / 127.0 } else { f32::NAN };
    RowGroup { scale, offset: -128 * sum }
}

/// The nearest whole number from -127 to 127, ties to even.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i8 {
    // Adding 1.5 * 2^23 leaves the rounded number in the low bits, on every processor.
    (x + 12_582_912.0).to_bits() as i8
}
