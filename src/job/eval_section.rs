//! `[eval]` as written.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::eval::{Extract, Length, Normalisation, Scorer};

/// `[eval]`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct EvalSection {
    /// What makes an answer right: `exact`, `contains`, `regex`, `number`, `math`, `choice`, `likelihood`,
    /// `needle` or `command`.
    pub(super) scorer: Option<Scorer>,
    /// Column with the right answer; a list: each of them is right. Any column of the input.
    pub(super) reference: Option<String>,
    /// Where the answer is in a completion: `whole`, `first_line`, `last_line`, `final`, `number`, `boxed`,
    /// `choice` or `code`. Default: what the scorer needs.
    pub(super) extract: Option<Extract>,
    /// Regular expression whose last match, or the first group of it, is what `extract` looks at.
    pub(super) pattern: Option<String>,
    /// What texts may differ in: `case`, `punctuation`, `articles`, `whitespace`.
    pub(super) normalise: Vec<Normalisation>,
    /// With `likelihood`, what a continuation's log-probability is divided by: `none`, `tokens` or `bytes`.
    pub(super) length: Length,
    /// Column that groups rows in the table.
    pub(super) group: Option<String>,
    /// Columns across and down of a heat map, which is written as SVG.
    pub(super) heat_map: Vec<String>,
    /// What is made of n samples: `accuracy` (their mean), `majority`, `best_logprob`, `best_score`, `pass@1`,
    /// `pass@10` and so on. Default: accuracy; with `command`, `pass@1`.
    pub(super) measures: Vec<String>,
    /// With `command`, the command and its arguments; `{file}` is the program's file, else it is stdin.
    pub(super) command: Vec<String>,
    /// Jinja template of the program over all columns of the row, `completion`, and `code`: what `extract`
    /// finds in it.
    pub(super) program: String,
    /// Name of the program's file.
    pub(super) file: String,
    /// Seconds that a program may run.
    pub(super) seconds: f64,
    /// Address space of each of its processes, such as `"2GiB"`.
    pub(super) memory: String,
    /// Size of each file that it writes, its output included.
    pub(super) file_size: String,
    /// Processes and threads that it may start, beside those that its user has already; the system does not
    /// hold root to it.
    pub(super) processes: u64,
}

impl Default for EvalSection {
    fn default() -> Self {
        Self {
            scorer: None,
            reference: None,
            extract: None,
            pattern: None,
            normalise: Vec::new(),
            length: Length::None,
            group: None,
            heat_map: Vec::new(),
            measures: Vec::new(),
            command: Vec::new(),
            program: "{{ code }}".into(),
            file: "program.py".into(),
            seconds: 10.0,
            memory: "2GiB".into(),
            file_size: "16MiB".into(),
            processes: 64,
        }
    }
}
