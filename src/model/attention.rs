//! One layer's multi-head latent attention.
//!
//! Source: DeepSeek-V2 (arXiv:2405.04434) §2.1; `DeepseekV2Attention` in the released modeling file.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::weights::Checkpoint;
use super::{Config, ModelError, Step};
use crate::ops::{self, HeadWeights, Heads, LatentPool, Matrix, Numerics, Rotation};

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
        numerics: Numerics,
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
                checkpoint.matrix(&format!("{prefix}.{name}.weight"), outputs, inputs, numerics)?;
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
                numerics,
            )?),
            Some(rank) => Query::Compressed {
                down: linear("q_a_proj", rank, config.hidden_size)?,
                norm: checkpoint.vector(&format!("{prefix}.q_a_layernorm.weight"), rank)?,
                up: checkpoint.matrix(
                    &format!("{prefix}.q_b_proj.weight"),
                    query_width,
                    rank,
                    numerics,
                )?,
            },
        };
        let latent_norm =
            checkpoint.vector(&format!("{prefix}.kv_a_layernorm.weight"), heads.latent)?;
        let head_weights =
            head_weights(checkpoint, &format!("{prefix}.kv_b_proj.weight"), heads, numerics)?;
        Ok(Self { query, latent, latent_norm, head_weights, output, heads })
    }

    /// Bytes of weights as they are held.
    pub(super) fn bytes(&self) -> usize {
        let query = match &self.query {
            Query::Full(weight) => weight.bytes(),
            Query::Compressed { down, up, .. } => down.weight.bytes() + up.bytes(),
        };
        let head = |head: &HeadWeights| {
            head.key.bytes() + head.key_transposed.bytes() + head.value.bytes()
        };
        let heads: usize = self.head_weights.iter().map(head).sum();
        query + self.latent.weight.bytes() + heads + self.output.weight.bytes()
    }

    /// Bytes of weights that a step reads: prompts and generated tokens read keys in forms of their own.
    pub(super) fn step_bytes(&self) -> usize {
        self.bytes() - self.head_weights.iter().map(|head| head.key.bytes()).sum::<usize>()
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
        let latents = self.latent.forward(x)?;
        ops::store_latents(
            &latents,
            &self.latent_norm,
            LATENT_NORM_EPSILON,
            rotation,
            &step.slots,
            (pool, layer),
        )?;
        let (heads, weights) = (self.heads, &self.head_weights);
        let attended = ops::attend((&q, rotation), heads, weights, &step.spans, (pool, layer))?;
        self.output.forward(&attended)
    }
}

/// Cuts `kv_b_proj` into heads: of each head the keys' rows come first, then the values'.
fn head_weights(
    checkpoint: &Checkpoint,
    name: &str,
    heads: Heads,
    numerics: Numerics,
) -> std::result::Result<Vec<HeadWeights>, ModelError> {
    let Heads { count, nope, value, latent, .. } = heads;
    let rows = nope + value;
    let elements = checkpoint.elements(name, &[count * rows, latent])?;
    let head = |h: usize| {
        let row = |o: usize, row: &mut [f32]| elements.widen((h * rows + o) * latent, row);
        let mut keys = vec![0.0; nope * latent];
        elements.widen(h * rows * latent, &mut keys);
        let column = |o: usize, column: &mut [f32]| {
            column.iter_mut().zip(keys[o..].iter().step_by(latent)).for_each(|(x, key)| *x = *key);
        };
        HeadWeights {
            key: Matrix::pack(nope, latent, numerics, row),
            key_transposed: Matrix::pack(latent, nope, numerics, column),
            value: Matrix::pack(value, latent, numerics, |o, out| row(nope + o, out)),
        }
    };
    Ok((0..count).into_par_iter().map(head).collect())
}
