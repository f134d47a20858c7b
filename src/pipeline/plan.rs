//! What a job would take on its ranks, before it is run: from the model's config alone.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::Serialize;

use super::{RunError, memory};
use crate::job::{BatchSpec, Job};
use crate::model::{Config, ModelError};
use crate::ops::{self, DeviceKind, Held, Numerics};
use crate::parallel::Topology;
use crate::sizing::{
    Demand, Estimate, Format, Hardware, Layout, LayoutError, Memory, RankMemory, StepTime, fit,
};
use crate::storage::Storage;

/// Sequences for which a step's time is told.
const BATCHES: [usize; 8] = [64, 128, 256, 512, 1024, 2048, 4096, 8192];

/// What shall be laid out.
#[derive(Clone, Debug)]
pub struct PlanRequest {
    /// Folder or URL of a model, or a config.json: nothing else of it is read.
    pub model_path: String,
    /// The folder that the path is relative to.
    pub base: PathBuf,
    /// What the job computes on, and how it holds weights and cache there.
    pub device: DeviceKind,
    /// See `device`.
    pub numerics: Numerics,
    /// Over which ranks.
    pub topology: Topology,
    /// How rows are batched.
    pub batch: BatchSpec,
    /// Devices that are planned for; none: what the job computes on.
    pub hardware: Option<Hardware>,
    /// Mean tokens of a running sequence, prompt and completion.
    pub context: usize,
}

/// A model laid out.
#[derive(Clone, Debug, Serialize)]
pub struct LayoutPlan {
    /// The model's name.
    pub model: String,
    /// Its parameters, and those that work on one token.
    pub parameters: u64,
    /// See `parameters`.
    pub active_parameters: u64,
    /// Its layers, and those of them that are mixtures of experts.
    pub layers: usize,
    /// See `layers`.
    pub mixture_layers: usize,
    /// Routed experts of a mixture.
    pub experts: usize,
    /// Bits of a weight.
    pub weight_bits: u64,
    /// What it is planned for; none: this machine.
    pub hardware: Option<Hardware>,
    /// Bytes of each device, or those that are free on this machine for all ranks; none: not known.
    pub memory_bytes: Option<u64>,
    /// Pipeline stages.
    pub stages: usize,
    /// Expert-parallel ranks of a stage.
    pub ranks_per_stage: usize,
    /// Each rank, stage by stage.
    pub ranks: Vec<RankMemory>,
    /// Bytes of cache that a token takes over all stages.
    pub cache_bytes_per_token: u64,
    /// Tokens that the caches hold; none: the memory is not known.
    pub cache_tokens: Option<u64>,
    /// Other layouts over as many devices.
    pub others: Vec<OtherLayout>,
    /// Mean tokens of a running sequence for which steps are told.
    pub context: usize,
    /// Times of decode steps; none without known hardware.
    pub decode: Vec<PlannedStep>,
}

/// Another layout.
#[derive(Clone, Debug, Serialize)]
pub struct OtherLayout {
    /// Pipeline stages.
    pub stages: usize,
    /// Expert-parallel ranks of a stage.
    pub ranks_per_stage: usize,
    /// Weights of the heaviest rank.
    pub weight_bytes: u64,
    /// Tokens that the caches hold; none: it does not fit.
    pub cache_tokens: Option<u64>,
}

/// One line of the table of steps.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedStep {
    /// What it takes.
    #[serde(flatten)]
    pub time: StepTime,
    /// Whether the caches hold so many sequences.
    pub cache_fits: bool,
}

impl PlanRequest {
    /// What a job asks for.
    pub fn of_job(job: &Job) -> Self {
        Self {
            model_path: job.model_path.clone(),
            base: job.base.clone(),
            device: job.device,
            numerics: job.numerics(),
            topology: job.topology,
            batch: job.batch,
            hardware: None,
            context: 1024,
        }
    }

    fn demand(&self) -> Demand {
        demand(&self.batch)
    }

    fn format(&self) -> Format {
        self.hardware.map_or_else(|| format(self.device, self.numerics), |_| Format::BF16)
    }

    fn memory(&self) -> Option<Memory> {
        match &self.hardware {
            Some(hardware) => Some(Memory::Each(hardware.card.memory_bytes)),
            None if self.device == DeviceKind::Cpu => memory::free_bytes().map(Memory::Shared),
            // Devices are opened by a run only.
            None => None,
        }
    }

    /// Layouts that use exactly the devices there are, fewest stages first.
    fn layouts(&self, config: &Config) -> Vec<Topology> {
        let ranks = self.hardware.map_or(self.topology.ranks(), |hardware| hardware.devices);
        let stages = (1..=ranks).filter(|stages| ranks.is_multiple_of(*stages));
        let every = stages.map(|stages| Topology { stages, ranks_per_stage: ranks / stages });
        every.filter(|topology| config.accept(*topology).is_ok()).collect()
    }
}

/// Refuses a layout of a job that this machine, or one of its devices, cannot hold, where it is known what
/// that is.
pub(super) fn refuse_what_does_not_fit(
    job: &Job,
    devices: &[Device],
    config: &Config,
) -> Result<(), RunError> {
    config.accept(job.topology)?;
    let memory = match job.device {
        DeviceKind::Cpu => memory::free_bytes().map(Memory::Shared),
        DeviceKind::Cuda => devices.iter().filter_map(ops::free_bytes).min().map(Memory::Each),
    };
    if let Some(memory) = memory {
        let held = (format(job.device, job.numerics()), demand(&job.batch));
        fit(config, job.topology, held, memory, 1..=job.topology.ranks())?;
    }
    Ok(())
}

/// Lays a model out and times its steps.
pub fn plan(storage: &Storage, mut request: PlanRequest) -> Result<LayoutPlan, RunError> {
    let (model, config) = read_config(storage, &request.model_path, &request.base)?;
    let held = (request.format(), request.demand());
    let memory = request.memory();
    let fits = |topology: Topology| {
        let layout = Layout::new(&config, topology, held.0, held.1);
        memory.is_none_or(|memory| layout.cache_tokens(memory).is_ok())
    };
    let layouts = request.layouts(&config);
    if request.hardware.is_some() && request.topology == Topology::SINGLE {
        // Not asked for: all devices, in the fewest stages that fit.
        let chosen = layouts.iter().find(|topology| fits(**topology)).or(layouts.first());
        request.topology = chosen.copied().unwrap_or(Topology::SINGLE);
    }
    config.accept(request.topology)?;
    let topology = request.topology;
    let (layout, cache_tokens) = match memory {
        None => (Layout::new(&config, topology, held.0, held.1), None),
        Some(memory) => {
            let devices = request.hardware.map_or(usize::MAX, |hardware| hardware.devices);
            if topology.ranks() > devices {
                let nearest = layouts.iter().copied().find(|topology| fits(*topology));
                return Err(LayoutError::Devices { topology, devices, nearest }.into());
            }
            let ranks = match request.hardware {
                Some(_) => devices..=devices,
                None => 1..=topology.ranks(),
            };
            let (layout, tokens) = fit(&config, topology, held, memory, ranks)?;
            (layout, Some(tokens))
        }
    };
    let others = layouts.into_iter().filter(|other| *other != topology);
    let other = |other: Topology| {
        let layout = Layout::new(&config, other, held.0, held.1);
        OtherLayout {
            stages: other.stages,
            ranks_per_stage: other.ranks_per_stage,
            weight_bytes: layout.heaviest().weight_bytes,
            cache_tokens: memory.and_then(|memory| layout.cache_tokens(memory).ok()),
        }
    };
    Ok(LayoutPlan {
        model,
        parameters: config.parameters(),
        active_parameters: config.active_parameters(),
        layers: config.layers,
        mixture_layers: (0..config.layers).filter(|&l| config.layer_moe(l).is_some()).count(),
        experts: config.moe.as_ref().map_or(0, |moe| moe.routed_experts),
        weight_bits: 8 * held.0.weight_bytes,
        hardware: request.hardware,
        memory_bytes: memory.map(|(Memory::Shared(bytes) | Memory::Each(bytes))| bytes),
        stages: topology.stages,
        ranks_per_stage: topology.ranks_per_stage,
        cache_bytes_per_token: layout.token_bytes(),
        cache_tokens,
        others: others.map(other).collect(),
        context: request.context,
        decode: steps(&config, &request, cache_tokens.unwrap_or(0)),
        ranks: layout.ranks,
    })
}

fn steps(config: &Config, request: &PlanRequest, cache_tokens: u64) -> Vec<PlannedStep> {
    let Some(hardware) = request.hardware else { return Vec::new() };
    let PlanRequest { topology, context, .. } = *request;
    let estimate = Estimate { config, topology, hardware, context };
    let most = cache_tokens as usize / context.max(1);
    let mut batches: Vec<usize> = BATCHES.into();
    batches.extend((most > 0).then_some(most));
    batches.sort_unstable();
    batches.dedup();
    let step = |sequences: usize| PlannedStep {
        time: estimate.decode(sequences),
        cache_fits: sequences <= most,
    };
    batches.into_iter().map(step).collect()
}

fn demand(batch: &BatchSpec) -> Demand {
    let BatchSpec { max_sequences, max_step_tokens, cache_bytes, .. } = *batch;
    Demand { max_sequences, max_step_tokens, cache_bytes }
}

fn format(device: DeviceKind, numerics: Numerics) -> Format {
    let weight_bytes = match numerics.held {
        Held::F32 => 4,
        Held::Bf16 => 2,
        // Scales, and the tables that stay BF16, add less than a tenth.
        Held::Int8 => 1,
    };
    let cpu = Format::cpu(weight_bytes, numerics.cache);
    // A device takes keys as they are.
    Format { transposed_keys: device == DeviceKind::Cpu, ..cpu }
}

/// A model's name and config; its weights need not be there.
fn read_config(storage: &Storage, path: &str, base: &Path) -> Result<(String, Config), RunError> {
    let place = storage.locate(path, base)?;
    let (name, file) = match place.file_name().strip_suffix(".json") {
        Some(name) => (name.to_owned(), place.clone()),
        None => (place.file_name().to_owned(), place.child("config.json")),
    };
    let bytes = storage.get(&file)?;
    let config = Config::from_json(&String::from_utf8_lossy(&bytes));
    let path = PathBuf::from(file.to_string());
    Ok((name, config.map_err(|message| ModelError::Config { path, message })?))
}
