//! The routed experts of a layer: every expert's tokens as one product, combined in one order.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::host::{Shared, from_host, host};
use super::matmul::{Matrix, Rows};
use super::router::Routing;

/// Tokens of one expert that one task takes.
const TASK_TOKENS: usize = 128;

/// One feed-forward expert: `down(silu(gate x) * up x)`.
#[derive(Debug)]
pub struct Expert {
    /// Gate and up, packed together: `[intermediate, hidden]`.
    pub gate_up: Matrix,
    /// `[hidden, intermediate]`.
    pub down: Matrix,
}

/// Routes sorted by expert.
struct Groups {
    /// The token of each route.
    tokens: Vec<u32>,
    /// Where each expert's routes begin; one more than there are experts.
    starts: Vec<usize>,
    /// The place in `tokens` of each token's routes: `[tokens, experts_per_token]`.
    places: Vec<u32>,
}

/// The weighted sum of each token's experts: `[tokens, hidden]` → the same.
///
/// Each token's expert outputs are summed in the order of expert ids, whatever else is in the step.
pub fn routed_experts(x: &Tensor, experts: &[Expert], routing: &Routing) -> Result<Tensor> {
    let (tokens, hidden) = x.dims2()?;
    let values = host(x)?;
    let x: &[f32] = &values;
    let groups = group(routing, experts.len());
    let mut outputs = vec![0.0f32; groups.tokens.len() * hidden];
    let target = Shared::new(&mut outputs);
    tasks(&groups).into_par_iter().with_max_len(1).for_each(|(expert, first, count)| {
        let rows = Rows::gathered(x, hidden, &groups.tokens[first..first + count]);
        // SAFETY: tasks have different routes, each with a row of its own in `outputs`.
        unsafe { run_expert(&experts[expert], rows, count, target.at(first * hidden)) }
    });
    let mut out = vec![0.0f32; tokens * hidden];
    out.par_chunks_mut(hidden).enumerate().with_min_len(4).for_each(|(token, sum)| {
        let routes = token * routing.experts_per_token..(token + 1) * routing.experts_per_token;
        for route in routes {
            let place = groups.places[route] as usize;
            let weight = routing.weights[route];
            let output = &outputs[place * hidden..(place + 1) * hidden];
            sum.iter_mut().zip(output).for_each(|(sum, y)| *sum = y.mul_add(weight, *sum));
        }
    });
    from_host(out, tokens, hidden)
}

/// # Safety
/// `rows` has `count` rows; `target` has `count` rows of the expert's outputs.
unsafe fn run_expert(expert: &Expert, rows: Rows, count: usize, target: *mut f32) {
    let width = expert.gate_up.outputs();
    let mut inner = vec![0.0f32; count * width];
    // SAFETY: `inner` has `count` rows; `target` is the caller's promise.
    unsafe {
        expert.gate_up.gated_product_into(rows, count, inner.as_mut_ptr(), width);
        expert.down.product_into(Rows::dense(&inner, width), count, target, expert.down.outputs());
    }
}

/// Sorts routes by expert, by counting; routes of one expert stay in the order of tokens.
fn group(routing: &Routing, experts: usize) -> Groups {
    let mut starts = vec![0usize; experts + 1];
    for &id in &routing.expert_ids {
        starts[id as usize + 1] += 1;
    }
    for expert in 0..experts {
        starts[expert + 1] += starts[expert];
    }
    let mut next = starts.clone();
    let mut tokens = vec![0u32; routing.expert_ids.len()];
    let mut places = vec![0u32; routing.expert_ids.len()];
    for (route, &id) in routing.expert_ids.iter().enumerate() {
        let place = next[id as usize];
        next[id as usize] += 1;
        tokens[place] = (route / routing.experts_per_token) as u32;
        places[route] = place as u32;
    }
    Groups { tokens, starts, places }
}

/// (expert, first route, routes) of every task, the largest first so that no thread ends late.
fn tasks(groups: &Groups) -> Vec<(usize, usize, usize)> {
    let mut tasks = Vec::new();
    for (expert, bounds) in groups.starts.windows(2).enumerate() {
        for first in (bounds[0]..bounds[1]).step_by(TASK_TOKENS) {
            tasks.push((expert, first, TASK_TOKENS.min(bounds[1] - first)));
        }
    }
    tasks.sort_by_key(|&(_, _, count)| std::cmp::Reverse(count));
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::matmul::Held;

    fn expert(seed: usize, hidden: usize, width: usize) -> Expert {
        let value = move |s: usize| {
            move |o: usize, i: usize| {
                ((o * 31 + i * 17 + s * 7 + seed * 13) % 23) as f32 / 23.0 - 0.5
            }
        };
        Expert {
            gate_up: Matrix::pack_gated(width, hidden, Held::F32, value(1), value(2)),
            down: Matrix::pack(hidden, width, Held::F32, value(3)),
        }
    }

    #[test]
    fn a_token_has_the_same_bits_alone_and_among_others() {
        let (hidden, width) = (24, 40);
        let experts: Vec<Expert> = (0..6).map(|e| expert(e, hidden, width)).collect();
        let tokens = 300;
        let x: Vec<f32> = (0..tokens * hidden).map(|i| (i as f32 * 0.37).sin()).collect();
        let routing = Routing {
            experts_per_token: 2,
            expert_ids: (0..tokens).flat_map(|t| [(t % 3) as u32, (3 + t % 2) as u32]).collect(),
            weights: (0..tokens * 2).map(|i| 0.1 + (i % 5) as f32).collect(),
        };
        let all =
            routed_experts(&from_host(x.clone(), tokens, hidden).unwrap(), &experts, &routing)
                .unwrap();
        let all = all.to_vec2::<f32>().unwrap();
        for t in [0, 1, 150, 299] {
            let one = Routing {
                experts_per_token: 2,
                expert_ids: routing.expert_ids[2 * t..2 * t + 2].to_vec(),
                weights: routing.weights[2 * t..2 * t + 2].to_vec(),
            };
            let row = from_host(x[t * hidden..(t + 1) * hidden].to_vec(), 1, hidden).unwrap();
            let alone = routed_experts(&row, &experts, &one).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(alone[0], all[t]);
        }
    }
}
