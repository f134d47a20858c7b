//! Percentiles of any number of durations in constant memory.

use super::report::Percentiles;

/// Buckets for each doubling: a percentile is within 1 % of the exact one.
const PER_DOUBLING: f64 = 64.0;
/// The smallest duration told apart, milliseconds.
const LEAST_MS: f64 = 1e-3;
const BUCKETS: usize = 64 * 40;

/// Counts of durations by logarithmic buckets.
#[derive(Debug)]
pub(super) struct Durations {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Durations {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl Durations {
    pub(super) fn add(&mut self, ms: f64) {
        let bucket = ((ms.max(LEAST_MS) / LEAST_MS).log2() * PER_DOUBLING) as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1;
        self.total += 1;
    }

    pub(super) fn percentiles(&self) -> Percentiles {
        Percentiles { p50: self.at(0.50), p95: self.at(0.95), p99: self.at(0.99) }
    }

    fn at(&self, share: f64) -> f64 {
        let rank = (share * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        bucket.map_or(0.0, |bucket| LEAST_MS * ((bucket as f64 + 0.5) / PER_DOUBLING).exp2())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_one_percent() {
        let mut durations = Durations::default();
        (1..=1000).for_each(|ms| durations.add(f64::from(ms)));
        let Percentiles { p50, p95, p99 } = durations.percentiles();
        for (found, exact) in [(p50, 500.0), (p95, 950.0), (p99, 990.0)] {
            assert!((found / exact - 1.0f64).abs() < 0.01, "{found} for {exact}");
        }
        assert_eq!(Durations::default().percentiles().p50, 0.0);
    }
}
