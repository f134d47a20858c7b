//! What is measured: prefills and decode steps of chosen sizes, and what each needs of cache and context.

use super::{BenchError, Phase};
use crate::engine::{EngineSpec, Logprobs};
use crate::model::ModelParts;
use crate::ops::BLOCK_TOKENS;

/// What is measured.
#[derive(Clone, Debug)]
pub struct BenchSpec {
    /// Compute threads, at least 1.
    pub threads: usize,
    /// Most tokens of a step.
    pub max_step_tokens: usize,
    /// Prompt lengths whose prefill is measured, in tokens.
    pub prompts: Vec<usize>,
    /// Sequences that decode together.
    pub batches: Vec<usize>,
    /// Prompt lengths before the first decode step, in tokens.
    pub contexts: Vec<usize>,
    /// Repetitions of each measurement, of which the median counts.
    pub repetitions: usize,
}

/// One row of the report to be.
#[derive(Clone, Copy)]
pub(super) struct Cell {
    pub(super) phase: Phase,
    pub(super) sequences: usize,
    pub(super) tokens: usize,
    pub(super) repetitions: usize,
    pub(super) max_step_tokens: usize,
}

impl BenchSpec {
    pub(super) fn cells(&self) -> Vec<Cell> {
        let cell = |phase, sequences, tokens| {
            let Self { repetitions, max_step_tokens, .. } = *self;
            Cell { phase, sequences, tokens, repetitions, max_step_tokens }
        };
        // As many prompts as fill a step.
        let prompts = |&length: &usize| (self.max_step_tokens / length).max(1);
        let prefill = self.prompts.iter().map(|n| cell(Phase::Prefill, prompts(n), *n));
        let decode = self.contexts.iter().flat_map(|context| {
            self.batches.iter().map(|batch| cell(Phase::Decode, *batch, *context))
        });
        prefill.chain(decode).collect()
    }
}

impl Cell {
    /// Longest sequence, in tokens: those that were prefilled first decode until all are.
    pub(super) fn longest(self) -> usize {
        let filling = 2 * (self.sequences * self.tokens).div_ceil(self.max_step_tokens) + 2;
        match self.phase {
            Phase::Prefill => self.tokens + 1,
            Phase::Decode => self.tokens + filling + self.repetitions,
        }
    }

    /// The engine that it runs on.
    pub(super) fn engine(self, threads: usize, model: &ModelParts) -> EngineSpec {
        EngineSpec {
            threads,
            max_sequences: self.sequences,
            max_step_tokens: self.max_step_tokens,
            cache_bytes: self.cache_bytes(model),
            share_prefixes: false,
            logprobs: Logprobs::default(),
            routed_experts: false,
        }
    }

    fn cache_bytes(self, model: &ModelParts) -> u64 {
        let blocks = self.sequences * (self.longest().div_ceil(BLOCK_TOKENS) + 2);
        model.block_bytes() * blocks as u64
    }

    pub(super) fn check(self, model: &ModelParts, free_bytes: u64) -> Result<(), BenchError> {
        let (tokens, context) = (self.longest(), model.config().max_position_embeddings);
        let bytes = self.cache_bytes(model);
        match () {
            () if tokens > context => Err(BenchError::TooLong { tokens, context }),
            () if bytes > free_bytes => {
                Err(BenchError::Memory { sequences: self.sequences, bytes, free: free_bytes })
            }
            () => Ok(()),
        }
    }
}
