//! What a rank has to do, and what one more sequence would cost it.

use std::collections::HashSet;

use super::blocks::{Blocks, PrefixHash};
use super::sequence::Sequence;
use crate::ops::BLOCK_TOKENS;

/// A rank's running sequences.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// How many.
    pub(super) sequences: usize,
    /// Tokens that they have and are expected to get: what each step reads of the cache.
    tokens: usize,
    /// Blocks that they are about to complete: who needs one of them waits for it.
    promised: HashSet<PrefixHash>,
}

impl Load {
    /// Adds a sequence that runs on the rank.
    pub(super) fn add(&mut self, sequence: &Sequence) {
        self.sequences += 1;
        self.tokens += expected_tokens(sequence);
        self.promised.extend(sequence.hashes.iter().skip(sequence.cached / BLOCK_TOKENS));
    }

    /// Tokens that the rank would have to do with, if it took a sequence: those of its cache and those to
    /// compute. None: it has no room, or soon has a beginning that the sequence can share.
    pub(super) fn cost(&self, blocks: &Blocks, sequence: &Sequence) -> Option<usize> {
        let shared = shared_blocks(blocks, sequence);
        let fresh = (sequence.tokens.len() + 1).div_ceil(BLOCK_TOKENS) - shared.len();
        let revived = shared.iter().filter(|&&block| blocks.is_unused(block)).count();
        let next = sequence.hashes.get(shared.len());
        let promise = next.is_some_and(|hash| self.promised.contains(hash));
        // Running sequences will soon want a block each: admitting into their room would only preempt.
        let room = blocks.available() >= fresh + revived + self.sequences;
        let takes = !promise && (room || self.sequences == 0);
        takes.then(|| self.tokens + sequence.tokens.len() - shared.len() * BLOCK_TOKENS)
    }
}

fn expected_tokens(sequence: &Sequence) -> usize {
    let left = sequence.expected.saturating_sub(sequence.completion_tokens());
    sequence.tokens.len() + left
}

/// Cached blocks that a waiting sequence can begin with.
pub(super) fn shared_blocks(blocks: &Blocks, sequence: &Sequence) -> Vec<u32> {
    sequence.hashes.iter().map_while(|&hash| blocks.find(hash)).collect()
}
