//! Where experts should lie so that ranks have equal work: a suggestion from counted routes.

/// Which rank holds each expert of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The rank of each expert.
    pub rank_of: Vec<usize>,
}

impl Placement {
    /// Spreads experts over `ranks` ranks with equal counts of experts (up to one) and nearly equal
    /// routes: the busiest expert first, each to the least busy rank that has room.
    ///
    /// Balances a layer for all its routes together. It does not keep the groups of device-limited
    /// routing on one rank, so that a token may visit more ranks than before.
    ///
    /// Source: longest processing time first, R. L. Graham, "Bounds on multiprocessing timing anomalies"
    /// (1969), with a bound on the items of each bin.
    pub fn balanced(routes: &[u64], ranks: usize) -> Self {
        let mut busiest: Vec<usize> = (0..routes.len()).collect();
        busiest.sort_by_key(|&expert| (std::cmp::Reverse(routes[expert]), expert));
        let (least, more) = (routes.len() / ranks, routes.len() % ranks);
        let (mut held, mut load) = (vec![0usize; ranks], vec![0u64; ranks]);
        let mut larger = 0;
        let mut rank_of = vec![0; routes.len()];
        for expert in busiest {
            let has_room =
                |&rank: &usize| held[rank] < least || held[rank] == least && larger < more;
            let rank = (0..ranks)
                .filter(has_room)
                .min_by_key(|&rank| (load[rank], rank))
                .expect("the ranks have room for all experts");
            larger += usize::from(held[rank] == least);
            held[rank] += 1;
            load[rank] += routes[expert];
            rank_of[expert] = rank;
        }
        Self { rank_of }
    }

    /// Routes of the busiest rank ÷ mean routes of a rank; 1 is balance, 0 is no route at all.
    pub fn imbalance(&self, routes: &[u64], ranks: usize) -> f64 {
        let mut load = vec![0u64; ranks];
        self.rank_of.iter().zip(routes).for_each(|(&rank, routes)| load[rank] += routes);
        let (most, all) = (load.iter().copied().max().unwrap_or(0), load.iter().sum::<u64>());
        if all == 0 { 0.0 } else { most as f64 * ranks as f64 / all as f64 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn busy_experts_are_spread() {
        let routes = [90, 80, 10, 20, 5, 5];
        let placement = Placement::balanced(&routes, 2);
        assert_eq!(placement.rank_of, [0, 1, 0, 1, 0, 1]);
        let before = Placement { rank_of: vec![0, 0, 0, 1, 1, 1] };
        assert_eq!(before.imbalance(&routes, 2), 180.0 * 2.0 / 210.0);
        assert_eq!(placement.imbalance(&routes, 2), 1.0);
        assert_eq!(placement.imbalance(&[0; 6], 2), 0.0);
    }

    proptest! {
        #[test]
        fn every_rank_gets_its_count_of_experts(
            routes in prop::collection::vec(0u64..1000, 1..64),
            ranks in 1usize..9,
        ) {
            let placement = Placement::balanced(&routes, ranks);
            for rank in 0..ranks {
                let held = placement.rank_of.iter().filter(|&&other| other == rank).count();
                prop_assert!(held == routes.len() / ranks || held == routes.len().div_ceil(ranks));
            }
        }
    }
}
