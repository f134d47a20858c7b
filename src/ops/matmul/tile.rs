//! The micro-kernels: a tile of packed activation rows times one weight panel.
//!
//! Every output is one chain over the inputs, in their order: no bit of it depends on the tile's
//! rows, on how many outputs are taken at a time or on the instruction set.

use std::marker::PhantomData;

use crate::ops::lanes::Lanes;

/// Outputs of one panel.
pub(crate) const PANEL: usize = 32;
/// Most rows of any kernel's tile.
pub(super) const MAX_TILE_ROWS: usize = 12;
/// Weight words between two bursts of prefetches.
pub(super) const BURST: usize = 8;

/// Where a tile's operands lie.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// Packed rows: word by word, the tile's rows side by side.
    pub(super) x: *const u32,
    /// Words of one row.
    pub(super) x_words: usize,
    /// Scales and offsets of the rows' groups, the tile's rows side by side; quantised rows only.
    pub(super) x_groups: *const RowGroup,
    /// The panel.
    pub(super) weights: *const u32,
    /// Scales of the panel's groups, 32 each; quantised weights only.
    pub(super) scales: *const f32,
    /// What to fetch meanwhile.
    pub(super) ahead: Ahead,
}

/// One group of a quantised row: its values are `scale * byte`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct RowGroup {
    /// Largest magnitude over 127.
    pub(super) scale: f32,
    /// What undoes the offset of unsigned weights: -128 times the sum of the bytes.
    pub(super) offset: i32,
}

/// Weights that a tile brings into the second-level cache for a later one.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// The first byte; it need not exist.
    pub(super) from: *const u8,
    /// 64-byte lines with each burst.
    pub(super) lines: usize,
}

/// How rows and a panel become products.
///
/// # Safety
/// The methods of an implementation may be called only where its instruction set is available.
pub(super) trait Kernel {
    /// The lanes that products leave in.
    type Lanes: Lanes;
    /// Rows of one tile: as many as registers hold.
    const TILE_ROWS: usize;
    /// Sixteens of a panel's outputs that one pass takes: 1 or 2.
    const SIXTEENS: usize;

    /// The products of `R` rows with `V` sixteens of outputs, from sixteen `first` on.
    unsafe fn tile<const R: usize, const V: usize>(
        operands: Operands,
        first: usize,
    ) -> [[Self::Lanes; V]; R];
}

/// How a word of a weight meets the words of an activation.
///
/// # Safety
/// As for [`Kernel`].
pub(super) trait Arithmetic {
    /// Sixteen running sums.
    type Sums: Copy;
    /// The values of sixteen outputs that one activation word meets.
    type Weights: Copy;
    /// Activation words that one weight word meets.
    const STEPS: usize;

    /// The values for step `step` of sixteen words.
    unsafe fn weights(words: *const u32, step: usize) -> Self::Weights;
    /// Adds the products of sixteen outputs with one activation word.
    unsafe fn add(sums: Self::Sums, weights: Self::Weights, x: *const u32) -> Self::Sums;
}

/// Adds the products of activation words `words` to the sums.
///
/// # Safety
/// `operands` covers the words for `R` rows; `words` begins with a whole weight word.
#[inline(always)]
pub(super) unsafe fn chain<A: Arithmetic, const R: usize, const V: usize>(
    sums: &mut [[A::Sums; V]; R],
    operands: Operands,
    words: std::ops::Range<usize>,
    first: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let done = words.start / A::STEPS;
        let mut ahead = operands.ahead.from.wrapping_add(done / BURST * operands.ahead.lines * 64);
        let mut x = operands.x.add(words.start * R);
        let mut weights = operands.weights.add(done * PANEL + first * (PANEL / 2));
        let mut left = words.len();
        while left >= A::STEPS {
            for _ in 0..operands.ahead.lines {
                prefetch(ahead);
                ahead = ahead.wrapping_add(64);
            }
            let burst = BURST.min(left / A::STEPS);
            for _ in 0..burst {
                for step in 0..A::STEPS {
                    add_step::<A, R, V>(sums, weights, step, x);
                    x = x.add(R);
                }
                weights = weights.add(PANEL);
            }
            left -= burst * A::STEPS;
        }
        for step in 0..left {
            add_step::<A, R, V>(sums, weights, step, x);
            x = x.add(R);
        }
    }
}

#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "register tiles are addressed by index")]
unsafe fn add_step<A: Arithmetic, const R: usize, const V: usize>(
    sums: &mut [[A::Sums; V]; R],
    words: *const u32,
    step: usize,
    x: *const u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let weights: [A::Weights; V] =
            std::array::from_fn(|v| A::weights(words.add(v * (PANEL / 2)), step));
        for r in 0..R {
            for v in 0..V {
                sums[r][v] = A::add(sums[r][v], weights[v], x.add(r));
            }
        }
    }
}

/// Asks for a line in the second-level cache.
#[inline(always)]
fn prefetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// F32 weights: a word is one input.
pub(super) struct Singles<L>(PhantomData<L>);

/// BF16 weights, widened: the low half of a word is one input, the high half the next.
pub(super) struct Halves<L>(PhantomData<L>);

impl<L: Lanes> Arithmetic for Singles<L> {
    type Sums = L;
    type Weights = L;
    const STEPS: usize = 1;

    #[inline(always)]
    unsafe fn weights(words: *const u32, _: usize) -> L {
        // SAFETY: the caller's promise; so below.
        unsafe { L::load(words.cast()) }
    }
    #[inline(always)]
    unsafe fn add(sums: L, weights: L, x: *const u32) -> L {
        // SAFETY: as above.
        unsafe { L::splat(x.cast::<f32>().read()).mul_add(weights, sums) }
    }
}

impl<L: Lanes> Arithmetic for Halves<L> {
    type Sums = L;
    type Weights = L;
    const STEPS: usize = 2;

    #[inline(always)]
    unsafe fn weights(words: *const u32, step: usize) -> L {
        // SAFETY: the caller's promise; so below.
        unsafe { if step == 0 { L::load_low_halves(words) } else { L::load_high_halves(words) } }
    }
    #[inline(always)]
    unsafe fn add(sums: L, weights: L, x: *const u32) -> L {
        // SAFETY: as above.
        unsafe { L::splat(x.cast::<f32>().read()).mul_add(weights, sums) }
    }
}

macro_rules! plain_kernel {
    ($arithmetic:ident) => {
        impl<L: Lanes> Kernel for $arithmetic<L> {
            type Lanes = L;
            const TILE_ROWS: usize = L::TILE_ROWS;
            const SIXTEENS: usize = L::PANEL_GROUPS;

            #[inline(always)]
            unsafe fn tile<const R: usize, const V: usize>(
                operands: Operands,
                first: usize,
            ) -> [[L; V]; R] {
                // SAFETY: the caller's promise.
                unsafe {
                    let mut sums = [[L::splat(0.0); V]; R];
                    chain::<Self, R, V>(&mut sums, operands, 0..operands.x_words, first);
                    sums
                }
            }
        }
    };
}

plain_kernel!(Singles);
plain_kernel!(Halves);
