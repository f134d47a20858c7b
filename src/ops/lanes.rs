//! Sixteen `f32` lanes on any processor, with the same bits on each.
//!
//! Every kernel is written once over [`Lanes`] and compiled for each instruction set; the widest
//! one that the processor has is chosen once. All of them compute with fused multiply-add and reduce
//! in one fixed tree, so a completion does not depend on which of them ran.

use std::sync::OnceLock;

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Armv8 NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Plain Rust.
    Portable,
}

impl Isa {
    /// Every set that this processor can run, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 {
                found.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        found.push(Self::Neon);
        found.push(Self::Portable);
        found
    }

    /// Rows of one tile of a matrix product.
    pub(crate) fn tile_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => super::x86::Avx512::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => super::x86::Avx2::TILE_ROWS,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => super::neon::Neon::TILE_ROWS,
            Self::Portable => super::portable::Portable::TILE_ROWS,
        }
    }

    /// The fastest set of this processor.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }
}

/// Sixteen `f32` values that are computed on together.
///
/// # Safety
/// The methods of an implementation may be called only where its instruction set is available;
/// pointers must be valid for sixteen elements.
pub(crate) trait Lanes: Copy {
    /// Rows of activations in one tile of a matrix product: as many as registers hold.
    const TILE_ROWS: usize;
    /// Lane groups of a weight panel that one pass of a product takes: 1 or 2.
    const PANEL_GROUPS: usize;
    /// Lane groups of a value row that one pass of the attention takes.
    const VALUE_GROUPS: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(source: *const f32) -> Self;
    unsafe fn store(self, target: *mut f32);
    /// The BF16 values in the low halves of sixteen words.
    unsafe fn load_low_halves(source: *const u32) -> Self;
    /// The BF16 values in the high halves of sixteen words.
    unsafe fn load_high_halves(source: *const u32) -> Self;
    /// `self * factor + addend`, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// To the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// 2 to the power of each lane; lanes are integers from -126 to 127.
    unsafe fn power_of_two(self) -> Self;

    /// The sum of all lanes: lane i with i + 8, then i + 4, i + 2, i + 1.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the array has sixteen elements.
        unsafe { self.store(lanes.as_mut_ptr()) };
        tree(lanes, |a, b| a + b)
    }

    /// The largest lane.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the array has sixteen elements.
        unsafe { self.store(lanes.as_mut_ptr()) };
        tree(lanes, f32::max)
    }

    /// Sixteen sums at once: lane i of the result is `sums[i].sum()`.
    #[inline(always)]
    unsafe fn sum_each(sums: [Self; 16]) -> Self {
        let mut out = [0.0f32; 16];
        for (out, lanes) in out.iter_mut().zip(sums) {
            // SAFETY: as the caller promises.
            *out = unsafe { lanes.sum() };
        }
        // SAFETY: the array has sixteen elements.
        unsafe { Self::load(out.as_ptr()) }
    }

    /// e to the power of each lane, within 2 ulp; lanes below -87 give about 1e-38.
    ///
    /// Splits x into n ln 2 + r with |r| <= ln 2 / 2 and sums the Taylor series of r to degree 7.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        const LN_2_HIGH: f32 = 0.693_359_4;
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        const SERIES: [f32; 6] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
        // SAFETY: as the caller promises.
        unsafe {
            let x = self.max(Self::splat(-87.0)).min(Self::splat(88.0));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            let r = n.mul_add(Self::splat(-LN_2_HIGH), x);
            let r = n.mul_add(Self::splat(-LN_2_LOW), r);
            let mut sum = Self::splat(1.0 / 5040.0);
            for term in SERIES {
                sum = sum.mul_add(r, Self::splat(term));
            }
            sum = sum.mul_add(r, Self::splat(1.0));
            sum.mul(n.power_of_two())
        }
    }

    /// `x / (1 + e^-x)`, the activation of every feed-forward layer.
    #[inline(always)]
    unsafe fn silu(self) -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            let negative = Self::splat(0.0).sub(self);
            self.div(Self::splat(1.0).add(negative.exp()))
        }
    }
}

/// Reduces sixteen lanes in the order that every instruction set shares.
#[inline(always)]
pub(crate) fn tree(mut lanes: [f32; 16], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = 8;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Compiles a kernel that is generic over [`Lanes`] once for each instruction set.
///
/// `per_isa! { fn name = generic(a: A, b: B) }` defines `unsafe fn name(isa: Isa, a: A, b: B)`.
macro_rules! per_isa {
    ($(#[$meta:meta])* fn $name:ident = $generic:ident($($arg:ident: $type:ty),* $(,)?)) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "a kernel's border is raw pointers and sizes")]
        unsafe fn $name(isa: $crate::ops::lanes::Isa, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            unsafe fn avx512($($arg: $type),*) {
                // SAFETY: the processor has the features; the rest is the caller's promise.
                unsafe { $generic::<$crate::ops::x86::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments, reason = "as above")]
            unsafe fn avx2($($arg: $type),*) {
                // SAFETY: the processor has the features; the rest is the caller's promise.
                unsafe { $generic::<$crate::ops::x86::Avx2>($($arg),*) }
            }
            match isa {
                // SAFETY: an `Isa` exists only where its features do; the rest is the caller's promise.
                #[cfg(target_arch = "x86_64")]
                $crate::ops::lanes::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::ops::lanes::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: NEON is part of the architecture; the rest is the caller's promise.
                #[cfg(target_arch = "aarch64")]
                $crate::ops::lanes::Isa::Neon => unsafe { $generic::<$crate::ops::neon::Neon>($($arg),*) },
                // SAFETY: plain Rust; the rest is the caller's promise.
                $crate::ops::lanes::Isa::Portable => unsafe { $generic::<$crate::ops::portable::Portable>($($arg),*) },
            }
        }
    };
}
pub(crate) use per_isa;

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(always)]
    unsafe fn probe<L: Lanes>(input: *const f32, output: *mut f32) {
        // SAFETY: the test passes 256 input and 80 output elements.
        unsafe {
            let lanes: [L; 16] = std::array::from_fn(|i| L::load(input.add(16 * i)));
            L::sum_each(lanes).store(output);
            lanes[0].exp().store(output.add(16));
            lanes[1].silu().store(output.add(32));
            lanes[2].mul_add(lanes[3], lanes[4]).max(lanes[5]).store(output.add(48));
            *output.add(64) = lanes[7].sum();
            *output.add(65) = lanes[8].largest();
        }
    }
    per_isa! { fn probe_isa = probe(input: *const f32, output: *mut f32) }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let input: Vec<f32> =
            (0..256).map(|i| ((i * 7919 % 1000) as f32 - 500.0) * 0.037).collect();
        let outputs: Vec<Vec<u32>> = Isa::available()
            .into_iter()
            .map(|isa| {
                let mut output = vec![0.0f32; 80];
                // SAFETY: both buffers have the sizes that `probe` uses.
                unsafe { probe_isa(isa, input.as_ptr(), output.as_mut_ptr()) };
                output.iter().map(|x| x.to_bits()).collect()
            })
            .collect();
        for other in &outputs[1..] {
            assert_eq!(&outputs[0], other);
        }
    }

    #[test]
    fn exp_is_within_two_ulp() {
        for step in 0..10_000 {
            let x = -86.0 + step as f32 * 0.0172;
            let input = vec![x; 256];
            let mut output = vec![0.0f32; 80];
            // SAFETY: both buffers have the sizes that `probe` uses.
            unsafe { probe_isa(Isa::best(), input.as_ptr(), output.as_mut_ptr()) };
            let expected = (x as f64).exp();
            let error = (output[16] as f64 - expected).abs() / expected;
            assert!(error < 2.5e-7, "exp({x}) = {} not {expected}: {error}", output[16]);
        }
    }
}
