//! The sum of two activations, on the threads that everything else runs on.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::devices;
use super::host::{from_host, host};

/// Elements that a thread adds at a time; fewer are not worth a second thread.
const CHUNK: usize = 1 << 15;

/// `x + y`: two `[tokens, width]` → the same.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if devices::of(x).is_some() {
        return x + y;
    }
    let (tokens, width) = x.dims2()?;
    if y.dims2()? != (tokens, width) {
        bail!("rows of {:?} do not fit rows of {:?}", y.dims(), x.dims())
    }
    let (x, y) = (host(x)?, host(y)?);
    let (x, y): (&[f32], &[f32]) = (&x, &y);
    let mut sum = vec![0.0f32; x.len()];
    let chunks = sum.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(y.par_chunks(CHUNK));
    chunks.for_each(|((sum, x), y)| {
        sum.iter_mut().zip(x).zip(y).for_each(|((sum, x), y)| *sum = x + y);
    });
    from_host(sum, tokens, width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_added_in_their_places() {
        let row = |scale: f32| (0..3 * CHUNK).map(|i| i as f32 * scale).collect::<Vec<_>>();
        let tensor = |scale| from_host(row(scale), 96, CHUNK / 32).unwrap();
        let sum = add(&tensor(1.0), &tensor(0.5)).unwrap().flatten_all().unwrap();
        assert_eq!(sum.to_vec1::<f32>().unwrap(), row(1.5));
        let other = from_host(vec![0.0; 4], 2, 2).unwrap();
        assert!(add(&tensor(1.0), &other).is_err());
    }
}
