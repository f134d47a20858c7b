//! One flat step: tokens of many sequences side by side, without padding.

use crate::ops::Span;

/// What the model computes at once.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// Token ids, `[tokens]`.
    pub tokens: Vec<u32>,
    /// Each token's position in its sequence.
    pub positions: Vec<u32>,
    /// Each token's row of the latent cache: block times block size plus offset.
    pub slots: Vec<u32>,
    /// Runs of neighbouring tokens of one sequence and one form; they tile the step.
    pub spans: Vec<Span>,
    /// Rows whose logits are wanted.
    pub outputs: Vec<u32>,
}
