//! What a benchmark found, as it is shown and written.

use serde::Serialize;

use super::work::Bound;

/// A machine, a model, and how they did.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// The machine's own limits.
    pub machine: Machine,
    /// The model.
    pub model: ModelFacts,
    /// Prefills and decode steps, in the order of measuring.
    pub measurements: Vec<Measurement>,
}

/// Limits that were measured in the same run.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Compute threads.
    pub threads: usize,
    /// Instruction set of the operations.
    pub isa: String,
    /// f32 fused multiply-adds out of registers, all threads, 10⁹ operations a second.
    pub fma_gflops: f64,
    /// Memory read by all threads, 10⁹ bytes a second.
    pub read_gbps: f64,
}

/// What was run.
#[derive(Clone, Debug, Serialize)]
pub struct ModelFacts {
    /// Parameters.
    pub parameters: u64,
    /// Bytes of weights as they are held.
    pub weight_bytes: u64,
    /// Bytes of the latent cache for each token.
    pub cache_bytes_per_token: u64,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Whole prompts, to their first tokens.
    Prefill,
    /// One step: a token for each sequence.
    Decode,
}

/// One measurement: the median repetition.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// Prefill or decode.
    pub phase: Phase,
    /// Prompts, or sequences that decode together.
    pub sequences: usize,
    /// Tokens of each prompt, or mean context of the sequences.
    pub context: f64,
    /// Repetitions.
    pub repetitions: usize,
    /// Time of the median repetition: all prompts, or one step.
    pub seconds: f64,
    /// Prompt tokens, or generated ones, per second.
    pub tokens_per_second: f64,
    /// Necessary operations per second, 10⁹.
    pub gflops: f64,
    /// Weights and cache that had to be read, per second, 10⁹ bytes.
    pub gbps: f64,
    /// Experts that a step and layer routed to, mean.
    pub experts: f64,
    /// The machine's least time for this work ÷ `seconds`.
    pub roofline: f64,
    /// Which limit that least time comes from.
    pub bound: Bound,
}
