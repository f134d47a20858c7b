//! The only place that prints: data to stdout, words to stderr, both safe to show.

use std::error::Error;
use std::fmt::Display;
use std::io::Write;

/// Prints data to stdout. A reader that went away is no error of ours.
pub(super) fn data(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{text}");
}

/// Says something to the person at the terminal.
pub(super) fn say(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "{}", escaped(text));
}

/// Reports an error with its causes, and what to do about it.
pub(super) fn report(error: &dyn Error, hint: Option<String>) {
    say(&described(error, hint));
}

fn described(error: &dyn Error, hint: Option<String>) -> String {
    let mut text = format!("error: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!("\n  because: {cause}");
        source = cause.source();
    }
    if let Some(hint) = hint {
        text += &format!("\nhint: {hint}");
    }
    text
}

/// Text from outside must not move the cursor or change colours.
pub(super) fn escaped(text: impl Display) -> String {
    let safe = |c: char| {
        if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.to_string() }
    };
    text.to_string().chars().map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(escaped("a\x1b[31mb\nc"), "a\\u{1b}[31mb\nc");
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_a_hint() {
        let cause = std::io::Error::other("the disk is gone");
        let error = crate::model::ModelError::Read { path: "config.json".into(), source: cause };
        insta::assert_snapshot!(described(&error, error.hint()), @r"
        error: cannot read `config.json`
          because: the disk is gone
        hint: `model.path` must be a Hugging Face folder with config.json, safetensors and tokenizer.json
        ");
    }
}
