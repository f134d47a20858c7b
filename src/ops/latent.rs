//! The latent cache's memory: for each layer, blocks of rows, one row a token.
//!
//! A row is the normalised latent followed by the rotated shared key, padded with zeros to whole
//! lanes. Who owns which block is the engine's business.

/// Tokens of one block.
pub const BLOCK_TOKENS: usize = 16;

/// The rows of all layers.
#[derive(Debug)]
pub struct LatentPool {
    layers: Vec<Vec<f32>>,
    stride: usize,
    blocks: usize,
}

impl LatentPool {
    /// Reserves `blocks` blocks for each layer; `width` is latent plus shared key, in elements.
    pub fn new(layers: usize, blocks: usize, width: usize) -> Self {
        let stride = Self::stride_of(width);
        let rows = blocks * BLOCK_TOKENS;
        Self { layers: (0..layers).map(|_| vec![0.0; rows * stride]).collect(), stride, blocks }
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

    pub(crate) fn layer(&self, layer: usize) -> &[f32] {
        &self.layers[layer]
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut [f32] {
        &mut self.layers[layer]
    }

    fn stride_of(width: usize) -> usize {
        width.next_multiple_of(16)
    }
}
