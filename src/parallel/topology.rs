//! Which layers and experts live where.

use std::fmt;
use std::ops::Range;

/// How a model is spread over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Topology {
    /// Pipeline stages, each with its own layers.
    pub stages: usize,
    /// Expert-parallel ranks of each stage, each with its own experts and sequences.
    pub ranks_per_stage: usize,
}

/// One rank's place in a topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Its stage, from 0.
    pub stage: usize,
    /// Which rank of the stage it is, from 0.
    pub rank: usize,
}

impl Topology {
    /// One rank that holds everything.
    pub const SINGLE: Self = Self { stages: 1, ranks_per_stage: 1 };

    /// Ranks of all stages.
    pub fn ranks(&self) -> usize {
        self.stages * self.ranks_per_stage
    }

    /// All places, stage by stage.
    pub fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let Self { stages, ranks_per_stage } = *self;
        (0..stages)
            .flat_map(move |stage| (0..ranks_per_stage).map(move |rank| Place { stage, rank }))
    }

    /// The layers of a stage. The first stages have one more where they do not divide evenly: the last
    /// one computes the head too.
    pub fn layers(&self, stage: usize, layers: usize) -> Range<usize> {
        share(stage, self.stages, layers)
    }

    /// The routed experts of a rank, the same in each layer. Neighbouring experts stay together, so that
    /// the groups of device-limited routing lie on one rank each where they divide evenly.
    pub fn experts(&self, rank: usize, experts: usize) -> Range<usize> {
        share(rank, self.ranks_per_stage, experts)
    }

    /// The rank that holds an expert.
    pub fn rank_of(&self, expert: usize, experts: usize) -> usize {
        let (least, more) = (experts / self.ranks_per_stage, experts % self.ranks_per_stage);
        let in_larger = more * (least + 1);
        if expert < in_larger { expert / (least + 1) } else { more + (expert - in_larger) / least }
    }
}

/// Part `index` of `items` cut into `parts` as evenly as can be, the larger parts first.
fn share(index: usize, parts: usize, items: usize) -> Range<usize> {
    let (least, more) = (items / parts, items % parts);
    let start = index * least + index.min(more);
    start..start + least + usize::from(index < more)
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let Self { stages, ranks_per_stage: ranks } = *self;
        write!(f, "{stages} stage{} × {ranks} rank{}", plural(stages), plural(ranks))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of stage {}", self.rank, self.stage)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn layers_of_the_first_stages_are_more() {
        let topology = Topology { stages: 8, ranks_per_stage: 1 };
        let layers: Vec<usize> = (0..8).map(|stage| topology.layers(stage, 60).len()).collect();
        assert_eq!(layers, [8, 8, 8, 8, 7, 7, 7, 7]);
    }

    #[test]
    fn a_group_of_experts_lies_on_one_rank() {
        let topology = Topology { stages: 1, ranks_per_stage: 8 };
        for rank in 0..8 {
            assert_eq!(topology.experts(rank, 160), rank * 20..(rank + 1) * 20);
        }
    }

    proptest! {
        #[test]
        fn every_expert_has_one_rank(experts in 1usize..200, ranks in 1usize..20) {
            let topology = Topology { stages: 1, ranks_per_stage: ranks };
            let mut next = 0;
            for rank in 0..ranks {
                let own = topology.experts(rank, experts);
                prop_assert_eq!(own.start, next);
                prop_assert!(own.clone().all(|expert| topology.rank_of(expert, experts) == rank));
                next = own.end;
            }
            prop_assert_eq!(next, experts);
        }
    }
}
