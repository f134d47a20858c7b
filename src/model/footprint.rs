//! What the weights take in memory, part by part: what a step has to read of them depends on its tokens.

use super::transformer::Layer;
use super::{Model, ModelParts};

/// Bytes of weights as they are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Of all layers of all ranks, without routed experts: every step reads them.
    pub layers: u64,
    /// Of one routed expert: a step reads those that it routes a token to.
    pub routed_expert: u64,
    /// Of the head: a step that gives logits reads it.
    pub head: u64,
}

impl ModelParts {
    /// What the weights take. The embedding is left out: a step reads a row of it for each token.
    pub fn footprint(&self) -> Footprint {
        let join = |a: Footprint, b: Footprint| Footprint {
            layers: a.layers + b.layers,
            routed_expert: a.routed_expert.max(b.routed_expert),
            head: a.head + b.head,
        };
        self.parts().iter().map(footprint).fold(Footprint::default(), join)
    }
}

fn footprint(part: &Model) -> Footprint {
    let step_bytes = |l: &Layer| (l.attention.step_bytes() + l.feed_forward.step_bytes()) as u64;
    let layers = part.layers.iter();
    Footprint {
        layers: layers.clone().map(step_bytes).sum(),
        routed_expert: layers
            .map(|l| l.feed_forward.routed_expert_bytes() as u64)
            .max()
            .unwrap_or(0),
        head: part.head.as_ref().map_or(0, |head| head.weight.bytes() as u64),
    }
}
