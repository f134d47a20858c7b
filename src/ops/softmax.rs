//! Sums of exponentials over a vocabulary, as the sampler needs them.

use super::isa::{Isa, per_isa};
use super::lanes::Lanes;

/// `Σ e^((x - shift) * scale)`, and each term into `terms` if it is not empty.
///
/// `shift` is the largest x, so that no term is above 1. Sums run in one order, in f64 over lanes.
pub fn exponentials(values: &[f32], shift: f32, scale: f32, terms: &mut [f32]) -> f64 {
    assert!(terms.is_empty() || terms.len() == values.len(), "a term for each value");
    let mut sum = 0.0f64;
    let mut block = [0.0f32; 64];
    for (i, chunk) in values.chunks(64).enumerate() {
        block[..chunk.len()].copy_from_slice(chunk);
        block[chunk.len()..].fill(f32::NEG_INFINITY);
        // SAFETY: the block has 64 elements.
        unsafe { exponentiate(Isa::best(), block.as_mut_ptr(), shift, scale) };
        sum += block[..chunk.len()].iter().map(|&x| f64::from(x)).sum::<f64>();
        if !terms.is_empty() {
            terms[64 * i..64 * i + chunk.len()].copy_from_slice(&block[..chunk.len()]);
        }
    }
    sum
}

#[inline(always)]
unsafe fn exponentiate_on<L: Lanes>(block: *mut f32, shift: f32, scale: f32) {
    for i in 0..4 {
        // SAFETY: the block has 64 elements.
        unsafe {
            let values = L::load(block.add(16 * i)).sub(L::splat(shift)).mul(L::splat(scale));
            values.exp().store(block.add(16 * i));
        }
    }
}

per_isa! { fn exponentiate = exponentiate_on(block: *mut f32, shift: f32, scale: f32) }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_agree_with_the_definition() {
        let values: Vec<f32> = (0..150).map(|i| (i as f32 * 0.31).sin() * 5.0).collect();
        let mut terms = vec![0.0; 150];
        let sum = exponentials(&values, 5.0, 0.7, &mut terms);
        let exact: f64 = values.iter().map(|&x| ((f64::from(x) - 5.0) * 0.7).exp()).sum();
        assert!((sum - exact).abs() / exact < 1e-6);
        assert!(
            (f64::from(terms[149]) - ((f64::from(values[149]) - 5.0) * 0.7).exp()).abs() < 1e-6
        );
    }
}
