//! The lanes of Armv8: four NEON registers.

use std::arch::aarch64::*;

use super::lanes::Lanes;

/// Sixteen values in four registers.
#[derive(Clone, Copy)]
pub(crate) struct Neon([float32x4_t; 4]);

impl Neon {
    #[inline(always)]
    fn zip(self, other: Self, join: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        Self(std::array::from_fn(|i| join(self.0[i], other.0[i])))
    }
}

impl Lanes for Neon {
    const TILE_ROWS: usize = 5;
    const PANEL_GROUPS: usize = 1;
    const VALUE_GROUPS: usize = 1;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: NEON is part of the architecture; so below.
        Self([unsafe { vdupq_n_f32(value) }; 4])
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: the caller promises sixteen elements.
        Self(std::array::from_fn(|i| unsafe { vld1q_f32(source.add(4 * i)) }))
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        for (i, lanes) in self.0.into_iter().enumerate() {
            // SAFETY: the caller promises sixteen elements.
            unsafe { vst1q_f32(target.add(4 * i), lanes) }
        }
    }
    #[inline(always)]
    unsafe fn load_low_halves(source: *const u32) -> Self {
        // SAFETY: the caller promises sixteen elements.
        Self(std::array::from_fn(|i| unsafe {
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(vld1q_u32(source.add(4 * i))))
        }))
    }
    #[inline(always)]
    unsafe fn load_high_halves(source: *const u32) -> Self {
        // SAFETY: the caller promises sixteen elements.
        Self(std::array::from_fn(|i| unsafe {
            vreinterpretq_f32_u32(vandq_u32(vld1q_u32(source.add(4 * i)), vdupq_n_u32(0xffff_0000)))
        }))
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: as above.
        Self(std::array::from_fn(|i| unsafe { vfmaq_f32(addend.0[i], self.0[i], factor.0[i]) }))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        self.zip(other, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: as above.
        self.zip(other, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        self.zip(other, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: as above.
        self.zip(other, |a, b| unsafe { vdivq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        self.zip(other, |a, b| unsafe { vmaxq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: as above.
        self.zip(other, |a, b| unsafe { vminq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: as above.
        Self(self.0.map(|lanes| unsafe { vrndnq_f32(lanes) }))
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        // SAFETY: as above.
        Self(self.0.map(|lanes| unsafe {
            let exponent = vaddq_s32(vcvtnq_s32_f32(lanes), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        }))
    }
}
