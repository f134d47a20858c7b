//! The lanes of x86-64: one AVX-512 register, or two AVX2 registers.

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// Sixteen values in one register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(pub(crate) __m512);

impl Avx512 {
    /// Adds neighbours of two registers so that the result holds the halved sums of both.
    #[inline(always)]
    unsafe fn fold_halves(a: Self, b: Self) -> Self {
        // SAFETY: the caller has AVX-512.
        unsafe {
            let low = _mm512_shuffle_f32x4::<0x44>(a.0, b.0);
            let high = _mm512_shuffle_f32x4::<0xee>(a.0, b.0);
            Self(_mm512_add_ps(low, high))
        }
    }
}

impl Lanes for Avx512 {
    const TILE_ROWS: usize = 12;
    const PANEL_GROUPS: usize = 2;
    const VALUE_GROUPS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller has AVX-512; so below.
        Self(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: the caller promises sixteen elements.
        Self(unsafe { _mm512_loadu_ps(source) })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: the caller promises sixteen elements.
        unsafe { _mm512_storeu_ps(target, self.0) }
    }
    #[inline(always)]
    unsafe fn load_low_halves(source: *const u32) -> Self {
        // SAFETY: the caller promises sixteen elements.
        Self(unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(source.cast())))
        })
    }
    #[inline(always)]
    unsafe fn load_high_halves(source: *const u32) -> Self {
        // SAFETY: the caller promises sixteen elements.
        unsafe {
            let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            Self(_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(source.cast()), mask)))
        }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: the caller has AVX-512; so below.
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: as above.
        Self(unsafe {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)
        })
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        // SAFETY: as above.
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
        }
    }

    /// The tree of `Lanes::sum` for sixteen registers together: each level halves the registers and
    /// joins the same lanes as the tree does, so the bits are the same.
    #[inline(always)]
    unsafe fn sum_each(s: [Self; 16]) -> Self {
        // SAFETY: as above.
        unsafe {
            // Lane i with i + 8: each result has the eight sums of two inputs, low and high half.
            let pair = |i: usize, j: usize| Self::fold_halves(s[i], s[j]);
            // Lane i with i + 4: 128-bit quarters 0, 2 with 1, 3.
            let four = |i: usize, j: usize, k: usize, l: usize| {
                let (a, b) = (pair(i, j), pair(k, l));
                let even = _mm512_shuffle_f32x4::<0x88>(a.0, b.0);
                let odd = _mm512_shuffle_f32x4::<0xdd>(a.0, b.0);
                _mm512_add_ps(even, odd)
            };
            // Lane i with i + 2, inside of quarters.
            let eight = |a: __m512, b: __m512| {
                _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xee>(a, b))
            };
            let a = eight(four(0, 4, 8, 12), four(1, 5, 9, 13));
            let b = eight(four(2, 6, 10, 14), four(3, 7, 11, 15));
            // Lane i with i + 1.
            Self(_mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b)))
        }
    }
}

/// Sixteen values in two registers: lanes 0 to 7 and 8 to 15.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(pub(crate) __m256, pub(crate) __m256);

impl Lanes for Avx2 {
    const TILE_ROWS: usize = 6;
    const PANEL_GROUPS: usize = 1;
    const VALUE_GROUPS: usize = 1;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller has AVX2 and FMA; so below.
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: the caller promises sixteen elements.
        unsafe { Self(_mm256_loadu_ps(source), _mm256_loadu_ps(source.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: the caller promises sixteen elements.
        unsafe {
            _mm256_storeu_ps(target, self.0);
            _mm256_storeu_ps(target.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn load_low_halves(source: *const u32) -> Self {
        // SAFETY: the caller promises sixteen elements.
        unsafe {
            let low = _mm256_slli_epi32::<16>(_mm256_loadu_si256(source.cast()));
            let high = _mm256_slli_epi32::<16>(_mm256_loadu_si256(source.add(8).cast()));
            Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn load_high_halves(source: *const u32) -> Self {
        // SAFETY: the caller promises sixteen elements.
        unsafe {
            let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let low = _mm256_and_si256(_mm256_loadu_si256(source.cast()), mask);
            let high = _mm256_and_si256(_mm256_loadu_si256(source.add(8).cast()), mask);
            Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: the caller has AVX2 and FMA; so below.
        unsafe {
            Self(
                _mm256_fmadd_ps(self.0, factor.0, addend.0),
                _mm256_fmadd_ps(self.1, factor.1, addend.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: as above.
        unsafe {
            Self(
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0),
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        // SAFETY: as above.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.0), bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.1), bias));
            Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
}
