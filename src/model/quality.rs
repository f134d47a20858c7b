//! How far one model's next-token distributions are from another's: what rounding costs.
//!
//! Takes two models of one vocabulary and streams of token ids. Knows nothing of how they differ.

use super::{Model, ModelError, Step};
use crate::ops::{BLOCK_TOKENS, Form, Span};

/// Tokens of one step.
const STEP_TOKENS: usize = 256;

/// What a comparison found, over all positions of all streams.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quality {
    /// Positions compared.
    pub positions: u64,
    /// Mean Kullback-Leibler divergence of the other model's distribution from the reference's, nats.
    pub mean_kl: f64,
    /// The largest one.
    pub max_kl: f64,
    /// Share of positions whose most probable token is the same.
    pub top1_agreement: f64,
}

/// Compares the distributions that both models give after every token of every stream.
///
/// # Errors
/// When a step cannot be computed.
///
/// # Panics
/// When the vocabularies have different sizes or a stream holds an id outside of them.
pub fn compare(
    reference: &Model,
    other: &Model,
    streams: &[Vec<u32>],
) -> Result<Quality, ModelError> {
    assert_eq!(reference.config().vocab_size, other.config().vocab_size, "one vocabulary");
    let mut quality = Quality::default();
    let mut agreeing = 0u64;
    for stream in streams {
        let blocks = stream.len().div_ceil(BLOCK_TOKENS);
        let mut pools = [reference.cache(blocks)?, other.cache(blocks)?];
        for start in (0..stream.len()).step_by(STEP_TOKENS) {
            let step = step(stream, start..stream.len().min(start + STEP_TOKENS));
            let [first, second] = &mut pools;
            let expected = reference.forward(&step, first)?.logits.to_vec2::<f32>()?;
            let found = other.forward(&step, second)?.logits.to_vec2::<f32>()?;
            for (expected, found) in expected.iter().zip(&found) {
                let kl = divergence(expected, found);
                quality.positions += 1;
                quality.mean_kl += kl;
                quality.max_kl = quality.max_kl.max(kl);
                agreeing += u64::from(largest(expected) == largest(found));
            }
        }
    }
    let positions = quality.positions.max(1) as f64;
    quality.mean_kl /= positions;
    quality.top1_agreement = agreeing as f64 / positions;
    Ok(quality)
}

/// Some tokens of one sequence that owns all blocks in their order; every row's logits are wanted.
fn step(stream: &[u32], range: std::ops::Range<usize>) -> Step {
    let positions: Vec<u32> = range.clone().map(|position| position as u32).collect();
    Step {
        tokens: stream[range.clone()].to_vec(),
        slots: positions.clone(),
        spans: vec![Span {
            first_row: 0,
            count: range.len(),
            first_position: range.start,
            form: Form::Prompt,
            blocks: (0..range.end.div_ceil(BLOCK_TOKENS) as u32).collect(),
        }],
        outputs: (0..range.len() as u32).collect(),
        positions,
    }
}

/// `Σ p ln(p / q)` of two softmaxes, in f64.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (log_p, log_q) = (log_sum(p), log_sum(q));
    let terms = p.iter().zip(q).map(|(&p, &q)| {
        let (p, q) = (f64::from(p) - log_p, f64::from(q) - log_q);
        p.exp() * (p - q)
    });
    terms.sum::<f64>().max(0.0)
}

fn log_sum(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
    f64::from(largest) + sum.ln()
}

fn largest(logits: &[f32]) -> usize {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_agrees_with_the_definition() {
        let (p, q) = ([0.0f32, 3f32.ln()], [0.0f32, 0.0]);
        let expected = 0.25 * (0.25f64 / 0.5).ln() + 0.75 * (0.75f64 / 0.5).ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-7);
        assert_eq!(divergence(&p, &p), 0.0);
    }
}
