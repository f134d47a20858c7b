//! The largest of many values in one pass, as greedy sampling needs it.

use super::isa::{Isa, per_isa};
use super::lanes::Lanes;

/// Values that one pass of the loop takes.
const STEP: usize = 64;

/// What one pass over values finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Largest {
    /// Index of the largest value, the first of equal ones.
    pub index: usize,
    /// Whether all values are finite numbers; if not, the index means something only without NaN.
    pub all_finite: bool,
}

/// Finds the largest value.
///
/// # Panics
/// If there is no value.
pub fn largest(values: &[f32]) -> Largest {
    assert!(!values.is_empty(), "the largest of no values");
    let whole = values.len() / STEP * STEP;
    let (mut most, mut poison) = (f32::NEG_INFINITY, 0.0);
    // SAFETY: `whole` values, in whole steps.
    unsafe { scan(Isa::best(), values.as_ptr(), whole, &mut most, &mut poison) };
    for &value in &values[whole..] {
        most = most.max(value);
        poison += value * 0.0;
    }
    let has_it = |step: &[f32]| step.iter().fold(false, |found, &value| found | (value == most));
    let step = values.chunks(STEP).position(has_it).unwrap_or(0);
    let within = values[step * STEP..].iter().position(|&value| value == most).unwrap_or(0);
    Largest { index: step * STEP + within, all_finite: poison == 0.0 }
}

/// A value times 0 is 0, and NaN where the value is not finite.
#[inline(always)]
unsafe fn scan_on<L: Lanes>(values: *const f32, count: usize, most: &mut f32, poison: &mut f32) {
    // SAFETY: the caller promises `count` values, whole steps of them.
    unsafe {
        let mut largest = [L::splat(f32::NEG_INFINITY); STEP / 16];
        let mut zeros = [L::splat(0.0); STEP / 16];
        for first in (0..count).step_by(STEP) {
            for i in 0..STEP / 16 {
                let value = L::load(values.add(first + 16 * i));
                largest[i] = largest[i].max(value);
                zeros[i] = value.mul_add(L::splat(0.0), zeros[i]);
            }
        }
        *most = largest.into_iter().map(|lanes| lanes.largest()).fold(*most, f32::max);
        *poison += zeros.into_iter().map(|lanes| lanes.sum()).sum::<f32>();
    }
}

per_isa! { fn scan = scan_on(values: *const f32, count: usize, most: &mut f32, poison: &mut f32) }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_is_found_anywhere() {
        for count in [1, 63, 64, 65, 200, 1000] {
            let mut values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin()).collect();
            for at in [0, count / 2, count - 1] {
                let before = std::mem::replace(&mut values[at], 2.0);
                let expected = Largest { index: at, all_finite: true };
                assert_eq!(largest(&values), expected, "{count}");
                let last = std::mem::replace(&mut values[count - 1], 2.0);
                assert_eq!(largest(&values), expected, "{count}, on a tie");
                values[count - 1] = last;
                values[at] = before;
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_noticed_anywhere() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 70, 129] {
                let mut values = [1.0f32; 130];
                values[at] = bad;
                assert!(!largest(&values).all_finite, "{bad} at {at}");
            }
        }
        let masked = [f32::NEG_INFINITY, -3.0, f32::NEG_INFINITY];
        assert_eq!(largest(&masked).index, 1);
    }
}
