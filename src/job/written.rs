//! Text and overrides to a [`JobFile`], with every problem of the text found at once.

use std::path::Path;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::error::Problem;
use super::file::JobFile;

/// Values from the command line that replace those of the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `section.key=value`, the value in TOML; a bare word is a string.
    pub set: Vec<String>,
    /// Replaces `input.limit`.
    pub limit: Option<u64>,
    /// Replace `input.paths`; relative to the current folder.
    pub input: Vec<String>,
    /// Replaces `output.path`; relative to the current folder.
    pub output: Option<String>,
}

/// Parses a job file's text and puts the overrides in.
pub(super) fn parse(text: &str, overrides: &Overrides, problems: &mut Vec<Problem>) -> JobFile {
    let mut table = match text.parse::<Table>() {
        Ok(table) => table,
        Err(error) => {
            let line = error.span().map(|span| text[..span.start].lines().count().max(1));
            problems.push(Problem {
                key: String::new(),
                line,
                message: error.message().into(),
                hint: None,
            });
            return JobFile::default();
        }
    };
    apply(&mut table, overrides, problems);
    let mut sections = Sections { text, table, problems };
    let file = JobFile {
        model: sections.take("model"),
        devices: sections.take("devices"),
        input: sections.take("input"),
        sampling: sections.take("sampling"),
        batch: sections.take("batch"),
        run: sections.take("run"),
        output: sections.take("output"),
        eval: sections.take("eval"),
    };
    sections.refuse_others();
    file
}

struct Sections<'a> {
    text: &'a str,
    table: Table,
    problems: &'a mut Vec<Problem>,
}

const SECTIONS: [&str; 8] =
    ["model", "devices", "input", "sampling", "batch", "run", "output", "eval"];

impl Sections<'_> {
    /// Takes a section key by key, so that one bad key does not hide another.
    fn take<S: DeserializeOwned + JsonSchema + Default>(&mut self, section: &str) -> S {
        let table = match self.table.remove(section) {
            None => return S::default(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                let message =
                    format!("expected a section `[{section}]`, found {}", other.type_str());
                self.report(section.into(), message, None);
                return S::default();
            }
        };
        let known = keys_of::<S>();
        let mut good = Table::new();
        for (key, value) in table {
            let path = format!("{section}.{key}");
            if !known.contains(&key) {
                self.report(
                    path,
                    "unknown key".into(),
                    nearest(&key, known.iter().map(String::as_str)),
                );
                continue;
            }
            let alone = Table::from_iter([(key.clone(), value.clone())]);
            match S::deserialize(alone) {
                Ok(_) => drop(good.insert(key, value)),
                Err(error) => self.report(path, error.message().into(), None),
            }
        }
        S::deserialize(good).expect("each key was accepted alone")
    }

    fn refuse_others(&mut self) {
        for key in std::mem::take(&mut self.table).keys() {
            self.report(key.clone(), "unknown section".into(), nearest(key, SECTIONS.into_iter()));
        }
    }

    fn report(&mut self, key: String, message: String, hint: Option<String>) {
        let line = line_of(self.text, &key);
        self.problems.push(Problem { key, line, message, hint });
    }
}

fn keys_of<S: JsonSchema>() -> Vec<String> {
    let schema = schemars::schema_for!(S);
    let properties = schema.get("properties").and_then(|properties| properties.as_object());
    properties.into_iter().flat_map(|map| map.keys().cloned()).collect()
}

/// "did you mean …?" for the known word that is nearest, if it is near.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let distance = |other: &&str| strsim::damerau_levenshtein(word, other);
    let best = known.min_by_key(distance)?;
    (distance(&best) <= 1 + word.len() / 3).then(|| format!("did you mean `{best}`?"))
}

/// The line on which `section.key` or `section` is written.
pub(super) fn line_of(text: &str, path: &str) -> Option<usize> {
    let (section, key) =
        path.split_once('.').map_or((path, None), |(section, key)| (section, Some(key)));
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if let Some(header) = line.strip_prefix('[') {
            inside = header.split(']').next().is_some_and(|name| name.trim() == section);
            if inside && key.is_none() {
                return Some(index + 1);
            }
        } else if let Some(key) = key.filter(|_| inside)
            && line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
        {
            return Some(index + 1);
        }
    }
    None
}

fn apply(table: &mut Table, overrides: &Overrides, problems: &mut Vec<Problem>) {
    for text in &overrides.set {
        match text
            .split_once('=')
            .and_then(|(key, value)| Some((key.trim().split_once('.')?, value.trim())))
        {
            Some(((section, key), value)) => put(table, section, key, value_of(value)),
            None => problems.push(Problem {
                key: format!("--set {text}"),
                line: None,
                message: "expected `section.key=value`".into(),
                hint: None,
            }),
        }
    }
    if let Some(limit) = overrides.limit {
        put(table, "input", "limit", Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
    }
    if !overrides.input.is_empty() {
        let paths = overrides.input.iter().map(|path| Value::String(from_here(path)));
        put(table, "input", "paths", Value::Array(paths.collect()));
    }
    if let Some(path) = &overrides.output {
        put(table, "output", "path", Value::String(from_here(path)));
    }
}

fn value_of(text: &str) -> Value {
    let parsed =
        format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    parsed.unwrap_or_else(|| Value::String(text.into()))
}

fn put(table: &mut Table, section: &str, key: &str, value: Value) {
    let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(section) = section {
        section.insert(key.into(), value);
    }
}

/// A path of the command line, which is relative to the current folder and not to the job file.
fn from_here(path: &str) -> String {
    if path.contains("://") {
        return path.into();
    }
    std::path::absolute(Path::new(path))
        .map_or_else(|_| path.into(), |path| path.to_string_lossy().into_owned())
}
