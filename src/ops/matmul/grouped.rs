//! Products as pieces of work: rows are packed once, panels are divided evenly over the threads.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::Matrix;
use super::multiply::{Choice, Finish, Product, multiply};
use super::rows::{Rows, Tiles, pack_tile};
use super::tile::RowGroup;
use crate::ops::host::Shared;
use crate::ops::isa::Isa;

/// Below so many multiply-adds a product is not worth a second thread.
const SERIAL_WORK: usize = 1 << 17;
/// Below so many words rows are packed on one thread.
const SERIAL_WORDS: usize = 1 << 14;
/// Pieces of work for each thread, so that one that ends early takes from the others.
const SHARES_PER_THREAD: usize = 4;
/// Rows whose arithmetic takes as long as a panel takes to come from memory, about.
const MEMORY_ROWS: usize = 8;

/// Where the rows of a result go.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Target {
    /// The first row.
    pub(in crate::ops) first: Shared<f32>,
    /// Elements from one row to the next.
    pub(in crate::ops) stride: usize,
}

impl Target {
    /// The rows that a buffer has room for, before it has them.
    pub(in crate::ops) fn within(buffer: &mut Vec<f32>, rows: usize, stride: usize) -> Self {
        buffer.reserve_exact(rows * stride);
        Self { first: Shared::from_pointer(buffer.as_mut_ptr()), stride }
    }

    /// The rows from one on.
    pub(in crate::ops) fn from(self, row: usize) -> Self {
        // SAFETY: whoever writes to a target promises that its rows exist.
        Self { first: Shared::from_pointer(unsafe { self.first.at(row * self.stride) }), ..self }
    }
}

/// `count` rows times a weight.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Task<'a> {
    pub(in crate::ops) matrix: &'a Matrix,
    pub(in crate::ops) rows: Rows<'a>,
    pub(in crate::ops) count: usize,
    pub(in crate::ops) target: Target,
}

/// A task with its place among the packed rows.
#[derive(Clone, Copy)]
struct Planned<'a> {
    task: Task<'a>,
    choice: Choice,
    tiles: Tiles,
    row_words: usize,
    row_groups: usize,
    first_word: usize,
    first_group: usize,
}

/// Packed rows of all tasks.
#[derive(Default)]
struct Packed {
    words: Vec<u32>,
    groups: Vec<RowGroup>,
}

thread_local! {
    /// Kept from call to call. A call takes it away, so that a call within a call has its own.
    static SCRATCH: Cell<Packed> = const { Cell::new(Packed { words: Vec::new(), groups: Vec::new() }) };
}

/// Computes all tasks, over all threads of the current pool.
///
/// # Safety
/// Each task's target has room for its rows, and no two tasks write the same elements.
pub(in crate::ops) unsafe fn run(tasks: &[Task], finish: Finish) {
    let work: usize = tasks.iter().map(|task| task.count * task.matrix.weights()).sum();
    // SAFETY: the caller's promise.
    unsafe {
        match work < SERIAL_WORK || rayon::current_num_threads() == 1 {
            true => tasks.iter().for_each(|task| run_here(Isa::best(), *task, finish)),
            false => run_divided(tasks, finish),
        }
    }
}

/// Computes one task on this thread.
///
/// # Safety
/// As for [`run`].
pub(in crate::ops) unsafe fn run_here(isa: Isa, task: Task, finish: Finish) {
    let mut packed = SCRATCH.take();
    let (planned, _) = plan(task, isa, (0, 0));
    packed.reserve(std::slice::from_ref(&planned));
    for tile in 0..planned.tiles.count {
        let (words, groups) = planned.tile(tile);
        planned.pack(tile, (&mut packed.words[words], &mut packed.groups[groups]));
    }
    // SAFETY: the caller's promise.
    unsafe { multiply(planned.choice, planned.product(&packed, finish), 0..planned.panels(finish)) }
    SCRATCH.set(packed);
}

unsafe fn run_divided(tasks: &[Task], finish: Finish) {
    let mut packed = SCRATCH.take();
    let mut place = (0, 0);
    let planned: Vec<Planned> = tasks
        .iter()
        .filter(|task| task.count > 0)
        .map(|task| {
            let (planned, end) = plan(*task, Isa::best(), place);
            place = end;
            planned
        })
        .collect();
    packed.reserve(&planned);
    pack(&planned, &mut packed);
    let costs: Vec<usize> = planned.iter().map(Planned::panel_cost).collect();
    let counts = planned.iter().map(|planned| planned.panels(finish));
    let all: usize = counts.clone().zip(&costs).map(|(panels, cost)| panels * cost).sum();
    let shares = counts.sum::<usize>().min(rayon::current_num_threads() * SHARES_PER_THREAD);
    (0..shares).into_par_iter().with_max_len(1).for_each(|share| {
        let range = all * share / shares..all * (share + 1) / shares;
        let mut before = 0;
        for (planned, cost) in planned.iter().zip(&costs) {
            // A panel belongs to the share in which it begins.
            let panel = |at: usize| at.saturating_sub(before).div_ceil(*cost);
            let count = planned.panels(finish);
            let panels = panel(range.start).min(count)..panel(range.end).min(count);
            before += count * cost;
            // SAFETY: the caller's promise; shares have different panels.
            unsafe { multiply(planned.choice, planned.product(&packed, finish), panels) }
        }
    });
    SCRATCH.set(packed);
}

/// Packs the rows of all tasks, over the threads if they are many.
fn pack(planned: &[Planned], packed: &mut Packed) {
    let (words, groups) = (Shared::new(&mut packed.words), Shared::new(&mut packed.groups));
    let pack = |(planned, tile): (&Planned, usize)| {
        let (own_words, own_groups) = planned.tile(tile);
        // SAFETY: tiles have different words and groups, all of them reserved.
        let target = unsafe {
            (
                std::slice::from_raw_parts_mut(words.at(own_words.start), own_words.len()),
                std::slice::from_raw_parts_mut(groups.at(own_groups.start), own_groups.len()),
            )
        };
        planned.pack(tile, target);
    };
    let tiles = planned.iter().flat_map(|p| (0..p.tiles.count).map(move |tile| (p, tile)));
    match planned.last() {
        Some(last) if last.first_word + last.task.count * last.row_words >= SERIAL_WORDS => {
            tiles.collect::<Vec<_>>().into_par_iter().for_each(pack);
        }
        _ => tiles.for_each(pack),
    }
}

/// Plans a task whose rows are packed from `(word, group)` on; gives where they end, too.
fn plan(
    task: Task,
    isa: Isa,
    (first_word, first_group): (usize, usize),
) -> (Planned, (usize, usize)) {
    let Matrix { inputs, compute, panels, .. } = task.matrix;
    let choice = Choice::new(isa, panels.held, *compute);
    let words = choice.words();
    let (row_words, row_groups) = (words.of_row(*inputs), words.groups_of_row(*inputs));
    let tiles = Tiles::new(task.count, choice.tile_rows());
    let end = (first_word + task.count * row_words, first_group + task.count * row_groups);
    (Planned { task, choice, tiles, row_words, row_groups, first_word, first_group }, end)
}

impl<'a> Planned<'a> {
    fn panels(&self, finish: Finish) -> usize {
        self.task.matrix.outputs.div_ceil(finish.outputs())
    }

    /// How long a panel takes, in no unit.
    fn panel_cost(&self) -> usize {
        (self.task.matrix.panels.panel_words() * self.task.count.max(MEMORY_ROWS)).max(1)
    }

    /// The words and groups of a tile.
    fn tile(&self, tile: usize) -> (Range<usize>, Range<usize>) {
        let rows = self.tiles.rows(tile);
        let place = |first: usize, each: usize| first + rows.start * each..first + rows.end * each;
        (place(self.first_word, self.row_words), place(self.first_group, self.row_groups))
    }

    fn pack(&self, tile: usize, target: (&mut [u32], &mut [RowGroup])) {
        let words = self.choice.words();
        pack_tile(words, self.task.rows, self.tiles.rows(tile), self.task.matrix.inputs, target);
    }

    fn product(&self, packed: &'a Packed, finish: Finish) -> Product<'a> {
        Product {
            panels: &self.task.matrix.panels,
            finish,
            words: &packed.words[self.first_word..],
            groups: &packed.groups[self.first_group..],
            row_words: self.row_words,
            row_groups: self.row_groups,
            tiles: self.tiles,
            outputs: self.task.matrix.outputs,
            // SAFETY: where the rows begin, of which there may be none; `run`'s caller promises them.
            target: unsafe { self.task.target.first.at(0) },
            stride: self.task.target.stride,
        }
    }
}

impl Packed {
    fn reserve(&mut self, planned: &[Planned]) {
        let Some(last) = planned.last() else { return };
        let words = last.first_word + last.task.count * last.row_words;
        let groups = last.first_group + last.task.count * last.row_groups;
        self.words.resize(self.words.len().max(words), 0);
        self.groups.resize(self.groups.len().max(groups), RowGroup::default());
    }
}
