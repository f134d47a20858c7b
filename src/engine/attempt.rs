//! Computing a step, in one piece or, where it fails, in as many as it takes to find the sequence at fault.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::draw::Draw;
use super::sampler::{Choice, Chosen, NoChoice, choose};
use super::scheduler::{Plan, RankPlan, Share};
use super::{Engine, EngineError};
use crate::model::{ModelError, StepOutput};
use crate::ops::{self, Routing};

/// Sequences that may fail one after another before the engine itself is taken to be at fault.
const MAX_FAILED_IN_A_ROW: usize = 8;
/// What came of a step, in as many pieces as its failures made necessary.
#[derive(Default)]
pub(super) struct Attempt {
    pub(super) computed: Vec<Computed>,
    /// Index in the running batch, and what went wrong.
    pub(super) failed: Vec<(usize, String)>,
}

/// What the model gives for a rank's step.
struct RankOutput {
    /// Of the wanted rows, `[rows, vocabulary]`, on the host.
    logits: Tensor,
    routings: Vec<Routing>,
}

/// A rank's step that was computed, with its choices.
pub(super) struct Computed {
    pub(super) plan: RankPlan,
    pub(super) tokens: Vec<Result<Chosen, NoChoice>>,
    pub(super) routings: Vec<Routing>,
}

impl Engine {
    /// Computes a step. If it fails, its halves are tried, and so on down to the sequence at fault: the
    /// others go on as if it were not there.
    pub(super) fn attempt(&mut self, shares: &[Share], attempt: &mut Attempt) {
        let plan = self.scheduler.assemble(shares);
        match self.compute(&plan) {
            Ok(outputs) => {
                let chosen = plan.ranks.into_iter().zip(outputs).map(|(p, o)| self.choose(p, o));
                attempt.computed.extend(chosen);
            }
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
    pub(super) fn expect_some_success(&mut self, attempt: &Attempt) -> Result<(), EngineError> {
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

    /// Runs the model on all ranks.
    fn compute(&mut self, plan: &Plan) -> Result<Vec<RankOutput>, EngineError> {
        let steps: Vec<_> = plan.ranks.iter().map(|rank| rank.step.clone()).collect();
        let read = |StepOutput { logits, routings }| {
            let logits = logits.contiguous().and_then(|logits| logits.to_device(&Device::Cpu));
            Ok(RankOutput { logits: logits.map_err(ModelError::from)?, routings })
        };
        self.ranks.compute(&steps)?.into_iter().map(read).collect()
    }

    /// Chooses a token for each sampled sequence of a rank.
    fn choose(&mut self, plan: RankPlan, output: RankOutput) -> Computed {
        let Self { threads, scheduler, rules, spec, config, .. } = self;
        let RankOutput { logits, routings } = output;
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
                given: sequence.given().and_then(|tokens| tokens.get(generated)).copied(),
                beside: sequence.beside(),
                logprobs: spec.logprobs,
            };
            choose(logits, &choice)
        };
        let logits = ops::tensor_values(&logits).expect("`compute` brought f32 rows to the host");
        let rows = logits.par_chunks(config.vocab_size).zip(&plan.sampled);
        let tokens = threads.install(|| rows.zip(prepared).map(choose_for).collect());
        Computed { plan, tokens, routings }
    }
}
