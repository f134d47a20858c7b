//! Text ↔ token ids: the chat template, the job's template, the tokenizer, the detokenizer.
//!
//! Takes rows as they were read and gives prompts; takes token ids and gives text. Knows files of a
//! model folder, not weights.

mod chat;
mod detokenize;
mod encode;
mod error;
mod grammar;
mod template;
mod tokenizer;

pub use chat::ChatTemplate;
pub use detokenize::Detokenizer;
pub use encode::{Encoded, Encoder, Limits, PromptSpec, TooLong};
pub use error::PromptError;
pub use grammar::{Grammars, Guide, Mask};
pub use template::{Examples, Extra, RowTemplate, converted};
pub use tokenizer::TextModel;

use std::sync::Arc;

use crate::row::{Completion, Generation, StopReason};

/// Station 8: the text of a sample. Special tokens are not part of it; it ends before a stop string.
pub fn complete(text: &Arc<TextModel>, generation: Generation) -> Completion {
    let text = generation.result.as_ref().map_or_else(
        |_| String::new(),
        |generated| {
            let ids = match generated.stop {
                StopReason::Eos | StopReason::StopToken(_) => {
                    &generated.token_ids[..generated.token_ids.len() - 1]
                }
                _ => &generated.token_ids[..],
            };
            let mut text = text.decode(ids, true);
            if let StopReason::StopString { text_end, .. } = generated.stop {
                text.truncate(text_end);
            }
            text
        },
    );
    Completion { generation, text }
}
