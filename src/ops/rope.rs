//! Rotary position embedding, and the write of a step's latents into the cache.
//!
//! Pairs are neighbours (2i, 2i + 1), as DeepSeek's checkpoints store them.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::accelerator;
use super::frame::Frame;
use super::host::{from_host, host};
use super::lanes::Isa;
use super::latent::LatentPool;
use super::norm::rms_norm_row;

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

    /// Cosines and sines as tensors of a device.
    pub(super) fn on(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let shape = (self.cos.len() / self.pairs.max(1), self.pairs);
        let upload = |values: &[f32]| Tensor::from_slice(values, shape, device);
        Ok((upload(&self.cos)?, upload(&self.sin)?))
    }

    /// Rotates the pairs of one token.
    fn rotate(&self, token: usize, pairs: &mut [f32]) {
        let row = token * self.pairs..(token + 1) * self.pairs;
        let angles = self.cos[row.clone()].iter().zip(&self.sin[row]);
        for (pair, (cos, sin)) in pairs.chunks_exact_mut(2).zip(angles) {
            let (a, b) = (pair[0], pair[1]);
            pair[0] = a * cos - b * sin;
            pair[1] = a * sin + b * cos;
        }
    }
}

/// Rotates the last `2 * pairs` elements of every head: `[tokens, heads * head_width]` → the same.
pub fn rotate_queries(q: &Tensor, heads: usize, frame: &Frame) -> Result<Tensor> {
    if let (Some(device), Some(frame)) = (accelerator::of(q), &frame.uploaded) {
        return device.rotate_queries(q, heads, frame);
    }
    let rotation = &frame.rotation;
    let (tokens, width) = q.dims2()?;
    let head = width / heads;
    let rope = 2 * rotation.pairs;
    if width % heads != 0 || rope > head || rotation.cos.len() != tokens * rotation.pairs {
        bail!("a rotation of {rope} does not fit {heads} heads in rows of {width}")
    }
    let mut out = host(q)?.to_vec();
    out.par_chunks_mut(width).enumerate().with_min_len(16).for_each(|(token, row)| {
        row.chunks_mut(head)
            .for_each(|head_row| rotation.rotate(token, &mut head_row[head - rope..]));
    });
    from_host(out, tokens, width)
}

/// Normalises the latent of each row of `kv` (`[tokens, latent + 2 * pairs]`), rotates its shared key
/// and writes both into the row's slot of the cache.
pub fn store_latents(
    kv: &Tensor,
    norm: &Tensor,
    epsilon: f32,
    frame: &Frame,
    (pool, layer): (&mut LatentPool, usize),
) -> Result<()> {
    if let (Some(device), Some(frame)) = (accelerator::of(kv), &frame.uploaded) {
        return device.store_latents(kv, norm, epsilon, frame, pool.device_layer(layer)?);
    }
    if kv.elem_count() == 0 {
        return Ok(());
    }
    let (rotation, slots) = (&frame.rotation, frame.slots);
    let norm = host(norm)?;
    let (tokens, width) = kv.dims2()?;
    let latent = norm.len();
    if width != latent + 2 * rotation.pairs || slots.len() != tokens {
        bail!("{} slots and a latent of {latent} do not fit {tokens} rows of {width}", slots.len())
    }
    let kv = host(kv)?;
    for (token, (row, &slot)) in kv.chunks(width).zip(slots).enumerate() {
        let target = pool.row_mut(layer, slot);
        rms_norm_row(Isa::best(), &row[..latent], &norm, epsilon, &mut target[..latent]);
        target[latent..width].copy_from_slice(&row[latent..]);
        rotation.rotate(token, &mut target[latent..width]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_turn_by_position_times_frequency() {
        let rotation = Rotation::new(&[0, 3], &[1.0, 0.1], 1.0);
        let q = from_host(vec![9.0, 1.0, 0.0, 0.0, 2.0, 9.0, 1.0, 0.0, 0.0, 2.0], 2, 5).unwrap();
        let frame = Frame::new(rotation, &[0, 1], &[], &Device::Cpu).unwrap();
        let q = rotate_queries(&q, 1, &frame).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(q[0], [9.0, 1.0, 0.0, 0.0, 2.0]);
        let expected = [9.0, 3f32.cos(), 3f32.sin(), -2.0 * 0.3f32.sin(), 2.0 * 0.3f32.cos()];
        assert!(q[1].iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
