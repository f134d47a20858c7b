//! Text to token ids and back, with the special tokens of the model's folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::PromptError;
use super::chat::ChatTemplate;
use super::detokenize::Detokenizer;

/// What a model folder says about text: tokenizer, special tokens, chat template.
pub struct TextModel {
    folder: PathBuf,
    tokenizer: Tokenizer,
    bos_id: Option<u32>,
    add_bos: bool,
    chat: Option<ChatTemplate>,
}

impl TextModel {
    /// Reads tokenizer.json, tokenizer_config.json and chat_template.jinja of a Hugging Face folder.
    pub fn load(folder: &Path) -> Result<Self, PromptError> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path)
            .map_err(|source| PromptError::Read { path: path.clone(), source })?;
        let tokenizer = Tokenizer::from_bytes(bytes)
            .map_err(|error| PromptError::Invalid { path, message: error.to_string() })?;
        let config = read_config(&folder.join("tokenizer_config.json"))?;
        let bos = special_token(&config["bos_token"]);
        let eos = special_token(&config["eos_token"]);
        let bos_id = bos.as_deref().and_then(|token| tokenizer.token_to_id(token));
        // The class that DeepSeek's files name adds BOS unless told otherwise.
        let class_adds_bos = config["tokenizer_class"]
            .as_str()
            .is_some_and(|class| class.starts_with("LlamaTokenizer"));
        let add_bos = config["add_bos_token"].as_bool().unwrap_or(class_adds_bos);
        let chat = chat_source(folder, &config)?
            .map(|source| {
                ChatTemplate::new(source, bos.unwrap_or_default(), eos.unwrap_or_default())
            })
            .transpose()?;
        Ok(Self { folder: folder.into(), tokenizer, bos_id, add_bos, chat })
    }

    /// The folder it was read from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The tokenizer as tokenizer.json has it.
    pub(super) fn tokenizer_json(&self) -> String {
        self.tokenizer.to_string(false).unwrap_or_default()
    }

    /// The beginning-of-sequence token.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The model's chat template, if it has one.
    pub fn chat(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    /// Token ids of a text as it stands, without any token added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding =
            self.tokenizer.encode_fast(text, false).map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a text to be continued: BOS comes first if the model's folder says so and the text
    /// does not begin with it already.
    pub fn encode_completion(&self, text: &str) -> Result<Vec<u32>, String> {
        let mut ids = self.encode(text)?;
        if let Some(bos) = self.bos_id.filter(|bos| self.add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The text of token ids; ids outside of the vocabulary have none.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.tokenizer.decode(ids, skip_special).unwrap_or_default()
    }

    /// Text of ids that come one by one.
    pub fn detokenizer(self: &Arc<Self>, skip_special: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), skip_special)
    }
}

fn read_config(path: &Path) -> Result<Value, PromptError> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| PromptError::Invalid {
            path: path.into(),
            message: error.to_string(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(source) => Err(PromptError::Read { path: path.into(), source }),
    }
}

/// A special token, written as a string or as an `AddedToken` object.
fn special_token(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// The chat template's text: chat_template.jinja, or the config's string, or the list's "default".
fn chat_source(folder: &Path, config: &Value) -> Result<Option<String>, PromptError> {
    let path = folder.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(text) => return Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(PromptError::Read { path, source }),
    }
    let template = &config["chat_template"];
    let named = |name: &str| {
        template.as_array()?.iter().find(|entry| entry["name"] == name)?["template"].as_str()
    };
    let first = || template[0]["template"].as_str();
    Ok(template.as_str().or_else(|| named("default")).or_else(first).map(str::to_owned))
}
