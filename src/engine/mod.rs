//! Prompts to generations: sequences in a running batch that is refilled at every step.
//!
//! `scheduler` decides what a step computes, [`model`](crate::model) computes it, `sampler` chooses
//! tokens, `stop` ends sequences; [`Engine`] is the loop's body. On the CPU a completion depends on
//! model, prompt, sampling and draw key alone: no limit and no neighbour changes a bit of it.

mod blocks;
mod draw;
mod error;
mod guide;
mod ledger;
mod sampler;
mod scheduler;
mod sequence;
mod spec;
mod stop;
mod twins;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use self::draw::Draw;
use self::guide::Guides;
use self::sampler::{Choice, Chosen, NoChoice, choose};
use self::scheduler::{Plan, Scheduler, Share};
use self::sequence::{Clock, Sequence};
use self::stop::{StopRules, StopWatch};
use self::twins::{Met, Twin, Twins};
use crate::batch::{Lengths, Order};
use crate::model::{Config, Model};
use crate::ops::{BLOCK_TOKENS, Form, LatentPool, Routing};
use crate::prompt::TextModel;
use crate::row::{
    Carried, FailureCode, Generated, Generation, Prompt, RowFailure, RowRef, StopReason, Work,
};

pub use error::EngineError;
pub use ledger::{ExpertLedger, LayerLoad};
pub use sampler::Logprobs;
pub use scheduler::Limits;
pub use spec::{EngineSpec, EngineStats};

/// Sequences that may fail one after another before the engine itself is taken to be at fault.
const MAX_FAILED_IN_A_ROW: usize = 8;
/// Ended completions between two orderings of those that wait, at most.
const REORDER_EVERY: u64 = 4096;

/// What came of a step, in as many pieces as its failures made necessary.
#[derive(Default)]
struct Attempt {
    computed: Vec<Computed>,
    /// Index in the running batch, and what went wrong.
    failed: Vec<(usize, String)>,
}

struct Computed {
    plan: Plan,
    tokens: Vec<Result<Chosen, NoChoice>>,
    routings: Vec<Routing>,
}

/// Generates completions of the prompts it is given.
pub struct Engine {
    model: Model,
    text: Arc<TextModel>,
    pool: LatentPool,
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
        let eos_token_ids: Arc<[u32]> = config.eos_token_ids.as_slice().into();
        let (vocabulary, eos) = (config.vocab_size, eos_token_ids.clone());
        Ok(Self {
            pool: LatentPool::new(config.layers, blocks, config.latent_width()),
            rules: StopRules { eos_token_ids, context: config.max_position_embeddings },
            guides: Guides::new(text.clone(), vocabulary, eos, spec.threads),
            twins: Twins::default(),
            lengths: Lengths::default(),
            reorder_at: 16,
            ledger: ExpertLedger::new(config),
            model,
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

    /// Bytes of cache that `max_sequences` sequences of the whole context could use, in whole blocks.
    pub fn useful_cache_bytes(config: &Config, max_sequences: usize) -> u64 {
        let blocks = config.max_position_embeddings.div_ceil(BLOCK_TOKENS) + 1;
        LatentPool::block_bytes(config.layers, config.latent_width())
            * (blocks * max_sequences) as u64
    }

    /// Queues the samples of a prompt that did not end yet; they go on from where they were.
    pub fn submit(&mut self, work: impl Into<Work>, received: Instant) {
        let Work { prompt, ended, mut carried } = work.into();
        let hashes = match prompt.tokens.split_last() {
            // The last prompt token is always computed: its logits give the first generated one.
            Some((_, rest)) if self.spec.share_prefixes => blocks::prefix_hashes(rest),
            _ => Vec::new(),
        };
        for sample_index in (0..prompt.sampling.n).filter(|index| !ended.contains(index)) {
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
        let limit = prompt.sampling.max_tokens as usize;
        let order = Order::new(&prompt.tokens, limit, self.arrivals);
        let expected = self.lengths.expected(order.group(), limit);
        self.arrivals += 1;
        let sequence = Sequence {
            sample_index,
            tokens: prompt.tokens.to_vec(),
            cached: 0,
            once_cached: 0,
            blocks: Vec::new(),
            hashes: Vec::new(),
            generated: Generated::default(),
            watch: StopWatch::new(&self.text, &prompt.sampling),
            guide: None,
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
        self.model.weight_bytes()
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

    /// Computes a step. If it fails, its halves are tried, and so on down to the sequence at fault: the
    /// others go on as if it were not there.
    fn attempt(&mut self, shares: &[Share], attempt: &mut Attempt) {
        let plan = self.scheduler.assemble(shares);
        match self.compute(&plan) {
            Ok((tokens, routings)) => attempt.computed.push(Computed { plan, tokens, routings }),
            Err(error) => match shares {
                [share] => attempt.failed.push((share.index, error.to_string())),
                _ => {
                    let (first, second) = shares.split_at(shares.len() / 2);
                    self.attempt(first, attempt);
                    self.attempt(second, attempt);
                }
            },
        }
    }

    /// Sequences that fail all of them, or many in a row, are not at fault themselves.
    fn expect_some_success(&mut self, attempt: &Attempt) -> Result<(), EngineError> {
        if !attempt.computed.is_empty() {
            self.failed_in_a_row = 0;
            return Ok(());
        }
        self.failed_in_a_row += attempt.failed.len();
        match attempt.failed.last() {
            Some((_, message)) if self.failed_in_a_row > MAX_FAILED_IN_A_ROW => {
                Err(EngineError::Everything {
                    sequences: self.failed_in_a_row,
                    message: message.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Runs the model and chooses a token for each sampled sequence.
    #[allow(clippy::type_complexity, reason = "two results of one computation")]
    fn compute(
        &mut self,
        plan: &Plan,
    ) -> Result<(Vec<Result<Chosen, NoChoice>>, Vec<Routing>), EngineError> {
        let Self { model, pool, threads, scheduler, rules, spec, .. } = self;
        let forward = || threads.install(|| model.forward(&plan.step, pool));
        // A step that panics leaves nothing behind but latents that the next attempt writes again.
        let output = catch_unwind(AssertUnwindSafe(forward)).map_err(panicked)??;
        let logits = output.logits.flatten_all().and_then(|x| x.to_vec1::<f32>());
        let logits = logits.map_err(crate::model::ModelError::from)?;
        let prepared: Vec<Result<(), String>> = plan
            .sampled
            .iter()
            .map(|&index| scheduler.running[index].1.guide.as_mut().map_or(Ok(()), |g| g.prepare()))
            .collect();
        let choose_for = |((logits, &index), prepared): ((&[f32], &usize), Result<(), String>)| {
            prepared.map_err(NoChoice::Constraint)?;
            let sequence = &scheduler.running[index].1;
            let sampling = &sequence.prompt.sampling;
            let generated = sequence.completion_tokens();
            let draw = Draw {
                seed: sampling.seed,
                key: sequence.prompt.draw_key,
                sample_index: sequence.sample_index,
                position: generated as u32,
            };
            let choice = Choice {
                sampling,
                draw,
                tokens: &sequence.tokens,
                prompt_tokens: sequence.prompt_tokens(),
                forbidden: &rules.forbidden(sampling, generated),
                allowed: sequence.guide.as_ref().and_then(|guide| guide.mask()),
                logprobs: spec.logprobs,
            };
            choose(logits, &choice)
        };
        let rows = logits.par_chunks(model.config().vocab_size).zip(&plan.sampled);
        let chosen = threads.install(|| rows.zip(prepared).map(choose_for).collect());
        Ok((chosen, output.routings))
    }

    fn count(&mut self, plan: &Plan) {
        let company = self.scheduler.running.len() as u64;
        self.stats.steps += 1;
        self.stats.tail_steps += u64::from(2 * company < self.spec.max_sequences as u64);
        self.stats.sequence_steps += company;
        self.stats.generated_tokens += plan.sampled.len() as u64;
        let prompt = plan.step.spans.iter().filter(|span| span.form == Form::Prompt);
        self.stats.prefilled_tokens += prompt.map(|span| span.count as u64).sum::<u64>();
        for (_, sequence) in &mut self.scheduler.running {
            sequence.clock.steps += 1;
            sequence.clock.company += company;
        }
    }

    /// Gives each sampled sequence the experts of the position that its next token is chosen at.
    fn note_routes(&mut self, plan: &Plan, routings: &[Routing]) {
        for (&index, &row) in plan.sampled.iter().zip(&plan.step.outputs) {
            let of_layer = |routing: &Routing| {
                let k = routing.experts_per_token;
                let experts = &routing.expert_ids[row as usize * k..][..k];
                experts.iter().map(|&expert| expert as u16).collect::<Vec<_>>()
            };
            let routes = routings.iter().flat_map(of_layer).collect();
            self.scheduler.running[index].1.generated.routed_experts.push(routes);
        }
    }

    /// Gives each sampled sequence its token and takes out those that end.
    fn settle(&mut self, chosen: Vec<(usize, Result<Chosen, NoChoice>)>) {
        let now = Instant::now();
        let mut ends: Vec<(usize, Result<StopReason, RowFailure>)> = Vec::new();
        for (index, chosen) in chosen {
            let end = match chosen {
                Ok(chosen) => {
                    self.extend(index, chosen, now).or_else(|| self.outgrown(index).map(Err))
                }
                Err(why) => Some(Err(self.no_choice(index, why))),
            };
            ends.extend(end.map(|end| (index, end)));
        }
        // From the back, so that indices stay right while sequences leave.
        ends.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, end) in ends {
            let (order, sequence) = self.scheduler.remove(index);
            if let Ok(stop) = &end {
                let cut = matches!(stop, StopReason::MaxTokens | StopReason::Context);
                self.lengths.note(order.group(), sequence.completion_tokens(), cut);
            }
            self.end(sequence, end, now);
        }
    }

    /// Ends a sequence, and with it those that wait for the same answer.
    fn end(&mut self, sequence: Sequence, end: Result<StopReason, RowFailure>, now: Instant) {
        let prompt = sequence.prompt.clone();
        let generation = match end {
            Ok(stop) => sequence.finish(stop, now),
            Err(failure) => sequence.fail(failure, now),
        };
        let twins = self.twins.answer(&prompt, &generation);
        self.stats.reused_samples += twins.len() as u64;
        self.ended.push(generation);
        self.ended.extend(twins);
    }

    /// Orders those that wait by what was learned of lengths, when much was.
    fn reorder(&mut self) {
        if self.lengths.count() < self.reorder_at {
            return;
        }
        self.reorder_at = self.lengths.count() + self.lengths.count().min(REORDER_EVERY);
        let running = self.scheduler.running.iter();
        let running = running.map(|(order, s)| (order.group(), s.completion_tokens()));
        let lengths = self.lengths.with_running(running);
        self.scheduler.waiting.reorder(|order, sequence| {
            let limit = sequence.prompt.sampling.max_tokens as usize;
            sequence.expected = lengths.expected(order.group(), limit);
            order.expecting(sequence.prompt_tokens() + sequence.expected)
        });
    }

    fn extend(
        &mut self,
        index: usize,
        chosen: Chosen,
        now: Instant,
    ) -> Option<Result<StopReason, RowFailure>> {
        let Self { scheduler, spec, rules, guides, .. } = self;
        let sequence = &mut scheduler.running[index].1;
        sequence.tokens.push(chosen.token);
        sequence.clock.first_token.get_or_insert(now);
        sequence.clock.last_token = Some(now);
        if spec.logprobs.chosen {
            sequence.generated.logprobs.push(chosen.logprob);
        }
        if spec.logprobs.top > 0 {
            sequence.generated.top_logprobs.push(chosen.top);
        }
        let (generated, length) = (sequence.completion_tokens(), sequence.tokens.len());
        let sampling = &sequence.prompt.sampling;
        let stop = rules.check(sampling, chosen.token, generated, length, sequence.watch.as_mut());
        let Some(guide) = &mut sequence.guide else { return stop.map(Ok) };
        match guides.accept(guide, chosen.token) {
            Err(message) => Some(Err(unmet(&message))),
            Ok(standing) => match stop {
                None => standing.over.then_some(Ok(StopReason::Constraint)),
                Some(stop) if standing.met => Some(Ok(stop)),
                Some(stop) => Some(Err(unmet(&format!(
                    "the completion ended ({}) after {generated} tokens",
                    stop.stop_reason()
                )))),
            },
        }
    }

    /// A sequence that fills the whole cache alone cannot go on. It fails rather than ends: a limit of
    /// the machine must not pass for the model's own end.
    fn outgrown(&self, index: usize) -> Option<RowFailure> {
        let tokens = self.scheduler.running[index].1.tokens.len();
        (tokens >= self.scheduler.max_tokens()).then(|| self.no_room(tokens))
    }

    fn no_choice(&self, index: usize, why: NoChoice) -> RowFailure {
        let position = self.scheduler.running[index].1.completion_tokens();
        match why {
            NoChoice::NotNumbers => RowFailure::new(
                FailureCode::Numerics,
                format!("the model's logits for completion token {position} are not numbers"),
            ),
            NoChoice::NothingAllowed => unmet(&format!("no token is allowed at {position}")),
            NoChoice::Constraint(message) => invalid_constraint(message),
            NoChoice::Engine(message) => RowFailure::new(FailureCode::Engine, message),
        }
    }

    fn no_room(&self, tokens: usize) -> RowFailure {
        let room = self.scheduler.max_tokens();
        let message = format!(
            "the sequence has {tokens} tokens, the latent cache holds {room}: set `batch.cache` higher"
        );
        RowFailure::new(FailureCode::PromptTooLong, message)
    }
}

fn invalid_constraint(message: String) -> RowFailure {
    RowFailure::new(FailureCode::InvalidConstraint, message)
}

fn unmet(message: &str) -> RowFailure {
    let message = format!("the constraint is not met: {message}");
    RowFailure::new(FailureCode::ConstraintUnmet, message)
}

fn panicked(panic: Box<dyn Any + Send>) -> EngineError {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    EngineError::Panicked { message: text.unwrap_or_else(|| "a panic without words".into()) }
}
