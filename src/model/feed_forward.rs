//! One layer's feed-forward part: dense, or shared experts beside routed ones.
//!
//! Source: DeepSeek-V2 (arXiv:2405.04434) §2.2; `DeepseekV2MLP` and `DeepseekV2MoE` in the released
//! modeling file.

use candle_core::Tensor;
use rayon::prelude::*;

use super::config::MoeConfig;
use super::loader::Loader;
use super::parts::Part;
use super::routed::RoutedExperts;
use super::{Config, ModelError};
use crate::ops::{self, Choice, Expert, Experts, Routes, Routing, Weight};
use crate::parallel::Collective;

/// The feed-forward part of one layer.
pub(super) enum FeedForward {
    Dense(Expert),
    Mixture { router: Weight, choice: Choice, routed: RoutedExperts, shared: Option<Expert> },
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
            return Ok(Self::Dense(loader.expert(&prefix, hidden, config.intermediate_size)?));
        };
        // The router decides in f32, however the other weights are held.
        let router =
            loader.f32_weight(&format!("{prefix}.gate.weight"), moe.routed_experts, hidden)?;
        let width = moe.intermediate_size;
        let own = part.topology.experts(part.place.rank, moe.routed_experts);
        let own = own
            .into_par_iter()
            .map(|id| loader.expert(&format!("{prefix}.experts.{id}"), hidden, width))
            .collect::<Result<_, _>>()?;
        let own = Experts::new(own)?;
        let routed = RoutedExperts { own, experts: moe.routed_experts, topology: part.topology };
        let shared = match moe.shared_experts {
            0 => None,
            count => {
                let prefix = format!("{prefix}.shared_experts");
                Some(loader.expert(&prefix, hidden, count * width)?)
            }
        };
        Ok(Self::Mixture { router, choice: choice(moe), routed, shared })
    }

    /// Bytes of weights as they are held.
    pub(super) fn bytes(&self) -> usize {
        let routed = match self {
            Self::Dense(_) => 0,
            Self::Mixture { routed, .. } => routed.own.iter().map(Expert::bytes).sum(),
        };
        self.step_bytes() + routed
    }

    /// Bytes of weights that every step reads.
    pub(super) fn step_bytes(&self) -> usize {
        match self {
            Self::Dense(expert) => expert.bytes(),
            Self::Mixture { router, shared, .. } => {
                router.bytes() + shared.as_ref().map_or(0, Expert::bytes)
            }
        }
    }

    /// Bytes of one routed expert; 0 in a dense layer.
    pub(super) fn routed_expert_bytes(&self) -> usize {
        match self {
            Self::Dense(_) => 0,
            Self::Mixture { routed, .. } => routed.own.iter().next().map_or(0, Expert::bytes),
        }
    }

    /// `[tokens, hidden]` → the same, and where each token was routed in a mixture.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        ranks: &mut dyn Collective,
    ) -> Result<(Tensor, Option<Routes>), ModelError> {
        match self {
            Self::Dense(expert) => Ok((expert.forward(x)?, None)),
            Self::Mixture { router, choice, routed, shared } => {
                let routes = Routes::choose(&router.product(x)?, *choice)?;
                let (y, routes) = routed.forward(x, routes, ranks)?;
                let y = match shared {
                    Some(shared) => ops::add(&y, &shared.forward(x)?)?,
                    None => y,
                };
                Ok((y, Some(routes)))
            }
        }
    }

    /// Computes what other ranks ask of this one's experts while it has no tokens: rows `[0, hidden]`.
    pub(super) fn serve(
        &self,
        none: &Tensor,
        ranks: &mut dyn Collective,
    ) -> Result<Option<Routing>, ModelError> {
        let Self::Mixture { choice, routed, .. } = self else { return Ok(None) };
        let routing = Routing { experts_per_token: choice.experts_per_token, ..Routing::default() };
        routed.among_ranks(none, &routing, ranks)?;
        Ok(Some(routing))
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
