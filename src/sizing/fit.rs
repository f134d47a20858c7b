//! Whether a layout fits the memory there is, and which one does if it does not.

use std::fmt;
use std::ops::RangeInclusive;

use super::layout::{Demand, Format, Layout, RankMemory};
use crate::model::Config;
use crate::ops::BLOCK_TOKENS;
use crate::parallel::Topology;

/// Bytes of a device that its driver, the libraries' own buffers and fragmentation take: a share of the
/// memory, and so many beside it.
const DRIVER_SHARE: f64 = 0.06;
const LIBRARY_BYTES: u64 = 4_000_000_000;

/// The memory that ranks have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Bytes that all ranks share.
    Shared(u64),
    /// Bytes of each rank's own device, of which driver and libraries take some.
    Each(u64),
}

/// A layout that does not fit, and the nearest that does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// It takes more memory than there is.
    #[error("{topology} does not fit: {shortage}")]
    Memory { topology: Topology, shortage: Shortage, nearest: Option<Topology> },
    /// It takes more devices than there are.
    #[error("{topology} takes {} devices, there are {devices}", topology.ranks())]
    Devices { topology: Topology, devices: usize, nearest: Option<Topology> },
}

/// Bytes that are needed, and those that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    memory: Memory,
    weights: u64,
    workspace: u64,
    cache: u64,
    there: u64,
}

impl LayoutError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let (Self::Memory { nearest, .. } | Self::Devices { nearest, .. }) = self;
        Some(match (nearest, self) {
            (Some(Topology { stages, ranks_per_stage }), _) => format!(
                "the nearest that fits is `devices.stages = {stages}` with `devices.ranks = {ranks_per_stage}`"
            ),
            (None, Self::Memory { shortage: Shortage { memory: Memory::Shared(_), .. }, .. }) => {
                "no layout fits: free some memory, or set `model.dtype` or `batch.cache` lower"
                    .into()
            }
            (None, _) => "no layout fits these devices: it takes more of them".into(),
        })
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        let Self { memory, weights, workspace, cache, there } = *self;
        let (who, place) = match memory {
            Memory::Each(_) => ("a rank takes", "of its device"),
            Memory::Shared(_) => ("the ranks take", "of memory"),
        };
        write!(
            f,
            "{who} {:.1} GB of weights, {:.1} GB of workspace and {:.1} GB of cache, {:.1} GB {place} are free",
            gigabytes(weights),
            gigabytes(workspace),
            gigabytes(cache),
            gigabytes(there)
        )
    }
}

/// Lays a model out and gives the tokens that its caches hold; an error names the nearest layout that fits
/// of those with so many `ranks`.
pub fn fit(
    config: &Config,
    topology: Topology,
    (format, demand): (Format, Demand),
    memory: Memory,
    ranks: RangeInclusive<usize>,
) -> Result<(Layout, u64), LayoutError> {
    let layout = |topology| Layout::new(config, topology, format, demand);
    let asked = layout(topology);
    match asked.cache_tokens(memory) {
        Ok(tokens) => Ok((asked, tokens)),
        Err(shortage) => {
            let fits = |other| layout(other).cache_tokens(memory).is_ok();
            Err(LayoutError::Memory {
                topology,
                shortage,
                nearest: nearest(config, topology, ranks, fits),
            })
        }
    }
}

impl Layout {
    /// Tokens that the caches of all ranks hold.
    pub fn cache_tokens(&self, memory: Memory) -> Result<u64, Shortage> {
        match memory {
            Memory::Shared(there) => {
                let sum = |of: fn(&RankMemory) -> u64| self.ranks.iter().map(of).sum::<u64>();
                let (weights, workspace) = (sum(|r| r.weight_bytes), sum(|r| r.workspace_bytes));
                let cache = match self.ranks[0].cache_bytes {
                    Some(_) => sum(|rank| rank.cache_bytes.unwrap_or(0)),
                    None => self.least_cache(),
                };
                let short = Shortage { memory, weights, workspace, cache, there };
                let room = there.checked_sub(weights + workspace).filter(|room| *room >= cache);
                let cache = if self.ranks[0].cache_bytes.is_some() { Some(cache) } else { room };
                Ok(cache.filter(|_| room.is_some()).ok_or(short)? / self.token_bytes())
            }
            Memory::Each(bytes) => {
                let there =
                    ((bytes as f64 * (1.0 - DRIVER_SHARE)) as u64).saturating_sub(LIBRARY_BYTES);
                let tokens = self.ranks.iter().map(|rank| self.tokens_of(rank, (memory, there)));
                // A sequence lies on one rank of every stage: the smallest counts.
                let least = tokens.collect::<Result<Vec<_>, _>>()?.into_iter().min().unwrap_or(0);
                Ok(least * self.topology.ranks_per_stage as u64)
            }
        }
    }

    fn tokens_of(
        &self,
        rank: &RankMemory,
        (memory, there): (Memory, u64),
    ) -> Result<u64, Shortage> {
        let (weights, workspace) = (rank.weight_bytes, rank.workspace_bytes);
        let share = self.least_cache() * rank.cache_bytes_per_token;
        let least = share / (self.token_bytes() * self.topology.ranks_per_stage as u64);
        let cache = rank.cache_bytes.unwrap_or(least);
        let room = there.checked_sub(weights + workspace).filter(|room| *room >= cache);
        let room = room.ok_or(Shortage { memory, weights, workspace, cache, there })?;
        Ok(rank.cache_bytes.unwrap_or(room) / rank.cache_bytes_per_token)
    }

    /// Bytes of cache over all ranks with which every sequence has a block.
    fn least_cache(&self) -> u64 {
        self.token_bytes() * (BLOCK_TOKENS * self.max_sequences) as u64
    }

    /// Bytes of cache that a token takes over all stages.
    pub fn token_bytes(&self) -> u64 {
        let stages = self.ranks.iter().step_by(self.topology.ranks_per_stage);
        stages.map(|rank| rank.cache_bytes_per_token).sum()
    }
}

/// The topology nearest to another one that is accepted, of those with so many `ranks`.
///
/// Near is a small factor between numbers of stages and of ranks; of equals the one with fewer stages.
pub fn nearest(
    config: &Config,
    to: Topology,
    ranks: RangeInclusive<usize>,
    accepted: impl Fn(Topology) -> bool,
) -> Option<Topology> {
    let most = *ranks.end();
    let every = (1..=most).flat_map(|stages| {
        (1..=most / stages).map(move |ranks_per_stage| Topology { stages, ranks_per_stage })
    });
    let every = every.filter(|topology| ranks.contains(&topology.ranks()));
    let factor = |a: usize, b: usize| (a as f64 / b as f64).ln().abs();
    let distance = |other: &Topology| {
        factor(other.stages, to.stages) + factor(other.ranks_per_stage, to.ranks_per_stage)
    };
    let every = every.filter(|&topology| config.accept(topology).is_ok() && accepted(topology));
    every.min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

#[cfg(test)]
mod tests {
    use super::super::layout::tests::{DEMAND, layout};
    use super::super::tests::released;
    use super::*;
    use crate::ops::CacheFormat;

    const H100: Memory = Memory::Each(81_559 << 20);

    #[test]
    fn v2_fits_eight_times_80_gb_with_stages_and_not_without() {
        let tokens = |stages, ranks| layout(stages, ranks).cache_tokens(H100);
        // By hand: 0.94 × 85.52 − 4 − 69.51 − 0.13 = 6.75 GB a rank, 34,560 B a token, four ranks.
        let two = tokens(2, 4).unwrap() as f64;
        assert!((two / 781_000.0 - 1.0).abs() < 0.005, "{two}");
        assert!(tokens(4, 2).unwrap() as f64 > two && tokens(8, 1).is_ok());
        let config = released("DeepSeek-V2.json");
        let fit = |stages, ranks_per_stage, memory| {
            let topology = Topology { stages, ranks_per_stage };
            fit(&config, topology, (Format::BF16, DEMAND), memory, 1..=8)
        };
        let refused = fit(1, 8, H100).unwrap_err();
        insta::assert_snapshot!(format!("{refused}; {}", refused.hint().unwrap()), @"1 stage × 8 ranks does not fit: a rank takes 81.7 GB of weights, 0.1 GB of workspace and 0.0 GB of cache, 76.4 GB of its device are free; the nearest that fits is `devices.stages = 2` with `devices.ranks = 4`");
        // Fewer devices than there are: the nearest may use the others.
        let refused = fit(1, 4, H100).unwrap_err();
        let two_by_four = Some(Topology { stages: 2, ranks_per_stage: 4 });
        assert!(matches!(refused, LayoutError::Memory { nearest, .. } if nearest == two_by_four));
        let smaller = Memory::Each(40 << 30);
        let refused = fit(2, 4, smaller).unwrap_err();
        assert!(matches!(refused, LayoutError::Memory { nearest: None, .. }), "{refused}");
        assert!(fit(1, 8, Memory::Each(143_771 << 20)).is_ok());
    }

    #[test]
    fn a_cache_that_is_asked_for_must_fit_too() {
        let config = released("DeepSeek-V2-Lite.json");
        let tokens = |cache_bytes: u64, memory: Memory| {
            let demand = Demand { cache_bytes: Some(cache_bytes), ..DEMAND };
            Layout::new(&config, Topology::SINGLE, Format::cpu(2, CacheFormat::F32), demand)
                .cache_tokens(memory)
        };
        let room = Memory::Shared(40 << 30);
        // 576 elements of 4 bytes in 27 layers.
        assert_eq!(tokens(1 << 30, room), Ok((1 << 30) / (576 * 4 * 27)));
        assert!(
            tokens(20 << 30, room).is_err() && tokens(1 << 30, Memory::Shared(30 << 30)).is_err()
        );
    }
}
