//! One layer's multi-head latent attention.
//!
//! Source: DeepSeek-V2 (arXiv:2405.04434) §2.1; `DeepseekV2Attention` in the released modeling file.

use candle_core::{Result, Tensor};

use super::weights::Checkpoint;
use super::{Config, ModelError, Step};
use crate::ops::{self, HeadWeights, Heads, Held, LatentPool, Matrix, Rotation};

/// Epsilon of the norms of compressed query and latent: the released classes' default, whatever the
/// config says for the layers' norms.
const LATENT_NORM_EPSILON: f32 = 1e-6;

/// A product with an optional bias.
struct Linear {
    weight: Matrix,
    bias: Option<Vec<f32>>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.product(x)?;
        self.bias.as_ref().map_or(Ok(y.clone()), |bias| ops::add_bias(&y, bias))
    }
}

enum Query {
    /// `q_proj`.
    Full(Matrix),
    /// `q_b(norm(q_a(x)))`.
    Compressed { down: Linear, norm: Vec<f32>, up: Matrix },
}

/// The attention of one layer.
pub(super) struct Attention {
    query: Query,
    latent: Linear,
    latent_norm: Vec<f32>,
    head_weights: Vec<HeadWeights>,
    output: Linear,
    heads: Heads,
}

impl Attention {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        layer: usize,
        held: Held,
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
            let weight =
                checkpoint.matrix(&format!("{prefix}.{name}.weight"), outputs, inputs, held)?;
            let bias = match config.attention_bias {
                true => Some(checkpoint.vector(&format!("{prefix}.{name}.bias"), outputs)?),
                false => None,
            };
            Ok(Linear { weight, bias })
        };
        let latent = linear("kv_a_proj_with_mqa", config.latent_width(), config.hidden_size)?;
        let output = linear("o_proj", config.hidden_size, heads.count * heads.value)?;
        let query_width = heads.count * (heads.nope + heads.rope);
        let query = match config.q_lora_rank {
            None => Query::Full(checkpoint.matrix(
                &format!("{prefix}.q_proj.weight"),
                query_width,
                config.hidden_size,
                held,
            )?),
            Some(rank) => Query::Compressed {
                down: linear("q_a_proj", rank, config.hidden_size)?,
                norm: checkpoint.vector(&format!("{prefix}.q_a_layernorm.weight"), rank)?,
                up: checkpoint.matrix(
                    &format!("{prefix}.q_b_proj.weight"),
                    query_width,
                    rank,
                    held,
                )?,
            },
        };
        let latent_norm =
            checkpoint.vector(&format!("{prefix}.kv_a_layernorm.weight"), heads.latent)?;
        let head_weights =
            head_weights(checkpoint, &format!("{prefix}.kv_b_proj.weight"), heads, held)?;
        Ok(Self { query, latent, latent_norm, head_weights, output, heads })
    }

    /// `[tokens, hidden]` → the same; writes the step's latents into the cache first.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        step: &Step,
        rotation: &Rotation,
        (pool, layer): (&mut LatentPool, usize),
    ) -> Result<Tensor> {
        let q = match &self.query {
            Query::Full(weight) => weight.product(x)?,
            Query::Compressed { down, norm, up } => {
                up.product(&ops::rms_norm(&down.forward(x)?, norm, LATENT_NORM_EPSILON)?)?
            }
        };
        let q = ops::rotate_queries(&q, self.heads.count, rotation)?;
        let latents = self.latent.forward(x)?;
        ops::store_latents(
            &latents,
            &self.latent_norm,
            LATENT_NORM_EPSILON,
            rotation,
            &step.slots,
            (pool, layer),
        )?;
        let attended = ops::attend(&q, self.heads, &self.head_weights, &step.spans, (pool, layer))?;
        self.output.forward(&attended)
    }
}

/// Cuts `kv_b_proj` into heads: of each head the keys' rows come first, then the values'.
fn head_weights(
    checkpoint: &Checkpoint,
    name: &str,
    heads: Heads,
    held: Held,
) -> std::result::Result<Vec<HeadWeights>, ModelError> {
    let Heads { count, nope, value, latent, .. } = heads;
    let rows = nope + value;
    let elements = checkpoint.elements(name, &[count * rows, latent])?;
    let head = |h: usize| HeadWeights {
        key: Matrix::pack(nope, latent, held, |o, i| elements.at((h * rows + o) * latent + i)),
        key_transposed: Matrix::pack(latent, nope, held, |o, i| {
            elements.at((h * rows + i) * latent + o)
        }),
        value: Matrix::pack(value, latent, held, |o, i| {
            elements.at((h * rows + nope + o) * latent + i)
        }),
    };
    Ok((0..count).map(head).collect())
}
