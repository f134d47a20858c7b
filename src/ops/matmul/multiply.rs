//! Packed rows times some panels of a weight, on this thread: every tile of rows meets every panel.

use std::ops::Range;

use super::pairs;
use super::panels::Panels;
use super::quads::{ByteIsa, Quads};
use super::rows::{Tiles, Words};
use super::tile::{
    Ahead, BURST, Halves, Kernel, MAX_TILE_ROWS, Operands, PANEL, RowGroup, Singles,
};
use crate::ops::isa::{Isa, per_isa};
use crate::ops::lanes::Lanes;
use crate::ops::numerics::{Compute, Held};

/// Packed rows that walk over all panels together stay in the second-level cache: their words.
const BLOCK_WORDS: usize = 1 << 17;
/// Rows from which a product computes long enough for the next panel to come meanwhile; below, the
/// processor's own prefetching is faster.
const PREFETCH_ROWS: usize = 4;

/// What happens to the 32 products of a row with a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Finish {
    /// Each is an output.
    Store,
    /// Product j of the first sixteen is a gate and j + 16 its value: the output is
    /// `silu(gate) * value`.
    Gate,
}

impl Finish {
    /// Outputs of one panel.
    pub(super) fn outputs(self) -> usize {
        match self {
            Self::Store => PANEL,
            Self::Gate => PANEL / 2,
        }
    }
}

/// The kernel of a product: chosen by the processor and by how the weight is held.
#[derive(Clone, Copy, Debug)]
pub(super) enum Choice {
    Singles(Isa),
    Halves(Isa),
    Pairs,
    Quads(ByteIsa),
}

impl Choice {
    pub(super) fn new(isa: Isa, held: Held, compute: Compute) -> Self {
        match (held, compute) {
            (Held::F32, _) => Self::Singles(isa),
            (Held::Bf16, Compute::F32) => Self::Halves(isa),
            (Held::Bf16, Compute::Bf16) => Self::Pairs,
            (Held::Int8, _) => Self::Quads(ByteIsa::of(isa)),
        }
    }

    /// What it takes packed rows to hold.
    pub(super) fn words(self) -> Words {
        match self {
            Self::Singles(_) | Self::Halves(_) => Words::Singles,
            Self::Pairs => Words::Pairs,
            Self::Quads(_) => Words::Quads,
        }
    }

    /// Most rows of a tile.
    pub(super) fn tile_rows(self) -> usize {
        match self {
            Self::Singles(isa) | Self::Halves(isa) => isa.tile_rows(),
            Self::Pairs => pairs::TILE_ROWS,
            Self::Quads(isa) => isa.tile_rows(),
        }
    }
}

/// A product of packed rows with a weight.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) panels: &'a Panels,
    pub(super) finish: Finish,
    /// The rows, tile by tile.
    pub(super) words: &'a [u32],
    /// Their groups, tile by tile.
    pub(super) groups: &'a [RowGroup],
    /// Words of a row.
    pub(super) row_words: usize,
    /// Groups of a row.
    pub(super) row_groups: usize,
    pub(super) tiles: Tiles,
    /// Width of the result.
    pub(super) outputs: usize,
    /// Where the result's rows begin, `stride` apart.
    pub(super) target: *mut f32,
    pub(super) stride: usize,
}

/// Multiplies all rows by some panels.
///
/// # Safety
/// The target has room for every row; nobody else writes the panels' columns.
pub(super) unsafe fn multiply(choice: Choice, product: Product, panels: Range<usize>) {
    // SAFETY: a choice exists only where its instruction set does; the rest is the caller's promise.
    unsafe {
        match choice {
            Choice::Singles(isa) => multiply_singles(isa, product, panels),
            Choice::Halves(isa) => multiply_halves(isa, product, panels),
            #[cfg(target_arch = "x86_64")]
            Choice::Pairs => multiply_pairs(product, panels),
            #[cfg(not(target_arch = "x86_64"))]
            Choice::Pairs => unreachable!("`pairs::available` says that it is not"),
            #[cfg(target_arch = "x86_64")]
            Choice::Quads(ByteIsa::Vnni) => multiply_vnni(product, panels),
            #[cfg(target_arch = "x86_64")]
            Choice::Quads(ByteIsa::Avx2) => multiply_bytes_avx2(product, panels),
            Choice::Quads(ByteIsa::Portable) => {
                multiply_on::<Quads<super::quads::PortableDots>>(product, panels);
            }
        }
    }
}

#[inline(always)]
unsafe fn multiply_singles_on<L: Lanes>(product: Product, panels: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { multiply_on::<Singles<L>>(product, panels) }
}

#[inline(always)]
unsafe fn multiply_halves_on<L: Lanes>(product: Product, panels: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { multiply_on::<Halves<L>>(product, panels) }
}

per_isa! { fn multiply_singles = multiply_singles_on(product: Product, panels: Range<usize>) }
per_isa! { fn multiply_halves = multiply_halves_on(product: Product, panels: Range<usize>) }

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn multiply_pairs(product: Product, panels: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { multiply_on::<pairs::Pairs>(product, panels) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn multiply_vnni(product: Product, panels: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { multiply_on::<Quads<super::quads::VnniDots>>(product, panels) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_bytes_avx2(product: Product, panels: Range<usize>) {
    // SAFETY: the caller's promise.
    unsafe { multiply_on::<Quads<super::quads::Avx2Dots>>(product, panels) }
}

/// Blocks of tiles that stay in the cache; for each the panels, for each the block's tiles.
#[inline(always)]
unsafe fn multiply_on<K: Kernel>(product: Product, panels: Range<usize>) {
    let tiles = product.tiles;
    let block = (BLOCK_WORDS / (product.row_words * K::TILE_ROWS).max(1)).max(1);
    for first in (0..tiles.count).step_by(block) {
        let block = first..tiles.count.min(first + block);
        for panel in panels.clone() {
            for tile in block.clone() {
                let done = tile - block.start;
                // SAFETY: the caller's promise.
                unsafe { multiply_tile::<K>(product, tile, panel, (done, block.len())) }
            }
        }
    }
}

/// Multiplies one tile by one panel, and fetches share `done` of `of` of the next panel.
#[inline(always)]
unsafe fn multiply_tile<K: Kernel>(
    product: Product,
    tile: usize,
    panel: usize,
    (done, of): (usize, usize),
) {
    let rows = product.tiles.rows(tile);
    let (weights, scales) = product.panels.panel(panel);
    let lines = product.panels.panel_words() / 16;
    let share = lines * done / of;
    let fetch = product.tiles.rows(product.tiles.count - 1).end >= PREFETCH_ROWS;
    let ahead = Ahead {
        from: weights.wrapping_add(product.panels.panel_words() + share * 16).cast(),
        lines: if fetch { (2 * BURST).div_ceil(of) } else { 0 },
    };
    let operands = Operands {
        x: product.words[rows.start * product.row_words..].as_ptr(),
        x_words: product.row_words,
        x_groups: product.groups[rows.start * product.row_groups..].as_ptr(),
        weights,
        scales,
        ahead,
    };
    let mut out = [[0.0f32; PANEL]; MAX_TILE_ROWS];
    macro_rules! by_rows {
        ($($rows:literal)*) => { match rows.len() {
            // SAFETY: the operands cover the tile and the panel.
            $($rows if $rows <= K::TILE_ROWS => unsafe { store_tile::<K, $rows>(operands, &mut out) },)*
            rows => unreachable!("a tile of {rows} rows"),
        } };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
    // SAFETY: the caller's promise.
    unsafe { finish_tile::<K::Lanes>(&mut out, rows, panel, product) }
}

#[inline(always)]
unsafe fn store_tile<K: Kernel, const R: usize>(
    operands: Operands,
    out: &mut [[f32; PANEL]; MAX_TILE_ROWS],
) {
    // SAFETY: the caller's promise; a row of `out` has two sixteens.
    unsafe {
        if K::SIXTEENS == 2 {
            let sums = K::tile::<R, 2>(operands, 0);
            for (row, [low, high]) in out.iter_mut().zip(sums) {
                low.store(row.as_mut_ptr());
                high.store(row.as_mut_ptr().add(PANEL / 2));
            }
        } else {
            for first in 0..2 {
                let sums = K::tile::<R, 1>(operands, first);
                for (row, [half]) in out.iter_mut().zip(sums) {
                    half.store(row.as_mut_ptr().add(first * PANEL / 2));
                }
            }
        }
    }
}

/// Writes a tile's products where they belong.
#[inline(always)]
unsafe fn finish_tile<L: Lanes>(
    tile: &mut [[f32; PANEL]; MAX_TILE_ROWS],
    rows: Range<usize>,
    panel: usize,
    product: Product,
) {
    let width = product.finish.outputs();
    let column = panel * width;
    let columns = width.min(product.outputs - column);
    for (row, products) in rows.zip(tile) {
        // SAFETY: a row of products has 32 elements; the target has `columns` from `column` on.
        unsafe {
            if product.finish == Finish::Gate {
                let gate = L::load(products.as_ptr());
                gate.silu().mul(L::load(products.as_ptr().add(16))).store(products.as_mut_ptr());
            }
            let target = product.target.add(row * product.stride + column);
            target.copy_from_nonoverlapping(products.as_ptr(), columns);
        }
    }
}
