//! One layer's multi-head latent attention.
//!
//! Source: DeepSeek-V2 (arXiv:2405.04434) §2.1; `DeepseekV2Attention` in the released modeling file.

use candle_core::{Result, Tensor};

use super::loader::Loader;
use super::{Config, ModelError};
use crate::ops::{self, AttentionMetadata, Heads, KeyValueWeights, LatentPool, Weight};

/// Epsilon of the norms of compressed query and latent: the released classes' default, whatever the
/// config says for the layers' norms.
const LATENT_NORM_EPSILON: f32 = 1e-6;

/// A product with an optional bias.
struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.product(x)?;
        self.bias.as_ref().map_or(Ok(y.clone()), |bias| ops::add_bias(&y, bias))
    }
}

enum Query {
    /// `q_proj`.
    Full(Weight),
    /// `q_b(norm(q_a(x)))`.
    Compressed { down: Linear, norm: Tensor, up: Weight },
}

/// The attention of one layer.
pub(super) struct Attention {
    query: Query,
    latent: Linear,
    latent_norm: Tensor,
    keys_and_values: KeyValueWeights,
    output: Linear,
    heads: Heads,
}

impl Attention {
    pub(super) fn load(
        loader: &Loader,
        config: &Config,
        layer: usize,
    ) -> std::result::Result<Self, ModelError> {
        let heads = Heads {
            count: config.heads,
            nope: config.qk_nope_head_dim,
            rope: config.qk_rope_head_dim,
            value: config.v_head_dim,
            latent: config.kv_lora_rank,
            scale: config.softmax_scale() as f32,
        };
        let prefix = format!("model.layers.{layer}.self_attn");
        let linear = |name: &str,
                      outputs: usize,
                      inputs: usize|
         -> std::result::Result<Linear, ModelError> {
            let weight = loader.weight(&format!("{prefix}.{name}.weight"), outputs, inputs)?;
            let bias = match config.attention_bias {
                true => Some(loader.vector(&format!("{prefix}.{name}.bias"), outputs)?),
                false => None,
            };
            Ok(Linear { weight, bias })
        };
        let latent = linear("kv_a_proj_with_mqa", config.latent_width(), config.hidden_size)?;
        let output = linear("o_proj", config.hidden_size, heads.count * heads.value)?;
        let query_width = heads.count * (heads.nope + heads.rope);
        let query = match config.q_lora_rank {
            None => Query::Full(loader.weight(
                &format!("{prefix}.q_proj.weight"),
                query_width,
                config.hidden_size,
            )?),
            Some(rank) => Query::Compressed {
                down: linear("q_a_proj", rank, config.hidden_size)?,
                norm: loader.vector(&format!("{prefix}.q_a_layernorm.weight"), rank)?,
                up: loader.weight(&format!("{prefix}.q_b_proj.weight"), query_width, rank)?,
            },
        };
        let latent_norm =
            loader.vector(&format!("{prefix}.kv_a_layernorm.weight"), heads.latent)?;
        let keys_and_values =
            loader.keys_and_values(&format!("{prefix}.kv_b_proj.weight"), heads)?;
        Ok(Self { query, latent, latent_norm, keys_and_values, output, heads })
    }

    /// Bytes of weights as they are held.
    pub(super) fn bytes(&self) -> usize {
        self.projection_bytes() + self.keys_and_values.bytes()
    }

    /// Bytes of weights that a step reads.
    pub(super) fn step_bytes(&self) -> usize {
        self.projection_bytes() + self.keys_and_values.step_bytes()
    }

    fn projection_bytes(&self) -> usize {
        let query = match &self.query {
            Query::Full(weight) => weight.bytes(),
            Query::Compressed { down, up, .. } => down.weight.bytes() + up.bytes(),
        };
        query + self.latent.weight.bytes() + self.output.weight.bytes()
    }

    /// `[tokens, hidden]` → the same; writes the step's latents into the cache first.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        metadata: &AttentionMetadata,
        (pool, layer): (&mut LatentPool, usize),
    ) -> Result<Tensor> {
        let q = match &self.query {
            Query::Full(weight) => weight.product(x)?,
            Query::Compressed { down, norm, up } => {
                up.product(&ops::rms_norm(&down.forward(x)?, norm, LATENT_NORM_EPSILON)?)?
            }
        };
        let (latents, norm) = (self.latent.forward(x)?, &self.latent_norm);
        ops::store_latents(&latents, norm, LATENT_NORM_EPSILON, metadata, (pool, layer))?;
        let weights = &self.keys_and_values;
        let attended = ops::attend(&q, self.heads, weights, metadata, (pool, layer))?;
        self.output.forward(&attended)
    }
}
