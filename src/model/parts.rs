//! A model in parts, one for each rank: loaded side by side, each reading its own weights only.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Device;

use super::loader::Loader;
use super::weights::Checkpoint;
use super::{Config, Model, ModelError};
use crate::ops::{LatentPool, Numerics};
use crate::parallel::{Place, Topology};

/// Which part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) topology: Topology,
    pub(super) place: Place,
}

/// The parts of one model, stage by stage.
pub struct ModelParts {
    topology: Topology,
    parts: Vec<Model>,
}

impl ModelParts {
    /// Loads a Hugging Face folder for all ranks at once, on the CPU; `loaded(bytes, of)` is told how far
    /// they are.
    pub fn load(
        folder: &Path,
        numerics: impl Into<Numerics>,
        topology: Topology,
        loaded: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Self, ModelError> {
        Self::load_on(&[Device::Cpu], folder, numerics, topology, loaded)
    }

    /// The same on devices, of which the ranks take one after the other, stage by stage.
    ///
    /// # Panics
    /// Without devices.
    pub fn load_on(
        devices: &[Device],
        folder: &Path,
        numerics: impl Into<Numerics>,
        topology: Topology,
        loaded: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Self, ModelError> {
        let numerics = numerics.into();
        let config = Config::load(folder)?;
        config.accept(topology)?;
        let checkpoint = Checkpoint::open(folder)?;
        let bytes = checkpoint.bytes();
        // The tables count as a layer each.
        let all = topology.ranks_per_stage as u64 * config.layers as u64 + 2;
        let done = AtomicU64::new(0);
        let layer_loaded =
            || loaded(bytes * (done.fetch_add(1, Ordering::Relaxed) + 1) / all, bytes);
        let load = |place: Place, device: Device| {
            let loader = Loader { checkpoint: &checkpoint, numerics, device };
            Model::load_part(&loader, &config, Part { topology, place }, &layer_loaded)
        };
        let parts = std::thread::scope(|scope| {
            let places = topology.places().zip(devices.iter().cloned().cycle());
            let ranks: Vec<_> =
                places.map(|(place, device)| scope.spawn(move || load(place, device))).collect();
            let join = |rank: std::thread::ScopedJoinHandle<'_, _>| {
                rank.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            ranks.into_iter().map(join).collect::<Result<_, _>>()
        })?;
        checkpoint.finish(config.tie_word_embeddings)?;
        loaded(bytes, bytes);
        Ok(Self { topology, parts })
    }

    /// Puts parts together, stage by stage.
    pub(crate) fn new(topology: Topology, parts: Vec<Model>) -> Self {
        Self { topology, parts }
    }

    /// How the model is spread.
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        self.parts[0].config()
    }

    /// Bytes of weights of all ranks, as they are held.
    pub fn weight_bytes(&self) -> u64 {
        self.parts.iter().map(Model::weight_bytes).sum()
    }

    /// Bytes that one block of the cache takes over all layers.
    pub fn block_bytes(&self) -> u64 {
        let Config { layers, .. } = *self.config();
        let width = self.config().latent_width();
        LatentPool::block_bytes(layers, width, self.parts[0].cache_format())
    }

    /// The part of each rank, stage by stage.
    pub fn parts(&self) -> &[Model] {
        &self.parts
    }

    /// The part of each rank, stage by stage.
    pub fn into_parts(self) -> Vec<Model> {
        self.parts
    }
}

/// The whole model on one rank.
impl From<Model> for ModelParts {
    fn from(model: Model) -> Self {
        Self { topology: Topology::SINGLE, parts: vec![model] }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::safetensors;

    use super::*;
    use crate::ops::Held;

    #[test]
    fn a_rank_reads_its_own_weights_only() {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/b_litelike");
        let config = Config::load(&from).unwrap();
        let topology = Topology { stages: 2, ranks_per_stage: 3 };
        let tensors = safetensors::load(from.join("model.safetensors"), &Device::Cpu).unwrap();
        // The layers of the second stage with the experts of its last rank, the last norm and the head.
        let (layers, experts) = (topology.layers(1, config.layers), topology.experts(2, 12));
        let number = |name: &str, after: &str| {
            let rest = name.split_once(after)?.1;
            rest.split('.').next()?.parse::<usize>().ok()
        };
        let own = |name: &str| {
            let layer = number(name, "model.layers.").is_none_or(|layer| layers.contains(&layer));
            let expert = number(name, ".experts.").is_none_or(|expert| experts.contains(&expert));
            layer && expert && !name.contains("embed_tokens")
        };
        let kept: std::collections::HashMap<_, _> =
            tensors.into_iter().filter(|(name, _)| own(name)).collect();
        let folder = tempfile::TempDir::new().unwrap();
        safetensors::save(&kept, folder.path().join("model.safetensors")).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let load = |stage, rank| {
            let part = Part { topology, place: Place { stage, rank } };
            let (checkpoint, numerics) = (&checkpoint, Held::F32.into());
            let loader = Loader { checkpoint, numerics, device: Device::Cpu };
            Model::load_part(&loader, &config, part, &|| {})
        };
        assert_eq!(load(1, 2).unwrap().layers(), layers.len());
        checkpoint.finish(false).unwrap();
        assert!(load(1, 1).is_err() && load(0, 2).is_err());
    }
}
