//! Estimates with 95 % confidence intervals.

use serde::Serialize;

/// The normal distribution's two-sided 95 % point.
const Z: f64 = 1.959_963_984_540_054;

/// An estimated mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end of it.
    pub high: f64,
}

/// What an estimate needs to know of values from 0 to 1, however many they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    count: u64,
    sum: f64,
    squares: f64,
    /// Values that are neither 0 nor 1.
    fractions: u64,
}

impl Moments {
    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
        self.fractions += u64::from(value != 0.0 && value != 1.0);
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean: with Wilson's interval if all of them are 0 or 1 (a proportion), else with the normal
    /// one of their own variance.
    pub fn mean(&self) -> Estimate {
        let count = self.count as f64;
        match (self.count, self.fractions) {
            (0, _) => Estimate { value: 0.0, low: 0.0, high: 1.0 },
            (_, 0) => wilson(self.sum, count),
            _ => around(self.sum / count, self.variance() / count),
        }
    }

    /// Variance with Bessel's correction.
    fn variance(&self) -> f64 {
        let count = self.count as f64;
        let about_mean = self.squares - self.sum * self.sum / count;
        if self.count < 2 { 0.0 } else { about_mean.max(0.0) / (count - 1.0) }
    }

    /// Variance of the mean. Where all values are equal it is that of the values with two successes and
    /// two failures added (Agresti and Coull, 1998): they could have been others.
    fn variance_of_mean(&self) -> f64 {
        let variance = self.variance();
        if variance > 0.0 {
            return variance / self.count as f64;
        }
        let added = self.count as f64 + 4.0;
        let centre = (self.sum + 2.0) / added;
        centre * (1.0 - centre) / added
    }
}

impl FromIterator<f64> for Moments {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut moments = Self::default();
        values.into_iter().for_each(|value| moments.add(value));
        moments
    }
}

/// Wilson's score interval of a proportion (E. B. Wilson, 1927): never outside of 0 to 1, and not empty
/// where all or none succeed.
pub fn wilson(successes: f64, count: f64) -> Estimate {
    let value = successes / count;
    let square = Z * Z / count;
    let centre = (value + square / 2.0) / (1.0 + square);
    let spread = value * (1.0 - value) / count + square / (4.0 * count);
    let half = Z * spread.sqrt() / (1.0 + square);
    Estimate { value, low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
}

/// The mean of the groups' means, each group counting the same.
pub fn macro_mean(groups: &[Moments]) -> Estimate {
    let groups: Vec<&Moments> = groups.iter().filter(|group| group.count > 0).collect();
    if groups.is_empty() {
        return Moments::default().mean();
    }
    let count = groups.len() as f64;
    let value = groups.iter().map(|group| group.sum / group.count as f64).sum::<f64>() / count;
    let variance: f64 = groups.iter().map(|group| group.variance_of_mean()).sum();
    around(value, variance / (count * count))
}

fn around(value: f64, variance_of_mean: f64) -> Estimate {
    let half = Z * variance_of_mean.sqrt();
    Estimate { value, low: (value - half).max(0.0), high: (value + half).min(1.0) }
}

/// The unbiased estimate of pass@k from `right` of `count` samples: 1 − C(count − right, k) / C(count, k)
/// (Chen et al., arXiv:2107.03374, §2.1). None if there are fewer than k samples.
pub fn pass_at(k: u32, right: u32, count: u32) -> Option<f64> {
    if k > count {
        return None;
    }
    if count - right < k {
        return Some(1.0);
    }
    let none_right: f64 =
        (count - right + 1..=count).map(|i| 1.0 - f64::from(k) / f64::from(i)).product();
    Some(1.0 - none_right)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 5e-5
    }

    #[test]
    fn wilsons_interval_has_its_published_values() {
        // Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        for (successes, count, low, high) in [
            (81.0, 263.0, 0.2553, 0.3662),
            (15.0, 148.0, 0.0624, 0.1605),
            (0.0, 20.0, 0.0, 0.1611),
            (1.0, 29.0, 0.0061, 0.1718),
        ] {
            let found = wilson(successes, count);
            assert!(
                near(found.low, low) && near(found.high, high),
                "{successes}/{count} {found:?}"
            );
        }
    }

    fn of(values: impl IntoIterator<Item = f64>) -> Moments {
        values.into_iter().collect()
    }

    #[test]
    fn shares_have_wilsons_interval_and_other_values_the_normal_one() {
        assert_eq!(of([1.0, 0.0, 1.0]).mean(), wilson(2.0, 3.0));
        let found = of([0.5, 1.0, 0.0, 0.5]).mean();
        // Standard deviation 0.408, standard error 0.204.
        assert!(near(found.value, 0.5) && near(found.low, 0.0999) && near(found.high, 0.9001));
        assert_eq!(of([]).mean(), Estimate { value: 0.0, low: 0.0, high: 1.0 });
    }

    #[test]
    fn groups_count_the_same_in_the_macro_mean() {
        let found = macro_mean(&[of([1.0; 90]), of([0.0, 1.0]), of([])]);
        assert!(near(found.value, 0.75), "{found:?}");
        assert!(found.low > 0.0 && found.high == 1.0, "{found:?}");
        let sure = macro_mean(&[of([1.0; 90]), of([1.0; 90])]);
        assert!(sure.low < 1.0 && sure.low > 0.95, "{sure:?}");
    }

    #[test]
    fn pass_at_k_counts_subsets() {
        // Every subset of k of the samples, by hand.
        let by_subsets = |k: u32, right: u32, count: u32| {
            let (mut passed, mut all) = (0.0, 0.0);
            for subset in 0u32..1 << count {
                if subset.count_ones() == k {
                    all += 1.0;
                    passed += f64::from(u8::from(subset & ((1 << right) - 1) != 0));
                }
            }
            passed / all
        };
        for count in 1..=8 {
            for right in 0..=count {
                for k in 1..=count {
                    let found = pass_at(k, right, count).unwrap();
                    assert!(
                        (found - by_subsets(k, right, count)).abs() < 1e-12,
                        "{k} {right} {count}"
                    );
                }
            }
        }
        assert_eq!(pass_at(3, 2, 2), None);
    }
}
