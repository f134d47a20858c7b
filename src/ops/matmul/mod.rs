//! Products with static weights: packed once at load, multiplied in a fixed order ever after.
//!
//! A weight `[outputs, inputs]` is cut into [`panels`] of 32 outputs. A [`tile`] of activation
//! [`rows`] times a panel is a chain over the inputs, in their order, for each output: no bit of it
//! depends on the number of rows or of threads. [`multiply`] walks tiles and panels on one thread,
//! [`grouped`] divides many products over all of them. BF16 weights are widened in registers, which
//! computes exactly what the same values held as F32 would; [`pairs`] and [`quads`] are the two ways
//! that trade exactness for speed.

mod grouped;
mod multiply;
mod pairs;
mod panels;
mod quads;
mod rows;
#[cfg(test)]
mod tests;
mod tile;

use candle_core::{Result, Tensor, bail};

use self::grouped::run_here;
use self::panels::Panels;
use self::tile::PANEL;
use super::host::{Shared, from_host, host};
use super::isa::Isa;
use super::numerics::{Compute, Numerics};

pub(super) use self::grouped::{Target, Task, run};
pub(super) use self::multiply::Finish;
pub(super) use self::rows::Rows;

impl Compute {
    /// Whether this processor can compute so.
    pub fn is_available(self) -> bool {
        self == Self::F32 || pairs::available()
    }
}

/// A packed weight `[outputs, inputs]`.
#[derive(Debug)]
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    panels: Panels,
    compute: Compute,
}

impl Matrix {
    /// Packs a weight; `fill(output, row)` writes the `inputs` values of one output.
    ///
    /// # Panics
    /// When the processor cannot compute so: [`Compute::is_available`].
    pub fn pack(
        outputs: usize,
        inputs: usize,
        numerics: impl Into<Numerics>,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let Numerics { held, compute, .. } = numerics.into();
        assert!(compute.is_available(), "this processor has no BF16 dot products");
        let column = |column: usize, row: &mut [f32]| match column < outputs {
            true => fill(column, row),
            false => row.fill(0.0),
        };
        let panels = Panels::pack(outputs.div_ceil(PANEL), inputs, held, column);
        Self { outputs, inputs, panels, compute }
    }

    /// Packs the gate and up weights of a feed-forward layer together, for
    /// [`Matrix::gated_product`].
    ///
    /// Both are `[outputs, inputs]`; a panel has sixteen outputs of each.
    pub fn pack_gated(
        outputs: usize,
        inputs: usize,
        numerics: impl Into<Numerics>,
        gate: impl Fn(usize, &mut [f32]) + Sync,
        up: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let Numerics { held, compute, .. } = numerics.into();
        assert!(compute.is_available(), "this processor has no BF16 dot products");
        let half = PANEL / 2;
        let column = |column: usize, row: &mut [f32]| {
            let output = column / PANEL * half + column % half;
            match column % PANEL < half {
                _ if output >= outputs => row.fill(0.0),
                true => gate(output, row),
                false => up(output, row),
            }
        };
        let panels = Panels::pack(outputs.div_ceil(half), inputs, held, column);
        Self { outputs, inputs, panels, compute }
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
        self.panels.bytes()
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

    /// Its elements.
    fn weights(&self) -> usize {
        self.outputs * self.inputs
    }

    fn finished_product(&self, x: &Tensor, finish: Finish) -> Result<Tensor> {
        let (tokens, inputs) = x.dims2()?;
        if inputs != self.inputs {
            bail!("a product takes rows of {}, found {inputs}", self.inputs)
        }
        let x = host(x)?;
        let mut out = Vec::new();
        let target = Target::within(&mut out, tokens, self.outputs);
        let task = Task { matrix: self, rows: Rows::dense(&x, inputs), count: tokens, target };
        // SAFETY: `out` has room for `tokens` rows, and a product writes every element of them.
        unsafe {
            run(&[task], finish);
            out.set_len(tokens * self.outputs);
        }
        from_host(out, tokens, self.outputs)
    }

    /// Multiplies `count` rows by all panels on this thread.
    ///
    /// # Safety
    /// `rows` has `count` rows of `inputs` elements; `target` has `count` rows of `outputs` elements,
    /// `stride` apart.
    pub(super) unsafe fn product_into(
        &self,
        rows: Rows,
        count: usize,
        target: *mut f32,
        stride: usize,
    ) {
        let target = Target { first: Shared::from_pointer(target), stride };
        let task = Task { matrix: self, rows, count, target };
        // SAFETY: the caller's promise.
        unsafe { run_here(Isa::best(), task, Finish::Store) }
    }
}
