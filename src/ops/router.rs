//! The router of a mixture of experts: which experts each token uses, and how much.

use rayon::prelude::*;

use super::norm::SERIAL_ELEMENTS;
use super::shapes::Choice;
use super::softmax::exponentials;

/// The routes of one step: for each token its experts, ascending, with their weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    /// Routes of each token.
    pub experts_per_token: usize,
    /// `[tokens, experts_per_token]`, ascending within a token.
    pub expert_ids: Vec<u32>,
    /// `[tokens, experts_per_token]`.
    pub weights: Vec<f32>,
}

/// Chooses the routed experts of every token.
///
/// `logits`: `[tokens, experts]`, the gate's products. Gives ids and softmax weights; the weights of
/// kept groups are not renormalised. Equal weights go to the lower id.
///
/// Source: DeepSeek-V2 (arXiv:2405.04434) §2.2.2; `MoEGate` in the released modeling file.
pub fn route(logits: &[f32], experts: usize, choice: Choice) -> Routing {
    let k = choice.experts_per_token;
    let tokens = logits.len() / experts;
    let mut routing = Routing {
        experts_per_token: k,
        expert_ids: vec![0; tokens * k],
        weights: vec![0.0; tokens * k],
    };
    let Routing { expert_ids, weights, .. } = &mut routing;
    let route = |scores: &mut Vec<f32>, ((logits, ids), weights): Routes| {
        scores.resize(experts, 0.0);
        route_token(logits, scores, choice, (ids, weights));
    };
    if logits.len() < SERIAL_ELEMENTS {
        let rows = logits.chunks(experts).zip(expert_ids.chunks_mut(k)).zip(weights.chunks_mut(k));
        let mut scores = Vec::new();
        rows.for_each(|routes| route(&mut scores, routes));
    } else {
        let rows = logits.par_chunks(experts).zip(expert_ids.par_chunks_mut(k));
        let rows = rows.zip(weights.par_chunks_mut(k)).with_min_len(32);
        rows.for_each_init(Vec::new, route);
    }
    routing
}

/// A token's logits, and where its experts and their weights go.
type Routes<'a> = ((&'a [f32], &'a mut [u32]), &'a mut [f32]);

fn route_token(
    logits: &[f32],
    scores: &mut [f32],
    choice: Choice,
    (ids, weights): (&mut [u32], &mut [f32]),
) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum = exponentials(logits, largest, 1.0, scores) as f32;
    scores.iter_mut().for_each(|score| *score /= sum);
    choose(scores, choice, ids);
    let sum: f32 = ids.iter().map(|&id| scores[id as usize]).sum();
    let normalise = choice.normalise && ids.len() > 1;
    let factor = if normalise { 1.0 / (sum + 1e-20) } else { choice.scale };
    for (weight, &id) in weights.iter_mut().zip(&*ids) {
        *weight = scores[id as usize] * factor;
    }
}

/// Writes the chosen expert ids into `chosen`, ascending.
fn choose(scores: &[f32], choice: Choice, chosen: &mut [u32]) {
    let (kept_groups, group_size) = match choice.groups {
        None => (u128::MAX, scores.len()),
        Some((groups, kept)) => {
            let size = scores.len() / groups;
            (best_groups(scores, size, kept), size)
        }
    };
    // Experts of other groups have score 0, so they come last, the lowest id first.
    let score =
        |id: usize| if kept_groups >> (id / group_size) & 1 == 1 { scores[id] } else { 0.0 };
    let mut found = 0;
    for id in 0..scores.len() {
        // Most experts are worse than the worst of those that are chosen so far.
        if found == chosen.len() && score(chosen[found - 1] as usize) >= score(id) {
            continue;
        }
        let better = |&&other: &&u32| score(other as usize) >= score(id);
        let position = chosen[..found].iter().take_while(better).count();
        found = (found + 1).min(chosen.len());
        chosen[position..found].rotate_right(1);
        chosen[position] = id as u32;
    }
    chosen.sort_unstable();
}

/// The `count` groups with the best experts, a bit each; the lower group on a tie.
fn best_groups(scores: &[f32], group_size: usize, count: usize) -> u128 {
    let best = |group: &[f32]| group.iter().copied().fold(0.0, f32::max);
    let mut kept = 0u128;
    for _ in 0..count {
        let left = scores.chunks(group_size).map(best).enumerate();
        let left = left.filter(|(group, _)| kept >> group & 1 == 0);
        let next = left.reduce(|a, b| if b.1 > a.1 { b } else { a });
        kept |= next.map_or(0, |(group, _)| 1 << group);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: Choice =
        Choice { experts_per_token: 2, groups: None, normalise: false, scale: 2.0 };

    #[test]
    fn greedy_takes_the_most_probable_experts_of_all() {
        let routing = route(&[0.0, 3.0, 1.0, 2.0], 4, GREEDY);
        assert_eq!(routing.expert_ids, [1, 3]);
        let sum: f32 = [0.0f32, 3.0, 1.0, 2.0].iter().map(|x| x.exp()).sum();
        assert!((routing.weights[0] - 2.0 * 3.0f32.exp() / sum).abs() < 1e-6);
    }

    #[test]
    fn a_group_that_is_not_kept_loses_its_experts() {
        // Groups {0,1} {2,3} {4,5}: the best of each are 3.0, 2.9, 2.8; one group is kept.
        let logits = [3.0, -5.0, 2.9, 2.85, 2.8, 0.0];
        let limited = Choice { groups: Some((3, 1)), ..GREEDY };
        assert_eq!(route(&logits, 6, limited).expert_ids, [0, 1]);
        let two = Choice { groups: Some((3, 2)), ..GREEDY };
        assert_eq!(route(&logits, 6, two).expert_ids, [0, 2]);
    }

    #[test]
    fn normalised_weights_sum_to_one_and_are_not_scaled() {
        let routing = route(&[0.3, 0.1, 0.2], 3, Choice { normalise: true, ..GREEDY });
        assert!((routing.weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn equal_scores_go_to_the_lower_id() {
        assert_eq!(route(&[1.0; 5], 5, GREEDY).expert_ids, [0, 1]);
    }
}
