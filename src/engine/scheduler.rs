//! What each step computes: one token of every decoding sequence, then chunks of prompts, then new
//! sequences, as far as the batch, the step and the cache allow. New sequences go to the rank that has the
//! least to do for them.
//!
//! Decides only; the model computes and the engine samples. None of its decisions changes a completion.

use std::sync::Arc;
use std::time::Instant;

use super::blocks::Blocks;
use super::load::{Load, shared_blocks};
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
    /// Ranks that sequences are shared out over.
    pub ranks: usize,
    /// Blocks of each rank's latent cache.
    pub blocks: usize,
}

/// Waiting and running sequences, and the caches' blocks.
pub(super) struct Scheduler {
    limits: Limits,
    /// Of each rank.
    pub(super) blocks: Vec<Blocks>,
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

/// A step of each rank.
pub(super) struct Plan {
    pub(super) ranks: Vec<RankPlan>,
}

/// A rank's step, and which running sequences get a token from it.
#[derive(Clone, Default)]
pub(super) struct RankPlan {
    pub(super) step: Arc<Step>,
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
            blocks: (0..limits.ranks).map(|_| Blocks::new(limits.blocks)).collect(),
            waiting: Window::default(),
            running: Vec::new(),
            preemptions: 0,
            recomputed_tokens: 0,
        }
    }

    /// Longest sequence that a rank's cache can hold alone.
    pub(super) fn max_tokens(&self) -> usize {
        self.limits.blocks * BLOCK_TOKENS
    }

    /// Decides the next step; nothing waits and nothing runs if it is empty.
    pub(super) fn plan(&mut self, now: Instant) -> Vec<Share> {
        let of_rank = self.limits.max_step_tokens.div_ceil(self.limits.ranks);
        let mut budgets = vec![of_rank; self.limits.ranks];
        let mut shares = Vec::new();
        self.share_decodes(&mut budgets, &mut shares);
        for (rank, budget) in budgets.iter_mut().enumerate() {
            self.share_prompts(rank, budget, &mut shares);
        }
        self.admit(&mut budgets, &mut shares, now);
        shares
    }

    /// One token each for sequences that decode. When a rank's blocks run out its youngest gives its own
    /// back.
    fn share_decodes(&mut self, budgets: &mut [usize], shares: &mut Vec<Share>) {
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &self.running[index].1;
            let rank = sequence.rank;
            if sequence.pending() == 1 {
                if !self.reserve(index, 1) {
                    self.preempt_youngest(rank, shares);
                    continue;
                }
                shares.push(Share { index, tokens: 1 });
                budgets[rank] -= 1;
            }
            index += 1;
        }
    }

    /// Chunks for a rank's sequences whose prompt is not in the cache yet.
    fn share_prompts(&mut self, rank: usize, budget: &mut usize, shares: &mut Vec<Share>) {
        let mut company = 0;
        for index in 0..self.running.len() {
            let sequence = &self.running[index].1;
            company += usize::from(sequence.rank == rank);
            let pending = sequence.pending();
            if sequence.rank == rank && pending > 1 {
                let tokens = self.affordable(index, pending.min(*budget));
                if tokens > 0 && self.reserve(index, tokens) {
                    shares.push(Share { index, tokens });
                    *budget -= tokens;
                }
            }
        }
        // Every share could have been refused for lack of blocks: the oldest must always move.
        let moves = shares.iter().any(|share| self.running[share.index].1.rank == rank);
        if !moves && company > 1 {
            self.preempt_youngest(rank, shares);
            self.share_prompts(rank, budget, shares);
        }
    }

    /// Takes waiting sequences in while there is room for their tokens and one more block.
    fn admit(&mut self, budgets: &mut [usize], shares: &mut Vec<Share>, now: Instant) {
        if self.waiting.is_empty() || self.running.len() >= self.limits.max_sequences {
            return;
        }
        let mut loads = self.loads();
        let most = self.limits.max_sequences.div_ceil(self.limits.ranks);
        while self.running.len() < self.limits.max_sequences {
            let best = |sequence: &Sequence| {
                let open = |rank: &usize| budgets[*rank] > 0 && loads[*rank].sequences < most;
                let ranks = (0..budgets.len()).filter(open);
                let costs = ranks.filter_map(|rank| {
                    Some((loads[rank].cost(&self.blocks[rank], sequence)?, rank))
                });
                costs.min().map(|(_, rank)| rank)
            };
            let next = self.waiting.pop(ADMISSION_DEPTH, |sequence| best(sequence).is_some());
            let Some((order, mut sequence)) = next else { return };
            let Some(rank) = best(&sequence) else { return };
            sequence.rank = rank;
            for block in shared_blocks(&self.blocks[rank], &sequence) {
                self.blocks[rank].share(block);
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
            loads[rank].add(&sequence);
            self.running.push((order, sequence));
            let tokens = self.affordable(index, pending.min(budgets[rank]));
            if tokens == 0 || !self.reserve(index, tokens) {
                budgets[rank] = 0;
                continue;
            }
            shares.push(Share { index, tokens });
            budgets[rank] -= tokens;
        }
    }

    /// What each rank has to do.
    fn loads(&self) -> Vec<Load> {
        let mut loads: Vec<Load> = (0..self.limits.ranks).map(|_| Load::default()).collect();
        self.running.iter().for_each(|(_, sequence)| loads[sequence.rank].add(sequence));
        loads
    }

    /// How many of `tokens` the available blocks allow.
    fn affordable(&self, index: usize, tokens: usize) -> usize {
        let sequence = &self.running[index].1;
        let available = self.blocks[sequence.rank].available();
        let room = (sequence.blocks.len() + available) * BLOCK_TOKENS - sequence.cached;
        tokens.min(room)
    }

    /// Gives a sequence the blocks for its next tokens, all or none.
    fn reserve(&mut self, index: usize, tokens: usize) -> bool {
        let sequence = &mut self.running[index].1;
        let blocks = &mut self.blocks[sequence.rank];
        let wanted =
            (sequence.cached + tokens).div_ceil(BLOCK_TOKENS).saturating_sub(sequence.blocks.len());
        if wanted > blocks.available() {
            return false;
        }
        sequence.blocks.extend((0..wanted).map_while(|_| blocks.take()));
        if wanted > 0 {
            sequence.table = sequence.blocks.as_slice().into();
        }
        true
    }

    /// The youngest sequence of a rank gives its blocks back and waits; its tokens are kept.
    fn preempt_youngest(&mut self, rank: usize, shares: &mut [Share]) {
        let youngest = self.running.iter().rposition(|(_, sequence)| sequence.rank == rank);
        let youngest = youngest.expect("only a running sequence can want for blocks");
        let (order, sequence) = self.remove(youngest);
        self.waiting.push(order, sequence);
        self.preemptions += 1;
        // Younger sequences of other ranks move up.
        shares.iter_mut().filter(|share| share.index > youngest).for_each(|share| share.index -= 1);
    }

    /// Takes a sequence out of the running batch and its blocks back.
    pub(super) fn remove(&mut self, index: usize) -> (Order, Sequence) {
        let (order, mut sequence) = self.running.remove(index);
        // Last block first, so that a shared beginning is forgotten last.
        for block in sequence.blocks.drain(..).rev() {
            self.blocks[sequence.rank].give_back(block);
        }
        sequence.cached = 0;
        (order, sequence)
    }

    /// The steps of some shares.
    pub(super) fn assemble(&self, shares: &[Share]) -> Plan {
        let mut ranks = vec![RankPlan::default(); self.limits.ranks];
        for &Share { index, tokens } in shares {
            let sequence = &self.running[index].1;
            let plan = &mut ranks[sequence.rank];
            let step = Arc::make_mut(&mut plan.step);
            add_tokens(step, sequence, tokens);
            plan.owners.resize(step.spans.len(), index);
            if tokens == sequence.pending() {
                step.outputs.push(step.tokens.len() as u32 - 1);
                plan.sampled.push(index);
            }
        }
        Plan { ranks }
    }

    /// Notes that a computed step's tokens are in the cache, and names prompt blocks that are complete.
    pub(super) fn computed(&mut self, plan: &RankPlan) {
        for (span, &index) in plan.step.spans.iter().zip(&plan.owners) {
            let sequence = &mut self.running[index].1;
            let before = sequence.cached / BLOCK_TOKENS;
            sequence.cached = span.first_position + span.count;
            let again = sequence.once_cached.min(sequence.cached);
            self.recomputed_tokens += again.saturating_sub(span.first_position) as u64;
            sequence.once_cached = sequence.once_cached.max(sequence.cached);
            for full in before..(sequence.cached / BLOCK_TOKENS).min(sequence.hashes.len()) {
                self.blocks[sequence.rank].name(sequence.blocks[full], sequence.hashes[full]);
            }
        }
    }
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
            blocks: sequence.table.clone(),
        });
        step.tokens.extend_from_slice(&sequence.tokens[range.clone()]);
        step.positions.extend(range.clone().map(|position| position as u32));
        step.slots.extend(range.map(slot));
    }
}
