//! Attention's inner loops: query rows over neighbouring positions, sixteen at a time, with a running
//! softmax. Knows rows of numbers; not heads, blocks or sequences.

use super::isa::{Isa, per_isa};
use super::lanes::Lanes;
use super::latent::BLOCK_TOKENS;

/// Queries that share each key they read.
pub(super) const GROUP: usize = 4;

/// Keys and values of neighbouring positions.
pub(super) struct Run<'a> {
    pub(super) keys: &'a [f32],
    pub(super) key_stride: usize,
    pub(super) key_width: usize,
    pub(super) values: &'a [f32],
    pub(super) value_stride: usize,
    pub(super) scale: f32,
}

/// Online softmax of some query rows.
pub(super) struct SoftmaxRows<'a> {
    state: &'a mut SoftmaxState,
    /// Weighted values, `[rows, width]`.
    values: &'a mut [f32],
    width: usize,
}

/// What [`SoftmaxRows`] know of each row; kept from call to call.
#[derive(Default)]
pub(super) struct SoftmaxState {
    /// Largest score so far.
    largest: Vec<f32>,
    /// Sum of e^(score - largest).
    sums: Vec<f32>,
}

impl<'a> SoftmaxRows<'a> {
    /// Begins with `values` that are zeros, `[rows, width]`.
    pub(super) fn new(state: &'a mut SoftmaxState, values: &'a mut [f32], width: usize) -> Self {
        let rows = values.len() / width;
        state.largest.clear();
        state.largest.resize(rows, f32::NEG_INFINITY);
        state.sums.clear();
        state.sums.resize(rows, 0.0);
        Self { state, values, width }
    }

    /// Rows `rows` attend to the first `visible(row)` positions of a run.
    pub(super) fn attend(
        &mut self,
        queries: &[f32],
        rows: std::ops::Range<usize>,
        visible: impl Fn(usize) -> usize,
        run: &Run,
    ) {
        let row = |i: usize| (rows.start + i).min(rows.end - 1);
        let seen = |i: usize| if rows.start + i < rows.end { visible(rows.start + i) } else { 0 };
        let group = Group {
            queries: std::array::from_fn(|i| queries[row(i) * run.key_width..].as_ptr()),
            visible: std::array::from_fn(seen),
            count: rows.len(),
        };
        let positions = group.visible.into_iter().max().unwrap_or(0).next_multiple_of(BLOCK_TOKENS);
        assert!(
            positions * run.key_stride <= run.keys.len()
                && positions * run.value_stride <= run.values.len()
        );
        let state = State {
            largest: self.state.largest[rows.start..rows.end].as_mut_ptr(),
            sums: self.state.sums[rows.start..rows.end].as_mut_ptr(),
            values: self.values[rows.start * self.width..rows.end * self.width].as_mut_ptr(),
            width: self.width,
        };
        // SAFETY: queries, keys and values have whole lanes for every row and for all positions in
        // whole blocks; the state has `count` rows.
        unsafe { attend_group(Isa::best(), group, run, state) }
    }

    /// Leaves the weighted means in the values.
    pub(super) fn finish(self) {
        for (row, sum) in self.values.chunks_mut(self.width).zip(&self.state.sums) {
            row.iter_mut().for_each(|value| *value /= sum);
        }
    }
}

#[derive(Clone, Copy)]
struct Group {
    queries: [*const f32; GROUP],
    visible: [usize; GROUP],
    count: usize,
}

#[derive(Clone, Copy)]
struct State {
    largest: *mut f32,
    sums: *mut f32,
    values: *mut f32,
    width: usize,
}

/// Each query of a group attends to its visible positions, sixteen at a time.
#[inline(always)]
unsafe fn attend_group_on<L: Lanes>(group: Group, run: &Run, state: State) {
    let most = group.visible.into_iter().max().unwrap_or(0);
    let mut weights = [[0.0f32; BLOCK_TOKENS]; GROUP];
    for first in (0..most).step_by(BLOCK_TOKENS) {
        let visible = group.visible.map(|visible| visible.saturating_sub(first).min(BLOCK_TOKENS));
        // SAFETY: the caller's promise.
        unsafe {
            score::<L>(&group, run, first, &mut weights);
            let mut shrink = [1.0f32; GROUP];
            for i in 0..group.count {
                if visible[i] > 0 {
                    shrink[i] = soften::<L>(
                        &mut weights[i],
                        visible[i],
                        run.scale,
                        state.largest.add(i),
                        state.sums.add(i),
                    );
                }
            }
            let values = run.values.as_ptr().add(first * run.value_stride);
            if group.count == GROUP && visible == [BLOCK_TOKENS; GROUP] {
                gather_values::<L, GROUP>(
                    &weights,
                    shrink,
                    values,
                    run.value_stride,
                    BLOCK_TOKENS,
                    state,
                    0,
                );
            } else {
                for i in 0..group.count {
                    let weights = [weights[i]; 1];
                    gather_values::<L, 1>(
                        &weights,
                        [shrink[i]],
                        values,
                        run.value_stride,
                        visible[i],
                        state,
                        i,
                    );
                }
            }
        }
    }
}

per_isa! { fn attend_group = attend_group_on(group: Group, run: &Run, state: State) }

/// Scores of each query and sixteen positions, before scaling.
#[inline(always)]
unsafe fn score<L: Lanes>(
    group: &Group,
    run: &Run,
    first: usize,
    scores: &mut [[f32; BLOCK_TOKENS]; GROUP],
) {
    for quarter in (0..BLOCK_TOKENS).step_by(GROUP) {
        // SAFETY: the caller's promise: whole lanes, whole blocks.
        unsafe {
            let keys: [*const f32; GROUP] = std::array::from_fn(|j| {
                run.keys.as_ptr().add((first + quarter + j) * run.key_stride)
            });
            let mut sums = [L::splat(0.0); GROUP * GROUP];
            for i in (0..run.key_width).step_by(16) {
                let key: [L; GROUP] = std::array::from_fn(|j| L::load(keys[j].add(i)));
                for q in 0..GROUP {
                    let query = L::load(group.queries[q].add(i));
                    for j in 0..GROUP {
                        sums[q * GROUP + j] = query.mul_add(key[j], sums[q * GROUP + j]);
                    }
                }
            }
            let mut products = [0.0f32; GROUP * GROUP];
            L::sum_each(sums).store(products.as_mut_ptr());
            for q in 0..GROUP {
                scores[q][quarter..quarter + GROUP]
                    .copy_from_slice(&products[q * GROUP..(q + 1) * GROUP]);
            }
        }
    }
}

/// Turns one query's scores into weights and gives the factor by which earlier weights shrink.
#[inline(always)]
unsafe fn soften<L: Lanes>(
    scores: &mut [f32; BLOCK_TOKENS],
    visible: usize,
    scale: f32,
    largest: *mut f32,
    sum: *mut f32,
) -> f32 {
    // SAFETY: scores are sixteen; `largest` and `sum` point to the row's state.
    unsafe {
        L::load(scores.as_ptr()).mul(L::splat(scale)).store(scores.as_mut_ptr());
        scores[visible..].fill(f32::NEG_INFINITY);
        let before = *largest;
        let now = before.max(L::load(scores.as_ptr()).largest());
        let shifted = L::load(scores.as_ptr()).sub(L::splat(now));
        shifted.exp().store(scores.as_mut_ptr());
        scores[visible..].fill(0.0);
        let mut shrink = [0.0f32; 16];
        L::splat(before - now).exp().store(shrink.as_mut_ptr());
        *largest = now;
        *sum = (*sum).mul_add(shrink[0], L::load(scores.as_ptr()).sum());
        shrink[0]
    }
}

/// Shrinks the sums of `R` rows from row `first` on and adds `count` weighted values, in their order.
#[inline(always)]
unsafe fn gather_values<L: Lanes, const R: usize>(
    weights: &[[f32; BLOCK_TOKENS]; R],
    shrink: [f32; R],
    values: *const f32,
    stride: usize,
    count: usize,
    state: State,
    first: usize,
) {
    if count == 0 {
        return;
    }
    let lanes = state.width / 16;
    let mut lane = 0;
    // SAFETY: values and sums have `width` elements for each position and row.
    unsafe {
        if L::VALUE_GROUPS == 4 {
            while lane + 4 <= lanes {
                gather_lanes::<L, R, 4>(
                    weights,
                    shrink,
                    values.add(16 * lane),
                    stride,
                    count,
                    state,
                    (first, lane),
                );
                lane += 4;
            }
        }
        while lane < lanes {
            gather_lanes::<L, R, 1>(
                weights,
                shrink,
                values.add(16 * lane),
                stride,
                count,
                state,
                (first, lane),
            );
            lane += 1;
        }
    }
}

#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "register tiles are addressed by index")]
unsafe fn gather_lanes<L: Lanes, const R: usize, const G: usize>(
    weights: &[[f32; BLOCK_TOKENS]; R],
    shrink: [f32; R],
    values: *const f32,
    stride: usize,
    count: usize,
    state: State,
    (first, lane): (usize, usize),
) {
    // SAFETY: as in `gather_values`.
    unsafe {
        let target =
            |r: usize, g: usize| state.values.add((first + r) * state.width + 16 * (lane + g));
        let mut sums = [[L::splat(0.0); G]; R];
        for r in 0..R {
            for g in 0..G {
                sums[r][g] = L::load(target(r, g)).mul(L::splat(shrink[r]));
            }
        }
        for position in 0..count {
            let value: [L; G] =
                std::array::from_fn(|g| L::load(values.add(position * stride + 16 * g)));
            for r in 0..R {
                let weight = L::splat(weights[r][position]);
                for g in 0..G {
                    sums[r][g] = weight.mul_add(value[g], sums[r][g]);
                }
            }
        }
        for r in 0..R {
            for g in 0..G {
                sums[r][g].store(target(r, g));
            }
        }
    }
}
