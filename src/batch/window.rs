//! The window: prompts that wait for the running batch, in the order in which they should enter it.
//!
//! Prompts with a shared beginning stand together, so that its latents are still cached when the next of
//! them comes; groups and, within them, prompts with the longest expected work come first, so that the
//! batch stays full to the last row.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Tokens by which groups are told apart, and by which prompts of like length are told apart in them.
const PREFIX_TOKENS: [usize; 2] = [32, 512];

/// Where a prompt stands in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    group: u64,
    place: Place,
}

/// Where it stands in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    bucket: Reverse<u32>,
    beginning: u64,
    tokens: Reverse<usize>,
    arrival: u64,
}

impl Order {
    /// The order of a prompt that is expected to generate so many tokens, the `arrival`-th of the job.
    pub fn new(prompt: &[u32], expected: usize, arrival: u64) -> Self {
        let [group, beginning] = PREFIX_TOKENS.map(|tokens| {
            let mut hasher = DefaultHasher::new();
            prompt[..prompt.len().min(tokens)].hash(&mut hasher);
            hasher.finish()
        });
        Self { group, place: Place::new(beginning, prompt.len() + expected, arrival) }
    }

    /// The prompts that begin alike.
    pub fn group(&self) -> u64 {
        self.group
    }

    /// The order of the same prompt with another expectation; `tokens` counts prompt and completion.
    #[must_use]
    pub fn expecting(self, tokens: usize) -> Self {
        let Place { beginning, arrival, .. } = self.place;
        Self { place: Place::new(beginning, tokens, arrival), ..self }
    }
}

impl Place {
    fn new(beginning: u64, tokens: usize, arrival: u64) -> Self {
        Self { bucket: Reverse(bucket(tokens)), beginning, tokens: Reverse(tokens), arrival }
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
    groups: HashMap<u64, Group<T>>,
    /// Groups in order: by the longest work they had since they were last empty, so that a group that
    /// was begun is finished before the next.
    ranks: BTreeSet<(Reverse<u32>, u64)>,
    len: usize,
}

#[derive(Debug)]
struct Group<T> {
    longest: Reverse<u32>,
    members: BTreeMap<Place, T>,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self { groups: HashMap::new(), ranks: BTreeSet::new(), len: 0 }
    }
}

impl<T> Window<T> {
    /// Adds work.
    pub fn push(&mut self, order: Order, work: T) {
        let Order { group: id, place } = order;
        let new = || Group { longest: place.bucket, members: BTreeMap::new() };
        let group = self.groups.entry(id).or_insert_with(new);
        if place.bucket < group.longest {
            self.ranks.remove(&(group.longest, id));
            group.longest = place.bucket;
        }
        self.ranks.insert((group.longest, id));
        group.members.insert(place, work);
        self.len += 1;
    }

    /// Takes the first work that `fits`, looking at no more than `depth`.
    pub fn pop(&mut self, depth: usize, fits: impl Fn(&T) -> bool) -> Option<(Order, T)> {
        let order = {
            let mut looked = self.in_order().take(depth);
            looked.find(|(_, work)| fits(work)).map(|(order, _)| order)?
        };
        let group = self.groups.get_mut(&order.group)?;
        let work = group.members.remove(&order.place)?;
        self.len -= 1;
        if group.members.is_empty() {
            self.ranks.remove(&(group.longest, order.group));
            self.groups.remove(&order.group);
        }
        Some((order, work))
    }

    /// Gives all work new orders.
    pub fn reorder(&mut self, mut order: impl FnMut(Order, &mut T) -> Order) {
        for (id, group) in std::mem::take(self).groups {
            for (place, mut work) in group.members {
                let order = order(Order { group: id, place }, &mut work);
                self.push(order, work);
            }
        }
    }

    /// Waiting work, first to last.
    pub fn in_order(&self) -> impl Iterator<Item = (Order, &T)> {
        self.ranks.iter().flat_map(|(_, id)| {
            let members = self.groups[id].members.iter();
            members.map(|(place, work)| (Order { group: *id, place: *place }, work))
        })
    }

    /// How much waits.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emptied(mut window: Window<usize>) -> Vec<usize> {
        std::iter::from_fn(|| window.pop(1, |_| true)).map(|(_, work)| work).collect()
    }

    #[test]
    fn groups_are_finished_one_by_one_the_longest_work_first() {
        let prompt = |head: u32, length: usize| {
            [vec![head; 32], (0..length as u32).collect::<Vec<_>>()].concat()
        };
        let mut window = Window::default();
        let prompts = [
            prompt(1, 10),
            prompt(2, 500),
            prompt(1, 900),
            prompt(2, 40),
            vec![3; 700],
            vec![4; 8],
        ];
        for (arrival, tokens) in prompts.iter().enumerate() {
            window.push(Order::new(tokens, 16, arrival as u64), arrival);
        }
        assert_eq!(window.len(), 6);
        assert_eq!(emptied(window), [2, 0, 4, 1, 3, 5]);
    }

    #[test]
    fn new_expectations_give_a_new_order() {
        let mut window = Window::default();
        for arrival in 0..3u32 {
            window.push(Order::new(&[arrival], 100, u64::from(arrival)), arrival as usize);
        }
        window.reorder(|order, work| order.expecting(10 * (*work + 1)));
        assert_eq!(emptied(window), [2, 1, 0]);
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
