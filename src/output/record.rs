//! The job record, `_nightshift/job.json`: which job an output folder belongs to. It is the first thing
//! written and never replaced; a second start compares itself with it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::OutputError;
use crate::storage::{Location, Storage};

/// Where the record lies in the output folder.
pub(super) const RECORD_PATH: &str = "_nightshift/job.json";

/// Most differences shown.
const MAX_DIFFERENCES: usize = 20;
/// Most characters shown of a value.
const MAX_SHOWN: usize = 100;

/// What the output needs to know about the job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobFacts {
    /// Everything that changes a completion, as resolved; no credentials.
    pub job: Value,
    /// Its fingerprint.
    pub job_fingerprint: String,
    /// The fingerprint of the model's files.
    pub model_fingerprint: String,
    /// The model's name.
    pub model_name: String,
}

/// The job record as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Version of nightshift that began the output.
    pub nightshift: String,
    /// See [`JobFacts::job`].
    pub job: Value,
    /// See [`JobFacts::job_fingerprint`].
    pub job_fingerprint: String,
    /// See [`JobFacts::model_fingerprint`].
    pub model_fingerprint: String,
    /// See [`JobFacts::model_name`].
    pub model: String,
}

impl JobRecord {
    /// The record of a job that begins now.
    pub(super) fn new(facts: &JobFacts) -> Self {
        let facts = facts.clone();
        Self {
            nightshift: env!("CARGO_PKG_VERSION").to_owned(),
            job: facts.job,
            job_fingerprint: facts.job_fingerprint,
            model_fingerprint: facts.model_fingerprint,
            model: facts.model_name,
        }
    }

    /// The record as a person can read it.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a record has text keys only") + "\n"
    }

    /// Reads a record that is there.
    pub(super) fn read(storage: &Storage, record: &Location) -> Result<Self, OutputError> {
        let bytes = storage.get(record)?;
        serde_json::from_slice(&bytes).map_err(|cause| OutputError::DamagedRecord {
            record: record.to_string(),
            cause: cause.to_string(),
        })
    }

    /// Lists each setting in which the job of this record is another than `now`; empty if it is the same.
    pub(super) fn differences(&self, now: &JobRecord) -> Vec<String> {
        let mut lines = Vec::new();
        if self.job_fingerprint != now.job_fingerprint {
            compare("", Some(&self.job), Some(&now.job), &mut lines);
        }
        if self.model_fingerprint != now.model_fingerprint {
            let model =
                |record: &JobRecord| format!("{} ({})", record.model, record.model_fingerprint);
            lines.push(format!("the model was {}, is {}", model(self), model(now)));
        }
        if lines.is_empty() && self.job_fingerprint != now.job_fingerprint {
            lines.push(format!(
                "the job's fingerprint was {}, is {}",
                self.job_fingerprint, now.job_fingerprint
            ));
        }
        if lines.len() > MAX_DIFFERENCES {
            let more = lines.len() - MAX_DIFFERENCES;
            lines.truncate(MAX_DIFFERENCES);
            lines.push(format!("and {more} more"));
        }
        lines
    }
}

/// Goes down both values as long as they have the same form.
fn compare(path: &str, was: Option<&Value>, is: Option<&Value>, lines: &mut Vec<String>) {
    match (was, is) {
        (Some(Value::Object(was)), Some(Value::Object(is))) => {
            let added = is.keys().filter(|key| !was.contains_key(*key));
            for key in was.keys().chain(added) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, was.get(key), is.get(key), lines);
            }
        }
        (Some(Value::Array(was)), Some(Value::Array(is))) if was.len() == is.len() => {
            for (index, (was, is)) in was.iter().zip(is).enumerate() {
                compare(&format!("{path}[{index}]"), Some(was), Some(is), lines);
            }
        }
        (was, is) if was != is => {
            lines.push(format!("`{path}` was {}, is {}", shown(was), shown(is)))
        }
        _ => {}
    }
}

fn shown(value: Option<&Value>) -> String {
    let text = value.map_or_else(|| "not set".to_owned(), Value::to_string);
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(job: Value, fingerprint: &str) -> JobRecord {
        JobRecord::new(&JobFacts {
            job,
            job_fingerprint: fingerprint.into(),
            model_fingerprint: "m1".into(),
            model_name: "tiny".into(),
        })
    }

    #[test]
    fn each_setting_that_differs_is_named_with_both_values() {
        let was = json!({"sampling": {"max_tokens": 128, "stop": ["a"]}, "input": {"id": "id"}, "same": [1, {"a": 2}]});
        for (is, expected) in [
            (
                json!({"max_tokens": 64, "stop": ["a"]}),
                vec!["`sampling.max_tokens` was 128, is 64"],
            ),
            (
                json!({"max_tokens": 128, "stop": ["a", "b"]}),
                vec![r#"`sampling.stop` was ["a"], is ["a","b"]"#],
            ),
            (
                json!({"max_tokens": 128, "stop": ["b"]}),
                vec![r#"`sampling.stop[0]` was "a", is "b""#],
            ),
            (
                json!({"stop": ["a"], "seed": 1}),
                vec![
                    "`sampling.max_tokens` was 128, is not set",
                    "`sampling.seed` was not set, is 1",
                ],
            ),
        ] {
            let mut now = was.clone();
            now["sampling"] = is;
            assert_eq!(record(was.clone(), "a").differences(&record(now, "b")), expected);
        }
    }

    #[test]
    fn the_program_is_not_part_of_the_identity() {
        let was = record(json!({"a": 1}), "a");
        let now = JobRecord { nightshift: "9.9.9".into(), ..was.clone() };
        assert_eq!(was.differences(&now), Vec::<String>::new());
    }

    #[test]
    fn a_difference_without_words_is_still_a_difference() {
        let was = record(json!({"a": 1}), "a");
        let fingerprint = record(json!({"a": 1}), "b");
        assert_eq!(was.differences(&fingerprint), ["the job's fingerprint was a, is b"]);
        let model = JobRecord { model_fingerprint: "m2".into(), ..was.clone() };
        assert_eq!(was.differences(&model), ["the model was tiny (m1), is tiny (m2)"]);
    }

    #[test]
    fn many_and_long_differences_are_cut_short() {
        let job = |value: &str| {
            Value::Object((0..30).map(|key| (key.to_string(), json!(value))).collect())
        };
        let lines = record(job("a"), "a").differences(&record(job(&"é".repeat(500)), "b"));
        assert_eq!(lines.len(), MAX_DIFFERENCES + 1);
        assert_eq!(lines.last().unwrap(), "and 10 more");
        assert!(lines[0].chars().count() < 2 * MAX_SHOWN, "{}", lines[0]);
    }
}
