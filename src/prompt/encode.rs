//! Rows to prompts: station 5 of the road. A row that cannot be a prompt becomes a failure here.

use std::sync::Arc;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::template::{Examples, RowTemplate};
use super::{PromptError, TextModel};
use crate::row::{
    DrawKey, FailureCode, Message, Prompt, PromptRequest, PromptRow, PromptSource, RowFailure,
    RowRef,
};
use crate::sampling::Sampling;

/// What a job says about its prompts.
#[derive(Clone, Debug, Default)]
pub struct PromptSpec {
    /// The job's own template over all columns.
    pub template: Option<String>,
    /// Makes the template's text the user's turn of a chat with this system turn.
    pub system: Option<String>,
    /// Templates of continuations that are scored; none: completions are generated.
    pub continuations: Vec<String>,
    /// What happens to prompts longer than the context.
    pub too_long: TooLong,
    /// Whether draws are keyed by the `id` column, else by object and row.
    pub draw_by_id: bool,
}

/// What happens to prompts longer than the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TooLong {
    /// The row fails.
    #[default]
    Fail,
    /// Tokens are dropped from the front; a BOS token there stays.
    TruncateLeft,
    /// Tokens are dropped from the end.
    TruncateRight,
}

/// What the model takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Ids are below this.
    pub vocabulary: u32,
    /// Longest sequence in tokens; a prompt leaves room for one more.
    pub context: u32,
}

/// Makes prompts of rows.
pub struct Encoder {
    text: Arc<TextModel>,
    spec: PromptSpec,
    limits: Limits,
    template: Option<RowTemplate>,
    examples: Option<Examples>,
    continuations: Vec<RowTemplate>,
}

/// A row after encoding.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Its partition and offset.
    pub row: RowRef,
    /// 0-based position in its input object.
    pub row_index: u64,
    /// Its id.
    pub id: String,
    /// The conversation, if it is one.
    pub messages: Option<Vec<Message>>,
    /// The text that was tokenized, if there was one.
    pub prompt_text: Option<String>,
    /// The prompt, or why there is none.
    pub prompt: Result<Prompt, RowFailure>,
}

/// A prompt's text and tokens.
struct Parts {
    messages: Option<Vec<Message>>,
    text: Option<String>,
    tokens: Vec<u32>,
}

impl Encoder {
    /// Prepares a job's encoding; parses its templates.
    pub fn new(
        text: Arc<TextModel>,
        spec: PromptSpec,
        limits: Limits,
    ) -> Result<Self, PromptError> {
        let parsed = |source: &String| RowTemplate::new(source, "`input.template`");
        let template = spec.template.as_ref().map(parsed).transpose()?;
        let parsed = |source: &String| RowTemplate::new(source, "`input.continuations`");
        let continuations = spec.continuations.iter().map(parsed).collect::<Result<_, _>>()?;
        Ok(Self { text, spec, limits, template, examples: None, continuations })
    }

    /// Gives the template examples to show.
    #[must_use]
    pub fn with_examples(self, examples: Examples) -> Self {
        Self { examples: Some(examples), ..self }
    }

    /// Whether the job's rows need the model's chat template.
    pub fn require_chat(&self) -> Result<(), PromptError> {
        match self.text.chat() {
            Some(_) => Ok(()),
            None => Err(PromptError::NoChatTemplate { folder: self.text.folder().into() }),
        }
    }

    /// Encodes a row; its failure, found here or before, goes on with it.
    pub fn encode(&self, object_name: &str, row: PromptRow) -> Encoded {
        let PromptRow { row, row_index, id, place, request } = row;
        let draw_key = self.draw_key(object_name, row_index, &id);
        let locate = |failure: RowFailure| RowFailure {
            message: format!("{place}: {}", failure.message),
            ..failure
        };
        let mut encoded = Encoded {
            row,
            row_index,
            id,
            messages: None,
            prompt_text: None,
            prompt: Err(RowFailure::new(FailureCode::Engine, "")),
        };
        encoded.prompt = request.and_then(|request| {
            let PromptRequest { source, mut sampling } = request;
            let continuations = self.continuations(&source).map_err(locate)?;
            let Parts { messages, text, tokens } = self.parts(source).map_err(locate)?;
            encoded.messages = messages;
            encoded.prompt_text = text;
            let longest = continuations.iter().map(Vec::len).max();
            let tokens = self.fit(tokens, longest.unwrap_or(1)).map_err(locate)?.into();
            if let Some(longest) = longest {
                sampling = Sampling { max_tokens: longest as u32, ..Sampling::default() };
            }
            let (sampling, continuations) = (Arc::new(sampling), continuations.into());
            Ok(Prompt { row, draw_key, tokens, sampling, continuations })
        });
        encoded
    }

    /// Token ids of the row's continuations. Each is tokenized by itself, so that all of them follow the
    /// same prompt; empty ones at the end are left out, for rows with fewer choices than others.
    fn continuations(&self, source: &PromptSource) -> Result<Vec<Vec<u32>>, RowFailure> {
        let empty = Map::new();
        let columns = match source {
            PromptSource::Columns(columns) => columns,
            _ => &empty,
        };
        let render = |template: &RowTemplate| template.render(columns, &[]);
        let texts = self.continuations.iter().map(render).collect::<Result<Vec<_>, _>>();
        let mut texts = texts.map_err(template_failed)?;
        texts.truncate(texts.iter().rposition(|text| !text.is_empty()).map_or(0, |last| last + 1));
        if texts.iter().any(String::is_empty) || texts.is_empty() && !self.continuations.is_empty()
        {
            return Err(template_failed("a continuation is empty".into()));
        }
        let encode = |text: &String| {
            let tokens = self.text.encode(text).map_err(not_encoded)?;
            self.expect_known(&tokens, "a continuation").map(|()| tokens)
        };
        texts.iter().map(encode).collect()
    }

    /// Refuses to have no tokens, or some that the model does not know.
    fn expect_known(&self, tokens: &[u32], what: &str) -> Result<(), RowFailure> {
        let unknown = tokens.iter().find(|&&id| id >= self.limits.vocabulary);
        match unknown {
            _ if tokens.is_empty() => {
                Err(RowFailure::new(FailureCode::EmptyPrompt, format!("{what} has no tokens")))
            }
            Some(id) => Err(RowFailure::new(
                FailureCode::InvalidTokenId,
                format!("token id {id} is outside of the vocabulary of {}", self.limits.vocabulary),
            )),
            None => Ok(()),
        }
    }

    fn parts(&self, source: PromptSource) -> Result<Parts, RowFailure> {
        let parts = match source {
            PromptSource::Messages(messages) => self.chat(messages)?,
            PromptSource::Text(text) => self.completion(text)?,
            PromptSource::TokenIds(tokens) => Parts { messages: None, text: None, tokens },
            PromptSource::Columns(columns) => {
                let text = self.templated(&columns).map_err(template_failed)?;
                match (&self.spec.system, text.is_empty()) {
                    (_, true) => {
                        return Err(RowFailure::new(
                            FailureCode::EmptyPrompt,
                            "the template's text is empty",
                        ));
                    }
                    (None, false) => self.completion(text)?,
                    (Some(system), false) => {
                        self.chat(vec![turn("system", system.clone()), turn("user", text)])?
                    }
                }
            }
        };
        self.expect_known(&parts.tokens, "the prompt").map(|()| parts)
    }

    fn templated(&self, columns: &Map<String, Value>) -> Result<String, String> {
        let template = self.template.as_ref().expect("a job with columns has a template");
        let examples = self.examples.as_ref().map(|examples| examples.of(columns)).transpose()?;
        template.render(columns, examples.as_slice())
    }

    fn completion(&self, text: String) -> Result<Parts, RowFailure> {
        if text.is_empty() {
            return Err(RowFailure::new(FailureCode::EmptyPrompt, "the prompt is empty"));
        }
        let tokens = self.text.encode_completion(&text).map_err(not_encoded)?;
        Ok(Parts { messages: None, text: Some(text), tokens })
    }

    fn chat(&self, messages: Vec<Message>) -> Result<Parts, RowFailure> {
        let template = self
            .text
            .chat()
            .ok_or_else(|| template_failed("the model has no chat template".into()))?;
        let text = template.render(&messages, true).map_err(template_failed)?;
        // The template writes BOS itself.
        let tokens = self.text.encode(&text).map_err(not_encoded)?;
        Ok(Parts { messages: Some(messages), text: Some(text), tokens })
    }

    /// Applies the job's rule for prompts that are too long to have so many tokens follow.
    fn fit(&self, mut tokens: Vec<u32>, follow: usize) -> Result<Vec<u32>, RowFailure> {
        let limit = (self.limits.context as usize).saturating_sub(follow).max(1);
        if tokens.len() <= limit {
            return Ok(tokens);
        }
        match self.spec.too_long {
            TooLong::Fail => {
                let (found, context) = (tokens.len(), self.limits.context);
                let message = format!(
                    "the prompt has {found} tokens, the model's context of {context} leaves room for {limit}"
                );
                Err(RowFailure::new(FailureCode::PromptTooLong, message))
            }
            TooLong::TruncateRight => {
                tokens.truncate(limit);
                Ok(tokens)
            }
            TooLong::TruncateLeft => {
                let keep = usize::from(tokens.first() == self.text.bos_id().as_ref()).min(limit);
                tokens.drain(keep..keep + tokens.len() - limit);
                Ok(tokens)
            }
        }
    }

    fn draw_key(&self, object_name: &str, row_index: u64, id: &str) -> DrawKey {
        let digest = match self.spec.draw_by_id {
            true => Sha256::digest(id.as_bytes()),
            false => Sha256::digest(format!("{object_name}\n{row_index}").as_bytes()),
        };
        let mut bytes = [0u8; 8];
        bytes.copy_from_slice(&digest[..8]);
        DrawKey(u64::from_le_bytes(bytes))
    }
}

fn turn(role: &str, content: String) -> Message {
    Message { role: role.into(), content }
}

fn template_failed(message: String) -> RowFailure {
    RowFailure::new(FailureCode::TemplateFailed, message)
}

fn not_encoded(message: String) -> RowFailure {
    RowFailure::new(
        FailureCode::TemplateFailed,
        format!("the text could not be tokenized: {message}"),
    )
}
