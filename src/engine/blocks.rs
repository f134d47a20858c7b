//! Who owns which block of the latent cache.
//!
//! Blocks are counted by reference. A block full of prompt tokens is known by a hash of all tokens up
//! to its end, so that sequences with a shared beginning share it; when nobody uses it any more it
//! stays until its memory is needed, the longest unused first.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::ops::BLOCK_TOKENS;

/// Names a full block of prompt tokens by everything up to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PrefixHash([u64; 2]);

/// The hashes of all full blocks of `tokens`.
pub(super) fn prefix_hashes(tokens: &[u32]) -> Vec<PrefixHash> {
    let mut before = PrefixHash([0, 1]);
    let mut hashes = Vec::with_capacity(tokens.len() / BLOCK_TOKENS);
    for block in tokens.chunks_exact(BLOCK_TOKENS) {
        // Two independent 64-bit hashes: a collision would silently answer with another prompt.
        before = PrefixHash(before.0.map(|half| {
            let mut hasher = DefaultHasher::new();
            (half, block).hash(&mut hasher);
            hasher.finish()
        }));
        hashes.push(before);
    }
    hashes
}

/// The blocks of the pool: used, kept for their contents, or free.
#[derive(Debug)]
pub(super) struct Blocks {
    users: Vec<u32>,
    names: Vec<Option<PrefixHash>>,
    by_name: HashMap<PrefixHash, u32>,
    free: Vec<u32>,
    /// Unused blocks with known contents, by when they fell out of use.
    unused: BTreeMap<u64, u32>,
    unused_since: Vec<u64>,
    clock: u64,
}

impl Blocks {
    pub(super) fn new(count: usize) -> Self {
        Self {
            users: vec![0; count],
            names: vec![None; count],
            by_name: HashMap::new(),
            free: (0..count as u32).rev().collect(),
            unused: BTreeMap::new(),
            unused_since: vec![0; count],
            clock: 0,
        }
    }

    /// Blocks that can be taken now.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.unused.len()
    }

    /// Takes a block whose contents do not matter; forgets the longest unused one if none is free.
    pub(super) fn take(&mut self) -> Option<u32> {
        let block = self.free.pop().or_else(|| {
            let (_, block) = self.unused.pop_first()?;
            if let Some(name) = self.names[block as usize].take() {
                self.by_name.remove(&name);
            }
            Some(block)
        })?;
        self.users[block as usize] = 1;
        Some(block)
    }

    /// The block with these contents, if it is cached; does not take it.
    pub(super) fn find(&self, name: PrefixHash) -> Option<u32> {
        self.by_name.get(&name).copied()
    }

    /// Whether taking this block costs one of the available ones.
    pub(super) fn is_unused(&self, block: u32) -> bool {
        self.users[block as usize] == 0
    }

    /// Shares a block that `find` gave.
    pub(super) fn share(&mut self, block: u32) {
        if self.users[block as usize] == 0 {
            self.unused.remove(&self.unused_since[block as usize]);
        }
        self.users[block as usize] += 1;
    }

    /// Names a block whose contents are complete; an equal one that is known already stays the known one.
    pub(super) fn name(&mut self, block: u32, name: PrefixHash) {
        if let std::collections::hash_map::Entry::Vacant(entry) = self.by_name.entry(name) {
            entry.insert(block);
            self.names[block as usize] = Some(name);
        }
    }

    /// Gives a block back; named contents are kept while memory lasts.
    pub(super) fn give_back(&mut self, block: u32) {
        let users = &mut self.users[block as usize];
        *users -= 1;
        if *users > 0 {
            return;
        }
        if self.names[block as usize].is_none() {
            self.free.push(block);
            return;
        }
        self.clock += 1;
        self.unused_since[block as usize] = self.clock;
        self.unused.insert(self.clock, block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_blocks_outlive_their_user_until_memory_is_needed() {
        let mut blocks = Blocks::new(2);
        let names = prefix_hashes(&(0..32).collect::<Vec<u32>>());
        let (a, b) = (blocks.take().unwrap(), blocks.take().unwrap());
        assert_eq!(blocks.take(), None);
        blocks.name(a, names[0]);
        blocks.name(b, names[1]);
        blocks.give_back(a);
        blocks.give_back(b);
        assert_eq!(blocks.available(), 2);
        blocks.share(blocks.find(names[1]).unwrap());
        assert_eq!(blocks.take(), Some(a));
        assert_eq!(
            (blocks.find(names[0]), blocks.find(names[1]), blocks.take()),
            (None, Some(b), None)
        );
    }

    #[test]
    fn a_shared_block_returns_with_its_last_user() {
        let mut blocks = Blocks::new(1);
        let block = blocks.take().unwrap();
        blocks.share(block);
        blocks.give_back(block);
        assert_eq!(blocks.available(), 0);
        blocks.give_back(block);
        assert_eq!(blocks.available(), 1);
    }

    #[test]
    fn a_hash_covers_everything_before_it() {
        let a = prefix_hashes(&[1; 40]);
        let b = prefix_hashes(&[&[2][..], &[1; 39]].concat());
        assert_eq!(a.len(), 2);
        assert!(a[0] != b[0] && a[1] != b[1] && a[0] != a[1]);
    }
}
