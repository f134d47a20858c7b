//! Root-mean-square normalisation and the other elementwise steps between products.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::devices;
use super::host::{from_host, host};
use super::isa::{Isa, per_isa};
use super::lanes::Lanes;

/// Elements below which a second thread is not worth its wake-up.
pub(super) const SERIAL_ELEMENTS: usize = 1 << 15;

/// `weight * x / sqrt(mean(x²) + epsilon)`, row by row: `[tokens, width]` → the same.
///
/// The weight is `[width]`; only so many elements of each row are taken and given.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    if let Some(device) = devices::of(x) {
        return device.rms_norm(x, weight, epsilon);
    }
    let (tokens, stride) = x.dims2()?;
    let weight = &*host(weight)?;
    let width = weight.len();
    if width > stride {
        bail!("a norm of {width} does not fit rows of {stride}")
    }
    let x = host(x)?;
    let mut out = vec![0.0f32; tokens * width];
    let isa = Isa::best();
    let norm = |(row, target): (&[f32], &mut [f32])| {
        rms_norm_row(isa, &row[..width], weight, epsilon, target)
    };
    if out.len() < SERIAL_ELEMENTS {
        x.chunks(stride).zip(out.chunks_mut(width)).for_each(norm);
    } else {
        x.par_chunks(stride).zip(out.par_chunks_mut(width)).with_min_len(8).for_each(norm);
    }
    from_host(out, tokens, width)
}

/// The residual stream and what a layer adds to it, `[tokens, width]` both → their sum, and its
/// [`rms_norm`].
pub fn add_rms_norm(
    x: &Tensor,
    y: &Tensor,
    weight: &Tensor,
    epsilon: f32,
) -> Result<(Tensor, Tensor)> {
    if let Some(device) = devices::of(x) {
        return device.add_rms_norm(x, y, weight, epsilon);
    }
    let (tokens, width) = x.dims2()?;
    let weight = &*host(weight)?;
    if y.dims2()? != (tokens, width) || weight.len() != width {
        bail!("a norm of {} does not fit {:?} + {:?}", weight.len(), x.shape(), y.shape())
    }
    let (x, y) = (host(x)?, host(y)?);
    let (mut sums, mut normed) = (vec![0.0f32; x.len()], vec![0.0f32; x.len()]);
    let isa = Isa::best();
    let add = |x: &[f32], y: &[f32], sum: &mut [f32], normed: &mut [f32]| {
        x.iter().zip(y).zip(&mut *sum).for_each(|((x, y), sum)| *sum = x + y);
        rms_norm_row(isa, sum, weight, epsilon, normed);
    };
    if x.len() < SERIAL_ELEMENTS {
        let rows = x.chunks(width).zip(y.chunks(width)).zip(sums.chunks_mut(width));
        let rows = rows.zip(normed.chunks_mut(width));
        rows.for_each(|(((x, y), sum), normed)| add(x, y, sum, normed));
    } else {
        let rows = x.par_chunks(width).zip(y.par_chunks(width)).zip(sums.par_chunks_mut(width));
        let rows = rows.zip(normed.par_chunks_mut(width)).with_min_len(8);
        rows.for_each(|(((x, y), sum), normed)| add(x, y, sum, normed));
    }
    Ok((from_host(sums, tokens, width)?, from_host(normed, tokens, width)?))
}

/// Normalises one row into `target`; all three have one length.
pub(crate) fn rms_norm_row(isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, target: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == target.len(), "a norm keeps its width");
    // SAFETY: the three slices have `x.len()` elements.
    unsafe { norm_row(isa, x.as_ptr(), weight.as_ptr(), epsilon, target.as_mut_ptr(), x.len()) }
}

#[inline(always)]
unsafe fn norm_row_on<L: Lanes>(
    x: *const f32,
    weight: *const f32,
    epsilon: f32,
    target: *mut f32,
    width: usize,
) {
    let whole = width / 16 * 16;
    // SAFETY: all three have `width` elements; the remainder is read and written one by one.
    unsafe {
        let mut squares = L::splat(0.0);
        for i in (0..whole).step_by(16) {
            let x = L::load(x.add(i));
            squares = x.mul_add(x, squares);
        }
        let mut sum = squares.sum();
        for i in whole..width {
            let x = *x.add(i);
            sum = x.mul_add(x, sum);
        }
        let scale = 1.0 / (sum / width as f32 + epsilon).sqrt();
        let scales = L::splat(scale);
        for i in (0..whole).step_by(16) {
            L::load(x.add(i)).mul(scales).mul(L::load(weight.add(i))).store(target.add(i));
        }
        for i in whole..width {
            *target.add(i) = *x.add(i) * scale * *weight.add(i);
        }
    }
}

per_isa! { fn norm_row = norm_row_on(x: *const f32, weight: *const f32, epsilon: f32, target: *mut f32, width: usize) }

/// Adds a bias `[width]` to every row of `[tokens, width]`.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if devices::of(x).is_some() {
        return x.broadcast_add(bias);
    }
    let (tokens, width) = x.dims2()?;
    let bias = &*host(bias)?;
    if width != bias.len() {
        bail!("a bias of {} does not fit rows of {width}", bias.len())
    }
    let mut out = host(x)?.to_vec();
    for row in out.chunks_mut(width) {
        row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    }
    from_host(out, tokens, width)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_sum_and_its_norm_are_those_of_the_single_operations() {
        for (tokens, width) in [(3, 40), (900, 48)] {
            let values = |seed: f32| (0..tokens * width).map(|i| (i as f32 * seed).sin()).collect();
            let x = from_host(values(0.7), tokens, width).unwrap();
            let y = from_host(values(0.3), tokens, width).unwrap();
            let weight: Vec<f32> = (0..width).map(|i| 1.0 + i as f32 * 0.01).collect();
            let weight = Tensor::from_vec(weight, width, &Device::Cpu).unwrap();
            let (sum, normed) = add_rms_norm(&x, &y, &weight, 1e-6).unwrap();
            let expected = (&x + &y).unwrap();
            assert_eq!(*host(&sum).unwrap(), *host(&expected).unwrap());
            let expected = rms_norm(&expected, &weight, 1e-6).unwrap();
            assert_eq!(*host(&normed).unwrap(), *host(&expected).unwrap());
        }
    }

    #[test]
    fn every_instruction_set_normalises_to_the_same_bits() {
        for width in [1, 15, 16, 40, 100] {
            let x: Vec<f32> = (0..width).map(|i| (i as f32 * 0.7).sin()).collect();
            let weight: Vec<f32> = (0..width).map(|i| 1.0 + i as f32 * 0.01).collect();
            let mean = x.iter().map(|x| x * x).sum::<f32>() / width as f32;
            let mut expected = vec![0.0; width];
            rms_norm_row(Isa::Portable, &x, &weight, 1e-6, &mut expected);
            for i in 0..width {
                assert!((expected[i] - x[i] * weight[i] / (mean + 1e-6).sqrt()).abs() < 1e-5);
            }
            for isa in Isa::available() {
                let mut y = vec![0.0; width];
                rms_norm_row(isa, &x, &weight, 1e-6, &mut y);
                assert_eq!(y, expected, "{isa:?} {width}");
            }
        }
    }
}
