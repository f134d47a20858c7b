//! The latent cache's memory: for each layer, blocks of rows, one row a token.
//!
//! A row is the normalised latent followed by the rotated shared key, padded with zeros to whole
//! lanes. Who owns which block is the engine's business.

use candle_core::{DType, Device, Result, Tensor, bail};

/// Tokens of one block.
pub const BLOCK_TOKENS: usize = 16;

/// The rows of all layers.
#[derive(Debug)]
pub struct LatentPool {
    layers: Layers,
    stride: usize,
    blocks: usize,
}

#[derive(Debug)]
enum Layers {
    Host(Vec<Vec<f32>>),
    /// `[slots, stride]` each.
    Device(Vec<Tensor>),
}

impl LatentPool {
    /// Reserves `blocks` blocks for each layer; `width` is latent plus shared key, in elements.
    pub fn new(layers: usize, blocks: usize, width: usize) -> Self {
        let stride = Self::stride_of(width);
        let elements = blocks * BLOCK_TOKENS * stride;
        let layers = Layers::Host((0..layers).map(|_| vec![0.0; elements]).collect());
        Self { layers, stride, blocks }
    }

    /// The same on a device, in its dtype; the CPU's is f32.
    pub fn on(
        device: &Device,
        dtype: DType,
        layers: usize,
        (blocks, width): (usize, usize),
    ) -> Result<Self> {
        if device.is_cpu() {
            return Ok(Self::new(layers, blocks, width));
        }
        let stride = Self::stride_of(width);
        let layer = |_| Tensor::zeros((blocks * BLOCK_TOKENS, stride), dtype, device);
        let layers = Layers::Device((0..layers).map(layer).collect::<Result<_>>()?);
        Ok(Self { layers, stride, blocks })
    }

    /// Bytes that one block takes over all layers.
    pub fn block_bytes(layers: usize, width: usize) -> u64 {
        (layers * BLOCK_TOKENS * Self::stride_of(width) * size_of::<f32>()) as u64
    }

    /// Blocks of each layer.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Elements from one row to the next: the width in whole lanes.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// A layer's rows on the host; none where they are on a device.
    pub(crate) fn layer(&self, layer: usize) -> &[f32] {
        match &self.layers {
            Layers::Host(layers) => &layers[layer],
            Layers::Device(_) => &[],
        }
    }

    /// A layer's rows on a device.
    pub(super) fn device_layer(&self, layer: usize) -> Result<&Tensor> {
        match &self.layers {
            Layers::Host(_) => {
                bail!("activations are on a device, the latent cache is on the host")
            }
            Layers::Device(layers) => Ok(&layers[layer]),
        }
    }

    /// The row of a slot: block number times [`BLOCK_TOKENS`] plus offset.
    pub(crate) fn row_mut(&mut self, layer: usize, slot: u32) -> &mut [f32] {
        let start = slot as usize * self.stride;
        match &mut self.layers {
            Layers::Host(layers) => &mut layers[layer][start..start + self.stride],
            Layers::Device(_) => &mut [],
        }
    }

    fn stride_of(width: usize) -> usize {
        width.next_multiple_of(16)
    }
}
