//! Prompts to generations: sequences in a running batch that is refilled at every step.
//!
//! `scheduler` decides what a step computes, `attempt` has the `ranks` compute it with the
//! [`model`](crate::model) and `sampler` choose tokens, `settle` gives them to their sequences, `stop` ends those; [`Engine`] is the loop's body. On the CPU a completion depends on
//! model, prompt, sampling and draw key alone: no limit and no neighbour changes a bit of it.

mod attempt;
mod blocks;
mod draw;
mod error;
mod guide;
mod ledger;
mod load;
mod ranks;
mod sampler;
mod scheduler;
mod sequence;
mod settle;
mod spec;
mod stop;
mod twins;

use std::sync::Arc;
use std::time::Instant;

use self::attempt::{Attempt, Computed};
use self::guide::Guides;
use self::ranks::Ranks;
use self::sampler::NoChoice;
use self::scheduler::Scheduler;
use self::sequence::{Clock, Sequence};
use self::settle::invalid_constraint;
use self::stop::{StopRules, StopWatch};
use self::twins::{Met, Twin, Twins};
use crate::batch::{Lengths, Order};
use crate::model::{Config, ModelParts};
use crate::ops::BLOCK_TOKENS;
use crate::prompt::TextModel;
use crate::row::{Carried, Generated, Generation, Prompt, RowRef, Work};

pub use error::EngineError;
pub use ledger::{ExpertLedger, LayerLoad};
pub use sampler::Logprobs;
pub use scheduler::Limits;
pub use spec::{EngineSpec, EngineStats};

/// Generates completions of the prompts it is given.
pub struct Engine {
    config: Config,
    ranks: Ranks,
    weight_bytes: u64,
    text: Arc<TextModel>,
    /// Choose tokens while the ranks rest.
    threads: rayon::ThreadPool,
    scheduler: Scheduler,
    rules: StopRules,
    guides: Guides,
    twins: Twins,
    lengths: Lengths,
    /// Ended completions at which those that wait are ordered anew.
    reorder_at: u64,
    ledger: ExpertLedger,
    spec: EngineSpec,
    arrivals: u64,
    /// Sequences that failed alone since the last step that did not.
    failed_in_a_row: usize,
    /// Samples that ended without a step of their own.
    ended: Vec<Generation>,
    stats: EngineStats,
}

impl Engine {
    /// Makes an engine of a loaded model, whole or in parts for several ranks.
    pub fn new(
        model: impl Into<ModelParts>,
        text: Arc<TextModel>,
        spec: EngineSpec,
    ) -> Result<Self, EngineError> {
        let model = model.into();
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(spec.threads)
            .build()
            .map_err(|source| EngineError::Threads { threads: spec.threads, source })?;
        let config = model.config().clone();
        let topology = model.topology();
        let ranks = topology.ranks_per_stage;
        let block_bytes = model.block_bytes();
        let blocks = (spec.cache_bytes / block_bytes) as usize / ranks;
        if blocks == 0 {
            return Err(EngineError::Cache { bytes: spec.cache_bytes, block_bytes, ranks });
        }
        let limits = Limits {
            max_sequences: spec.max_sequences,
            max_step_tokens: spec.max_step_tokens,
            ranks,
            blocks,
        };
        let eos_token_ids: Arc<[u32]> = config.eos_token_ids.as_slice().into();
        let (vocabulary, eos) = (config.vocab_size, eos_token_ids.clone());
        Ok(Self {
            weight_bytes: model.weight_bytes(),
            ranks: Ranks::start(model, blocks, spec.threads)?,
            rules: StopRules { eos_token_ids, context: config.max_position_embeddings },
            guides: Guides::new(text.clone(), vocabulary, eos, spec.threads),
            twins: Twins::default(),
            lengths: Lengths::default(),
            reorder_at: 16,
            ledger: ExpertLedger::new(&config, topology),
            config,
            text,
            threads,
            scheduler: Scheduler::new(limits),
            spec,
            arrivals: 0,
            failed_in_a_row: 0,
            ended: Vec::new(),
            stats: EngineStats::default(),
        })
    }

    /// Gives the model back; what waits and runs is forgotten.
    pub fn into_model(self) -> ModelParts {
        self.ranks.into_model()
    }

    /// Bytes of cache that `max_sequences` sequences of the whole context could use, in whole blocks.
    pub fn useful_cache_bytes(model: &ModelParts, max_sequences: usize) -> u64 {
        let blocks = model.config().max_position_embeddings.div_ceil(BLOCK_TOKENS) + 1;
        model.block_bytes() * (blocks * max_sequences) as u64
    }

    /// Queues the samples of a prompt that did not end yet; they go on from where they were.
    pub fn submit(&mut self, work: impl Into<Work>, received: Instant) {
        let Work { prompt, ended, mut carried } = work.into();
        let hashes = match prompt.tokens.split_last() {
            // The last prompt token is always computed: its logits give the first generated one.
            Some((_, rest)) if self.spec.share_prefixes => blocks::prefix_hashes(rest),
            _ => Vec::new(),
        };
        // Single tokens are all scored by the logits behind the prompt: one sequence does it for all.
        let for_all = ended.is_empty() && prompt.continuations.iter().all(|ids| ids.len() == 1);
        let for_all = for_all && !prompt.continuations.is_empty();
        let samples = if for_all { 1 } else { prompt.samples() };
        for sample_index in (0..samples).filter(|index| !ended.contains(index)) {
            let twin = Twin { row: prompt.row, sample_index, received };
            match self.twins.meet(&prompt, twin) {
                Met::First => {}
                Met::Waits => continue,
                Met::Answered(generation) => {
                    self.stats.reused_samples += 1;
                    self.ended.push(*generation);
                    continue;
                }
            }
            let (order, mut sequence) = self.sequence(&prompt, sample_index, received);
            sequence.hashes = hashes.clone();
            sequence.scores_all = for_all;
            if let Some(at) = carried.iter().position(|c| c.sample_index == sample_index) {
                sequence.carry_on(carried.swap_remove(at));
                self.stats.carried_samples += 1;
                self.stats.carried_tokens += sequence.completion_tokens() as u64;
            }
            let length = sequence.tokens.len();
            let guide = match length >= self.scheduler.max_tokens() {
                true => Err(self.no_room(length)),
                false => {
                    let generated = sequence.tokens[prompt.tokens.len()..].to_vec();
                    self.guides.begin(&prompt.sampling, generated).map_err(invalid_constraint)
                }
            };
            match guide {
                Ok(guide) => {
                    sequence.guide = guide;
                    self.scheduler.waiting.push(order, sequence);
                }
                Err(failure) => self.end(sequence, Err(failure), received),
            }
        }
    }

    fn sequence(
        &mut self,
        prompt: &Prompt,
        sample_index: u32,
        received: Instant,
    ) -> (Order, Sequence) {
        let given = prompt.continuations.get(sample_index as usize);
        let limit = given.map_or(prompt.sampling.max_tokens as usize, Vec::len);
        let order = Order::new(&prompt.tokens, limit, self.arrivals);
        let expected = self.lengths.expected(order.group(), limit);
        self.arrivals += 1;
        let sequence = Sequence {
            sample_index,
            tokens: prompt.tokens.to_vec(),
            cached: 0,
            rank: 0,
            once_cached: 0,
            blocks: Vec::new(),
            table: Arc::default(),
            hashes: Vec::new(),
            generated: Generated::default(),
            watch: StopWatch::new(&self.text, &prompt.sampling),
            guide: None,
            scores_all: false,
            all_logprobs: Vec::new(),
            expected,
            cached_tokens: 0,
            clock: Clock::new(received),
            prompt: prompt.clone(),
        };
        (order.expecting(prompt.tokens.len() + expected), sequence)
    }

    /// Whether no sequence waits or runs.
    pub fn is_idle(&self) -> bool {
        self.scheduler.waiting.is_empty()
            && self.scheduler.running.is_empty()
            && self.ended.is_empty()
    }

    /// Running sequences.
    pub fn running(&self) -> usize {
        self.scheduler.running.len()
    }

    /// What is generated of samples that did not end.
    pub fn in_flight(&self) -> Vec<(RowRef, Carried)> {
        let running = self.scheduler.running.iter().map(|(_, sequence)| sequence);
        let waiting = self.scheduler.waiting.in_order().map(|(_, sequence)| sequence);
        let begun = running.chain(waiting).filter(|sequence| sequence.completion_tokens() > 0);
        begun.map(|sequence| (sequence.prompt.row, sequence.carried())).collect()
    }

    /// Tokens that waiting and running sequences are expected to take yet.
    pub fn expected_tokens_left(&self) -> u64 {
        let running = self.scheduler.running.iter().map(|(_, sequence)| sequence);
        let waiting = self.scheduler.waiting.in_order().map(|(_, sequence)| sequence);
        let left = |s: &Sequence| {
            let (done, limit) = (s.completion_tokens(), s.prompt.sampling.max_tokens as usize);
            // Who outran the expectation is half-way, for all that is known.
            let expected = if done < s.expected { s.expected } else { (2 * done).min(limit) };
            (s.pending() + expected.saturating_sub(done)) as u64
        };
        running.chain(waiting).map(left).sum()
    }

    /// What was done so far.
    pub fn stats(&self) -> EngineStats {
        let Scheduler { preemptions, recomputed_tokens, .. } = self.scheduler;
        EngineStats { preemptions, recomputed_tokens, ..self.stats }
    }

    /// Where tokens were routed so far.
    pub fn ledger(&self) -> &ExpertLedger {
        &self.ledger
    }

    /// Bytes of weights as they are held.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Most bytes that the latent cache may take.
    pub fn cache_bytes(&self) -> u64 {
        self.spec.cache_bytes
    }

    /// Computes one step and gives the samples that ended with it.
    pub fn step(&mut self) -> Result<Vec<Generation>, EngineError> {
        let shares = self.scheduler.plan(Instant::now());
        if !shares.is_empty() {
            let mut attempt = Attempt::default();
            self.attempt(&shares, &mut attempt);
            self.expect_some_success(&attempt)?;
            let Attempt { computed, mut failed } = attempt;
            let mut chosen = Vec::new();
            if !computed.is_empty() {
                self.count_step();
            }
            for Computed { plan, tokens, routings } in computed {
                self.scheduler.computed(&plan);
                self.count(&plan);
                self.ledger.add(&routings);
                if self.spec.routed_experts {
                    self.note_routes(&plan, &routings);
                }
                chosen.extend(plan.sampled.into_iter().zip(tokens));
            }
            let engine = |message| Err(NoChoice::Engine(message));
            chosen.extend(failed.drain(..).map(|(index, message)| (index, engine(message))));
            self.settle(chosen);
            self.reorder();
        }
        Ok(std::mem::take(&mut self.ended))
    }
}
