//! A model in parts, one for each rank: loaded side by side, each reading its own weights only.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::weights::Checkpoint;
use super::{Config, Model, ModelError};
use crate::ops::Held;
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
    /// Loads a Hugging Face folder for all ranks at once; `loaded(bytes, of)` is told how far they are.
    pub fn load(
        folder: &Path,
        held: Held,
        topology: Topology,
        loaded: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Self, ModelError> {
        let config = Config::load(folder)?;
        config.accept(topology)?;
        let checkpoint = Checkpoint::open(folder)?;
        let bytes = checkpoint.bytes();
        // The tables count as a layer each.
        let all = topology.ranks_per_stage as u64 * config.layers as u64 + 2;
        let done = AtomicU64::new(0);
        let layer_loaded =
            || loaded(bytes * (done.fetch_add(1, Ordering::Relaxed) + 1) / all, bytes);
        let load = |place: Place| {
            Model::load_part(&checkpoint, &config, (Part { topology, place }, held), &layer_loaded)
        };
        let parts = std::thread::scope(|scope| {
            let ranks: Vec<_> =
                topology.places().map(|place| scope.spawn(move || load(place))).collect();
            let join = |rank: std::thread::ScopedJoinHandle<'_, _>| {
                rank.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            ranks.into_iter().map(join).collect::<Result<_, _>>()
        })?;
        checkpoint.finish(config.tie_word_embeddings)?;
        loaded(bytes, bytes);
        Ok(Self { topology, parts })
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
