//! Which experts the tokens of a run were routed to.

use crate::model::Config;
use crate::ops::Routing;

/// Routes of each mixture layer and expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertLedger {
    layers: Vec<LayerLoad>,
}

/// The routes of one mixture layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerLoad {
    /// Index of the layer in the model.
    pub layer: usize,
    /// Routes to each expert.
    pub routes: Vec<u64>,
}

impl ExpertLedger {
    pub(super) fn new(config: &Config) -> Self {
        let load = |layer: usize| {
            let routes = vec![0; config.layer_moe(layer)?.routed_experts];
            Some(LayerLoad { layer, routes })
        };
        Self { layers: (0..config.layers).filter_map(load).collect() }
    }

    /// Adds a step's routes.
    pub(super) fn add(&mut self, routings: &[Routing]) {
        for (layer, routing) in self.layers.iter_mut().zip(routings) {
            for &expert in &routing.expert_ids {
                layer.routes[expert as usize] += 1;
            }
        }
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
        let load = |routes: &[u64]| LayerLoad { layer: 1, routes: routes.into() }.imbalance();
        assert_eq!(load(&[3, 3, 3]), 1.0);
        assert_eq!(load(&[8, 0, 0, 0]), 4.0);
        assert_eq!(load(&[0, 0]), 0.0);
    }
}
