//! Conversations to text, by the checkpoint's own Jinja template. Templates are untrusted: they see
//! nothing but their arguments and have bounded work and output.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, context};

use super::PromptError;
use crate::row::Message;

/// Template instructions that one rendering may take.
const FUEL: u64 = 10_000_000;
/// Bytes that one rendering may give.
const MAX_RENDERED_BYTES: usize = 64 << 20;
const NAME: &str = "template";

/// A model's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    pub(super) fn new(source: String, bos: String, eos: String) -> Result<Self, PromptError> {
        let mut environment = environment();
        // As transformers renders chat templates.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the default delimiters are valid"));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        add_template(&mut environment, source, "the model's chat template")?;
        Ok(Self { environment, bos, eos })
    }

    /// The text of a conversation, up to where the assistant begins if `add_generation_prompt`.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, String> {
        let context = context! {
            messages => minijinja::Value::from(Serde(messages)),
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            add_generation_prompt => add_generation_prompt,
        };
        render(&self.environment, context)
    }
}

/// An environment for untrusted templates.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment
}

/// Parses a template; `what` names it in the error.
pub(super) fn add_template(
    environment: &mut Environment<'static>,
    source: String,
    what: &str,
) -> Result<(), PromptError> {
    environment
        .add_template_owned(NAME, source)
        .map_err(|error| PromptError::Template { what: what.into(), message: error.to_string() })
}

/// Renders an environment's template.
pub(super) fn render(
    environment: &Environment,
    context: minijinja::Value,
) -> Result<String, String> {
    let template = environment
        .get_template(NAME)
        .expect("the template was added when the environment was made");
    let mut output = Bounded(Vec::new());
    template.render_captured_to(context, &mut output).map_err(|error| error.to_string())?;
    String::from_utf8(output.0).map_err(|error| error.to_string())
}

/// Refuses to grow without end.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED_BYTES {
            return Err(std::io::Error::other(format!(
                "the text is longer than {MAX_RENDERED_BYTES} bytes"
            )));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
