//! Identical greedy requests: computed once, answered many times.

use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Instant;

use crate::row::{Generation, Prompt, RowRef, Timing};

/// Answers are kept for later twins up to so many tokens.
const KEPT_TOKENS: usize = 1 << 20;

/// A sample that waits for its twin's answer.
#[derive(Clone, Copy)]
pub(super) struct Twin {
    pub(super) row: RowRef,
    pub(super) sample_index: u32,
    pub(super) received: Instant,
}

/// Greedy requests on their way, and the answers of those that ended.
#[derive(Default)]
pub(super) struct Twins {
    known: HashMap<Request, State>,
    /// Requests whose answers are kept, oldest first.
    answered: VecDeque<Request>,
    kept_tokens: usize,
}

enum State {
    OnItsWay(Vec<Twin>),
    Answered(Box<Generation>),
}

/// What became of a request.
pub(super) enum Met {
    /// It is the first of its kind and must be computed.
    First,
    /// It is answered when its twin is.
    Waits,
    /// It is answered.
    Answered(Box<Generation>),
}

/// A prompt, equal to others that have the same greedy completion.
#[derive(Clone)]
struct Request(Prompt);

impl Hash for Request {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.tokens.hash(state);
    }
}

impl PartialEq for Request {
    fn eq(&self, other: &Self) -> bool {
        self.0.tokens == other.0.tokens && self.0.sampling.same_greedy(&other.0.sampling)
    }
}

impl Eq for Request {}

impl Twins {
    /// Looks for a twin of a sample; only greedy ones have any.
    pub(super) fn meet(&mut self, prompt: &Prompt, twin: Twin) -> Met {
        if !may_have_twins(prompt) {
            return Met::First;
        }
        let request = Request(prompt.clone());
        match self.known.get_mut(&request) {
            None => {
                self.known.insert(request, State::OnItsWay(Vec::new()));
                Met::First
            }
            Some(State::OnItsWay(waiting)) => {
                waiting.push(twin);
                Met::Waits
            }
            Some(State::Answered(answer)) => Met::Answered(Box::new(answer_of(answer, twin))),
        }
    }

    /// Answers those that waited for a sample, and keeps the answer for those to come.
    pub(super) fn answer(&mut self, prompt: &Prompt, generation: &Generation) -> Vec<Generation> {
        if !may_have_twins(prompt) {
            return Vec::new();
        }
        let request = Request(prompt.clone());
        let Some(State::OnItsWay(waiting)) = self.known.remove(&request) else {
            return Vec::new();
        };
        let answers = waiting.into_iter().map(|twin| answer_of(generation, twin)).collect();
        if generation.result.is_ok() {
            self.keep(request, generation.clone());
        }
        answers
    }

    fn keep(&mut self, request: Request, generation: Generation) {
        self.kept_tokens += weight(&request, &generation);
        self.known.insert(request.clone(), State::Answered(Box::new(generation)));
        self.answered.push_back(request);
        while self.kept_tokens > KEPT_TOKENS {
            let Some(oldest) = self.answered.pop_front() else { return };
            if let Some(State::Answered(answer)) = self.known.remove(&oldest) {
                self.kept_tokens -= weight(&oldest, &answer);
            }
        }
    }
}

/// Samples with given tokens differ from each other, and draws from draw to draw.
fn may_have_twins(prompt: &Prompt) -> bool {
    prompt.sampling.temperature == 0.0 && prompt.continuations.is_empty()
}

/// What an answer costs to keep, about, in tokens.
fn weight(request: &Request, answer: &Generation) -> usize {
    let tokens = answer.result.as_ref().map_or(0, |generated| {
        let top: usize = generated.top_logprobs.iter().map(Vec::len).sum();
        let routes: usize = generated.routed_experts.iter().map(Vec::len).sum();
        generated.token_ids.len() + 2 * top + routes / 2
    });
    // The entry itself counts too, so that short answers cannot pile up.
    request.0.tokens.len() + tokens + 128
}

fn answer_of(answer: &Generation, twin: Twin) -> Generation {
    let waited = twin.received.elapsed();
    Generation {
        row: twin.row,
        sample_index: twin.sample_index,
        cached_tokens: answer.prompt_tokens,
        reused: true,
        timing: Timing { queue: waited, total: waited, ..Timing::default() },
        ..answer.clone()
    }
}
