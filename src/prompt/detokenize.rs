//! Text of token ids that come one by one: released as soon as no later id can change it.

use std::sync::Arc;

use super::TextModel;

/// Stands for bytes that are not UTF-8, or not yet.
const REPLACEMENT: char = '\u{fffd}';

/// Holds text back while a character is incomplete. Same pieces as the tokenizers crate's own stream,
/// without borrowing the tokenizer.
pub struct Detokenizer {
    text: Arc<TextModel>,
    skip_special: bool,
    /// Ids that may still influence each other's text.
    ids: Vec<u32>,
    /// Text of `ids` that was released.
    released: String,
    /// Where in `ids` the ids of the last release begin, and end.
    last: (usize, usize),
}

impl Detokenizer {
    pub(super) fn new(text: Arc<TextModel>, skip_special: bool) -> Self {
        Self { text, skip_special, ids: Vec::new(), released: String::new(), last: (0, 0) }
    }

    /// Takes an id; gives the text that is certain now, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.ids.push(id);
        let text = self.text.decode(&self.ids, self.skip_special);
        if text.len() <= self.released.len() || text.ends_with(REPLACEMENT) {
            return None;
        }
        let piece = text.get(self.released.len()..)?.to_owned();
        let (begin, end) = self.last;
        let count = self.ids.len();
        self.ids.drain(..begin);
        self.released = self.text.decode(&self.ids, self.skip_special);
        self.last = (end - begin, count - begin);
        Some(piece)
    }

    /// Gives what was held back; incomplete characters become U+FFFD.
    pub fn finish(self) -> Option<String> {
        let text = self.text.decode(&self.ids, self.skip_special);
        text.get(self.released.len()..).filter(|rest| !rest.is_empty()).map(str::to_owned)
    }
}
