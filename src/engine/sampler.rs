//! From logits to a token: penalties, temperature, truncation, one draw, log-probabilities.

use std::cell::RefCell;
use std::cmp::Ordering;

use super::draw::Draw;
use crate::ops::{self, Largest};
use crate::prompt::Mask;
use crate::row::TokenLogprob;
use crate::sampling::Sampling;

/// Tokens that top-p looks at first; most nuclei are smaller.
const FIRST_CANDIDATES: usize = 64;

/// What the sampler needs to know of a sequence.
pub(super) struct Choice<'a> {
    pub(super) sampling: &'a Sampling,
    pub(super) draw: Draw,
    /// Prompt and completion so far.
    pub(super) tokens: &'a [u32],
    /// Prompt tokens among them.
    pub(super) prompt_tokens: usize,
    /// Tokens that may not be chosen yet.
    pub(super) forbidden: &'a [u32],
    /// What the sequence's constraint allows; none: everything.
    pub(super) allowed: Option<&'a Mask>,
    /// The token that is taken, whatever the logits say: it is scored.
    pub(super) given: Option<u32>,
    /// Continuations whose first tokens are scored beside it.
    pub(super) beside: &'a [Vec<u32>],
    /// Log-probabilities to give: of the chosen token, and of so many most probable ones.
    pub(super) logprobs: Logprobs,
}

/// Which log-probabilities are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Logprobs {
    /// That of each chosen token.
    pub chosen: bool,
    /// Those of so many most probable tokens of each position.
    pub top: usize,
}

/// A chosen token.
#[derive(Debug, PartialEq)]
pub(super) struct Chosen {
    pub(super) token: u32,
    pub(super) logprob: f32,
    pub(super) top: Vec<TokenLogprob>,
    /// Log-probabilities of the first tokens that were to be scored beside it.
    pub(super) beside: Vec<f32>,
}

/// Why no token can be chosen.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum NoChoice {
    /// The logits are not numbers.
    NotNumbers,
    /// No token is allowed.
    NothingAllowed,
    /// The constraint cannot be used.
    Constraint(String),
    /// The step fails with this sequence, alone.
    Engine(String),
}

/// What a choice needs as wide as the vocabulary; kept from call to call.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    weights: Vec<f32>,
    ids: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Chooses a token, or scores the given one.
///
/// Log-probabilities are those of the model itself, before penalties, temperature and truncation.
pub(super) fn choose(logits: &[f32], choice: &Choice) -> Result<Chosen, NoChoice> {
    SCRATCH.with_borrow_mut(|scratch| choose_with(scratch, logits, choice))
}

fn choose_with(scratch: &mut Scratch, logits: &[f32], choice: &Choice) -> Result<Chosen, NoChoice> {
    let Largest { index: best, all_finite } = ops::largest(logits);
    if !all_finite {
        return Err(NoChoice::NotNumbers);
    }
    let token = match choice.given {
        Some(token) => token,
        None => pick_token(scratch, logits, best, choice)?,
    };
    let Logprobs { chosen, top } = choice.logprobs;
    if !chosen && top == 0 && choice.given.is_none() {
        return Ok(Chosen { token, logprob: 0.0, top: Vec::new(), beside: Vec::new() });
    }
    let largest = logits[best];
    let log_sum = ops::exponentials(logits, largest, 1.0, &mut []).ln();
    let logprob = |id: u32| (f64::from(logits[id as usize] - largest) - log_sum) as f32;
    most_probable(logits, top, &mut scratch.ids);
    let top = scratch.ids.iter();
    let top = top.map(|&token_id| TokenLogprob { token_id, logprob: logprob(token_id) });
    let beside = choice.beside.iter().map(|ids| logprob(ids[0])).collect();
    Ok(Chosen { token, logprob: logprob(token), top: top.collect(), beside })
}

/// The token that the sampling settings choose; `best` is the index of the largest logit.
fn pick_token(
    scratch: &mut Scratch,
    logits: &[f32],
    best: usize,
    choice: &Choice,
) -> Result<u32, NoChoice> {
    let Scratch { scores, weights, ids } = scratch;
    let sampling = choice.sampling;
    let penalised = sampling.repetition_penalty != 1.0
        || sampling.presence_penalty != 0.0
        || sampling.frequency_penalty != 0.0;
    let limited = !choice.forbidden.is_empty() || choice.allowed.is_some();
    let (scores, best) = match penalised || limited || !sampling.logit_bias.is_empty() {
        false => (logits, best),
        true => {
            adjust(logits, choice, (scores, ids));
            (&scores[..], ops::largest(scores).index)
        }
    };
    if scores[best] == f32::NEG_INFINITY {
        return Err(NoChoice::NothingAllowed);
    }
    Ok(match sampling.temperature {
        0.0 => best as u32,
        _ => sample(scores, scores[best], (sampling, choice.draw), (weights, ids)),
    })
}

/// Applies penalties and bias and takes away what may not be chosen: leaves the result in `scores`.
fn adjust(logits: &[f32], choice: &Choice, (scores, ids): (&mut Vec<f32>, &mut Vec<u32>)) {
    let sampling = choice.sampling;
    scores.clear();
    scores.extend_from_slice(logits);
    if sampling.repetition_penalty != 1.0 {
        sorted(choice.tokens, ids);
        ids.dedup();
        for &id in &*ids {
            let score = &mut scores[id as usize];
            *score = if *score > 0.0 {
                *score / sampling.repetition_penalty
            } else {
                *score * sampling.repetition_penalty
            };
        }
    }
    sorted(&choice.tokens[choice.prompt_tokens..], ids);
    for run in ids.chunk_by(|a, b| a == b) {
        scores[run[0] as usize] -=
            sampling.presence_penalty + sampling.frequency_penalty * run.len() as f32;
    }
    for (&id, bias) in &sampling.logit_bias {
        if let Some(score) = scores.get_mut(id as usize) {
            *score += bias;
        }
    }
    if let Some(mask) = choice.allowed {
        mask.apply(scores);
    }
    for &id in choice.forbidden {
        if let Some(score) = scores.get_mut(id as usize) {
            *score = f32::NEG_INFINITY;
        }
    }
}

fn sorted(tokens: &[u32], ids: &mut Vec<u32>) {
    ids.clear();
    ids.extend_from_slice(tokens);
    ids.sort_unstable();
}

/// Leaves in `ids` those of the `count` largest scores, best first, the lower id on a tie.
fn most_probable(scores: &[f32], count: usize, ids: &mut Vec<u32>) {
    ids.clear();
    if count > 0 {
        ids.extend(0..scores.len() as u32);
        bring_forward(ids, scores, count);
        ids.truncate(count);
        ids.sort_unstable_by(better(scores));
    }
}

/// Orders ids by score, best first, the lower id on a tie.
fn better(scores: &[f32]) -> impl Fn(&u32, &u32) -> Ordering {
    |a, b| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b))
}

/// Brings the `count` best ids to the front, in any order.
fn bring_forward(ids: &mut [u32], scores: &[f32], count: usize) {
    if count < ids.len() {
        ids.select_nth_unstable_by(count, better(scores));
    }
}

/// Draws from the tempered and truncated distribution; `largest` is the largest score.
fn sample(
    scores: &[f32],
    largest: f32,
    (sampling, draw): (&Sampling, Draw),
    (weights, ids): (&mut Vec<f32>, &mut Vec<u32>),
) -> u32 {
    weights.resize(scores.len(), 0.0);
    let total = ops::exponentials(scores, largest, 1.0 / sampling.temperature, weights);
    let whole = sampling.top_k == 0 && sampling.top_p >= 1.0 && sampling.min_p == 0.0;
    if whole {
        return pick(
            weights.iter().enumerate().map(|(id, &w)| (id as u32, w)),
            total * draw.uniform(),
        );
    }
    candidates(weights, total, sampling, ids);
    // The most probable token has weight 1.
    let kept = ids.iter().take_while(|&&id| weights[id as usize] >= sampling.min_p).count();
    ids.truncate(kept.max(1));
    let total: f64 = ids.iter().map(|&id| f64::from(weights[id as usize])).sum();
    pick(ids.iter().map(|&id| (id, weights[id as usize])), total * draw.uniform())
}

/// Leaves in `ids` what top-k and top-p allow, best first. No more is sorted than is left.
fn candidates(weights: &[f32], total: f64, sampling: &Sampling, ids: &mut Vec<u32>) {
    let top_p = f64::from(sampling.top_p);
    match sampling.top_k as usize {
        0 if top_p < 1.0 => reaching(weights, total * top_p, ids),
        0 => {
            let possible =
                |&id: &u32| weights[id as usize] > 0.0 && weights[id as usize] >= sampling.min_p;
            ids.clear();
            ids.extend((0..weights.len() as u32).filter(possible));
            ids.sort_unstable_by(better(weights));
        }
        k => {
            most_probable(weights, k.min(weights.len()), ids);
            let mass: f64 = ids.iter().map(|&id| f64::from(weights[id as usize])).sum();
            ids.truncate(nucleus(ids, weights, mass * top_p));
        }
    }
}

/// Leaves in `ids` the fewest most probable ones that reach `mass` together, best first.
fn reaching(weights: &[f32], mass: f64, ids: &mut Vec<u32>) {
    ids.clear();
    ids.extend(0..weights.len() as u32);
    let mut count = FIRST_CANDIDATES;
    loop {
        bring_forward(ids, weights, count);
        let first = &ids[..count.min(ids.len())];
        let sum: f64 = first.iter().map(|&id| f64::from(weights[id as usize])).sum();
        if sum >= mass || count >= ids.len() {
            break;
        }
        count *= 8;
    }
    ids.truncate(count);
    ids.sort_unstable_by(better(weights));
    ids.truncate(nucleus(ids, weights, mass));
}

/// How many of the most probable ids reach `mass` together.
fn nucleus(ids: &[u32], weights: &[f32], mass: f64) -> usize {
    let mut sum = 0.0;
    for (count, &id) in ids.iter().enumerate() {
        sum += f64::from(weights[id as usize]);
        if sum >= mass {
            return count + 1;
        }
    }
    ids.len()
}

/// The id at which the running sum of weights passes `point`.
fn pick(weights: impl Iterator<Item = (u32, f32)>, point: f64) -> u32 {
    let (mut sum, mut last) = (0.0, 0);
    for (id, weight) in weights.filter(|(_, weight)| *weight > 0.0) {
        sum += f64::from(weight);
        last = id;
        if sum > point {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::DrawKey;

    fn choice<'a>(sampling: &'a Sampling, tokens: &'a [u32], key: u64) -> Choice<'a> {
        Choice {
            sampling,
            draw: Draw { seed: 7, key: DrawKey(key), sample_index: 0, position: 0 },
            tokens,
            prompt_tokens: 1,
            forbidden: &[],
            allowed: None,
            given: None,
            beside: &[],
            logprobs: Logprobs { chosen: true, top: 2 },
        }
    }

    const LOGITS: [f32; 6] = [0.0, 2.0, 1.0, 2.0, -3.0, 0.5];

    #[test]
    fn greedy_takes_the_lowest_of_equal_ids_and_reports_the_models_own_log_probabilities() {
        let sampling = Sampling::default();
        let chosen = choose(&LOGITS, &choice(&sampling, &[0], 1)).unwrap();
        let sum: f64 = LOGITS.iter().map(|&x| f64::from(x).exp()).sum();
        assert_eq!(chosen.token, 1);
        assert!((f64::from(chosen.logprob) - (2.0 - sum.ln())).abs() < 1e-6);
        assert_eq!(chosen.top.iter().map(|t| t.token_id).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn penalties_and_forbidden_tokens_change_the_choice() {
        let penalised = |change: fn(&mut Sampling)| {
            let mut sampling = Sampling::default();
            change(&mut sampling);
            choose(&LOGITS, &choice(&sampling, &[3, 1, 1], 1)).unwrap().token
        };
        assert_eq!(penalised(|s| s.presence_penalty = 0.5), 3);
        assert_eq!(penalised(|s| s.frequency_penalty = 0.1), 3);
        assert_eq!(penalised(|s| s.repetition_penalty = 4.0), 2);
        assert_eq!(penalised(|s| s.logit_bias = [(5, 1.6), (1, -0.1)].into()), 5);
        let sampling = Sampling::default();
        let forbidden = Choice { forbidden: &[1, 3], ..choice(&sampling, &[0], 1) };
        assert_eq!(choose(&LOGITS, &forbidden).unwrap().token, 2);
    }

    #[test]
    fn logits_that_are_not_numbers_choose_nothing() {
        let sampling = Sampling::default();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let chosen = choose(&[0.0, bad], &choice(&sampling, &[0], 1));
            assert_eq!(chosen, Err(NoChoice::NotNumbers));
        }
        let nothing = Choice { forbidden: &[0, 1], ..choice(&sampling, &[0], 1) };
        assert_eq!(choose(&[0.0, 1.0], &nothing), Err(NoChoice::NothingAllowed));
    }

    #[test]
    fn a_nucleus_is_the_same_however_much_was_sorted() {
        let weights: Vec<f32> =
            (0..5000).map(|i| ((i * 37 % 5000) as f32 * -0.002).exp()).collect();
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        let (mut sorted, mut found) = (Vec::new(), Vec::new());
        most_probable(&weights, weights.len(), &mut sorted);
        for top_p in [0.01, 0.3, 0.9, 0.999] {
            let expected = &sorted[..nucleus(&sorted, &weights, total * top_p)];
            reaching(&weights, total * top_p, &mut found);
            assert_eq!(found, expected, "{top_p}");
        }
    }

    /// Draws follow the exact truncated distribution: Pearson's chi-square below its 99.9 % point.
    #[test]
    fn draws_follow_the_exact_distribution() {
        type Case = (fn(&mut Sampling), &'static [usize]);
        let cases: [Case; 4] = [
            (|_| {}, &[0, 1, 2, 3, 4, 5]),
            (|s| s.top_k = 3, &[1, 2, 3]),
            (|s| s.top_p = 0.7, &[1, 3]),
            (|s| s.min_p = 0.3, &[1, 2, 3]),
        ];
        for (change, allowed) in cases {
            let mut sampling = Sampling { temperature: 1.0, ..Sampling::default() };
            change(&mut sampling);
            let draws = 20_000;
            let mut counts = [0.0f64; 6];
            for key in 0..draws {
                counts[choose(&LOGITS, &choice(&sampling, &[0], key)).unwrap().token as usize] +=
                    1.0;
            }
            let mass: f64 = allowed.iter().map(|&id| f64::from(LOGITS[id]).exp()).sum();
            let mut chi_square = 0.0;
            for (id, count) in counts.iter().enumerate() {
                if !allowed.contains(&id) {
                    assert_eq!(*count, 0.0, "token {id} was drawn outside of {allowed:?}");
                    continue;
                }
                let expected = f64::from(LOGITS[id]).exp() / mass * draws as f64;
                chi_square += (count - expected).powi(2) / expected;
            }
            assert!(chi_square < 20.5, "{allowed:?}: {chi_square}");
        }
    }
}
