//! How fast a model prefills and decodes on this machine, beside the most that the machine could do.
//!
//! Takes a loaded model and gives a [`BenchReport`]. Prompts are made up; all that computes is the
//! engine itself, sampling included. Each measurement is held against its roofline: the larger of
//! necessary operations ÷ the machine's fused multiply-adds, and weights and cache that must be read
//! ÷ its memory's speed, both measured here as well. Experts count as often as tokens were really routed
//! to them. Knows neither jobs nor text.

mod measure;
mod report;
mod spec;
mod work;

use std::sync::Arc;

use self::measure::{Repetition, Timed};
use self::spec::Cell;
use self::work::Cost;
use crate::engine::{Engine, EngineError};
use crate::model::ModelParts;
use crate::ops::{BLOCK_TOKENS, Isa, Peaks};
use crate::prompt::TextModel;

pub use report::{BenchReport, Machine, Measurement, ModelFacts, Phase};
pub use spec::BenchSpec;
pub use work::Bound;

/// Why a benchmark ends early.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The limits of other devices are not known.
    #[error("bench measures models on the CPU, beside the processor's own limits")]
    Device,
    /// The model has no such context.
    #[error("a context of {tokens} tokens is longer than the model's {context}")]
    TooLong { tokens: usize, context: usize },
    /// The cache would not fit.
    #[error("the latent cache of {sequences} sequences takes {bytes} bytes, {free} are free")]
    Memory { sequences: usize, bytes: u64, free: u64 },
    /// A made-up prompt failed.
    #[error("a made-up prompt failed: {message}")]
    Failed { message: String },
    /// The machine's limits cannot be measured.
    #[error("cannot measure the machine")]
    Peaks(#[from] std::io::Error),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl BenchError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Device => Some("leave `devices.kind` out".into()),
            Self::TooLong { .. } => Some("choose shorter `--prompt` or `--context`".into()),
            Self::Memory { .. } => Some("choose a smaller `--batch` or `--context`".into()),
            Self::Failed { .. } | Self::Peaks(_) => None,
            Self::Engine(error) => error.hint(),
        }
    }
}

/// Measures the machine, then the model; `told` gets the report as it grows.
pub fn bench(
    mut model: ModelParts,
    text: &Arc<TextModel>,
    spec: &BenchSpec,
    free_bytes: u64,
    told: &mut dyn FnMut(&BenchReport),
) -> Result<BenchReport, BenchError> {
    let cells = spec.cells();
    cells.iter().try_for_each(|cell| cell.check(&model, free_bytes))?;
    let peaks = Peaks::measure(spec.threads)?;
    let facts = facts(&model);
    let cost = Cost::new(model.config(), model.footprint(), facts.cache_bytes_per_token);
    let machine = Machine {
        threads: spec.threads,
        isa: format!("{:?}", Isa::best()),
        fma_gflops: peaks.flops / 1e9,
        read_gbps: peaks.read_bytes / 1e9,
    };
    let mut report = BenchReport { machine, model: facts, measurements: Vec::new() };
    told(&report);
    for cell in cells {
        let (vocabulary, engine_spec) =
            (model.config().vocab_size, cell.engine(spec.threads, &model));
        let mut timed = Timed::new(Engine::new(model, text.clone(), engine_spec)?, vocabulary);
        let median = median(repeat(&mut timed, cell)?);
        report.measurements.push(measurement(cell, median, &cost, peaks));
        told(&report);
        model = timed.end().into_model();
    }
    Ok(report)
}

fn facts(model: &ModelParts) -> ModelFacts {
    let config = model.config();
    ModelFacts {
        parameters: config.parameters(),
        weight_bytes: model.weight_bytes(),
        cache_bytes_per_token: model.block_bytes() / BLOCK_TOKENS as u64,
    }
}

fn repeat(timed: &mut Timed, cell: Cell) -> Result<Vec<Repetition>, BenchError> {
    match cell.phase {
        Phase::Prefill => {
            timed.prefill(cell)?; // warms up
            (0..cell.repetitions).map(|_| timed.prefill(cell)).collect()
        }
        Phase::Decode => timed.decode(cell),
    }
}

/// The repetition of median time; at least one is given.
fn median(mut repetitions: Vec<Repetition>) -> Repetition {
    repetitions.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    repetitions[repetitions.len() / 2]
}

fn measurement(cell: Cell, median: Repetition, cost: &Cost, peaks: Peaks) -> Measurement {
    let Repetition { seconds, sequences, shape } = median;
    let work = cost.of(&shape);
    let (least, bound) = work.roofline(peaks);
    let tokens = match cell.phase {
        Phase::Prefill => shape.prompt.tokens,
        Phase::Decode => shape.generated.tokens,
    };
    Measurement {
        phase: cell.phase,
        sequences,
        context: (shape.prompt.positions + shape.generated.positions) / sequences as f64,
        repetitions: cell.repetitions,
        seconds,
        tokens_per_second: tokens / seconds,
        gflops: work.flops / seconds / 1e9,
        gbps: work.bytes / seconds / 1e9,
        experts: cost.mean_experts(&shape),
        roofline: least / seconds,
        bound,
    }
}
