//! How an engine runs, and what it did.

use super::sampler::Logprobs;

/// How an engine runs. Nothing of it but what it is asked to report shows in the output.
#[derive(Clone, Copy, Debug)]
pub struct EngineSpec {
    /// Compute threads; 0: all cores.
    pub threads: usize,
    /// Most running sequences.
    pub max_sequences: usize,
    /// Most tokens of a step.
    pub max_step_tokens: usize,
    /// Bytes of the latent cache.
    pub cache_bytes: u64,
    /// Whether shared beginnings of prompts are computed once.
    pub share_prefixes: bool,
    /// Log-probabilities to give.
    pub logprobs: Logprobs,
    /// Whether to give each token's routed experts.
    pub routed_experts: bool,
}

/// What an engine did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Steps computed.
    pub steps: u64,
    /// Steps with fewer than half of the sequences that may run.
    pub tail_steps: u64,
    /// Sum over steps of the sequences that ran.
    pub sequence_steps: u64,
    /// Prompt tokens computed, recomputed ones included.
    pub prefilled_tokens: u64,
    /// Tokens chosen.
    pub generated_tokens: u64,
    /// Tokens, of prompts and completions, whose latents were computed a second time.
    pub recomputed_tokens: u64,
    /// Sequences that gave their blocks back to others.
    pub preemptions: u64,
    /// Samples that went on from where an earlier run was.
    pub carried_samples: u64,
    /// Tokens that these brought with them.
    pub carried_tokens: u64,
    /// Samples that took the answer of an identical greedy request.
    pub reused_samples: u64,
}
