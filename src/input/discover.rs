//! Stage 1: path patterns to objects, in one order whatever the store lists first.

use std::collections::BTreeMap;
use std::path::Path;

use globset::GlobBuilder;

use super::{FormatChoice, InputError, InputSpec};
use crate::storage::{Entry, Storage};

/// An object's format and compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Jsonl(Packing),
    Parquet,
}

/// How a JSONL object is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// An object that a pattern named.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) entry: Entry,
    pub(super) format: Format,
}

/// All objects that the job's patterns name, each once, by name.
pub(super) fn discover(storage: &Storage, spec: &InputSpec) -> Result<Vec<Found>, InputError> {
    let mut found = BTreeMap::new();
    for pattern in &spec.paths {
        let matches = matches(storage, spec, pattern)?;
        if matches.is_empty() {
            return Err(InputError::NoMatch { pattern: pattern.clone() });
        }
        for (name, entry, format) in matches {
            found.entry(entry.location.url()).or_insert(Found { name, entry, format });
        }
    }
    let mut found: Vec<Found> = found.into_values().collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

type Match = (String, Entry, Format);

fn matches(storage: &Storage, spec: &InputSpec, pattern: &str) -> Result<Vec<Match>, InputError> {
    if pattern.contains(['*', '?', '[', '{']) {
        return glob(storage, spec, pattern);
    }
    let location = storage.locate(pattern, &spec.base)?;
    if let Some(entry) = storage.head(&location)? {
        let format = format_of(pattern, spec.format)
            .ok_or_else(|| InputError::UnknownFormat { object: pattern.into() })?;
        return Ok(vec![(pattern.into(), entry, format)]);
    }
    let folder = pattern.trim_end_matches('/');
    let entries = below(storage, spec, folder)?;
    let usable = entries.into_iter().filter(|(relative, _)| !hidden(relative));
    let known = usable.filter_map(|(relative, entry)| {
        let format = format_of(&relative, FormatChoice::Auto)?;
        Some((format!("{folder}/{relative}"), entry, format))
    });
    Ok(known.collect())
}

fn glob(storage: &Storage, spec: &InputSpec, pattern: &str) -> Result<Vec<Match>, InputError> {
    let refuse = |error: globset::Error| InputError::Pattern {
        pattern: pattern.into(),
        message: error.to_string(),
    };
    let matcher = GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .map_err(refuse)?
        .compile_matcher();
    // Everything before the first part with a wildcard is a folder to list.
    let wild = pattern.find(['*', '?', '[', '{']).unwrap_or(pattern.len());
    let folder = pattern[..wild].rfind('/').map_or("", |end| &pattern[..end.max(1)]);
    let mut matches = Vec::new();
    for (relative, entry) in below(storage, spec, if folder.is_empty() { "." } else { folder })? {
        let name = match folder {
            "" => relative,
            "/" => format!("/{relative}"),
            _ => format!("{folder}/{relative}"),
        };
        if matcher.is_match(&name) {
            let format = format_of(&name, spec.format);
            let format =
                format.ok_or_else(|| InputError::UnknownFormat { object: name.clone() })?;
            matches.push((name, entry, format));
        }
    }
    Ok(matches)
}

/// Objects below a folder with their paths relative to it.
fn below(
    storage: &Storage,
    spec: &InputSpec,
    folder: &str,
) -> Result<Vec<(String, Entry)>, InputError> {
    let location = storage.locate(folder, &spec.base)?;
    let shown = location.to_string();
    // Places below the current folder are shown without it.
    let prefix = if shown == "." { "" } else { shown.trim_end_matches('/') };
    let relative = |entry: &Entry| {
        let place = entry.location.to_string();
        place.strip_prefix(prefix).map(|rest| rest.trim_start_matches('/').to_owned())
    };
    let entries = storage.list(&location)?;
    Ok(entries.into_iter().filter_map(|entry| Some((relative(&entry)?, entry))).collect())
}

fn hidden(relative: &str) -> bool {
    relative.split('/').any(|part| part.starts_with(['.', '_']))
}

fn format_of(name: &str, choice: FormatChoice) -> Option<Format> {
    let lower = name.to_ascii_lowercase();
    let (stem, packing) =
        match Path::new(&lower).extension().and_then(|extension| extension.to_str()) {
            Some("gz") => (lower.strip_suffix(".gz").unwrap_or(&lower), Packing::Gzip),
            Some("zst") => (lower.strip_suffix(".zst").unwrap_or(&lower), Packing::Zstd),
            _ => (lower.as_str(), Packing::Plain),
        };
    let extension = Path::new(stem).extension().and_then(|extension| extension.to_str());
    match (choice, extension) {
        (FormatChoice::Jsonl, _) | (FormatChoice::Auto, Some("jsonl" | "ndjson")) => {
            Some(Format::Jsonl(packing))
        }
        (FormatChoice::Parquet, _) => Some(Format::Parquet),
        (FormatChoice::Auto, Some("parquet")) if packing == Packing::Plain => Some(Format::Parquet),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_name_formats() {
        for (name, expected) in [
            ("a.jsonl", Some(Format::Jsonl(Packing::Plain))),
            ("a.NDJSON.GZ", Some(Format::Jsonl(Packing::Gzip))),
            ("x/a.jsonl.zst", Some(Format::Jsonl(Packing::Zstd))),
            ("a.parquet", Some(Format::Parquet)),
            ("a.parquet.gz", None),
            ("a.csv", None),
        ] {
            assert_eq!(format_of(name, FormatChoice::Auto), expected, "{name}");
        }
        assert_eq!(format_of("a.txt", FormatChoice::Jsonl), Some(Format::Jsonl(Packing::Plain)));
    }
}
