//! The engine timed: whole prefills, and decode steps of a full batch.

use std::sync::Arc;
use std::time::Instant;

use super::BenchError;
use super::spec::Cell;
use super::work::{Attended, Shape};
use crate::engine::Engine;
use crate::row::{DrawKey, PartitionId, Prompt, RowRef};
use crate::sampling::Sampling;

/// An engine, and what was seen of its counters.
pub(super) struct Timed {
    engine: Engine,
    vocabulary: usize,
    prompts: u32,
    prefilled: u64,
    generated: u64,
    routes: Vec<Vec<u64>>,
}

/// One repetition.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Repetition {
    pub(super) seconds: f64,
    pub(super) sequences: usize,
    pub(super) shape: Shape,
}

/// What one step did.
struct Step {
    seconds: f64,
    prompt_tokens: u64,
    sampled: u64,
    experts: u64,
}

impl Timed {
    pub(super) fn new(engine: Engine, vocabulary: usize) -> Self {
        let routes = engine.ledger().layers().iter().map(|load| load.routes.clone()).collect();
        Self { engine, vocabulary, prompts: 0, prefilled: 0, generated: 0, routes }
    }

    /// The engine again.
    pub(super) fn end(self) -> Engine {
        self.engine
    }

    /// Prefills fresh prompts until each has its first token.
    pub(super) fn prefill(&mut self, cell: Cell) -> Result<Repetition, BenchError> {
        let Cell { sequences, tokens, .. } = cell;
        self.submit(cell, 1);
        let mut total = Repetition { sequences, ..Repetition::default() };
        while !self.engine.is_idle() {
            let step = self.step()?;
            total.seconds += step.seconds;
            total.shape.steps += 1.0;
            total.shape.sampled_steps += f64::from(step.sampled > 0);
            total.shape.sampled += step.sampled as f64;
            total.shape.experts += step.experts as f64;
        }
        let (all, pairs) = (sequences * tokens, sequences * tokens * (tokens + 1) / 2);
        total.shape.prompt =
            Attended { tokens: all as f64, pairs: pairs as f64, positions: all as f64 };
        Ok(total)
    }

    /// Prefills a batch, then decodes: one step to warm up, then the measured ones.
    pub(super) fn decode(&mut self, cell: Cell) -> Result<Vec<Repetition>, BenchError> {
        self.submit(cell, cell.longest() - cell.tokens);
        while self.step()?.prompt_tokens > 0 {}
        (0..cell.repetitions).map(|_| self.decode_step(cell.tokens)).collect()
    }

    fn decode_step(&mut self, length: usize) -> Result<Repetition, BenchError> {
        let running = self.engine.running();
        let positions = (running * length) as f64 + self.generated as f64;
        let step = self.step()?;
        let generated = Attended { tokens: running as f64, pairs: positions, positions };
        let shape = Shape {
            steps: 1.0,
            sampled_steps: 1.0,
            sampled: step.sampled as f64,
            experts: step.experts as f64,
            generated,
            ..Shape::default()
        };
        Ok(Repetition { seconds: step.seconds, sequences: running, shape })
    }

    fn submit(&mut self, Cell { sequences, tokens: length, .. }: Cell, max_tokens: usize) {
        let max_tokens = max_tokens as u32;
        let sampling = Sampling { max_tokens, ignore_eos: true, ..Sampling::default() };
        let sampling = Arc::new(sampling);
        for _ in 0..sequences {
            self.prompts += 1;
            let tokens = tokens(self.prompts, length, self.vocabulary);
            let row = RowRef { partition: PartitionId(0), offset: self.prompts };
            let draw_key = DrawKey(u64::from(self.prompts));
            let continuations = Arc::from([]);
            let prompt =
                Prompt { row, draw_key, tokens, sampling: sampling.clone(), continuations };
            self.engine.submit(prompt, Instant::now());
        }
    }

    fn step(&mut self) -> Result<Step, BenchError> {
        let begin = Instant::now();
        let ended = self.engine.step()?;
        let seconds = begin.elapsed().as_secs_f64();
        if let Some(failure) = ended.into_iter().find_map(|generation| generation.result.err()) {
            return Err(BenchError::Failed { message: failure.message });
        }
        let stats = self.engine.stats();
        let step = Step {
            seconds,
            prompt_tokens: stats.prefilled_tokens - self.prefilled,
            sampled: stats.generated_tokens - self.generated,
            experts: self.used_experts(),
        };
        (self.prefilled, self.generated) = (stats.prefilled_tokens, stats.generated_tokens);
        Ok(step)
    }

    /// Experts that were routed to since the last look, over all layers.
    fn used_experts(&mut self) -> u64 {
        let mut used = 0;
        for (seen, load) in self.routes.iter_mut().zip(self.engine.ledger().layers()) {
            used += seen.iter().zip(&load.routes).filter(|(before, now)| before != now).count();
            seen.copy_from_slice(&load.routes);
        }
        used as u64
    }
}

/// Made-up tokens, other ones for each prompt: neither a prefix nor an answer is shared.
fn tokens(prompt: u32, length: usize, vocabulary: usize) -> Arc<[u32]> {
    let token = |position: usize| {
        // SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
        let mut x = (u64::from(prompt) << 32 | position as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ x >> 31) % vocabulary as u64) as u32
    };
    (0..length).map(token).collect()
}
