//! The window: prompts that wait for the running batch, in the order in which they should enter it.
//!
//! Long work comes first, so that the batch stays full to the last row; within like lengths, prompts
//! with a shared beginning stand together, so that its latents are still cached when the next of them
//! comes. Knows lengths and tokens, nothing of the engine.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Tokens by which two beginnings are told apart.
const PREFIX_TOKENS: usize = 32;

/// Where a prompt stands in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    bucket: Reverse<u32>,
    prefix: u64,
    tokens: Reverse<usize>,
    arrival: u64,
}

impl Order {
    /// The order of a prompt that may generate up to `max_tokens`, the `arrival`-th of the job.
    pub fn new(prompt: &[u32], max_tokens: u32, arrival: u64) -> Self {
        let tokens = prompt.len() + max_tokens as usize;
        let mut hasher = DefaultHasher::new();
        prompt[..prompt.len().min(PREFIX_TOKENS)].hash(&mut hasher);
        Self {
            bucket: Reverse(bucket(tokens)),
            prefix: hasher.finish(),
            tokens: Reverse(tokens),
            arrival,
        }
    }
}

/// Like lengths share a bucket: four buckets for each doubling.
fn bucket(tokens: usize) -> u32 {
    let tokens = tokens.max(4) as u64;
    let doublings = tokens.ilog2();
    doublings * 4 + ((tokens >> (doublings - 2)) & 3) as u32
}

/// Waiting work, by order.
#[derive(Debug)]
pub struct Window<T> {
    waiting: BTreeMap<Order, T>,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new() }
    }
}

impl<T> Window<T> {
    /// Adds work.
    pub fn push(&mut self, order: Order, work: T) {
        self.waiting.insert(order, work);
    }

    /// Takes the first work that `fits`, looking at no more than `depth`.
    pub fn pop(&mut self, depth: usize, fits: impl Fn(&T) -> bool) -> Option<(Order, T)> {
        let order = self
            .waiting
            .iter()
            .take(depth)
            .find(|(_, work)| fits(work))
            .map(|(order, _)| *order)?;
        self.waiting.remove_entry(&order)
    }

    /// Waiting work, first to last.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.values()
    }

    /// How much waits.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_work_comes_first_and_shared_beginnings_stand_together() {
        let header: Vec<u32> = (0..40).collect();
        let prompt = |tail: u32| [header.clone(), vec![tail; 8]].concat();
        let other = |tail: u32| vec![tail; 48];
        let mut window = Window::default();
        let prompts = [prompt(1), other(2), prompt(3), other(4), prompt(5), vec![6; 500]];
        for (arrival, tokens) in prompts.iter().enumerate() {
            window.push(Order::new(tokens, 16, arrival as u64), arrival);
        }
        let order: Vec<usize> =
            std::iter::from_fn(|| window.pop(1, |_| true)).map(|(_, arrival)| arrival).collect();
        assert_eq!(order[0], 5);
        let places: Vec<usize> =
            [0, 2, 4].iter().map(|a| order.iter().position(|b| a == b).unwrap()).collect();
        assert_eq!(places[2] - places[0], 2, "{order:?}");
    }

    #[test]
    fn work_that_does_not_fit_is_passed_over_within_the_depth() {
        let mut window = Window::default();
        for arrival in 0..4 {
            window.push(Order::new(&[1], 8, arrival), arrival);
        }
        assert_eq!(window.pop(2, |&work| work == 3), None);
        assert_eq!(window.pop(4, |&work| work == 3).map(|(_, work)| work), Some(3));
        assert_eq!(window.len(), 3);
    }

    #[test]
    fn buckets_grow_with_length() {
        assert!((4..5000).map(bucket).is_sorted());
        assert_eq!(bucket(4096), bucket(4097));
        assert!(bucket(4095) < bucket(4096));
    }
}
