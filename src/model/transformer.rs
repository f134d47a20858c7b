//! The whole model, or the part of it that one rank holds: embedding, layers, head.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use half::bf16;

use super::attention::Attention;
use super::feed_forward::FeedForward;
use super::loader::Loader;
use super::parts::{ModelParts, Part};
use super::{Config, ModelError, Step};
use crate::ops::{self, Frame, Held, LatentPool, Rotation, Routes, Routing, Weight};
use crate::parallel::{Alone, Collective, Topology};

/// A loaded DeepSeek-V2 model, or a rank's part of one.
pub struct Model {
    config: Config,
    part: Part,
    held: Held,
    device: Device,
    /// In the first stage.
    embedding: Option<Embedding>,
    layers: Vec<Layer>,
    /// In the last stage.
    head: Option<Head>,
    frequencies: Vec<f32>,
}

struct Head {
    norm: Tensor,
    weight: Weight,
}

struct Layer {
    attention_norm: Tensor,
    attention: Attention,
    feed_forward_norm: Tensor,
    feed_forward: FeedForward,
}

/// The embedding's rows, as they are held.
enum Embedding {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    /// `[vocab, hidden]` on a device.
    Device(Tensor),
}

/// What a step gives.
pub struct StepOutput {
    /// Logits of the wanted rows: `[outputs, vocab]`, f32; no rows where another stage has the head.
    pub logits: Tensor,
    /// Where the step's tokens were routed, for each mixture layer of this part.
    pub routings: Vec<Routing>,
}

impl Model {
    /// Loads a Hugging Face folder whole; `loaded(bytes, of)` is told how far it is.
    pub fn load(
        folder: &Path,
        held: Held,
        loaded: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Self, ModelError> {
        let mut parts = ModelParts::load(folder, held, Topology::SINGLE, loaded)?.into_parts();
        Ok(parts.remove(0))
    }

    /// Loads what one rank holds; `loaded` is called after each layer.
    pub(super) fn load_part(
        loader: &Loader,
        config: &Config,
        part: Part,
        loaded: &dyn Fn(),
    ) -> Result<Self, ModelError> {
        let Part { topology, place } = part;
        let shape = [config.vocab_size, config.hidden_size];
        let table = "model.embed_tokens.weight";
        let embedding = match place.stage {
            0 => Some(Embedding::load(loader, table, shape)?),
            _ => None,
        };
        let head = if config.tie_word_embeddings { table } else { "lm_head.weight" };
        let head = match place.stage + 1 == topology.stages {
            true => Some(Head {
                norm: loader.vector("model.norm.weight", config.hidden_size)?,
                weight: loader.weight(head, config.vocab_size, config.hidden_size)?,
            }),
            false => None,
        };
        let load = |layer: usize| {
            let loaded_layer = Layer::load(loader, config, layer, part);
            loaded();
            loaded_layer
        };
        let layers = topology.layers(place.stage, config.layers).map(load);
        let layers = layers.collect::<Result<_, _>>()?;
        let frequencies = config.rope_frequencies();
        let (config, held, device) = (config.clone(), loader.held, loader.device.clone());
        Ok(Self { config, part, held, device, embedding, layers, head, frequencies })
    }

    /// Bytes of weights as they are held.
    pub fn weight_bytes(&self) -> u64 {
        let width = match self.held {
            Held::F32 => 4,
            Held::Bf16 => 2,
        };
        self.config.parameters_of(self.part.topology, self.part.place) * width
    }

    /// The whole model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Layers that this part has.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// A latent cache of so many blocks for this part's layers, where the part computes.
    pub fn pool(&self, blocks: usize) -> Result<LatentPool, ModelError> {
        let sizes = (blocks, self.config.latent_width());
        Ok(LatentPool::on(&self.device, self.cache_dtype(), self.layers(), sizes)?)
    }

    /// Bytes that a block of the cache takes over all layers of the whole model.
    pub fn block_bytes(&self) -> u64 {
        let width = (self.config.layers, self.config.latent_width());
        let bytes = LatentPool::block_bytes(width.0, width.1);
        bytes / size_of::<f32>() as u64 * self.cache_dtype().size_in_bytes() as u64
    }

    /// Devices keep latents as they keep weights.
    fn cache_dtype(&self) -> DType {
        match self.held {
            Held::Bf16 if !self.device.is_cpu() => DType::BF16,
            _ => DType::F32,
        }
    }

    /// Where this part computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Computes one step of a whole model: writes its latents into the cache and gives the logits of its
    /// wanted rows.
    pub fn forward(&self, step: &Step, pool: &mut LatentPool) -> Result<StepOutput, ModelError> {
        self.forward_among(step, pool, &mut Alone)
    }

    /// Computes this rank's tokens of one step, and its experts' share of the other ranks' tokens.
    ///
    /// All ranks call it for each step, also those whose own has no tokens; ranks with the same number in
    /// different stages get the same step.
    pub fn forward_among(
        &self,
        step: &Step,
        pool: &mut LatentPool,
        ranks: &mut dyn Collective,
    ) -> Result<StepOutput, ModelError> {
        let multiplier = self.config.rope_multiplier() as f32;
        let rotation = Rotation::new(&step.positions, &self.frequencies, multiplier);
        let frame = Frame::new(rotation, &step.slots, &step.spans, &self.device)?;
        let epsilon = self.config.rms_norm_eps as f32;
        let mut routes = Vec::new();
        let mut x = match &self.embedding {
            Some(embedding) => embedding.rows(&step.tokens, self.config.hidden_size)?,
            None => ranks.receive()?.swap_remove(0),
        };
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = ops::rms_norm(&x, &layer.attention_norm, epsilon)?;
            x = (x + layer.attention.forward(&normed, &frame, (pool, index))?)?;
            let normed = ops::rms_norm(&x, &layer.feed_forward_norm, epsilon)?;
            let (y, chosen) = layer.feed_forward.forward(&normed, ranks)?;
            x = (x + y)?;
            routes.extend(chosen);
        }
        let logits = match &self.head {
            Some(_) if step.outputs.is_empty() => {
                ops::rows_tensor(Vec::new(), 0, self.config.vocab_size)?
            }
            Some(head) => {
                let wanted = Tensor::from_slice(&step.outputs, step.outputs.len(), x.device())?;
                let x = ops::rms_norm(&x.index_select(&wanted, 0)?, &head.norm, epsilon)?;
                head.weight.product(&x)?
            }
            None => {
                ranks.send_on(vec![x])?;
                ops::rows_tensor(Vec::new(), 0, self.config.vocab_size)?
            }
        };
        let routings = routes.into_iter().map(Routes::into_routing);
        Ok(StepOutput { logits, routings: routings.collect::<candle_core::Result<_>>()? })
    }
}

impl Layer {
    fn load(
        loader: &Loader,
        config: &Config,
        layer: usize,
        part: Part,
    ) -> Result<Self, ModelError> {
        let prefix = format!("model.layers.{layer}");
        Ok(Self {
            attention_norm: loader
                .vector(&format!("{prefix}.input_layernorm.weight"), config.hidden_size)?,
            attention: Attention::load(loader, config, layer)?,
            feed_forward_norm: loader
                .vector(&format!("{prefix}.post_attention_layernorm.weight"), config.hidden_size)?,
            feed_forward: FeedForward::load(loader, config, layer, part)?,
        })
    }
}

impl Embedding {
    fn load(loader: &Loader, name: &str, shape: [usize; 2]) -> Result<Self, ModelError> {
        if !loader.device.is_cpu() {
            return Ok(Self::Device(loader.table(name, shape)?));
        }
        let elements = loader.checkpoint.elements(name, &shape)?;
        let values = (0..shape[0] * shape[1]).map(|i| elements.at(i));
        Ok(match loader.held {
            Held::F32 => Self::F32(values.collect()),
            Held::Bf16 => Self::Bf16(values.map(bf16::from_f32).collect()),
        })
    }

    fn rows(&self, tokens: &[u32], width: usize) -> candle_core::Result<Tensor> {
        if let (Self::Device(table), false) = (self, tokens.is_empty()) {
            let wanted = Tensor::from_slice(tokens, tokens.len(), table.device())?;
            return table.index_select(&wanted, 0)?.to_dtype(DType::F32);
        }
        let rows = tokens.iter().map(|&token| token as usize * width..(token as usize + 1) * width);
        let values: Vec<f32> = match self {
            Self::F32(table) => rows.flat_map(|row| table[row].iter().copied()).collect(),
            Self::Bf16(table) => {
                rows.flat_map(|row| table[row].iter().map(|x| x.to_f32())).collect()
            }
            // Tensors without elements stay on the host.
            Self::Device(_) => Vec::new(),
        };
        ops::rows_tensor(values, tokens.len(), width)
    }
}
