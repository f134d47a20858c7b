//! When a sequence ends: end token, stop tokens, stop strings, and the two limits.

use std::sync::Arc;

use crate::prompt::{Detokenizer, TextModel};
use crate::row::StopReason;
use crate::sampling::Sampling;

/// What ends a sequence, besides its sampling.
#[derive(Clone, Debug)]
pub(super) struct StopRules {
    pub(super) eos_token_ids: Arc<[u32]>,
    /// Longest sequence, prompt and completion.
    pub(super) context: usize,
}

impl StopRules {
    /// Tokens that may not be generated while the completion has fewer than `min_tokens`.
    pub(super) fn forbidden(&self, sampling: &Sampling, generated: usize) -> Vec<u32> {
        if generated >= sampling.min_tokens as usize {
            return Vec::new();
        }
        let eos = self.eos_token_ids.iter().filter(|_| !sampling.ignore_eos);
        eos.chain(&sampling.stop_token_ids).copied().collect()
    }

    /// Why a sequence ends with the token that it just got, if it does; `generated` counts that token.
    pub(super) fn check(
        &self,
        sampling: &Sampling,
        token: u32,
        generated: usize,
        length: usize,
        watch: Option<&mut StopWatch>,
    ) -> Option<StopReason> {
        let met = watch.and_then(|watch| watch.push(token, sampling, generated));
        if !sampling.ignore_eos && self.eos_token_ids.contains(&token) {
            return Some(StopReason::Eos);
        }
        if sampling.stop_token_ids.contains(&token) {
            return Some(StopReason::StopToken(token));
        }
        if met.is_some() {
            return met;
        }
        if generated >= sampling.max_tokens as usize {
            return Some(StopReason::MaxTokens);
        }
        (length >= self.context).then_some(StopReason::Context)
    }
}

/// The text of one sequence as it grows, watched for its stop strings.
pub(super) struct StopWatch {
    detokenizer: Detokenizer,
    text: String,
}

impl StopWatch {
    /// A watch for a sequence that has stop strings; none for others.
    pub(super) fn new(text: &Arc<TextModel>, sampling: &Sampling) -> Option<Self> {
        let watch = || Self { detokenizer: text.detokenizer(true), text: String::new() };
        (!sampling.stop.is_empty()).then(watch)
    }

    /// Adds a token's text and looks for a stop string that ends in it; the earliest match wins.
    pub(super) fn push(
        &mut self,
        token: u32,
        sampling: &Sampling,
        generated: usize,
    ) -> Option<StopReason> {
        let piece = self.detokenizer.push(token)?;
        let before = self.text.len();
        self.text.push_str(&piece);
        if generated < sampling.min_tokens as usize {
            return None;
        }
        let found = sampling.stop.iter().filter_map(|stop| {
            let mut from = (before + 1).saturating_sub(stop.len());
            while !self.text.is_char_boundary(from) {
                from -= 1;
            }
            self.text[from..].find(stop.as_str()).map(|at| (from + at, stop))
        });
        found.min_by_key(|(at, _)| *at).map(|(at, stop)| StopReason::StopString {
            stop: stop.clone(),
            text_end: at + if sampling.include_stop { stop.len() } else { 0 },
        })
    }
}
