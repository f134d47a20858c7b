//! The whole model: embedding, layers, head.

use std::path::Path;

use candle_core::Tensor;
use half::bf16;

use super::attention::Attention;
use super::feed_forward::FeedForward;
use super::weights::Checkpoint;
use super::{Config, ModelError, Step};
use crate::ops::{self, Held, LatentPool, Matrix, Rotation, Routing};

/// A loaded DeepSeek-V2 model.
pub struct Model {
    config: Config,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Matrix,
    frequencies: Vec<f32>,
}

struct Layer {
    attention_norm: Vec<f32>,
    attention: Attention,
    feed_forward_norm: Vec<f32>,
    feed_forward: FeedForward,
}

/// The embedding's rows, as they are held.
enum Embedding {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

/// What a step gives.
pub struct StepOutput {
    /// Logits of the wanted rows: `[outputs, vocab]`, f32.
    pub logits: Tensor,
    /// Where the step's tokens were routed, for each mixture layer.
    pub routings: Vec<Routing>,
}

impl Model {
    /// Loads a Hugging Face folder; `loaded(bytes, of)` is told how far it is.
    pub fn load(folder: &Path, held: Held, loaded: &dyn Fn(u64, u64)) -> Result<Self, ModelError> {
        let config = Config::load(folder)?;
        let mut checkpoint = Checkpoint::open(folder)?;
        let bytes = checkpoint.bytes();
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
        let name = "model.embed_tokens.weight";
        let embedding = Embedding::load(
            &mut checkpoint,
            name,
            vocabulary * hidden,
            &[vocabulary, hidden],
            held,
        )?;
        let head = if config.tie_word_embeddings { name } else { "lm_head.weight" };
        let head = checkpoint.matrix(head, vocabulary, hidden, held)?;
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            loaded(bytes * (layer as u64 + 1) / (config.layers as u64 + 2), bytes);
            layers.push(Layer::load(&mut checkpoint, &config, layer, held)?);
        }
        let norm = checkpoint.vector("model.norm.weight", hidden)?;
        checkpoint.finish(config.tie_word_embeddings)?;
        loaded(bytes, bytes);
        Ok(Self { frequencies: config.rope_frequencies(), config, embedding, layers, norm, head })
    }

    /// Bytes of weights as they are held.
    pub fn weight_bytes(&self) -> u64 {
        let width = match &self.embedding {
            Embedding::F32(_) => 4,
            Embedding::Bf16(_) => 2,
        };
        self.config.parameters() * width
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Computes one step: writes its latents into the cache and gives the logits of its wanted rows.
    pub fn forward(&self, step: &Step, pool: &mut LatentPool) -> Result<StepOutput, ModelError> {
        let multiplier = self.config.rope_multiplier() as f32;
        let rotation = Rotation::new(&step.positions, &self.frequencies, multiplier);
        let epsilon = self.config.rms_norm_eps as f32;
        let mut routings = Vec::new();
        let mut x = self.embedding.rows(&step.tokens, self.config.hidden_size)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = ops::rms_norm(&x, &layer.attention_norm, epsilon)?;
            x = (x + layer.attention.forward(&normed, step, &rotation, (pool, index))?)?;
            let normed = ops::rms_norm(&x, &layer.feed_forward_norm, epsilon)?;
            let (y, routing) = layer.feed_forward.forward(&normed)?;
            x = (x + y)?;
            routings.extend(routing);
        }
        let wanted = Tensor::from_slice(&step.outputs, step.outputs.len(), x.device())?;
        let x = ops::rms_norm(&x.index_select(&wanted, 0)?, &self.norm, epsilon)?;
        Ok(StepOutput { logits: self.head.product(&x)?, routings })
    }
}

impl Layer {
    fn load(
        checkpoint: &mut Checkpoint,
        config: &Config,
        layer: usize,
        held: Held,
    ) -> Result<Self, ModelError> {
        let prefix = format!("model.layers.{layer}");
        Ok(Self {
            attention_norm: checkpoint
                .vector(&format!("{prefix}.input_layernorm.weight"), config.hidden_size)?,
            attention: Attention::load(checkpoint, config, layer, held)?,
            feed_forward_norm: checkpoint
                .vector(&format!("{prefix}.post_attention_layernorm.weight"), config.hidden_size)?,
            feed_forward: FeedForward::load(checkpoint, config, layer, held)?,
        })
    }
}

impl Embedding {
    fn load(
        checkpoint: &mut Checkpoint,
        name: &str,
        count: usize,
        shape: &[usize],
        held: Held,
    ) -> Result<Self, ModelError> {
        let elements = checkpoint.elements(name, shape)?;
        let values = (0..count).map(|i| elements.at(i));
        Ok(match held {
            Held::F32 => Self::F32(values.collect()),
            Held::Bf16 => Self::Bf16(values.map(bf16::from_f32).collect()),
        })
    }

    fn rows(&self, tokens: &[u32], width: usize) -> candle_core::Result<Tensor> {
        let rows = tokens.iter().map(|&token| token as usize * width..(token as usize + 1) * width);
        let values: Vec<f32> = match self {
            Self::F32(table) => rows.flat_map(|row| table[row].iter().copied()).collect(),
            Self::Bf16(table) => {
                rows.flat_map(|row| table[row].iter().map(|x| x.to_f32())).collect()
            }
        };
        ops::rows_tensor(values, tokens.len(), width)
    }
}
