//! Constraints as grammars over token ids: which tokens may come next so that the text still fits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::{PromptError, TextModel};
use crate::sampling::Constraint;

/// Compiled constraints that are kept for the rows that share them.
const KEPT_CONSTRAINTS: usize = 64;

/// Compiles constraints for one model's vocabulary.
pub struct Grammars {
    factory: ParserFactory,
    compiled: Mutex<HashMap<TopLevelText, Matcher>>,
}

/// A constraint in words of its own, to find it again.
type TopLevelText = String;

/// Where a text stands in its constraint.
pub struct Guide(Matcher);

/// The token ids that may come next.
#[derive(Debug)]
pub struct Mask(SimpleVob);

impl Grammars {
    /// Learns the text of each of `vocabulary` token ids; `eos` may end a text that is complete.
    pub fn new(text: &TextModel, vocabulary: usize, eos: &[u32]) -> Result<Self, PromptError> {
        let refused = |error: &dyn std::fmt::Display| PromptError::Grammars {
            folder: text.folder().into(),
            message: error.to_string(),
        };
        let tokenizer: Value =
            serde_json::from_str(&text.tokenizer_json()).map_err(|error| refused(&error))?;
        let mut words = llguidance::token_bytes_from_tokenizer_json(&tokenizer)
            .map_err(|error| refused(&error))?;
        // Models have more logits than tokens: what lies between has no text and is never allowed.
        words.resize(vocabulary, Vec::new());
        let first_eos = eos.first().copied().unwrap_or(u32::MAX);
        let trie = TokTrie::from(&TokRxInfo::new(vocabulary as u32, first_eos), &words);
        let trie = if eos.len() > 1 { trie.with_eos_tokens(eos) } else { trie };
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory =
            ParserFactory::new_simple(&environment).map_err(|error| refused(&error))?;
        factory.quiet();
        Ok(Self { factory, compiled: Mutex::default() })
    }

    /// A guide at the beginning of a text; or why the constraint cannot be used.
    pub fn guide(&self, constraint: Constraint<'_>) -> Result<Guide, String> {
        let grammar = grammar(constraint)?;
        let key = serde_json::to_string(&grammar).map_err(|error| error.to_string())?;
        let kept = |matchers: &HashMap<_, Matcher>| matchers.get(&key).map(Matcher::deep_clone);
        if let Some(matcher) = kept(&self.compiled.lock().expect("no compiler panics")) {
            return Ok(Guide(matcher));
        }
        let matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(error);
        }
        let mut compiled = self.compiled.lock().expect("no compiler panics");
        if compiled.len() >= KEPT_CONSTRAINTS {
            compiled.clear();
        }
        compiled.insert(key, matcher.deep_clone());
        Ok(Guide(matcher))
    }
}

fn grammar(constraint: Constraint<'_>) -> Result<TopLevelGrammar, String> {
    match constraint {
        Constraint::JsonSchema(text) => {
            let mut schema: Value = serde_json::from_str(text)
                .map_err(|error| format!("the JSON Schema is no JSON: {error}"))?;
            // Free white space lets a text go on for ever: written as Python's json.dumps does, unless
            // the schema itself says otherwise.
            if let Some(fields) = schema.as_object_mut() {
                let plain = json!({
                    "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
                });
                fields.entry("x-guidance").or_insert(plain);
            }
            Ok(TopLevelGrammar::from_json_schema(schema))
        }
        Constraint::Regex(pattern) => Ok(TopLevelGrammar::from_regex(pattern)),
        Constraint::Choice(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| regex::escape(text)).collect();
            Ok(TopLevelGrammar::from_regex(&format!("({})", texts.join("|"))))
        }
    }
}

impl Guide {
    /// The tokens that may come next.
    pub fn mask(&mut self) -> Result<Mask, String> {
        self.0.compute_mask_or_eos().map(Mask).map_err(|error| error.to_string())
    }

    /// Takes the token that was chosen.
    pub fn accept(&mut self, token: u32) -> Result<(), String> {
        self.0.consume_token(token).map_err(|error| error.to_string())
    }

    /// Whether the text as it stands meets the constraint.
    pub fn is_met(&mut self) -> bool {
        self.0.is_stopped() && !self.0.is_error() || self.0.is_accepting().unwrap_or(false)
    }

    /// Whether nothing may follow.
    pub fn is_over(&self) -> bool {
        self.0.is_stopped()
    }
}

impl Mask {
    /// Sets the scores of tokens that may not come to minus infinity.
    pub fn apply(&self, scores: &mut [f32]) {
        for (id, score) in scores.iter_mut().enumerate() {
            if id >= self.0.len() || !self.0.get(id) {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}
