//! BF16 weights times activations rounded to BF16, two inputs at a time, accumulated in F32.
//!
//! The processor's own dot product rounds in its own way (denormals are zero, each product is added
//! alone), which no other instruction gives at its speed: so this mode exists only where it does.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use super::tile::{Arithmetic, Kernel, Operands, chain};
#[cfg(target_arch = "x86_64")]
use crate::ops::{lanes::Lanes, x86::Avx512};

/// Whether this processor multiplies pairs of BF16 values (AVX512-BF16).
pub(crate) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        crate::ops::Isa::best() == crate::ops::Isa::Avx512 && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Rows of one tile.
pub(super) const TILE_ROWS: usize = 12;

/// `vdpbf16ps`: sixteen outputs, two inputs.
#[cfg(target_arch = "x86_64")]
pub(super) struct Pairs;

#[cfg(target_arch = "x86_64")]
impl Arithmetic for Pairs {
    type Sums = Avx512;
    type Weights = __m512i;
    const STEPS: usize = 1;

    #[inline(always)]
    unsafe fn weights(words: *const u32, _: usize) -> __m512i {
        // SAFETY: the caller's promise; so below.
        unsafe { _mm512_loadu_si512(words.cast()) }
    }
    #[inline(always)]
    unsafe fn add(sums: Avx512, weights: __m512i, x: *const u32) -> Avx512 {
        // SAFETY: as above; 512 bits are 32 BF16 values, whatever they are called.
        unsafe {
            let x = _mm512_set1_epi32(x.cast::<i32>().read());
            let halves = |words| std::mem::transmute::<__m512i, __m512bh>(words);
            Avx512(_mm512_dpbf16_ps(sums.0, halves(x), halves(weights)))
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Kernel for Pairs {
    type Lanes = Avx512;
    const TILE_ROWS: usize = TILE_ROWS;
    const SIXTEENS: usize = 2;

    #[inline(always)]
    unsafe fn tile<const R: usize, const V: usize>(
        operands: Operands,
        first: usize,
    ) -> [[Avx512; V]; R] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[Avx512::splat(0.0); V]; R];
            chain::<Self, R, V>(&mut sums, operands, 0..operands.x_words, first);
            sums
        }
    }
}
