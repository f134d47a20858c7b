//! What is wrong with a job file: everything at once, each with its key and line.

use super::error::Problem;
use super::written::line_of;

/// What is wrong so far.
pub(super) struct Report<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl<'a> Report<'a> {
    /// Of a file's text, with what the parser found.
    pub(super) fn new(text: &'a str, problems: Vec<Problem>) -> Self {
        Self { text, problems }
    }

    /// What was found; an error if that is anything.
    pub(super) fn finish(self) -> Result<(), Vec<Problem>> {
        if self.problems.is_empty() { Ok(()) } else { Err(self.problems) }
    }

    pub(super) fn problem(&mut self, key: &str, message: String) {
        // A key whose value the parser refused is missing here for that reason only.
        if self.problems.iter().any(|problem| problem.key == key && key.contains('.')) {
            return;
        }
        self.problems.push(Problem {
            key: key.into(),
            line: line_of(self.text, key),
            message,
            hint: None,
        });
    }

    pub(super) fn expect(&mut self, holds: bool, key: &str, message: &str) {
        if !holds {
            self.problem(key, message.into());
        }
    }

    pub(super) fn required(&mut self, key: &str, value: Option<String>) -> String {
        self.expect(value.as_ref().is_some_and(|value| !value.is_empty()), key, "is missing");
        value.unwrap_or_default()
    }
}
