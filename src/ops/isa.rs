//! The instruction sets that kernels are compiled for: every kernel is written once over [`Lanes`], and the
//! widest set that the processor has is chosen once.

use std::sync::OnceLock;

use super::lanes::Lanes;
#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};

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
            Self::Avx512 => Avx512::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::TILE_ROWS,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Neon::TILE_ROWS,
            Self::Portable => Portable::TILE_ROWS,
        }
    }

    /// The fastest set of this processor.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }
}

/// Compiles a kernel that is generic over [`Lanes`](super::lanes::Lanes) once for each instruction set.
///
/// `per_isa! { fn name = generic(a: A, b: B) }` defines `unsafe fn name(isa: Isa, a: A, b: B)`.
macro_rules! per_isa {
    ($(#[$meta:meta])* fn $name:ident = $generic:ident($($arg:ident: $type:ty),* $(,)?)) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "a kernel's border is raw pointers and sizes")]
        unsafe fn $name(isa: $crate::ops::isa::Isa, $($arg: $type),*) {
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
                $crate::ops::isa::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::ops::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: NEON is part of the architecture; the rest is the caller's promise.
                #[cfg(target_arch = "aarch64")]
                $crate::ops::isa::Isa::Neon => unsafe { $generic::<$crate::ops::neon::Neon>($($arg),*) },
                // SAFETY: plain Rust; the rest is the caller's promise.
                $crate::ops::isa::Isa::Portable => unsafe { $generic::<$crate::ops::portable::Portable>($($arg),*) },
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
