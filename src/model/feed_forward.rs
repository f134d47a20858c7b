//! One layer's feed-forward part: dense, or shared experts beside routed ones.
//!
//! Source: DeepSeek-V2 (arXiv:2405.04434) §2.2; `DeepseekV2MLP` and `DeepseekV2MoE` in the released
//! modeling file.

use candle_core::Tensor;

use super::config::MoeConfig;
use super::loader::Loader;
use super::parts::Part;
use super::routed::RoutedExperts;
use super::{Config, ModelError};
use crate::ops::{Choice, Experts, FeedForwardWeights, Routes, Weight};
use crate::parallel::Collective;

/// The feed-forward part of one layer.
pub(super) enum FeedForward {
    Dense(FeedForwardWeights),
    Mixture {
        router: Weight,
        choice: Choice,
        routed: RoutedExperts,
        shared: Option<FeedForwardWeights>,
    },
}

impl FeedForward {
    pub(super) fn load(
        loader: &Loader,
        config: &Config,
        layer: usize,
        part: Part,
    ) -> Result<Self, ModelError> {
        let prefix = format!("model.layers.{layer}.mlp");
        let hidden = config.hidden_size;
        let Some(moe) = config.layer_moe(layer) else {
            return Ok(Self::Dense(loader.feed_forward(
                &prefix,
                hidden,
                config.intermediate_size,
            )?));
        };
        // The router decides in f32, however the other weights are held.
        let router =
            loader.wide_weight(&format!("{prefix}.gate.weight"), moe.routed_experts, hidden)?;
        let width = moe.intermediate_size;
        let own = part.topology.experts(part.place.rank, moe.routed_experts);
        let own = own
            .map(|id| loader.feed_forward(&format!("{prefix}.experts.{id}"), hidden, width))
            .collect::<Result<_, _>>()?;
        let own = Experts::new(own)?;
        let routed = RoutedExperts { own, experts: moe.routed_experts, topology: part.topology };
        let shared = match moe.shared_experts {
            0 => None,
            count => Some(loader.feed_forward(
                &format!("{prefix}.shared_experts"),
                hidden,
                count * width,
            )?),
        };
        Ok(Self::Mixture { router, choice: choice(moe), routed, shared })
    }

    /// `[tokens, hidden]` → the same, and where each token was routed in a mixture.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        ranks: &mut dyn Collective,
    ) -> Result<(Tensor, Option<Routes>), ModelError> {
        match self {
            Self::Dense(weights) => Ok((weights.forward(x)?, None)),
            Self::Mixture { router, choice, routed, shared } => {
                let routes = Routes::choose(&router.product(x)?, *choice)?;
                let (y, routes) = routed.forward(x, routes, ranks)?;
                let y = match shared {
                    Some(shared) => (y + shared.forward(x)?)?,
                    None => y,
                };
                Ok((y, Some(routes)))
            }
        }
    }
}

fn choice(moe: &MoeConfig) -> Choice {
    Choice {
        experts_per_token: moe.experts_per_token,
        groups: moe.groups,
        normalise: moe.norm_topk_prob,
        scale: moe.routed_scaling_factor as f32,
    }
}
