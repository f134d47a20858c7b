//! What each step computes: one token of every decoding sequence, then chunks of prompts, then new
//! sequences, as far as the batch, the step and the cache allow.
//!
//! Decides only; the model computes and the engine samples. None of its decisions changes a completion.

use std::collections::HashSet;
use std::time::Instant;

use super::blocks::{Blocks, PrefixHash};
use super::sequence::Sequence;
use crate::batch::{Order, Window};
use crate::model::Step;
use crate::ops::{BLOCK_TOKENS, Form, Span};

/// Waiting sequences that are looked at to fill a step.
const ADMISSION_DEPTH: usize = 64;

/// Bounds of a step.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most running sequences.
    pub max_sequences: usize,
    /// Most tokens of a step; never below `max_sequences`, so that decoding is not starved.
    pub max_step_tokens: usize,
    /// Blocks of the latent cache.
    pub blocks: usize,
}

/// Waiting and running sequences, and the cache's blocks.
pub(super) struct Scheduler {
    limits: Limits,
    pub(super) blocks: Blocks,
    pub(super) waiting: Window<Sequence>,
    /// In order of admission: the last is the youngest.
    pub(super) running: Vec<(Order, Sequence)>,
    pub(super) preemptions: u64,
    /// Tokens that were computed again after a preemption.
    pub(super) recomputed_tokens: u64,
}

/// A sequence's part of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Index in `running`.
    pub(super) index: usize,
    tokens: usize,
}

/// A step, and which running sequences get a token from it.
pub(super) struct Plan {
    pub(super) step: Step,
    /// Index in `running` for each of the step's spans.
    owners: Vec<usize>,
    /// Index in `running` for each of the step's outputs.
    pub(super) sampled: Vec<usize>,
}

impl Scheduler {
    pub(super) fn new(limits: Limits) -> Self {
        let limits =
            Limits { max_step_tokens: limits.max_step_tokens.max(limits.max_sequences), ..limits };
        Self {
            limits,
            blocks: Blocks::new(limits.blocks),
            waiting: Window::default(),
            running: Vec::new(),
            preemptions: 0,
            recomputed_tokens: 0,
        }
    }

    /// Longest sequence that the cache can hold alone.
    pub(super) fn max_tokens(&self) -> usize {
        self.limits.blocks * BLOCK_TOKENS
    }

    /// Decides the next step; nothing waits and nothing runs if it is empty.
    pub(super) fn plan(&mut self, now: Instant) -> Vec<Share> {
        let mut budget = self.limits.max_step_tokens;
        let mut shares = Vec::new();
        self.share_decodes(&mut budget, &mut shares);
        self.share_prompts(&mut budget, &mut shares);
        self.admit(&mut budget, &mut shares, now);
        shares
    }

    /// One token each for sequences that decode. When blocks run out the youngest gives its own back.
    fn share_decodes(&mut self, budget: &mut usize, shares: &mut Vec<Share>) {
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].1.pending() == 1 {
                if !self.reserve(index, 1) {
                    self.preempt_youngest();
                    continue;
                }
                shares.push(Share { index, tokens: 1 });
                *budget -= 1;
            }
            index += 1;
        }
    }

    /// Chunks for admitted sequences whose prompt is not in the cache yet.
    fn share_prompts(&mut self, budget: &mut usize, shares: &mut Vec<Share>) {
        for index in 0..self.running.len() {
            let pending = self.running[index].1.pending();
            if pending > 1 {
                let tokens = self.affordable(index, pending.min(*budget));
                if tokens > 0 && self.reserve(index, tokens) {
                    shares.push(Share { index, tokens });
                    *budget -= tokens;
                }
            }
        }
        // Every share could have been refused for lack of blocks: the oldest must always move.
        if shares.is_empty() && self.running.len() > 1 {
            self.preempt_youngest();
            self.share_prompts(budget, shares);
        }
    }

    /// Takes waiting sequences in while there is room for their tokens and one more block.
    fn admit(&mut self, budget: &mut usize, shares: &mut Vec<Share>, now: Instant) {
        while *budget > 0 && self.running.len() < self.limits.max_sequences {
            let promised = self.promised();
            let (blocks, alone) = (&self.blocks, self.running.is_empty());
            let spare = self.running.len();
            let fits = |sequence: &Sequence| {
                let shared = shared_blocks(blocks, sequence);
                let fresh = (sequence.tokens.len() + 1).div_ceil(BLOCK_TOKENS) - shared.len();
                let revived = shared.iter().filter(|&&block| blocks.is_unused(block)).count();
                let promise =
                    sequence.hashes.get(shared.len()).is_some_and(|hash| promised.contains(hash));
                // Running sequences will soon want a block each: admitting into their room would only preempt.
                let room = blocks.available() >= fresh + revived + spare;
                !promise && (room || alone)
            };
            let Some((order, mut sequence)) = self.waiting.pop(ADMISSION_DEPTH, fits) else {
                return;
            };
            for block in shared_blocks(&self.blocks, &sequence) {
                self.blocks.share(block);
                sequence.blocks.push(block);
            }
            sequence.cached = sequence.blocks.len() * BLOCK_TOKENS;
            if sequence.clock.admitted.is_none() {
                sequence.clock.admitted = Some(now);
                if sequence.completion_tokens() == 0 {
                    sequence.cached_tokens = sequence.cached as u32;
                }
            }
            let index = self.running.len();
            let pending = sequence.pending();
            self.running.push((order, sequence));
            let tokens = self.affordable(index, pending.min(*budget));
            if tokens == 0 || !self.reserve(index, tokens) {
                return;
            }
            shares.push(Share { index, tokens });
            *budget -= tokens;
        }
    }

    /// Blocks that running sequences are about to complete: who needs one of them waits for it.
    fn promised(&self) -> HashSet<PrefixHash> {
        let prefilling = self.running.iter().map(|(_, sequence)| sequence);
        prefilling.flat_map(|s| s.hashes.iter().skip(s.cached / BLOCK_TOKENS).copied()).collect()
    }

    /// How many of `tokens` the available blocks allow.
    fn affordable(&self, index: usize, tokens: usize) -> usize {
        let sequence = &self.running[index].1;
        let room =
            (sequence.blocks.len() + self.blocks.available()) * BLOCK_TOKENS - sequence.cached;
        tokens.min(room)
    }

    /// Gives a sequence the blocks for its next tokens, all or none.
    fn reserve(&mut self, index: usize, tokens: usize) -> bool {
        let sequence = &mut self.running[index].1;
        let wanted =
            (sequence.cached + tokens).div_ceil(BLOCK_TOKENS).saturating_sub(sequence.blocks.len());
        if wanted > self.blocks.available() {
            return false;
        }
        sequence.blocks.extend((0..wanted).map_while(|_| self.blocks.take()));
        true
    }

    /// The youngest sequence gives its blocks back and waits; its tokens are kept.
    fn preempt_youngest(&mut self) {
        let (order, mut sequence) =
            self.running.pop().expect("only a running sequence can want for blocks");
        self.release(&mut sequence);
        self.waiting.push(order, sequence);
        self.preemptions += 1;
    }

    /// Takes a sequence out of the running batch and its blocks back.
    pub(super) fn remove(&mut self, index: usize) -> (Order, Sequence) {
        let (order, mut sequence) = self.running.remove(index);
        self.release(&mut sequence);
        (order, sequence)
    }

    fn release(&mut self, sequence: &mut Sequence) {
        // Last block first, so that a shared beginning is forgotten last.
        for block in sequence.blocks.drain(..).rev() {
            self.blocks.give_back(block);
        }
        sequence.cached = 0;
    }

    /// The step of some shares.
    pub(super) fn assemble(&self, shares: &[Share]) -> Plan {
        let mut plan = Plan { step: Step::default(), owners: Vec::new(), sampled: Vec::new() };
        for &Share { index, tokens } in shares {
            let sequence = &self.running[index].1;
            add_tokens(&mut plan.step, sequence, tokens);
            plan.owners.resize(plan.step.spans.len(), index);
            if tokens == sequence.pending() {
                plan.step.outputs.push(plan.step.tokens.len() as u32 - 1);
                plan.sampled.push(index);
            }
        }
        plan
    }

    /// Notes that a computed step's tokens are in the cache, and names prompt blocks that are complete.
    pub(super) fn computed(&mut self, plan: &Plan) {
        for (span, &index) in plan.step.spans.iter().zip(&plan.owners) {
            let sequence = &mut self.running[index].1;
            let before = sequence.cached / BLOCK_TOKENS;
            sequence.cached = span.first_position + span.count;
            let again = sequence.once_cached.min(sequence.cached);
            self.recomputed_tokens += again.saturating_sub(span.first_position) as u64;
            sequence.once_cached = sequence.once_cached.max(sequence.cached);
            for full in before..(sequence.cached / BLOCK_TOKENS).min(sequence.hashes.len()) {
                self.blocks.name(sequence.blocks[full], sequence.hashes[full]);
            }
        }
    }
}

/// Cached blocks that a waiting sequence can begin with.
fn shared_blocks(blocks: &Blocks, sequence: &Sequence) -> Vec<u32> {
    sequence.hashes.iter().map_while(|&hash| blocks.find(hash)).collect()
}

/// Adds a sequence's next tokens to a step: prompt tokens in their form, generated ones in theirs.
fn add_tokens(step: &mut Step, sequence: &Sequence, count: usize) {
    let end = sequence.cached + count;
    let boundary = sequence.prompt_tokens().clamp(sequence.cached, end);
    for (range, form) in
        [(sequence.cached..boundary, Form::Prompt), (boundary..end, Form::Generated)]
    {
        if range.is_empty() {
            continue;
        }
        let slot = |position: usize| {
            sequence.blocks[position / BLOCK_TOKENS] * BLOCK_TOKENS as u32
                + (position % BLOCK_TOKENS) as u32
        };
        step.spans.push(Span {
            first_row: step.tokens.len(),
            count: range.len(),
            first_position: range.start,
            form,
            blocks: sequence.blocks[..range.end.div_ceil(BLOCK_TOKENS)].to_vec(),
        });
        step.tokens.extend_from_slice(&sequence.tokens[range.clone()]);
        step.positions.extend(range.clone().map(|position| position as u32));
        step.slots.extend(range.map(slot));
    }
}
