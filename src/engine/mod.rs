//! Prompts to generations: sequences in a running batch that is refilled at every step.
//!
//! `scheduler` decides what a step computes, [`model`](crate::model) computes it, `sampler` chooses
//! tokens, `stop` ends sequences; [`Engine`] is the loop's body. On the CPU a completion depends on
//! model, prompt, sampling and draw key alone: no limit and no neighbour changes a bit of it.

mod blocks;
mod draw;
mod error;
mod sampler;
mod scheduler;
mod sequence;
mod stop;

use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use self::draw::Draw;
use self::sampler::{Choice, Chosen, choose};
use self::scheduler::{Plan, Scheduler};
use self::sequence::{Clock, Sequence};
use self::stop::{StopRules, StopWatch};
use crate::batch::Order;
use crate::model::{Config, Model};
use crate::ops::{BLOCK_TOKENS, Form, LatentPool};
use crate::prompt::TextModel;
use crate::row::{FailureCode, Generated, Generation, Prompt, RowFailure, StopReason};

pub use error::EngineError;
pub use sampler::Logprobs;
pub use scheduler::Limits;

/// How an engine runs. Nothing of it but `logprobs` shows in the output.
#[derive(Clone, Copy, Debug)]
pub struct EngineSpec {
    /// Compute threads; 0: all cores.
    pub threads: usize,
    /// Most running sequences.
    pub max_sequences: usize,
    /// Most tokens of a step.
    pub max_step_tokens: usize,
    /// Bytes of the latent cache.
    pub cache_bytes: u64,
    /// Log-probabilities to give.
    pub logprobs: Logprobs,
}

/// What an engine did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Steps computed.
    pub steps: u64,
    /// Sum over steps of the sequences that ran.
    pub sequence_steps: u64,
    /// Prompt tokens computed, recomputed ones included.
    pub prefilled_tokens: u64,
    /// Tokens chosen.
    pub generated_tokens: u64,
    /// Sequences that gave their blocks back to others.
    pub preemptions: u64,
}

/// Generates completions of the prompts it is given.
pub struct Engine {
    model: Model,
    text: Arc<TextModel>,
    pool: LatentPool,
    threads: rayon::ThreadPool,
    scheduler: Scheduler,
    rules: StopRules,
    logprobs: Logprobs,
    arrivals: u64,
    failed: Vec<Generation>,
    stats: EngineStats,
}

impl Engine {
    /// Makes an engine of a loaded model.
    pub fn new(model: Model, text: Arc<TextModel>, spec: EngineSpec) -> Result<Self, EngineError> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(spec.threads)
            .build()
            .map_err(|source| EngineError::Threads { threads: spec.threads, source })?;
        let config = model.config();
        let block_bytes = LatentPool::block_bytes(config.layers, config.latent_width());
        let blocks = (spec.cache_bytes / block_bytes) as usize;
        if blocks == 0 {
            return Err(EngineError::Cache { bytes: spec.cache_bytes, block_bytes });
        }
        let limits = Limits {
            max_sequences: spec.max_sequences,
            max_step_tokens: spec.max_step_tokens,
            blocks,
        };
        Ok(Self {
            pool: LatentPool::new(config.layers, blocks, config.latent_width()),
            rules: StopRules {
                eos_token_ids: config.eos_token_ids.as_slice().into(),
                context: config.max_position_embeddings,
            },
            model,
            text,
            threads,
            scheduler: Scheduler::new(limits),
            logprobs: spec.logprobs,
            arrivals: 0,
            failed: Vec::new(),
            stats: EngineStats::default(),
        })
    }

    /// Bytes of cache that `max_sequences` sequences of the whole context could use, in whole blocks.
    pub fn useful_cache_bytes(config: &Config, max_sequences: usize) -> u64 {
        let blocks = config.max_position_embeddings.div_ceil(BLOCK_TOKENS) + 1;
        LatentPool::block_bytes(config.layers, config.latent_width())
            * (blocks * max_sequences) as u64
    }

    /// Queues all samples of a prompt.
    pub fn submit(&mut self, prompt: Prompt, received: Instant) {
        let hashes = match prompt.tokens.split_last() {
            // The last prompt token is always computed: its logits give the first generated one.
            Some((_, rest)) => blocks::prefix_hashes(rest),
            None => Vec::new(),
        };
        for sample_index in 0..prompt.sampling.n {
            let order = Order::new(&prompt.tokens, prompt.sampling.max_tokens, self.arrivals);
            self.arrivals += 1;
            let sequence = Sequence {
                sample_index,
                tokens: prompt.tokens.to_vec(),
                cached: 0,
                blocks: Vec::new(),
                hashes: hashes.clone(),
                generated: Generated::default(),
                watch: StopWatch::new(&self.text, &prompt.sampling),
                cached_tokens: 0,
                clock: Clock::new(received),
                prompt: prompt.clone(),
            };
            if sequence.tokens.len() >= self.scheduler.max_tokens() {
                self.failed.push(sequence.fail(self.no_room(prompt.tokens.len()), received));
            } else {
                self.scheduler.waiting.push(order, sequence);
            }
        }
    }

    /// Whether no sequence waits or runs.
    pub fn is_idle(&self) -> bool {
        self.scheduler.waiting.is_empty()
            && self.scheduler.running.is_empty()
            && self.failed.is_empty()
    }

    /// Running sequences.
    pub fn running(&self) -> usize {
        self.scheduler.running.len()
    }

    /// Tokens that waiting and running sequences may still take, as their limits allow.
    pub fn expected_tokens_left(&self) -> u64 {
        let running = self.scheduler.running.iter().map(|(_, sequence)| sequence);
        let left = |s: &Sequence| {
            (s.pending() + s.prompt.sampling.max_tokens as usize)
                .saturating_sub(s.completion_tokens()) as u64
        };
        running.chain(self.scheduler.waiting.iter()).map(left).sum()
    }

    /// What was done so far.
    pub fn stats(&self) -> EngineStats {
        EngineStats { preemptions: self.scheduler.preemptions, ..self.stats }
    }

    /// Computes one step and gives the samples that ended with it.
    pub fn step(&mut self) -> Result<Vec<Generation>, EngineError> {
        let mut ended = std::mem::take(&mut self.failed);
        let plan = self.scheduler.plan(Instant::now());
        if plan.step.tokens.is_empty() {
            return Ok(ended);
        }
        let chosen = self.compute(&plan)?;
        self.scheduler.computed(&plan);
        self.count(&plan);
        ended.extend(self.settle(&plan.sampled, chosen));
        Ok(ended)
    }

    /// Runs the model and chooses a token for each sampled sequence; none where logits are not numbers.
    fn compute(&mut self, plan: &Plan) -> Result<Vec<Option<Chosen>>, EngineError> {
        let Self { model, pool, threads, scheduler, rules, logprobs, .. } = self;
        threads.install(|| {
            let output = model.forward(&plan.step, pool)?;
            let logits = output.logits.flatten_all().and_then(|x| x.to_vec1::<f32>());
            let logits = logits.map_err(crate::model::ModelError::from)?;
            let rows = logits.par_chunks(model.config().vocab_size).zip(&plan.sampled);
            Ok(rows
                .map(|(logits, &index)| {
                    let sequence = &scheduler.running[index].1;
                    let sampling = &sequence.prompt.sampling;
                    let forbidden = rules.forbidden(sampling, sequence.completion_tokens());
                    let draw = Draw {
                        seed: sampling.seed,
                        key: sequence.prompt.draw_key,
                        sample_index: sequence.sample_index,
                        position: sequence.completion_tokens() as u32,
                    };
                    let prompt_tokens = sequence.prompt_tokens();
                    let tokens = &sequence.tokens;
                    choose(
                        logits,
                        &Choice {
                            sampling,
                            draw,
                            tokens,
                            prompt_tokens,
                            forbidden: &forbidden,
                            logprobs: *logprobs,
                        },
                    )
                })
                .collect())
        })
    }

    fn count(&mut self, plan: &Plan) {
        let company = self.scheduler.running.len() as u64;
        self.stats.steps += 1;
        self.stats.sequence_steps += company;
        self.stats.generated_tokens += plan.sampled.len() as u64;
        let prompt = plan.step.spans.iter().filter(|span| span.form == Form::Prompt);
        self.stats.prefilled_tokens += prompt.map(|span| span.count as u64).sum::<u64>();
        for (_, sequence) in &mut self.scheduler.running {
            sequence.clock.steps += 1;
            sequence.clock.company += company;
        }
    }

    /// Gives each sampled sequence its token and takes out those that end.
    fn settle(&mut self, sampled: &[usize], chosen: Vec<Option<Chosen>>) -> Vec<Generation> {
        let now = Instant::now();
        let mut ends: Vec<(usize, Result<StopReason, RowFailure>)> = Vec::new();
        for (&index, chosen) in sampled.iter().zip(chosen) {
            let end = match chosen {
                Some(chosen) => self
                    .extend(index, chosen, now)
                    .map(Ok)
                    .or_else(|| self.outgrown(index).map(Err)),
                None => Some(Err(self.not_numbers(index))),
            };
            ends.extend(end.map(|end| (index, end)));
        }
        // From the back, so that indices stay right while sequences leave.
        ends.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        let leave = ends.into_iter().map(|(index, end)| {
            let sequence = self.scheduler.remove(index);
            match end {
                Ok(stop) => sequence.finish(stop, now),
                Err(failure) => sequence.fail(failure, now),
            }
        });
        leave.collect()
    }

    fn extend(&mut self, index: usize, chosen: Chosen, now: Instant) -> Option<StopReason> {
        let sequence = &mut self.scheduler.running[index].1;
        sequence.tokens.push(chosen.token);
        sequence.clock.first_token.get_or_insert(now);
        sequence.clock.last_token = Some(now);
        if self.logprobs.chosen {
            sequence.generated.logprobs.push(chosen.logprob);
        }
        if self.logprobs.top > 0 {
            sequence.generated.top_logprobs.push(chosen.top);
        }
        let (generated, length) = (sequence.completion_tokens(), sequence.tokens.len());
        let sampling = &sequence.prompt.sampling;
        self.rules.check(sampling, chosen.token, generated, length, sequence.watch.as_mut())
    }

    /// A sequence that fills the whole cache alone cannot go on. It fails rather than ends: a limit of
    /// the machine must not pass for the model's own end.
    fn outgrown(&self, index: usize) -> Option<RowFailure> {
        let tokens = self.scheduler.running[index].1.tokens.len();
        (tokens >= self.scheduler.max_tokens()).then(|| self.no_room(tokens))
    }

    fn not_numbers(&self, index: usize) -> RowFailure {
        let position = self.scheduler.running[index].1.completion_tokens();
        RowFailure::new(
            FailureCode::Numerics,
            format!("the model's logits for completion token {position} are not numbers"),
        )
    }

    fn no_room(&self, tokens: usize) -> RowFailure {
        let room = self.scheduler.max_tokens();
        let message = format!(
            "the sequence has {tokens} tokens, the latent cache holds {room}: set `batch.cache` higher"
        );
        RowFailure::new(FailureCode::PromptTooLong, message)
    }
}
