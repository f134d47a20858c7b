//! A checkpoint's tensors in the form in which the operations of one device take them.
//!
//! Knows names and shapes of weights, and where a rank computes; not what a layer does with them.

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use half::bf16;

use super::ModelError;
use super::weights::{Checkpoint, Elements};
use crate::ops::{FeedForwardWeights, HeadWeights, Heads, Held, KeyValueWeights, Matrix, Weight};

/// Takes one rank's weights out of a checkpoint.
pub(super) struct Loader<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) held: Held,
    pub(super) device: Device,
}

impl Loader<'_> {
    /// A vector `[width]`, f32.
    pub(super) fn vector(&self, name: &str, width: usize) -> Result<Tensor, ModelError> {
        let values = self.checkpoint.vector(name, width)?;
        Ok(Tensor::from_vec(values, width, &self.device)?)
    }

    /// A weight `[outputs, inputs]`.
    pub(super) fn weight(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Weight, ModelError> {
        self.weight_held(name, [outputs, inputs], self.held)
    }

    /// A weight `[outputs, inputs]` in f32, however the others are held.
    pub(super) fn wide_weight(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Weight, ModelError> {
        self.weight_held(name, [outputs, inputs], Held::F32)
    }

    fn weight_held(
        &self,
        name: &str,
        [outputs, inputs]: [usize; 2],
        held: Held,
    ) -> Result<Weight, ModelError> {
        if self.device.is_cpu() {
            return Ok(Weight::Host(self.checkpoint.matrix(name, outputs, inputs, held)?));
        }
        let elements = self.checkpoint.elements(name, &[outputs, inputs])?;
        Ok(Weight::Device(self.upload(&[elements], [outputs, inputs], held)?))
    }

    /// The gate, up and down weights of a feed-forward part.
    pub(super) fn feed_forward(
        &self,
        prefix: &str,
        hidden: usize,
        width: usize,
    ) -> Result<FeedForwardWeights, ModelError> {
        let names = [format!("{prefix}.gate_proj.weight"), format!("{prefix}.up_proj.weight")];
        let [gate, up] = self.checkpoint.pair([&names[0], &names[1]], &[width, hidden])?;
        let gate_up = match self.device.is_cpu() {
            true => Weight::Host(Matrix::pack_gated(
                width,
                hidden,
                self.held,
                |o, i| gate.at(o * hidden + i),
                |o, i| up.at(o * hidden + i),
            )),
            false => Weight::Device(self.upload(&[gate, up], [2 * width, hidden], self.held)?),
        };
        let down = self.weight(&format!("{prefix}.down_proj.weight"), hidden, width)?;
        Ok(FeedForwardWeights { gate_up, down })
    }

    /// `kv_b_proj`, for the CPU cut into heads: of each head the keys' rows come first, then the values'.
    pub(super) fn keys_and_values(
        &self,
        name: &str,
        heads: Heads,
    ) -> Result<KeyValueWeights, ModelError> {
        let Heads { count, nope, value, latent, .. } = heads;
        let rows = nope + value;
        let elements = self.checkpoint.elements(name, &[count * rows, latent])?;
        if !self.device.is_cpu() {
            let weight = self.upload(&[elements], [count * rows, latent], self.held)?;
            return Ok(KeyValueWeights::Device(weight));
        }
        let held = self.held;
        let head = |h: usize| HeadWeights {
            key: Matrix::pack(nope, latent, held, |o, i| elements.at((h * rows + o) * latent + i)),
            key_transposed: Matrix::pack(latent, nope, held, |o, i| {
                elements.at((h * rows + i) * latent + o)
            }),
            value: Matrix::pack(value, latent, held, |o, i| {
                elements.at((h * rows + nope + o) * latent + i)
            }),
        };
        Ok(KeyValueWeights::Host((0..count).map(head).collect()))
    }

    /// A table `[rows, width]` on this loader's device.
    pub(super) fn table(&self, name: &str, shape: [usize; 2]) -> Result<Tensor, ModelError> {
        let elements = self.checkpoint.elements(name, &shape)?;
        Ok(self.upload(&[elements], shape, self.held)?)
    }

    /// Tensors one after another as one `[rows, width]` of the device.
    fn upload(&self, parts: &[Elements], shape: [usize; 2], held: Held) -> CandleResult<Tensor> {
        let values = parts.iter().flat_map(|part| (0..part.count()).map(|i| part.at(i)));
        let (shape, device) = ((shape[0], shape[1]), &self.device);
        match held {
            Held::F32 => Tensor::from_vec(values.collect::<Vec<f32>>(), shape, device),
            Held::Bf16 if parts.iter().all(Elements::is_bf16) => {
                let bytes: Vec<u8> = parts.iter().flat_map(|part| part.bytes()).copied().collect();
                Tensor::from_raw_buffer(&bytes, DType::BF16, &[shape.0, shape.1], device)
            }
            Held::Bf16 => {
                let rounded: Vec<bf16> = values.map(bf16::from_f32).collect();
                Tensor::from_vec(rounded, shape, device)
            }
        }
    }
}
