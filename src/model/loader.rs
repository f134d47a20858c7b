//! A checkpoint's tensors in the form in which the operations take them where a rank computes.
//!
//! Knows names and shapes of weights; not what a layer does with them.

use candle_core::{Device, Tensor};

use super::ModelError;
use super::weights::Checkpoint;
use crate::ops::{Expert, Heads, Held, KeyValueWeights, Numerics, Weight};

/// Takes one rank's weights out of a checkpoint.
pub(super) struct Loader<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) numerics: Numerics,
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
        self.weight_in(self.numerics, name, [outputs, inputs])
    }

    /// A weight `[outputs, inputs]` in f32, however the others are held.
    pub(super) fn f32_weight(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Weight, ModelError> {
        self.weight_in(Held::F32.into(), name, [outputs, inputs])
    }

    fn weight_in(
        &self,
        numerics: Numerics,
        name: &str,
        [outputs, inputs]: [usize; 2],
    ) -> Result<Weight, ModelError> {
        let elements = self.checkpoint.elements(name, &[outputs, inputs])?;
        let row = |o: usize, row: &mut [f32]| elements.widen(o * inputs, row);
        Ok(Weight::new(&self.device, [outputs, inputs], numerics, row)?)
    }

    /// The gate, up and down weights of a feed-forward part.
    pub(super) fn expert(
        &self,
        prefix: &str,
        hidden: usize,
        width: usize,
    ) -> Result<Expert, ModelError> {
        let rows = |name: &str| {
            self.checkpoint.elements(&format!("{prefix}.{name}.weight"), &[width, hidden])
        };
        let (gate, up) = (rows("gate_proj")?, rows("up_proj")?);
        let gate_up = Weight::gated(
            &self.device,
            [width, hidden],
            self.numerics,
            |o, row| gate.widen(o * hidden, row),
            |o, row| up.widen(o * hidden, row),
        )?;
        let down = self.weight(&format!("{prefix}.down_proj.weight"), hidden, width)?;
        Ok(Expert { gate_up, down })
    }

    /// `kv_b_proj`.
    pub(super) fn keys_and_values(
        &self,
        name: &str,
        heads: Heads,
    ) -> Result<KeyValueWeights, ModelError> {
        let shape = [heads.count * (heads.nope + heads.value), heads.latent];
        let elements = self.checkpoint.elements(name, &shape)?;
        let row = |o: usize, row: &mut [f32]| elements.widen(o * heads.latent, row);
        Ok(KeyValueWeights::new(&self.device, heads, self.numerics, row)?)
    }
}
