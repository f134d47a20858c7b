//! How long completions get, learned from those of the same job that ended.
//!
//! Short completions end first, so their mean misleads while longer ones still run. The estimate is
//! Kaplan and Meier's: a completion that was cut by its limit, or still runs, counts as "at least so
//! long". It orders work and foretells the end; no completion depends on it.

use std::collections::HashMap;

/// Ended completions before an estimate is trusted at all.
const ENOUGH: u64 = 16;
/// Groups that have an estimate of their own.
const MAX_GROUPS: usize = 1024;
/// Steps of the curve: eight for each doubling of the length.
const BUCKETS: usize = 8 * 24;

/// What ended completions teach, for the whole job and for each group of prompts.
#[derive(Clone, Debug, Default)]
pub struct Lengths {
    all: Curve,
    groups: HashMap<u64, Curve>,
}

#[derive(Clone, Debug)]
struct Curve {
    /// Completions that ended by themselves, by length.
    ended: [u64; BUCKETS],
    /// Completions known to be at least so long.
    longer: [u64; BUCKETS],
    count: u64,
}

impl Default for Curve {
    fn default() -> Self {
        Self { ended: [0; BUCKETS], longer: [0; BUCKETS], count: 0 }
    }
}

impl Lengths {
    /// Notes a completion of `tokens` tokens; `cut` if a limit ended it.
    pub fn note(&mut self, group: u64, tokens: usize, cut: bool) {
        self.all.note(tokens, cut);
        if self.groups.len() < MAX_GROUPS || self.groups.contains_key(&group) {
            self.groups.entry(group).or_default().note(tokens, cut);
        }
    }

    /// Completions noted.
    pub fn count(&self) -> u64 {
        self.all.count
    }

    /// Expected tokens of a completion of this group that may have at most `limit`.
    pub fn expected(&self, group: u64, limit: usize) -> usize {
        let own = self.groups.get(&group).filter(|curve| curve.count >= ENOUGH);
        match own.unwrap_or(&self.all) {
            curve if curve.count >= ENOUGH => curve.mean(limit),
            _ => limit,
        }
    }

    /// The same with completions that still run, as (group, tokens so far): they are at least so long.
    #[must_use]
    pub fn with_running(&self, running: impl Iterator<Item = (u64, usize)>) -> Self {
        let mut lengths = self.clone();
        for (group, tokens) in running {
            lengths.all.longer[bucket(tokens)] += 1;
            if let Some(curve) = lengths.groups.get_mut(&group) {
                curve.longer[bucket(tokens)] += 1;
            }
        }
        lengths
    }
}

impl Curve {
    fn note(&mut self, tokens: usize, cut: bool) {
        let kind = if cut { &mut self.longer } else { &mut self.ended };
        kind[bucket(tokens)] += 1;
        self.count += 1;
    }

    /// Mean length if none were longer than `limit`: the area under the curve of those that go on.
    fn mean(&self, limit: usize) -> usize {
        let mut at_risk: u64 = self.ended.iter().chain(&self.longer).sum();
        let (mut surviving, mut mean) = (1.0, 0.0);
        for index in 0..BUCKETS {
            let (from, to) = (lower(index), lower(index + 1));
            if from >= limit || at_risk == 0 {
                break;
            }
            // Ends within a bucket fall in its middle, on average.
            let after = surviving * (1.0 - self.ended[index] as f64 / at_risk as f64);
            mean += (to.min(limit) - from) as f64 * (surviving + after) / 2.0;
            surviving = after;
            at_risk -= self.ended[index] + self.longer[index];
            if at_risk == 0 {
                // Nobody was seen beyond: who got this far is taken to go to its limit.
                mean += surviving * limit.saturating_sub(to) as f64;
            }
        }
        (mean.round() as usize).clamp(1, limit)
    }
}

/// The bucket of a length.
fn bucket(tokens: usize) -> usize {
    let tokens = tokens.max(1);
    if tokens < 8 {
        return tokens;
    }
    let doublings = tokens.ilog2() as usize;
    (8 * (doublings - 2) + ((tokens >> (doublings - 3)) & 7)).min(BUCKETS - 1)
}

/// The least length of a bucket.
fn lower(index: usize) -> usize {
    if index < 8 {
        return index;
    }
    (8 + index % 8) << (index / 8 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_tile_the_lengths() {
        for tokens in 1..100_000 {
            let bucket = bucket(tokens);
            assert!(lower(bucket) <= tokens && tokens < lower(bucket + 1), "{tokens} in {bucket}");
        }
    }

    #[test]
    fn nothing_is_believed_before_enough_is_known() {
        let mut lengths = Lengths::default();
        (0..ENOUGH - 1).for_each(|_| lengths.note(1, 10, false));
        assert_eq!(lengths.expected(1, 500), 500);
        lengths.note(1, 10, false);
        assert!((9..=11).contains(&lengths.expected(1, 500)), "{}", lengths.expected(1, 500));
        assert_eq!(lengths.expected(1, 4), 4);
    }

    #[test]
    fn groups_are_told_apart() {
        let mut lengths = Lengths::default();
        for _ in 0..50 {
            lengths.note(1, 10, false);
            lengths.note(2, 400, false);
        }
        let (short, long, unknown) =
            (lengths.expected(1, 1000), lengths.expected(2, 1000), lengths.expected(3, 1000));
        assert!(short < 12 && (390..420).contains(&long), "{short} {long}");
        assert!((190..230).contains(&unknown), "{unknown}");
    }

    #[test]
    fn what_still_runs_counts_as_at_least_so_long() {
        let mut lengths = Lengths::default();
        (0..20).for_each(|_| lengths.note(1, 10, false));
        let running = lengths.with_running((0..20).map(|_| (1, 100)));
        // Half ended at 10; the others passed 100 and may go to 200.
        assert!((100..=108).contains(&running.expected(1, 200)), "{}", running.expected(1, 200));
    }

    #[test]
    fn completions_that_limits_cut_go_on() {
        let mut lengths = Lengths::default();
        (0..40).for_each(|_| lengths.note(1, 64, true));
        assert_eq!(lengths.expected(1, 64), 64);
        assert_eq!(lengths.expected(1, 256), 256);
    }
}
