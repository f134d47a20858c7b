//! The whole model, or the part of it that one rank holds: embedding, layers, head.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::attention::Attention;
use super::feed_forward::FeedForward;
use super::loader::Loader;
use super::parts::{ModelParts, Part};
use super::{Config, ModelError, Step};
use crate::ops::{
    self, AttentionMetadata, CacheFormat, Held, LatentPool, Numerics, Rotation, Routes, Routing,
    Weight,
};
use crate::parallel::{Alone, Collective, Topology};

/// A loaded DeepSeek-V2 model, or a rank's part of one.
pub struct Model {
    config: Config,
    /// In the first stage.
    embedding: Option<Embedding>,
    pub(super) layers: Vec<Layer>,
    /// In the last stage.
    pub(super) head: Option<Head>,
    frequencies: Vec<f32>,
    cache_format: CacheFormat,
    device: Device,
}

pub(super) struct Head {
    norm: Tensor,
    pub(super) weight: Weight,
}

pub(super) struct Layer {
    attention_norm: Tensor,
    pub(super) attention: Attention,
    feed_forward_norm: Tensor,
    pub(super) feed_forward: FeedForward,
}

/// The embedding's rows, as they are held: BF16 also among INT8 weights, since nothing multiplies them.
enum Embedding {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    /// `[vocab, hidden]` on a device.
    Device(Tensor),
}

/// Elements that one thread widens at a time.
const EMBEDDING_CHUNK: usize = 1 << 16;

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
        numerics: impl Into<Numerics>,
        loaded: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Self, ModelError> {
        let mut parts = ModelParts::load(folder, numerics, Topology::SINGLE, loaded)?.into_parts();
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
        Ok(Self {
            config: config.clone(),
            embedding,
            layers,
            head,
            frequencies,
            cache_format: loader.numerics.cache,
            device: loader.device.clone(),
        })
    }

    /// Bytes of weight matrices as they are held.
    pub fn weight_bytes(&self) -> u64 {
        let layer = |layer: &Layer| layer.attention.bytes() + layer.feed_forward.bytes();
        let layers: usize = self.layers.iter().map(layer).sum();
        let embedding = self.embedding.as_ref().map_or(0, Embedding::bytes);
        let head = self.head.as_ref().map_or(0, |head| head.weight.bytes());
        (embedding + layers + head) as u64
    }

    /// The whole model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Layers that this part has.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// How the cache of this part holds its elements.
    pub fn cache_format(&self) -> CacheFormat {
        self.cache_format
    }

    /// Where this part computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// An empty cache of so many blocks for this part's layers.
    pub fn cache(&self, blocks: usize) -> Result<LatentPool, ModelError> {
        let size = (blocks, self.config.latent_width());
        Ok(LatentPool::on(&self.device, self.layers.len(), size, self.cache_format)?)
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
        if step.tokens.is_empty() {
            return self.serve(ranks);
        }
        let multiplier = self.config.rope_multiplier() as f32;
        let rotation = Rotation::new(&step.positions, &self.frequencies, multiplier);
        let metadata = AttentionMetadata::new(&self.device, rotation, &step.slots, &step.spans)?;
        let epsilon = self.config.rms_norm_eps as f32;
        let mut routes = Vec::new();
        let mut x = match &self.embedding {
            Some(embedding) => embedding.rows(&step.tokens, self.config.hidden_size)?,
            None => ranks.receive()?.swap_remove(0),
        };
        // What the layer before has yet to add to the residual stream.
        let mut added: Option<Tensor> = None;
        for (index, layer) in self.layers.iter().enumerate() {
            let norm = &layer.attention_norm;
            let normed;
            (x, normed) = match added {
                None => (x.clone(), ops::rms_norm(&x, norm, epsilon)?),
                Some(y) => ops::add_rms_norm(&x, &y, norm, epsilon)?,
            };
            let y = layer.attention.forward(&normed, &metadata, (pool, index))?;
            let normed;
            (x, normed) = ops::add_rms_norm(&x, &y, &layer.feed_forward_norm, epsilon)?;
            let (y, chosen) = layer.feed_forward.forward(&normed, ranks)?;
            added = Some(y);
            routes.extend(chosen);
        }
        if let Some(y) = added {
            x = ops::add(&x, &y)?;
        }
        let logits = match &self.head {
            Some(_) if step.outputs.is_empty() => self.no_logits()?,
            Some(head) => {
                let wanted = Tensor::from_slice(&step.outputs, step.outputs.len(), x.device())?;
                let x = ops::rms_norm(&x.index_select(&wanted, 0)?, &head.norm, epsilon)?;
                head.weight.product(&x)?
            }
            None => {
                ranks.send_on(vec![x])?;
                self.no_logits()?
            }
        };
        let routings = routes.into_iter().map(Routes::into_routing);
        Ok(StepOutput { logits, routings: routings.collect::<candle_core::Result<_>>()? })
    }

    /// This rank's part of a step in which it has no tokens: its experts' share of the others' tokens.
    fn serve(&self, ranks: &mut dyn Collective) -> Result<StepOutput, ModelError> {
        let none = match &self.embedding {
            Some(_) => ops::rows_tensor(Vec::new(), 0, self.config.hidden_size)?,
            None => ranks.receive()?.swap_remove(0),
        };
        let mut routings = Vec::new();
        for layer in &self.layers {
            routings.extend(layer.feed_forward.serve(&none, ranks)?);
        }
        if self.head.is_none() {
            ranks.send_on(vec![none])?;
        }
        Ok(StepOutput { logits: self.no_logits()?, routings })
    }

    fn no_logits(&self) -> candle_core::Result<Tensor> {
        ops::rows_tensor(Vec::new(), 0, self.config.vocab_size)
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
        let (elements, held) = (loader.checkpoint.elements(name, &shape)?, loader.numerics.held);
        if !loader.device.is_cpu() {
            let row = |row: usize, values: &mut [f32]| elements.widen(row * shape[1], values);
            return Ok(Self::Device(ops::device_rows(&loader.device, shape, held, row)?));
        }
        let count = shape[0] * shape[1];
        Ok(match held {
            Held::F32 => {
                let mut table = vec![0.0; count];
                let chunks = table.par_chunks_mut(EMBEDDING_CHUNK).enumerate();
                chunks.for_each(|(i, chunk)| elements.widen(i * EMBEDDING_CHUNK, chunk));
                Self::F32(table)
            }
            _ => {
                let mut table = vec![bf16::ZERO; count];
                let chunks = table.par_chunks_mut(EMBEDDING_CHUNK).enumerate();
                chunks.for_each_init(Vec::new, |values, (i, chunk)| {
                    values.resize(chunk.len(), 0.0);
                    elements.widen(i * EMBEDDING_CHUNK, values);
                    chunk.iter_mut().zip(values).for_each(|(x, value)| *x = bf16::from_f32(*value));
                });
                Self::Bf16(table)
            }
        })
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(table) => size_of_val(table.as_slice()),
            Self::Bf16(table) => size_of_val(table.as_slice()),
            Self::Device(table) => ops::tensor_bytes(table),
        }
    }

    fn rows(&self, tokens: &[u32], width: usize) -> candle_core::Result<Tensor> {
        let rows = tokens.iter().map(|&token| token as usize * width..(token as usize + 1) * width);
        let mut values = Vec::with_capacity(tokens.len() * width);
        match self {
            Self::F32(table) => rows.for_each(|row| values.extend_from_slice(&table[row])),
            Self::Bf16(table) => {
                rows.for_each(|row| values.extend(table[row].iter().map(|x| x.to_f32())));
            }
            Self::Device(table) => {
                let wanted = Tensor::from_slice(tokens, tokens.len(), table.device())?;
                return table.index_select(&wanted, 0)?.to_dtype(DType::F32);
            }
        }
        ops::rows_tensor(values, tokens.len(), width)
    }
}
