//! The threads that compute: one for each rank, with its part of the model and its latent pool.
//!
//! Each step goes to every rank, also to those that have no tokens in it. Stages take turns: a step passes
//! through all of them before the next begins. When a rank fails, the others end with its cause, and all
//! are connected anew for the next step.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use candle_core::Device;

use super::EngineError;
use crate::model::{Model, ModelError, ModelParts, Step, StepOutput};
use crate::ops::LatentPool;
use crate::parallel::{Collective, Place, Topology, connect};

/// All ranks of a model.
pub(super) struct Ranks {
    topology: Topology,
    /// Where each computes, stage by stage.
    devices: Vec<Device>,
    /// Stage by stage.
    ranks: Vec<Rank>,
    /// Whether the ranks are connected, none of them having failed since.
    connected: bool,
}

/// A rank's thread.
struct Rank {
    tasks: Sender<Task>,
    results: Receiver<Result<StepOutput, EngineError>>,
    thread: JoinHandle<Model>,
}

struct Task {
    step: Arc<Step>,
    /// A new connection to the others, if the old one broke.
    connection: Option<Box<dyn Collective>>,
}

impl Ranks {
    /// Starts a thread for each part of a model; each has `blocks` blocks of cache in each of its layers.
    ///
    /// `threads` compute threads are shared out over the ranks of a stage, whose turns coincide: each has
    /// at least itself.
    pub(super) fn start(
        model: ModelParts,
        blocks: usize,
        threads: usize,
    ) -> Result<Self, EngineError> {
        let topology = model.topology();
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let own = (threads / topology.ranks_per_stage).max(1);
        let devices = model.parts().iter().map(|part| part.device().clone()).collect();
        let places = topology.places().zip(model.into_parts());
        let start = |(place, model)| Rank::start(place, model, blocks, own);
        let ranks = places.map(start).collect::<Result<_, _>>()?;
        Ok(Self { topology, devices, ranks, connected: false })
    }

    /// Computes one step of each rank of a stage, through all stages.
    pub(super) fn compute(&mut self, steps: &[Arc<Step>]) -> Result<Vec<StepOutput>, EngineError> {
        let mut connections = match self.connected {
            true => Vec::new(),
            false => connect(self.topology, &self.devices),
        }
        .into_iter();
        for (place, rank) in self.topology.places().zip(&self.ranks) {
            let task = Task { step: steps[place.rank].clone(), connection: connections.next() };
            rank.tasks.send(task).map_err(|_| EngineError::RankEnded { place })?;
        }
        let mut results = Vec::with_capacity(self.ranks.len());
        for (place, rank) in self.topology.places().zip(&self.ranks) {
            results.push(rank.results.recv().map_err(|_| EngineError::RankEnded { place })?);
        }
        self.connected = results.iter().all(Result::is_ok);
        let outputs = first_cause(results)?;
        Ok(self.by_rank(outputs))
    }

    /// Puts the stages' outputs together: routings in the order of layers, logits of the last.
    fn by_rank(&self, outputs: Vec<StepOutput>) -> Vec<StepOutput> {
        let mut outputs = outputs.into_iter();
        let mut joined: Vec<StepOutput> =
            outputs.by_ref().take(self.topology.ranks_per_stage).collect();
        for (at, output) in outputs.enumerate() {
            let whole = &mut joined[at % self.topology.ranks_per_stage];
            whole.logits = output.logits;
            whole.routings.extend(output.routings);
        }
        joined
    }

    /// Ends the threads and gives their parts of the model back.
    pub(super) fn into_model(self) -> ModelParts {
        let end = |Rank { tasks, thread, .. }: Rank| {
            drop(tasks);
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        ModelParts::new(self.topology, self.ranks.into_iter().map(end).collect())
    }
}

/// All outputs, or the failure that the others follow from.
fn first_cause(
    results: Vec<Result<StepOutput, EngineError>>,
) -> Result<Vec<StepOutput>, EngineError> {
    let follows =
        |error: &EngineError| matches!(error, EngineError::Model(ModelError::Collective(_)));
    let (mut outputs, mut errors) = (Vec::with_capacity(results.len()), Vec::new());
    for result in results {
        match result {
            Ok(output) => outputs.push(output),
            Err(error) => errors.push(error),
        }
    }
    let cause = errors.iter().position(|error| !follows(error)).unwrap_or(0);
    if errors.is_empty() { Ok(outputs) } else { Err(errors.swap_remove(cause)) }
}

impl Rank {
    fn start(
        place: Place,
        model: Model,
        blocks: usize,
        threads: usize,
    ) -> Result<Self, EngineError> {
        let (tasks, inbox) = channel();
        let (outbox, results) = channel();
        let (send_ready, ready) = channel();
        let body = move || {
            // This thread is one of the pool's own, so that a rank that waits for others blocks nobody.
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread();
            let _pool = match pool.build() {
                Ok(pool) => pool,
                Err(source) => {
                    let _ = send_ready.send(Err(EngineError::Threads { threads, source }));
                    return model;
                }
            };
            let cache = match model.cache(blocks) {
                Ok(cache) => cache,
                Err(error) => {
                    let _ = send_ready.send(Err(error.into()));
                    return model;
                }
            };
            let _ = send_ready.send(Ok(()));
            work(model, cache, inbox, outbox)
        };
        let thread = std::thread::Builder::new()
            .name(format!("rank {}.{}", place.stage, place.rank))
            .spawn(body)
            .map_err(|source| EngineError::Spawn { place, source })?;
        ready.recv().map_err(|_| EngineError::RankEnded { place })??;
        Ok(Self { tasks, results, thread })
    }
}

/// Computes steps until no more can come.
fn work(
    model: Model,
    mut cache: LatentPool,
    tasks: Receiver<Task>,
    results: Sender<Result<StepOutput, EngineError>>,
) -> Model {
    let mut connection: Option<Box<dyn Collective>> = None;
    for Task { step, connection: new } in tasks {
        let Some(mut ranks) = new.or_else(|| connection.take()) else { break };
        // A step that panics leaves nothing behind but latents that the next attempt writes again.
        let forward = || model.forward_among(&step, &mut cache, ranks.as_mut());
        let result = match catch_unwind(AssertUnwindSafe(forward)) {
            Ok(result) => result.map_err(EngineError::from),
            Err(panic) => Err(panicked(panic)),
        };
        match &result {
            Ok(_) => connection = Some(ranks),
            Err(error) => ranks.abort(&error.to_string()),
        }
        // The engine may have gone.
        if results.send(result).is_err() {
            break;
        }
    }
    model
}

fn panicked(panic: Box<dyn Any + Send>) -> EngineError {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    EngineError::Panicked { message: text.unwrap_or_else(|| "a panic without words".into()) }
}
