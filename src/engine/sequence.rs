//! One sample on its way: its tokens, its blocks, its clock.

use std::sync::Arc;
use std::time::Instant;

use super::blocks::PrefixHash;
use super::guide::Guide;
use super::stop::StopWatch;
use crate::row::{Carried, Generated, Generation, Prompt, RowFailure, StopReason, Timing};

/// A sequence, waiting or running.
pub(super) struct Sequence {
    pub(super) prompt: Prompt,
    pub(super) sample_index: u32,
    /// Prompt, then completion.
    pub(super) tokens: Vec<u32>,
    /// Tokens whose latents are in the cache.
    pub(super) cached: usize,
    /// The rank whose cache that is, once it was admitted.
    pub(super) rank: usize,
    /// Blocks that hold them, in order.
    pub(super) blocks: Vec<u32>,
    /// The same, as steps share them.
    pub(super) table: Arc<[u32]>,
    /// Names of the prompt's full blocks that may be shared.
    pub(super) hashes: Vec<PrefixHash>,
    /// What was generated, beside the ids in `tokens`.
    pub(super) generated: Generated,
    pub(super) watch: Option<StopWatch>,
    pub(super) guide: Option<Guide>,
    /// Whether it scores all of its row's continuations, each of which is a single token.
    pub(super) scores_all: bool,
    /// Their log-probabilities, once they are known.
    pub(super) all_logprobs: Vec<f32>,
    /// Tokens that the completion is expected to have; only orders work.
    pub(super) expected: usize,
    /// Most tokens whose latents were ever in the cache: computing them again is waste.
    pub(super) once_cached: usize,
    /// Prompt tokens found in the cache at the first admission.
    pub(super) cached_tokens: u32,
    pub(super) clock: Clock,
}

/// When things happened to a sequence.
pub(super) struct Clock {
    pub(super) received: Instant,
    pub(super) admitted: Option<Instant>,
    pub(super) first_token: Option<Instant>,
    pub(super) last_token: Option<Instant>,
    pub(super) steps: u64,
    /// Sum over its steps of the sequences that ran in them.
    pub(super) company: u64,
}

impl Clock {
    pub(super) fn new(received: Instant) -> Self {
        Self { received, admitted: None, first_token: None, last_token: None, steps: 0, company: 0 }
    }

    fn timing(&self, end: Instant) -> Timing {
        let admitted = self.admitted.unwrap_or(end);
        Timing {
            queue: admitted.duration_since(self.received),
            ttft: self.first_token.map(|first| first.duration_since(admitted)),
            decode: self
                .first_token
                .zip(self.last_token)
                .filter(|(a, b)| b > a)
                .map(|(a, b)| b.duration_since(a)),
            total: end.duration_since(self.received),
            mean_batch: if self.steps == 0 {
                0.0
            } else {
                (self.company as f64 / self.steps as f64) as f32
            },
        }
    }
}

impl Sequence {
    /// Prompt tokens.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt.tokens.len()
    }

    /// Tokens generated so far.
    pub(super) fn completion_tokens(&self) -> usize {
        self.tokens.len() - self.prompt.tokens.len()
    }

    /// Tokens that the model has yet to see before the next one can be chosen.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.cached
    }

    /// The tokens that are given, if they are.
    pub(super) fn given(&self) -> Option<&[u32]> {
        self.prompt.continuations.get(self.sample_index as usize).map(Vec::as_slice)
    }

    /// Continuations that are scored beside the given token.
    pub(super) fn beside(&self) -> &[Vec<u32>] {
        if self.scores_all { &self.prompt.continuations } else { &[] }
    }

    /// Goes on where an earlier run stopped.
    pub(super) fn carry_on(&mut self, carried: Carried) {
        let Carried { cached_tokens, generated, .. } = carried;
        self.cached_tokens = cached_tokens;
        for (&token, count) in generated.token_ids.iter().zip(1..) {
            // Had it met a stop, the sample would have ended.
            let _ = self.watch.as_mut().map(|w| w.push(token, &self.prompt.sampling, count));
        }
        self.tokens.extend(&generated.token_ids);
        self.generated = Generated { token_ids: Vec::new(), ..generated };
    }

    /// What a later run needs to go on.
    pub(super) fn carried(&self) -> Carried {
        let token_ids = self.tokens[self.prompt.tokens.len()..].to_vec();
        Carried {
            sample_index: self.sample_index,
            prompt_tokens: self.prompt.tokens.len() as u32,
            cached_tokens: self.cached_tokens,
            generated: Generated { token_ids, ..self.generated.clone() },
            ..Carried::default()
        }
    }

    /// Ends the sequence with its tokens.
    pub(super) fn finish(mut self, stop: StopReason, now: Instant) -> Generation {
        self.generated.token_ids = self.tokens.split_off(self.prompt.tokens.len());
        self.generated.stop = stop;
        let generated = std::mem::take(&mut self.generated);
        self.end(Ok(generated), now)
    }

    /// Ends the sequence without tokens.
    pub(super) fn fail(self, failure: RowFailure, now: Instant) -> Generation {
        self.end(Err(failure), now)
    }

    fn end(self, result: Result<Generated, RowFailure>, now: Instant) -> Generation {
        Generation {
            row: self.prompt.row,
            sample_index: self.sample_index,
            prompt_tokens: self.prompt.tokens.len() as u32,
            cached_tokens: self.cached_tokens,
            reused: false,
            result,
            timing: self.clock.timing(now),
        }
    }
}
