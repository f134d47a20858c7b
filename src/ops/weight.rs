//! Weights where the model computes: packed for the CPU, or row by row on a device.

use candle_core::{Device, Result, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use super::devices;
use super::matmul::Matrix;
use super::numerics::{Held, Numerics};

/// A weight `[outputs, inputs]`, or a gate's and an up weight's together.
#[derive(Debug)]
pub enum Weight {
    /// Packed for the CPU.
    Host(Matrix),
    /// Row by row on a device; of two weights the gate's rows come first.
    Device(Tensor),
}

impl Weight {
    /// Holds a weight where `device` computes; `fill(output, row)` writes the `inputs` values of one
    /// output.
    pub fn new(
        device: &Device,
        [outputs, inputs]: [usize; 2],
        numerics: impl Into<Numerics>,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        let numerics = numerics.into();
        Ok(match device.is_cpu() {
            true => Self::Host(Matrix::pack(outputs, inputs, numerics, fill)),
            false => Self::Device(upload(device, [outputs, inputs], numerics.held, fill)?),
        })
    }

    /// Holds the gate and up weights of a feed-forward layer together, `[outputs, inputs]` each.
    pub fn gated(
        device: &Device,
        [outputs, inputs]: [usize; 2],
        numerics: impl Into<Numerics>,
        gate: impl Fn(usize, &mut [f32]) + Sync,
        up: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        let numerics = numerics.into();
        if device.is_cpu() {
            return Ok(Self::Host(Matrix::pack_gated(outputs, inputs, numerics, gate, up)));
        }
        let both = |row: usize, values: &mut [f32]| match row < outputs {
            true => gate(row, values),
            false => up(row - outputs, values),
        };
        Ok(Self::Device(upload(device, [2 * outputs, inputs], numerics.held, both)?))
    }

    /// `x · weightᵀ`: `[tokens, inputs]` → `[tokens, outputs]`, f32.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        match devices::of(x) {
            None => self.host()?.product(x),
            Some(device) => device.product(x, self.on_device()?),
        }
    }

    /// `silu(x · gateᵀ) * (x · upᵀ)`: `[tokens, inputs]` → `[tokens, outputs]`, for
    /// [`Weight::product`]; the weight must come from [`Weight::gated`].
    pub fn gated_product(&self, x: &Tensor) -> Result<Tensor> {
        match devices::of(x) {
            None => self.host()?.gated_product(x),
            Some(device) => device.gated_product(x, self.on_device()?),
        }
    }

    /// Bytes of weights held.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Host(matrix) => matrix.bytes(),
            Self::Device(rows) => bytes(rows),
        }
    }

    pub(super) fn host(&self) -> Result<&Matrix> {
        match self {
            Self::Host(matrix) => Ok(matrix),
            Self::Device(_) => bail!("a weight is on a device, activations are not"),
        }
    }

    pub(super) fn on_device(&self) -> Result<&Tensor> {
        match self {
            Self::Host(_) => bail!("activations are on a device, a weight is not"),
            Self::Device(rows) => Ok(rows),
        }
    }
}

/// A matrix as a device holds it; `fill(row, values)` writes one of its rows.
pub(crate) fn upload(
    device: &Device,
    [rows, width]: [usize; 2],
    held: Held,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<Tensor> {
    match held {
        Held::F32 => {
            let mut values = vec![0.0; rows * width];
            let targets = values.par_chunks_mut(width).enumerate();
            targets.for_each(|(row, target)| fill(row, target));
            Tensor::from_vec(values, (rows, width), device)
        }
        Held::Bf16 => {
            let mut values = vec![bf16::ZERO; rows * width];
            let targets = values.par_chunks_mut(width).enumerate();
            targets.for_each_init(Vec::new, |wide, (row, target)| {
                wide.resize(width, 0.0);
                fill(row, wide);
                target.iter_mut().zip(wide).for_each(|(x, value)| *x = bf16::from_f32(*value));
            });
            Tensor::from_vec(values, (rows, width), device)
        }
        Held::Int8 => bail!("devices hold weights in F32 or BF16, not in INT8"),
    }
}

/// Bytes of a tensor's elements.
pub(crate) fn bytes(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}
