//! One layer's feed-forward part: dense, or shared experts beside routed ones.
//!
//! Source: DeepSeek-V2 (arXiv:2405.04434) §2.2; `DeepseekV2MLP` and `DeepseekV2MoE` in the released
//! modeling file.

use candle_core::{Result as CandleResult, Tensor};
use rayon::prelude::*;

use super::config::MoeConfig;
use super::parts::Part;
use super::routed::RoutedExperts;
use super::weights::Checkpoint;
use super::{Config, ModelError};
use crate::ops::{self, Choice, Expert, Held, Matrix, Numerics, Routing};
use crate::parallel::Collective;

/// The feed-forward part of one layer.
pub(super) enum FeedForward {
    Dense(Expert),
    Mixture { router: Matrix, choice: Choice, routed: RoutedExperts, shared: Option<Expert> },
}

impl FeedForward {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        layer: usize,
        (part, numerics): (Part, Numerics),
    ) -> Result<Self, ModelError> {
        let prefix = format!("model.layers.{layer}.mlp");
        let hidden = config.hidden_size;
        let Some(moe) = config.layer_moe(layer) else {
            return Ok(Self::Dense(expert(
                checkpoint,
                &prefix,
                hidden,
                config.intermediate_size,
                numerics,
            )?));
        };
        // The router decides in f32, however the other weights are held.
        let router = checkpoint.matrix(
            &format!("{prefix}.gate.weight"),
            moe.routed_experts,
            hidden,
            Held::F32,
        )?;
        let width = moe.intermediate_size;
        let own = part.topology.experts(part.place.rank, moe.routed_experts);
        let own = own
            .into_par_iter()
            .map(|id| {
                expert(checkpoint, &format!("{prefix}.experts.{id}"), hidden, width, numerics)
            })
            .collect::<Result<_, _>>()?;
        let routed = RoutedExperts { own, experts: moe.routed_experts, topology: part.topology };
        let shared = match moe.shared_experts {
            0 => None,
            count => Some(expert(
                checkpoint,
                &format!("{prefix}.shared_experts"),
                hidden,
                count * width,
                numerics,
            )?),
        };
        Ok(Self::Mixture { router, choice: choice(moe), routed, shared })
    }

    /// Bytes of weights as they are held.
    pub(super) fn bytes(&self) -> usize {
        let routed = match self {
            Self::Dense(_) => 0,
            Self::Mixture { routed, .. } => routed.own.iter().map(bytes).sum(),
        };
        self.step_bytes() + routed
    }

    /// Bytes of weights that every step reads.
    pub(super) fn step_bytes(&self) -> usize {
        match self {
            Self::Dense(expert) => bytes(expert),
            Self::Mixture { router, shared, .. } => {
                router.bytes() + shared.as_ref().map_or(0, bytes)
            }
        }
    }

    /// Bytes of one routed expert; 0 in a dense layer.
    pub(super) fn routed_expert_bytes(&self) -> usize {
        match self {
            Self::Dense(_) => 0,
            Self::Mixture { routed, .. } => routed.own.first().map_or(0, bytes),
        }
    }

    /// `[tokens, hidden]` → the same, and where each token was routed in a mixture.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        ranks: &mut dyn Collective,
    ) -> Result<(Tensor, Option<Routing>), ModelError> {
        match self {
            Self::Dense(expert) => Ok((apply(expert, x)?, None)),
            Self::Mixture { router, choice, routed, shared } => {
                let logits = router.product(x)?.flatten_all()?.to_vec1::<f32>()?;
                let routing = ops::route(&logits, routed.experts, *choice);
                let y = routed.forward(x, &routing, ranks)?;
                let y = match shared {
                    Some(shared) => ops::add(&y, &apply(shared, x)?)?,
                    None => y,
                };
                Ok((y, Some(routing)))
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

fn expert(
    checkpoint: &Checkpoint,
    prefix: &str,
    hidden: usize,
    width: usize,
    numerics: Numerics,
) -> Result<Expert, ModelError> {
    let rows =
        |name: &str| checkpoint.elements(&format!("{prefix}.{name}.weight"), &[width, hidden]);
    let (gate, up) = (rows("gate_proj")?, rows("up_proj")?);
    let gate_up = Matrix::pack_gated(
        width,
        hidden,
        numerics,
        |o, row| gate.widen(o * hidden, row),
        |o, row| up.widen(o * hidden, row),
    );
    let down = checkpoint.matrix(&format!("{prefix}.down_proj.weight"), hidden, width, numerics)?;
    Ok(Expert { gate_up, down })
}

/// Bytes of an expert's weights.
fn bytes(expert: &Expert) -> usize {
    expert.gate_up.bytes() + expert.down.bytes()
}

fn apply(expert: &Expert, x: &Tensor) -> CandleResult<Tensor> {
    expert.down.product(&expert.gate_up.gated_product(x)?)
}
