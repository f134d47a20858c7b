//! Products agree with their definition, and with themselves on every path.

use half::bf16;

use super::grouped::run_here;
use super::*;
use crate::ops::isa::Isa;
use crate::ops::numerics::{CacheFormat, Held};

fn value(seed: usize, i: usize) -> f32 {
    ((i * 2_654_435_761 + seed * 40_503) % 2_001) as f32 / 1_000.0 - 1.0
}

/// Values of seed 1, rounded to BF16 so that both forms hold them exactly.
fn weight(outputs: usize, inputs: usize, numerics: impl Into<Numerics>) -> Matrix {
    Matrix::pack(outputs, inputs, numerics, |o, row| {
        fill(1, o, row);
        row.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    })
}

fn fill(seed: usize, output: usize, row: &mut [f32]) {
    let inputs = row.len();
    row.iter_mut().enumerate().for_each(|(i, x)| *x = value(seed, output * inputs + i));
}

fn activations(tokens: usize, inputs: usize) -> Vec<f32> {
    (0..tokens * inputs).map(|i| value(2, i)).collect()
}

fn multiply(matrix: &Matrix, isa: Isa, x: &[f32], tokens: usize) -> Vec<f32> {
    let mut out = vec![0.0; tokens * matrix.outputs];
    let target = Target { first: Shared::new(&mut out), stride: matrix.outputs };
    let rows = Rows::dense(x, matrix.inputs);
    // SAFETY: `out` has `tokens` rows.
    unsafe { run_here(isa, Task { matrix, rows, count: tokens, target }, Finish::Store) };
    out
}

fn values(tensor: Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 32, 64),
    (3, 33, 7),
    (13, 40, 24),
    (25, 100, 96),
    (100, 16, 33),
    (7, 65, 128),
    (5, 48, 301),
    (150, 300, 1024),
];

const EXACT: Numerics =
    Numerics { held: Held::Bf16, compute: Compute::F32, cache: CacheFormat::F32 };
const FORMS: [Numerics; 3] =
    [EXACT, Numerics { compute: Compute::Bf16, ..EXACT }, Numerics { held: Held::Int8, ..EXACT }];

/// The product that no rounding has touched.
fn exact(x: &[f32], output: usize) -> f64 {
    let mut row = vec![0.0; x.len()];
    fill(1, output, &mut row);
    x.iter().zip(row).map(|(x, w)| f64::from(*x) * bf16::from_f32(w).to_f64()).sum()
}

#[test]
fn products_agree_with_the_definition() {
    for (tokens, outputs, inputs) in SHAPES {
        let x = activations(tokens, inputs);
        // How far each product of numbers up to 1 may be off.
        let forms =
            [(Held::F32.into(), 1e-6), (FORMS[0], 1e-6), (FORMS[1], 4e-3), (FORMS[2], 8e-3)];
        for (numerics, tolerance) in forms.into_iter().filter(|(n, _)| n.compute.is_available()) {
            let y = multiply(&weight(outputs, inputs, numerics), Isa::best(), &x, tokens);
            for (i, y) in y.iter().enumerate() {
                let expected = exact(&x[i / outputs * inputs..][..inputs], i % outputs);
                let error = (f64::from(*y) - expected).abs();
                let most = tolerance * inputs as f64;
                assert!(error <= most, "{numerics:?}: {y} {expected}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch_and_on_every_thread() {
    for (tokens, outputs, inputs) in SHAPES {
        let x = activations(tokens, inputs);
        for numerics in FORMS.into_iter().filter(|n| n.compute.is_available()) {
            let matrix = weight(outputs, inputs, numerics);
            let all = multiply(&matrix, Isa::best(), &x, tokens);
            for t in 0..tokens {
                let alone = multiply(&matrix, Isa::best(), &x[t * inputs..(t + 1) * inputs], 1);
                assert_eq!(alone, all[t * outputs..(t + 1) * outputs], "{numerics:?}");
            }
            let x = from_host(x.clone(), tokens, inputs).unwrap();
            assert_eq!(values(matrix.product(&x).unwrap()), all, "{numerics:?}");
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for (tokens, outputs, inputs) in SHAPES {
        let x = activations(tokens, inputs);
        let expected = multiply(&weight(outputs, inputs, Held::F32), Isa::Portable, &x, tokens);
        let int8 = multiply(&weight(outputs, inputs, Held::Int8), Isa::Portable, &x, tokens);
        for isa in Isa::available() {
            for held in [Held::F32, Held::Bf16] {
                let found = multiply(&weight(outputs, inputs, held), isa, &x, tokens);
                assert_eq!(found, expected, "{isa:?} {held:?}");
            }
            let found = multiply(&weight(outputs, inputs, Held::Int8), isa, &x, tokens);
            assert_eq!(found, int8, "{isa:?}");
        }
    }
}

#[test]
fn quantised_rows_keep_what_is_not_a_number() {
    let matrix = weight(3, 200, Held::Int8);
    let mut x = activations(2, 200);
    x[150] = f32::NAN;
    let y = multiply(&matrix, Isa::best(), &x, 2);
    assert!(y[..3].iter().all(|y| y.is_nan()) && y[3..].iter().all(|y| y.is_finite()));
}

#[test]
fn a_gated_product_is_silu_of_the_gate_times_the_value() {
    let (tokens, outputs, inputs) = (5, 37, 48);
    let row = |seed| move |o: usize, row: &mut [f32]| fill(seed, o, row);
    let gated = Matrix::pack_gated(outputs, inputs, Held::F32, row(3), row(4));
    let x = activations(tokens, inputs);
    let product = |seed| {
        let matrix = Matrix::pack(outputs, inputs, Held::F32, row(seed));
        multiply(&matrix, Isa::best(), &x, tokens)
    };
    let (gates, ups) = (product(3), product(4));
    let y = values(gated.gated_product(&from_host(x, tokens, inputs).unwrap()).unwrap());
    for i in 0..tokens * outputs {
        let expected = gates[i] / (1.0 + (-gates[i]).exp()) * ups[i];
        assert!((y[i] - expected).abs() <= 1e-5 * expected.abs().max(1.0));
    }
}
