//! Products with static weights: packed once at load, multiplied in a fixed order ever after.
//!
//! A weight `[outputs, inputs]` is cut into panels of 32 outputs. Within a panel the 32 values of one
//! input lie side by side, so that a tile of activation rows times a panel is a chain of fused
//! multiply-adds over the inputs, in their order, for each output: the order does not depend on the
//! number of rows, on the tile's shape or on the number of threads. BF16 weights are widened in
//! registers, which computes exactly what the same values held as F32 would.

use candle_core::{Result, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use super::host::{Shared, from_host, host};
use super::lanes::{Isa, Lanes, per_isa};

/// Outputs of one panel.
pub(crate) const PANEL: usize = 32;
/// Most rows of any instruction set's tile.
const MAX_TILE_ROWS: usize = 12;
/// Rows that walk over all panels together, so that they stay in the second-level cache.
const ROW_BLOCK: usize = 96;
/// Below so many multiply-adds a product is not worth a second thread.
const SERIAL_WORK: usize = 1 << 17;

/// How weights are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// 32 bits each.
    F32,
    /// 16 bits each, rounded to nearest even where the source has more.
    Bf16,
}

/// The values of all panels, panel by panel, input by input.
#[derive(Debug)]
enum Panels {
    /// 32 values for each input.
    F32(Vec<f32>),
    /// 16 words for each input: output j in the low half of word j, output j + 16 in the high half.
    Bf16(Vec<u32>),
}

/// A packed weight `[outputs, inputs]`.
#[derive(Debug)]
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    panels: Panels,
}

/// What happens to a tile of products.
#[derive(Clone, Copy)]
enum Finish {
    /// Each of the 32 columns is an output.
    Store,
    /// Column j of the first sixteen is a gate and j + 16 its value: the output is `silu(gate) * value`.
    Gate,
}

impl Matrix {
    /// Packs a weight; `value(output, input)` gives its elements.
    pub fn pack(
        outputs: usize,
        inputs: usize,
        held: Held,
        value: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        let columns = outputs.div_ceil(PANEL) * PANEL;
        let column =
            |column: usize, input: usize| if column < outputs { value(column, input) } else { 0.0 };
        Self { outputs, inputs, panels: Panels::pack(columns, inputs, held, column) }
    }

    /// Packs the gate and up weights of a feed-forward layer together, for [`Matrix::gated_product`].
    ///
    /// Both are `[outputs, inputs]`; a panel has sixteen outputs of each.
    pub fn pack_gated(
        outputs: usize,
        inputs: usize,
        held: Held,
        gate: impl Fn(usize, usize) -> f32 + Sync,
        up: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        let columns = outputs.div_ceil(PANEL / 2) * PANEL;
        let column = |column: usize, input: usize| {
            let output = column / PANEL * (PANEL / 2) + column % (PANEL / 2);
            match column % PANEL < PANEL / 2 {
                _ if output >= outputs => 0.0,
                true => gate(output, input),
                false => up(output, input),
            }
        };
        Self { outputs, inputs, panels: Panels::pack(columns, inputs, held, column) }
    }

    /// Width of a product's rows.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Width of the rows that it takes.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes of weights held.
    pub fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(values) => values.len() * 4,
            Panels::Bf16(words) => words.len() * 4,
        }
    }

    /// `x · weightᵀ`: `[tokens, inputs]` → `[tokens, outputs]`, f32.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        self.finished_product(x, Finish::Store)
    }

    /// `silu(x · gateᵀ) * (x · upᵀ)`: `[tokens, inputs]` → `[tokens, outputs]`, f32.
    ///
    /// The weight must come from [`Matrix::pack_gated`].
    pub fn gated_product(&self, x: &Tensor) -> Result<Tensor> {
        self.finished_product(x, Finish::Gate)
    }

    fn finished_product(&self, x: &Tensor, finish: Finish) -> Result<Tensor> {
        let (tokens, inputs) = x.dims2()?;
        if inputs != self.inputs {
            bail!("a product takes rows of {}, found {inputs}", self.inputs)
        }
        let x = host(x)?;
        let mut out = vec![0.0f32; tokens * self.outputs];
        let rows = Rows::dense(&x, inputs);
        let target = Shared::new(&mut out);
        let panels = self.panel_count(finish);
        let work = tokens * self.outputs * inputs;
        let shares =
            if work < SERIAL_WORK { 1 } else { panels.min(rayon::current_num_threads() * 4) };
        let run = |share: usize| {
            let range = panels * share / shares..panels * (share + 1) / shares;
            for first in (0..tokens).step_by(ROW_BLOCK) {
                let count = ROW_BLOCK.min(tokens - first);
                let rows = rows.from(first);
                // SAFETY: shares write different columns of `out`, which has `tokens` rows.
                unsafe {
                    let target = target.at(first * self.outputs);
                    self.multiply(
                        Isa::best(),
                        rows,
                        count,
                        range.clone(),
                        finish,
                        target,
                        self.outputs,
                    );
                }
            }
        };
        if shares == 1 {
            run(0)
        } else {
            (0..shares).into_par_iter().with_max_len(1).for_each(run)
        }
        from_host(out, tokens, self.outputs)
    }

    fn panel_count(&self, finish: Finish) -> usize {
        match finish {
            Finish::Store => self.outputs.div_ceil(PANEL),
            Finish::Gate => self.outputs.div_ceil(PANEL / 2),
        }
    }

    /// Multiplies `count` rows by all panels on this thread.
    ///
    /// # Safety
    /// `rows` has `count` rows of `inputs` elements; `target` has `count` rows of `outputs` elements,
    /// `stride` apart.
    pub(crate) unsafe fn product_into(
        &self,
        rows: Rows,
        count: usize,
        target: *mut f32,
        stride: usize,
    ) {
        let panels = 0..self.panel_count(Finish::Store);
        // SAFETY: the caller's promise.
        unsafe { self.multiply(Isa::best(), rows, count, panels, Finish::Store, target, stride) }
    }

    /// As [`Matrix::product_into`], for a gated weight.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn gated_product_into(
        &self,
        rows: Rows,
        count: usize,
        target: *mut f32,
        stride: usize,
    ) {
        let panels = 0..self.panel_count(Finish::Gate);
        // SAFETY: the caller's promise.
        unsafe { self.multiply(Isa::best(), rows, count, panels, Finish::Gate, target, stride) }
    }

    #[allow(clippy::too_many_arguments, reason = "the border of the kernels")]
    unsafe fn multiply(
        &self,
        isa: Isa,
        rows: Rows,
        count: usize,
        panels: std::ops::Range<usize>,
        finish: Finish,
        target: *mut f32,
        stride: usize,
    ) {
        let shape = Shape { inputs: self.inputs, outputs: self.outputs, count, stride, finish };
        // SAFETY: the caller's promise; panels lie within the weight.
        unsafe {
            match &self.panels {
                Panels::F32(values) => {
                    multiply_f32(isa, values.as_ptr(), rows, shape, panels, target)
                }
                Panels::Bf16(words) => {
                    multiply_bf16(isa, words.as_ptr(), rows, shape, panels, target)
                }
            }
        }
    }
}

impl Panels {
    fn pack(
        columns: usize,
        inputs: usize,
        held: Held,
        value: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        let half = PANEL / 2;
        let bits = |x: f32| u32::from(bf16::from_f32(x).to_bits());
        match held {
            Held::F32 => {
                let mut values = vec![0.0f32; columns * inputs];
                values.par_chunks_mut((PANEL * inputs).max(1)).enumerate().for_each(
                    |(panel, chunk)| {
                        for (i, slot) in chunk.iter_mut().enumerate() {
                            *slot = value(panel * PANEL + i % PANEL, i / PANEL);
                        }
                    },
                );
                Self::F32(values)
            }
            Held::Bf16 => {
                let mut words = vec![0u32; columns / 2 * inputs];
                words.par_chunks_mut((half * inputs).max(1)).enumerate().for_each(
                    |(panel, chunk)| {
                        for (i, slot) in chunk.iter_mut().enumerate() {
                            let (column, input) = (panel * PANEL + i % half, i / half);
                            *slot = bits(value(column, input))
                                | bits(value(column + half, input)) << 16;
                        }
                    },
                );
                Self::Bf16(words)
            }
        }
    }
}

/// Rows of activations: row i begins at `base + index(i) * stride`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    base: &'a [f32],
    indices: Option<&'a [u32]>,
    first: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// All rows of a dense buffer.
    pub(crate) fn dense(base: &'a [f32], stride: usize) -> Self {
        Self { base, indices: None, first: 0, stride }
    }

    /// The rows that `indices` names.
    pub(crate) fn gathered(base: &'a [f32], stride: usize, indices: &'a [u32]) -> Self {
        Self { base, indices: Some(indices), first: 0, stride }
    }

    fn from(self, first: usize) -> Self {
        Self { first: self.first + first, ..self }
    }

    fn row(&self, row: usize) -> *const f32 {
        let row = self.first + row;
        let row = self.indices.map_or(row, |indices| indices[row] as usize);
        self.base[row * self.stride..].as_ptr()
    }
}

#[derive(Clone, Copy)]
struct Shape {
    inputs: usize,
    outputs: usize,
    count: usize,
    stride: usize,
    finish: Finish,
}

/// How a kernel reads one input's values of a panel.
trait PanelWord: Copy {
    /// Words of one input in a panel.
    const WORDS: usize;
    /// The sixteen values of group 0 or 1.
    ///
    /// # Safety
    /// `panel` has `WORDS` elements.
    unsafe fn group<L: Lanes>(panel: *const Self, group: usize) -> L;
}

impl PanelWord for f32 {
    const WORDS: usize = PANEL;
    #[inline(always)]
    unsafe fn group<L: Lanes>(panel: *const Self, group: usize) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load(panel.add(16 * group)) }
    }
}

impl PanelWord for u32 {
    const WORDS: usize = PANEL / 2;
    #[inline(always)]
    unsafe fn group<L: Lanes>(panel: *const Self, group: usize) -> L {
        // SAFETY: the caller's promise.
        unsafe { if group == 0 { L::load_low_halves(panel) } else { L::load_high_halves(panel) } }
    }
}

/// The products of one tile, row by row.
type Tile = [[f32; PANEL]; MAX_TILE_ROWS];

/// Multiplies `R` rows by `G` groups of one panel, beginning at group `first`.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "register tiles are addressed by index")]
unsafe fn tile<L: Lanes, W: PanelWord, const R: usize, const G: usize>(
    rows: &[*const f32; MAX_TILE_ROWS],
    panel: *const W,
    inputs: usize,
    first: usize,
    out: &mut Tile,
) {
    // SAFETY: rows and panel have `inputs` inputs; the tile has `R` rows.
    unsafe {
        let mut sums = [[L::splat(0.0); G]; R];
        for input in 0..inputs {
            let word = panel.add(input * W::WORDS);
            let weights: [L; G] = std::array::from_fn(|g| W::group::<L>(word, first + g));
            for r in 0..R {
                let x = L::splat(*rows[r].add(input));
                for g in 0..G {
                    sums[r][g] = x.mul_add(weights[g], sums[r][g]);
                }
            }
        }
        for r in 0..R {
            for g in 0..G {
                sums[r][g].store(out[r].as_mut_ptr().add(16 * (first + g)));
            }
        }
    }
}

#[inline(always)]
unsafe fn tile_of<L: Lanes, W: PanelWord, const R: usize>(
    rows: &[*const f32; MAX_TILE_ROWS],
    panel: *const W,
    inputs: usize,
    out: &mut Tile,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if L::PANEL_GROUPS == 2 {
            tile::<L, W, R, 2>(rows, panel, inputs, 0, out);
        } else {
            tile::<L, W, R, 1>(rows, panel, inputs, 0, out);
            tile::<L, W, R, 1>(rows, panel, inputs, 1, out);
        }
    }
}

#[inline(always)]
unsafe fn multiply_panels<L: Lanes, W: PanelWord>(
    weights: *const W,
    rows: Rows,
    shape: Shape,
    panels: std::ops::Range<usize>,
    target: *mut f32,
) {
    let mut out: Tile = [[0.0; PANEL]; MAX_TILE_ROWS];
    for panel in panels {
        // SAFETY: the panel lies within the weight; rows and target are the caller's promise.
        unsafe {
            let weights = weights.add(panel * shape.inputs * W::WORDS);
            for first in (0..shape.count).step_by(L::TILE_ROWS) {
                let count = L::TILE_ROWS.min(shape.count - first);
                let pointers = std::array::from_fn(|r| rows.row(first + r.min(count - 1)));
                macro_rules! by_count {
                    ($($r:literal)*) => { match count {
                        $($r if $r <= L::TILE_ROWS => tile_of::<L, W, $r>(&pointers, weights, shape.inputs, &mut out),)*
                        _ => unreachable!("a tile has 1 to 12 rows"),
                    } };
                }
                by_count!(1 2 3 4 5 6 7 8 9 10 11 12);
                finish_tile::<L>(&mut out, first, count, panel, shape, target);
            }
        }
    }
}

/// Writes a tile's products where they belong.
#[inline(always)]
unsafe fn finish_tile<L: Lanes>(
    tile: &mut Tile,
    first: usize,
    count: usize,
    panel: usize,
    shape: Shape,
    target: *mut f32,
) {
    let width = match shape.finish {
        Finish::Store => PANEL,
        Finish::Gate => PANEL / 2,
    };
    let column = panel * width;
    let columns = width.min(shape.outputs - column);
    for (r, products) in tile.iter_mut().enumerate().take(count) {
        // SAFETY: a row of products has 32 elements; the target has `columns` from `column` on.
        unsafe {
            if let Finish::Gate = shape.finish {
                let gate = L::load(products.as_ptr());
                gate.silu().mul(L::load(products.as_ptr().add(16))).store(products.as_mut_ptr());
            }
            let target = target.add((first + r) * shape.stride + column);
            target.copy_from_nonoverlapping(products.as_ptr(), columns);
        }
    }
}

#[inline(always)]
unsafe fn multiply_f32_on<L: Lanes>(
    weights: *const f32,
    rows: Rows,
    shape: Shape,
    panels: std::ops::Range<usize>,
    target: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe { multiply_panels::<L, f32>(weights, rows, shape, panels, target) }
}

#[inline(always)]
unsafe fn multiply_bf16_on<L: Lanes>(
    weights: *const u32,
    rows: Rows,
    shape: Shape,
    panels: std::ops::Range<usize>,
    target: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe { multiply_panels::<L, u32>(weights, rows, shape, panels, target) }
}

per_isa! { fn multiply_f32 = multiply_f32_on(weights: *const f32, rows: Rows, shape: Shape, panels: std::ops::Range<usize>, target: *mut f32) }
per_isa! { fn multiply_bf16 = multiply_bf16_on(weights: *const u32, rows: Rows, shape: Shape, panels: std::ops::Range<usize>, target: *mut f32) }

#[cfg(test)]
mod tests {
    use super::*;

    fn value(seed: usize, i: usize) -> f32 {
        ((i * 2_654_435_761 + seed * 40_503) % 2_001) as f32 / 1_000.0 - 1.0
    }

    fn weight(outputs: usize, inputs: usize, held: Held) -> Matrix {
        Matrix::pack(outputs, inputs, held, |o, i| {
            bf16::from_f32(value(1, o * inputs + i)).to_f32()
        })
    }

    fn activations(tokens: usize, inputs: usize) -> Vec<f32> {
        (0..tokens * inputs).map(|i| value(2, i)).collect()
    }

    fn multiply(matrix: &Matrix, isa: Isa, x: &[f32], tokens: usize) -> Vec<f32> {
        let mut out = vec![0.0; tokens * matrix.outputs];
        let rows = Rows::dense(x, matrix.inputs);
        let panels = 0..matrix.panel_count(Finish::Store);
        // SAFETY: `out` has `tokens` rows.
        unsafe {
            matrix.multiply(
                isa,
                rows,
                tokens,
                panels,
                Finish::Store,
                out.as_mut_ptr(),
                matrix.outputs,
            )
        };
        out
    }

    const SHAPES: [(usize, usize, usize); 7] = [
        (1, 1, 1),
        (1, 32, 64),
        (3, 33, 7),
        (13, 40, 24),
        (25, 100, 96),
        (100, 16, 33),
        (7, 65, 128),
    ];

    #[test]
    fn products_agree_with_the_definition() {
        for (tokens, outputs, inputs) in SHAPES {
            let matrix = weight(outputs, inputs, Held::F32);
            let x = activations(tokens, inputs);
            let y = multiply(&matrix, Isa::best(), &x, tokens);
            for t in 0..tokens {
                for o in 0..outputs {
                    let exact: f64 = (0..inputs)
                        .map(|i| {
                            let w = bf16::from_f32(value(1, o * inputs + i)).to_f64();
                            f64::from(x[t * inputs + i]) * w
                        })
                        .sum();
                    assert!((f64::from(y[t * outputs + o]) - exact).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_on_every_instruction_set_in_every_batch_and_in_both_forms() {
        for (tokens, outputs, inputs) in SHAPES {
            let x = activations(tokens, inputs);
            let expected = multiply(&weight(outputs, inputs, Held::F32), Isa::Portable, &x, tokens);
            for held in [Held::F32, Held::Bf16] {
                let matrix = weight(outputs, inputs, held);
                for isa in Isa::available() {
                    assert_eq!(multiply(&matrix, isa, &x, tokens), expected, "{isa:?} {held:?}");
                }
                for t in 0..tokens {
                    let alone = multiply(&matrix, Isa::best(), &x[t * inputs..(t + 1) * inputs], 1);
                    assert_eq!(alone, expected[t * outputs..(t + 1) * outputs]);
                }
                let x = from_host(x.clone(), tokens, inputs).unwrap();
                let threaded =
                    matrix.product(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(threaded, expected);
            }
        }
    }

    #[test]
    fn a_gated_product_is_silu_of_the_gate_times_the_value() {
        let (tokens, outputs, inputs) = (5, 37, 48);
        let gate = |o: usize, i: usize| value(3, o * inputs + i);
        let up = |o: usize, i: usize| value(4, o * inputs + i);
        let gated = Matrix::pack_gated(outputs, inputs, Held::F32, gate, up);
        let x = activations(tokens, inputs);
        let gates =
            multiply(&Matrix::pack(outputs, inputs, Held::F32, gate), Isa::best(), &x, tokens);
        let ups = multiply(&Matrix::pack(outputs, inputs, Held::F32, up), Isa::best(), &x, tokens);
        let x = from_host(x, tokens, inputs).unwrap();
        let y = gated.gated_product(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for i in 0..tokens * outputs {
            let expected = gates[i] / (1.0 + (-gates[i]).exp()) * ups[i];
            assert!((y[i] - expected).abs() <= 1e-5 * expected.abs().max(1.0));
        }
    }
}
