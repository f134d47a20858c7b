//! Shapes that the operations and the accelerators share: of attention, of a step's tokens, of a router.

use std::sync::Arc;

/// Shapes of one layer's attention.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Heads.
    pub count: usize,
    /// Elements of a head's query and key without position.
    pub nope: usize,
    /// Elements of the rotated part.
    pub rope: usize,
    /// Elements of a head's value.
    pub value: usize,
    /// Elements of the latent.
    pub latent: usize,
    /// Factor of the scores.
    pub scale: f32,
}

/// How a token attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A prompt token: through expanded keys and values.
    Prompt,
    /// A generated token: in the latent space.
    Generated,
}

/// Neighbouring tokens of one sequence in a step, all of one form.
#[derive(Clone, Debug)]
pub struct Span {
    /// Row of the first token in the step.
    pub first_row: usize,
    /// Tokens.
    pub count: usize,
    /// Position of the first token in its sequence.
    pub first_position: usize,
    /// How they attend.
    pub form: Form,
    /// The sequence's blocks, at least as far as its positions need them; shared, since steps have them anew.
    pub blocks: Arc<[u32]>,
}

/// How experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Experts of each token.
    pub experts_per_token: usize,
    /// Device-limited routing: experts lie in `groups` groups of which a token uses `kept`.
    pub groups: Option<(usize, usize)>,
    /// Divides the chosen weights by their sum; `scale` is then not applied.
    pub normalise: bool,
    /// Factor of the weights.
    pub scale: f32,
}
