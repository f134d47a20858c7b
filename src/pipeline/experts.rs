//! The expert ledger as it is reported: how even experts and ranks were used, and what would be more even.

use super::report::Experts;
use crate::engine::{ExpertLedger, LayerLoad};
use crate::output::ExpertLoad;
use crate::parallel::Placement;

/// The ledger in a few numbers.
pub(super) fn summary(ledger: &ExpertLedger) -> Experts {
    let (layers, ranks) = (ledger.layers(), ledger.ranks());
    let mean = |imbalance: &dyn Fn(&LayerLoad) -> f64| {
        layers.iter().map(imbalance).sum::<f64>() / layers.len().max(1) as f64
    };
    let worst = layers.iter().max_by(|a, b| a.imbalance().total_cmp(&b.imbalance()));
    Experts {
        layers: layers.len() as u64,
        mean_imbalance: mean(&LayerLoad::imbalance),
        max_imbalance: worst.map_or(0.0, LayerLoad::imbalance),
        worst_layer: worst.map_or(0, |load| load.layer as u64),
        ranks: ranks as u64,
        rank_tokens: rank_tokens(ledger),
        rank_imbalance: mean(&|load| load.held.imbalance(&load.routes, ranks)),
        suggested_rank_imbalance: mean(&|load| {
            Placement::balanced(&load.routes, ranks).imbalance(&load.routes, ranks)
        }),
    }
}

fn rank_tokens(ledger: &ExpertLedger) -> Vec<u64> {
    let mut tokens = vec![0; ledger.ranks()];
    for load in ledger.layers() {
        load.held
            .rank_of
            .iter()
            .zip(&load.routes)
            .for_each(|(&rank, routes)| tokens[rank] += routes);
    }
    tokens
}

/// Each expert of each layer: what it did, which rank held it, and which one should.
pub(super) fn loads(ledger: &ExpertLedger) -> Vec<ExpertLoad> {
    let of_layer = |load: &LayerLoad| {
        let suggested = Placement::balanced(&load.routes, ledger.ranks());
        let of_expert = |(expert, &tokens): (usize, &u64)| ExpertLoad {
            layer: load.layer,
            expert,
            tokens,
            rank: load.held.rank_of[expert],
            suggested_rank: suggested.rank_of[expert],
        };
        load.routes.iter().enumerate().map(of_expert).collect::<Vec<_>>()
    };
    ledger.layers().iter().flat_map(of_layer).collect()
}
