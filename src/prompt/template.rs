//! A job's own Jinja templates: text made of a row's columns, and of worked examples beside it.

use std::collections::HashMap;

use minijinja::value::{Serde, Value as TemplateValue};
use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value};

use super::PromptError;
use super::chat::{add_template, environment, render};

/// A template over the columns of a row; what is not there is an error, not an empty text.
pub struct RowTemplate(Environment<'static>);

/// A value that a template sees beside the row's columns.
pub type Extra = (&'static str, TemplateValue);

impl RowTemplate {
    /// Parses a template; `what` names it in the error.
    pub fn new(source: &str, what: &str) -> Result<Self, PromptError> {
        let mut environment = environment();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        add_template(&mut environment, source.to_owned(), what)?;
        Ok(Self(environment))
    }

    /// Renders it for a row; an extra value hides a column of its name.
    pub fn render(&self, columns: &Map<String, Value>, extras: &[Extra]) -> Result<String, String> {
        let columns = columns.iter().map(|(name, value)| (name.as_str(), converted(value)));
        let extras = extras.iter().map(|(name, value)| (*name, value.clone()));
        render(&self.0, TemplateValue::from_pairs(columns.chain(extras)))
    }
}

/// A JSON value as templates see it.
pub fn converted(value: &Value) -> TemplateValue {
    Serde(value).into()
}

/// Worked examples for few-shot prompts, in the order of their files.
pub struct Examples {
    by: Option<String>,
    shots: usize,
    /// By the value of the column `by`.
    groups: HashMap<String, Vec<Map<String, Value>>>,
}

impl Examples {
    /// Takes the examples. A row sees the first `shots` (0: all) of those that have its own value in the
    /// column `by`.
    pub fn new(rows: Vec<Map<String, Value>>, by: Option<String>, shots: usize) -> Self {
        let mut groups: HashMap<String, Vec<_>> = HashMap::new();
        for row in rows {
            groups.entry(group(&row, by.as_deref())).or_default().push(row);
        }
        Self { by, shots, groups }
    }

    /// The examples of a row, as the template's `examples`; never the row itself.
    pub(super) fn of(&self, columns: &Map<String, Value>) -> Result<Extra, String> {
        let group = group(columns, self.by.as_deref());
        let all = self.groups.get(&group).map_or(&[][..], Vec::as_slice);
        let most = if self.shots == 0 { usize::MAX } else { self.shots };
        let shown: Vec<TemplateValue> = all
            .iter()
            .filter(|row| *row != columns)
            .take(most)
            .map(|row| TemplateValue::from(Serde(row)))
            .collect();
        if shown.len() < self.shots {
            let of = self.by.as_ref().map_or(String::new(), |by| format!(" with `{by}` {group}"));
            return Err(format!("{} examples{of} of the {} asked for", shown.len(), self.shots));
        }
        Ok(("examples", shown.into()))
    }
}

fn group(row: &Map<String, Value>, by: Option<&str>) -> String {
    by.and_then(|by| row.get(by)).map_or_else(String::new, Value::to_string)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_row_sees_the_first_examples_of_its_group_and_never_itself() {
        let rows = ["a", "b", "a", "a"].iter().zip(0..);
        let rows = rows.map(|(subject, q)| row(json!({ "subject": subject, "q": q })));
        let examples = Examples::new(rows.collect(), Some("subject".into()), 2);
        let template =
            RowTemplate::new("{% for e in examples %}{{ e.q }},{% endfor %}{{ q }}", "it").unwrap();
        let text = |columns: Value| {
            let columns = row(columns);
            let extra = examples.of(&columns)?;
            template.render(&columns, &[extra])
        };
        assert_eq!(text(json!({ "subject": "a", "q": 9 })).unwrap(), "0,2,9");
        assert_eq!(text(json!({ "subject": "a", "q": 0 })).unwrap(), "2,3,0");
        let few = text(json!({ "subject": "b", "q": 9 })).unwrap_err();
        assert_eq!(few, "1 examples with `subject` \"b\" of the 2 asked for");
    }
}
