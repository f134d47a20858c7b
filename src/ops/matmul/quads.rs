//! INT8 weights times INT8 activations, four inputs at a time: exact sums of integers within a group
//! of inputs, scaled and added up in F32, group by group.
//!
//! Weights are held as unsigned bytes, 128 more than their value, because that is what dot products
//! of bytes take; each row's group carries the offset that undoes it. Integer sums have no rounding,
//! so every instruction set gives the same bits by nature.

use super::tile::{Arithmetic, Kernel, Operands, PANEL, chain};
use crate::ops::isa::Isa;
use crate::ops::lanes::Lanes;
use crate::ops::portable::Portable;

/// Inputs that share a scale, of weights and of activations.
pub(crate) const GROUP: usize = 128;
/// Words of one group.
pub(super) const GROUP_WORDS: usize = GROUP / 4;

/// An instruction set with its own dot product of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteIsa {
    /// AVX512-VNNI.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// AVX2, in steps of 16 bits.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Plain Rust.
    Portable,
}

impl ByteIsa {
    /// The dot product that goes with an instruction set.
    pub(super) fn of(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if is_x86_feature_detected!("avx512vnni") => Self::Vnni,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => Self::Avx2,
            _ => Self::Portable,
        }
    }

    /// Rows of one tile.
    pub(super) fn tile_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => VnniDots::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2Dots::TILE_ROWS,
            Self::Portable => PortableDots::TILE_ROWS,
        }
    }
}

/// Sixteen i32 sums of products of bytes.
///
/// # Safety
/// As for [`Kernel`].
pub(super) trait Dots: Copy {
    type Lanes: Lanes;
    type Weights: Copy;
    const TILE_ROWS: usize;
    const SIXTEENS: usize;

    unsafe fn splat(value: i32) -> Self;
    unsafe fn weights(words: *const u32) -> Self::Weights;
    /// Adds, for each lane, four unsigned weights times the four signed bytes of `x`.
    unsafe fn add(self, weights: Self::Weights, x: u32) -> Self;
    unsafe fn to_f32(self) -> Self::Lanes;
}

/// The kernel over a dot product.
pub(super) struct Quads<D>(std::marker::PhantomData<D>);

impl<D: Dots> Arithmetic for Quads<D> {
    type Sums = D;
    type Weights = D::Weights;
    const STEPS: usize = 1;

    #[inline(always)]
    unsafe fn weights(words: *const u32, _: usize) -> D::Weights {
        // SAFETY: the caller's promise; so below.
        unsafe { D::weights(words) }
    }
    #[inline(always)]
    unsafe fn add(sums: D, weights: D::Weights, x: *const u32) -> D {
        // SAFETY: as above.
        unsafe { sums.add(weights, x.read()) }
    }
}

impl<D: Dots> Kernel for Quads<D> {
    type Lanes = D::Lanes;
    const TILE_ROWS: usize = D::TILE_ROWS;
    const SIXTEENS: usize = D::SIXTEENS;

    #[inline(always)]
    unsafe fn tile<const R: usize, const V: usize>(
        operands: Operands,
        first: usize,
    ) -> [[D::Lanes; V]; R] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[D::Lanes::splat(0.0); V]; R];
            for (group, start) in (0..operands.x_words).step_by(GROUP_WORDS).enumerate() {
                let end = operands.x_words.min(start + GROUP_WORDS);
                let rows = operands.x_groups.add(group * R);
                let mut dots: [[D; V]; R] =
                    std::array::from_fn(|r| [D::splat((*rows.add(r)).offset); V]);
                chain::<Self, R, V>(&mut dots, operands, start..end, first);
                let scales: [D::Lanes; V] = std::array::from_fn(|v| {
                    D::Lanes::load(operands.scales.add(group * PANEL + (first + v) * (PANEL / 2)))
                });
                for r in 0..R {
                    let scale = D::Lanes::splat((*rows.add(r)).scale);
                    for v in 0..V {
                        let part = dots[r][v].to_f32().mul(scale);
                        sums[r][v] = part.mul_add(scales[v], sums[r][v]);
                    }
                }
            }
            sums
        }
    }
}

/// Sixteen sums in an array.
#[derive(Clone, Copy)]
pub(super) struct PortableDots([i32; 16]);

impl Dots for PortableDots {
    type Lanes = Portable;
    type Weights = [u32; 16];
    const TILE_ROWS: usize = 4;
    const SIXTEENS: usize = 1;

    #[inline(always)]
    unsafe fn splat(value: i32) -> Self {
        Self([value; 16])
    }
    #[inline(always)]
    unsafe fn weights(words: *const u32) -> [u32; 16] {
        // SAFETY: the caller promises sixteen words.
        unsafe { words.cast::<[u32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn add(self, weights: [u32; 16], x: u32) -> Self {
        let x = x.to_le_bytes().map(|byte| i32::from(byte as i8));
        Self(std::array::from_fn(|lane| {
            let weights = weights[lane].to_le_bytes();
            let products = (0..4).map(|i| i32::from(weights[i]) * x[i]);
            self.0[lane] + products.sum::<i32>()
        }))
    }
    #[inline(always)]
    unsafe fn to_f32(self) -> Portable {
        let lanes = self.0.map(|sum| sum as f32);
        // SAFETY: the array has sixteen elements.
        unsafe { Portable::load(lanes.as_ptr()) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2Dots, VnniDots};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Dots;
    use crate::ops::x86::{Avx2, Avx512};

    /// `vpdpbusd`: sixteen sums in one register.
    #[derive(Clone, Copy)]
    pub(in super::super) struct VnniDots(__m512i);

    impl Dots for VnniDots {
        type Lanes = Avx512;
        type Weights = __m512i;
        const TILE_ROWS: usize = 12;
        const SIXTEENS: usize = 2;

        #[inline(always)]
        unsafe fn splat(value: i32) -> Self {
            // SAFETY: the caller has AVX-512 and VNNI; so below.
            Self(unsafe { _mm512_set1_epi32(value) })
        }
        #[inline(always)]
        unsafe fn weights(words: *const u32) -> __m512i {
            // SAFETY: the caller promises sixteen words.
            unsafe { _mm512_loadu_si512(words.cast()) }
        }
        #[inline(always)]
        unsafe fn add(self, weights: __m512i, x: u32) -> Self {
            // SAFETY: as above.
            Self(unsafe { _mm512_dpbusd_epi32(self.0, weights, _mm512_set1_epi32(x as i32)) })
        }
        #[inline(always)]
        unsafe fn to_f32(self) -> Avx512 {
            // SAFETY: as above.
            Avx512(unsafe { _mm512_cvtepi32_ps(self.0) })
        }
    }

    /// Sixteen sums in two registers.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2Dots([__m256i; 2]);

    impl Dots for Avx2Dots {
        type Lanes = Avx2;
        type Weights = [__m256i; 2];
        const TILE_ROWS: usize = 4;
        const SIXTEENS: usize = 1;

        #[inline(always)]
        unsafe fn splat(value: i32) -> Self {
            // SAFETY: the caller has AVX2; so below.
            Self([unsafe { _mm256_set1_epi32(value) }; 2])
        }
        #[inline(always)]
        unsafe fn weights(words: *const u32) -> [__m256i; 2] {
            // SAFETY: the caller promises sixteen words.
            unsafe { [_mm256_loadu_si256(words.cast()), _mm256_loadu_si256(words.add(8).cast())] }
        }
        #[inline(always)]
        unsafe fn add(self, weights: [__m256i; 2], x: u32) -> Self {
            // SAFETY: as above.
            unsafe {
                // Even and odd bytes apart, in 16 bits: no product of theirs saturates.
                let x = _mm256_set1_epi32(x as i32);
                let (even, odd) =
                    (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)), _mm256_srai_epi16::<8>(x));
                let low = _mm256_set1_epi16(0xff);
                Self(std::array::from_fn(|i| {
                    let evens = _mm256_madd_epi16(_mm256_and_si256(weights[i], low), even);
                    let odds = _mm256_madd_epi16(_mm256_srli_epi16::<8>(weights[i]), odd);
                    _mm256_add_epi32(self.0[i], _mm256_add_epi32(evens, odds))
                }))
            }
        }
        #[inline(always)]
        unsafe fn to_f32(self) -> Avx2 {
            // SAFETY: as above.
            unsafe { Avx2(_mm256_cvtepi32_ps(self.0[0]), _mm256_cvtepi32_ps(self.0[1])) }
        }
    }
}
