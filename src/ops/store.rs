//! The write of a step's latents into the cache: normalised, their shared key rotated.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::devices;
use super::host::host;
use super::isa::Isa;
use super::latent::LatentPool;
use super::metadata::AttentionMetadata;
use super::norm::{SERIAL_ELEMENTS, rms_norm_row};

/// Normalises the latent of each row of `kv` (`[tokens, latent + 2 * pairs]`), rotates its shared key
/// and writes both into the row's slot of the cache.
pub fn store_latents(
    kv: &Tensor,
    norm: &Tensor,
    epsilon: f32,
    metadata: &AttentionMetadata,
    (pool, layer): (&mut LatentPool, usize),
) -> Result<()> {
    if let (Some(device), Some(metadata)) = (devices::of(kv), &metadata.on_device) {
        return device.store_latents(kv, norm, epsilon, metadata, pool.on_device(layer)?);
    }
    let (rotation, slots, norm) = (&metadata.rotation, metadata.slots, &*host(norm)?);
    let (tokens, width) = kv.dims2()?;
    let latent = norm.len();
    if width != latent + 2 * rotation.pairs() || slots.len() != tokens {
        bail!("{} slots and a latent of {latent} do not fit {tokens} rows of {width}", slots.len())
    }
    let kv = host(kv)?;
    let (cache, isa) = (pool.slots(layer)?, Isa::best());
    let store = |latents: &mut Vec<f32>, (token, (row, &slot)): (usize, (&[f32], &u32))| {
        latents.resize(width, 0.0);
        rms_norm_row(isa, &row[..latent], norm, epsilon, &mut latents[..latent]);
        latents[latent..].copy_from_slice(&row[latent..]);
        rotation.rotate(token, &mut latents[latent..]);
        // SAFETY: each token has a slot of its own, and nobody reads the layer meanwhile.
        unsafe { cache.write(slot, latents) }
    };
    if kv.len() < SERIAL_ELEMENTS {
        let mut latents = Vec::new();
        kv.chunks(width).zip(slots).enumerate().for_each(|row| store(&mut latents, row));
    } else {
        let rows = kv.par_chunks(width).zip(slots).enumerate();
        rows.with_min_len(8).for_each_init(Vec::new, store);
    }
    Ok(())
}
