//! Which experts the tokens of a run were routed to, and what that meant for the ranks that hold them.

use crate::model::Config;
use crate::ops::Routing;
use crate::parallel::{Placement, Topology};

/// Routes of each mixture layer and expert.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertLedger {
    layers: Vec<LayerLoad>,
    ranks: usize,
}

/// The routes of one mixture layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerLoad {
    /// Index of the layer in the model.
    pub layer: usize,
    /// Routes to each expert.
    pub routes: Vec<u64>,
    /// The ranks that held the experts.
    pub held: Placement,
}

impl ExpertLedger {
    pub(super) fn new(config: &Config, topology: Topology) -> Self {
        let load = |layer: usize| {
            let experts = config.layer_moe(layer)?.routed_experts;
            let held = (0..experts).map(|expert| topology.rank_of(expert, experts)).collect();
            let held = Placement { rank_of: held };
            Some(LayerLoad { layer, routes: vec![0; experts], held })
        };
        let layers = (0..config.layers).filter_map(load).collect();
        Self { layers, ranks: topology.ranks_per_stage }
    }

    /// Adds a step's routes.
    pub(super) fn add(&mut self, routings: &[Routing]) {
        for (layer, routing) in self.layers.iter_mut().zip(routings) {
            for &expert in &routing.expert_ids {
                layer.routes[expert as usize] += 1;
            }
        }
    }

    /// Ranks that share each layer's experts.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The layers with experts, first to last.
    pub fn layers(&self) -> &[LayerLoad] {
        &self.layers
    }
}

impl LayerLoad {
    /// Routes to the busiest expert ÷ mean routes of an expert; 1 is balance, 0 is no route at all.
    pub fn imbalance(&self) -> f64 {
        let most = self.routes.iter().copied().max().unwrap_or(0);
        let mean = self.routes.iter().sum::<u64>() as f64 / self.routes.len().max(1) as f64;
        if mean == 0.0 { 0.0 } else { most as f64 / mean }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imbalance_is_the_busiest_by_the_mean() {
        let load = |routes: &[u64]| {
            let held = Placement { rank_of: vec![0; routes.len()] };
            LayerLoad { layer: 1, routes: routes.into(), held }.imbalance()
        };
        assert_eq!(load(&[3, 3, 3]), 1.0);
        assert_eq!(load(&[8, 0, 0, 0]), 4.0);
        assert_eq!(load(&[0, 0]), 0.0);
    }
}
