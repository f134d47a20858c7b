//! What follows a computed step: each sequence gets its token, those that end leave with their answer.

use std::time::Instant;

use super::Engine;
use super::sampler::{Chosen, NoChoice};
use super::scheduler::RankPlan;
use super::sequence::Sequence;
use crate::ops::{Form, Routing};
use crate::row::{FailureCode, Generation, Prompt, RowFailure, StopReason};

/// Ended completions between two orderings of those that wait, at most.
const REORDER_EVERY: u64 = 4096;

impl Engine {
    /// Counts a rank's part of a step.
    pub(super) fn count(&mut self, plan: &RankPlan) {
        self.stats.generated_tokens += plan.sampled.len() as u64;
        let prompt = plan.step.spans.iter().filter(|span| span.form == Form::Prompt);
        self.stats.prefilled_tokens += prompt.map(|span| span.count as u64).sum::<u64>();
    }

    /// Counts a step.
    pub(super) fn count_step(&mut self) {
        let company = self.scheduler.running.len() as u64;
        self.stats.steps += 1;
        self.stats.tail_steps += u64::from(2 * company < self.spec.max_sequences as u64);
        self.stats.sequence_steps += company;
        for (_, sequence) in &mut self.scheduler.running {
            sequence.clock.steps += 1;
            sequence.clock.company += company;
        }
    }

    /// Gives each sampled sequence the experts of the position that its next token is chosen at.
    pub(super) fn note_routes(&mut self, plan: &RankPlan, routings: &[Routing]) {
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
    pub(super) fn settle(&mut self, chosen: Vec<(usize, Result<Chosen, NoChoice>)>) {
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
    pub(super) fn end(
        &mut self,
        mut sequence: Sequence,
        end: Result<StopReason, RowFailure>,
        now: Instant,
    ) {
        let prompt = sequence.prompt.clone();
        let beside = sequence.beside().len().saturating_sub(1);
        let logprobs = std::mem::take(&mut sequence.all_logprobs);
        let generation = match end {
            Ok(stop) => sequence.finish(stop, now),
            Err(failure) => sequence.fail(failure, now),
        };
        let twins = self.twins.answer(&prompt, &generation);
        self.stats.reused_samples += twins.len() as u64;
        self.ended.extend((1..=beside).map(|index| {
            let logprob = logprobs.get(index).copied();
            scored_beside(&prompt, &generation, index, logprob)
        }));
        self.ended.push(generation);
        self.ended.extend(twins);
    }

    /// Orders those that wait by what was learned of lengths, when much was.
    pub(super) fn reorder(&mut self) {
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
        if spec.logprobs.chosen || sequence.given().is_some() {
            sequence.generated.logprobs.push(chosen.logprob);
        }
        if spec.logprobs.top > 0 {
            sequence.generated.top_logprobs.push(chosen.top);
        }
        let (generated, length) = (sequence.completion_tokens(), sequence.tokens.len());
        sequence.all_logprobs = chosen.beside;
        if let Some(given) = sequence.given() {
            return (generated >= given.len()).then_some(Ok(StopReason::Given));
        }
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

    pub(super) fn no_room(&self, tokens: usize) -> RowFailure {
        let room = self.scheduler.max_tokens();
        let message = format!(
            "the sequence has {tokens} tokens, the latent cache holds {room}: set `batch.cache` higher"
        );
        RowFailure::new(FailureCode::PromptTooLong, message)
    }
}

/// The sample of a single token that was scored by the sequence of another one, or failed with it.
fn scored_beside(
    prompt: &Prompt,
    scored: &Generation,
    index: usize,
    logprob: Option<f32>,
) -> Generation {
    let mut sample = scored.clone();
    sample.sample_index = index as u32;
    sample.cached_tokens = sample.prompt_tokens;
    if let Ok(generated) = &mut sample.result {
        generated.token_ids = prompt.continuations[index].clone();
        generated.logprobs = logprob.into_iter().collect();
    }
    sample
}

pub(super) fn invalid_constraint(message: String) -> RowFailure {
    RowFailure::new(FailureCode::InvalidConstraint, message)
}

fn unmet(message: &str) -> RowFailure {
    let message = format!("the constraint is not met: {message}");
    RowFailure::new(FailureCode::ConstraintUnmet, message)
}
