//! Weights where the model runs: packed for the CPU, or as they are on a device.

use candle_core::{Result, Tensor, bail};

use super::accelerator;
use super::host::from_host;
use super::matmul::Matrix;

/// A weight `[outputs, inputs]`, or a gate's and an up weight's together.
#[derive(Debug)]
pub enum Weight {
    /// Packed for the CPU.
    Host(Matrix),
    /// Row by row on a device; of two weights the gate's rows come first.
    Device(Tensor),
}

/// A feed-forward part that every token passes, `down(silu(gate x) * up x)`, or one expert of many.
#[derive(Debug)]
pub struct FeedForwardWeights {
    /// Gate and up: `[intermediate, hidden]` each.
    pub gate_up: Weight,
    /// `[hidden, intermediate]`.
    pub down: Weight,
}

impl Weight {
    /// `x · weightᵀ`: `[tokens, inputs]` → `[tokens, outputs]`, f32.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        match (self, accelerator::of(x)) {
            (Self::Host(weight), None) => weight.product(x),
            (Self::Device(weight), Some(device)) => device.product(x, weight),
            // Tensors without elements stay on the host.
            (Self::Device(weight), None) if x.elem_count() == 0 => {
                from_host(Vec::new(), 0, weight.dim(0)?)
            }
            _ => bail!("a product's rows and weight are on different devices"),
        }
    }
}

impl FeedForwardWeights {
    /// `[tokens, hidden]` → the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = match (&self.gate_up, accelerator::of(x)) {
            (Weight::Host(weight), None) => weight.gated_product(x)?,
            (Weight::Device(weight), Some(device)) => device.gated_product(x, weight)?,
            (Weight::Device(_), None) if x.elem_count() == 0 => return Ok(x.clone()),
            _ => bail!("a product's rows and weight are on different devices"),
        };
        self.down.product(&inner)
    }
}
