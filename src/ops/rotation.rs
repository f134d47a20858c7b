//! Rotary position embedding.
//!
//! Pairs are neighbours (2i, 2i + 1), as DeepSeek's checkpoints store them.

use candle_core::{Device, Result, Tensor};

/// Cosines and sines of a step's positions: `[tokens, rope_dim / 2]` each.
#[derive(Clone, Debug)]
pub struct Rotation {
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
}

impl Rotation {
    /// Angles are `position * frequency` in f32, as the released code computes them; `multiplier`
    /// scales cosine and sine (YaRN's, 1 for every released model).
    pub fn new(positions: &[u32], frequencies: &[f32], multiplier: f32) -> Self {
        let angles = positions
            .iter()
            .flat_map(|&p| frequencies.iter().map(move |f| f64::from(p as f32 * f)));
        let (cos, sin) =
            angles.map(|a| (a.cos() as f32 * multiplier, a.sin() as f32 * multiplier)).unzip();
        Self { cos, sin, pairs: frequencies.len() }
    }

    /// Angles of each token.
    pub(super) fn pairs(&self) -> usize {
        self.pairs
    }

    /// Whether it has an angle for each token and pair of `rope` elements.
    pub(super) fn fits(&self, tokens: usize, rope: usize) -> bool {
        rope == 2 * self.pairs && self.cos.len() == tokens * self.pairs
    }

    /// Cosines and sines as tensors of a device.
    pub(super) fn on(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let shape = (self.cos.len() / self.pairs.max(1), self.pairs);
        let upload = |values: &[f32]| Tensor::from_slice(values, shape, device);
        Ok((upload(&self.cos)?, upload(&self.sin)?))
    }

    /// Rotates the pairs of one token.
    pub(super) fn rotate(&self, token: usize, pairs: &mut [f32]) {
        let row = token * self.pairs..(token + 1) * self.pairs;
        let angles = self.cos[row.clone()].iter().zip(&self.sin[row]);
        for (pair, (cos, sin)) in pairs.chunks_exact_mut(2).zip(angles) {
            let (a, b) = (pair[0], pair[1]);
            pair[0] = a * cos - b * sin;
            pair[1] = a * sin + b * cos;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_turn_by_position_times_frequency() {
        let rotation = Rotation::new(&[0, 3], &[1.0, 0.1], 1.0);
        let mut pairs = [[1.0, 0.0, 0.0, 2.0]; 2];
        pairs.iter_mut().enumerate().for_each(|(token, pairs)| rotation.rotate(token, pairs));
        assert_eq!(pairs[0], [1.0, 0.0, 0.0, 2.0]);
        let expected = [3f32.cos(), 3f32.sin(), -2.0 * 0.3f32.sin(), 2.0 * 0.3f32.cos()];
        assert!(pairs[1].iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
