//! Where a step's tokens are routed, on the host or still on the device that chose it.

use candle_core::{Result, Tensor};

use super::devices;
use super::router::{Routing, route};
use super::shapes::Choice;

/// The routes of one layer and step.
pub enum Routes {
    /// On the host.
    Host(Routing),
    /// `[tokens, experts_per_token]` u32 ids, ascending within a token, and f32 weights, on a device.
    Device { expert_ids: Tensor, weights: Tensor },
}

impl Routes {
    /// Chooses the routed experts of every token; logits `[tokens, experts]`. As [`route`].
    pub fn choose(logits: &Tensor, choice: Choice) -> Result<Self> {
        if let Some(device) = devices::of(logits) {
            let (expert_ids, weights) = device.route(logits, choice)?;
            return Ok(Self::Device { expert_ids, weights });
        }
        let experts = logits.dim(1)?;
        Ok(Self::Host(route(&logits.flatten_all()?.to_vec1::<f32>()?, experts, choice)))
    }

    /// The routes on the host, fetched if need be.
    pub fn into_routing(self) -> Result<Routing> {
        match self {
            Self::Host(routing) => Ok(routing),
            Self::Device { expert_ids, weights } => Ok(Routing {
                experts_per_token: expert_ids.dim(1)?,
                expert_ids: expert_ids.flatten_all()?.to_vec1()?,
                weights: weights.flatten_all()?.to_vec1()?,
            }),
        }
    }
}
