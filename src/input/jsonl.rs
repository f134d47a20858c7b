//! JSONL objects: one scan at discovery finds where partitions begin, later reads begin there.

use std::sync::Arc;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::discover::Packing;
use super::lines::{Line, Lines};
use super::{InputError, InputSpec};
use crate::row::{FailureCode, RowFailure};
use crate::storage::{Location, Storage};

/// Where a partition begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// 1-based line number.
    line: u64,
    /// Offset in the decompressed object.
    offset: u64,
}

/// What a scan found.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) rows: u64,
    /// SHA-256 of the rows' lines.
    pub(super) fingerprint: String,
    /// One for each partition.
    pub(super) marks: Arc<[Mark]>,
}

/// A row's columns, or why it has none, with the number of its line.
pub(super) struct RawRow {
    pub(super) line: u64,
    pub(super) columns: Result<Map<String, Value>, RowFailure>,
}

/// A JSONL object and how it is read.
pub(super) struct Jsonl<'a> {
    pub(super) storage: &'a Storage,
    pub(super) location: &'a Location,
    pub(super) packing: Packing,
    pub(super) name: &'a str,
    pub(super) spec: &'a InputSpec,
}

impl Jsonl<'_> {
    fn lines(&self, mark: Mark) -> Result<Lines, InputError> {
        let place = (self.location, self.packing);
        Lines::open(
            self.storage,
            place,
            self.name,
            self.spec.max_line_bytes,
            (mark.line, mark.offset),
        )
    }

    /// Counts up to `most` rows; the first parsable ones are handed to `sample`, each with the bytes of its
    /// line, while it takes them.
    pub(super) fn scan(
        &self,
        most: u64,
        rows_per_part: u64,
        mut sample: impl FnMut(Map<String, Value>, usize) -> bool,
    ) -> Result<Scan, InputError> {
        let mut lines = self.lines(Mark { line: 1, offset: 0 })?;
        let (mut rows, mut marks, mut sampling) = (0, Vec::new(), true);
        let mut hasher = LineHasher::default();
        while rows < most {
            let Some(line) = lines.next()? else { break };
            if rows % rows_per_part == 0 {
                marks.push(Mark { line: line.number, offset: line.offset });
            }
            rows += 1;
            hasher.add(&line);
            if sampling && let Ok(columns) = parse(&line, self.spec.max_line_bytes) {
                sampling = sample(columns, line.bytes.as_ref().map_or(0, Vec::len));
            }
        }
        Ok(Scan { rows, fingerprint: hasher.finish(), marks: marks.into() })
    }

    /// Reads a partition's rows. A compressed object can only be read from its beginning: `held` keeps it
    /// open where the last partition ended, so that partitions in order cost one reading together.
    pub(super) fn read(
        &self,
        mark: Option<&Mark>,
        rows: u64,
        held: &mut Option<Held>,
    ) -> Result<Vec<RawRow>, InputError> {
        let Some(mark) = mark.filter(|_| rows > 0) else { return Ok(Vec::new()) };
        let url = self.location.url();
        let open = held.take().filter(|held| held.url == url && held.lines.offset() <= mark.offset);
        let mut lines = match open {
            Some(Held { mut lines, .. }) => {
                lines.skip_to(mark.line, mark.offset)?;
                lines
            }
            None => self.lines(*mark)?,
        };
        let mut read = Vec::with_capacity(rows as usize);
        while (read.len() as u64) < rows {
            let Some(line) = lines.next()? else {
                let message = format!(
                    "it ended {} rows early: it was changed during the run",
                    rows - read.len() as u64
                );
                return Err(InputError::Read { object: self.name.into(), message });
            };
            read.push(RawRow {
                line: line.number,
                columns: parse(&line, self.spec.max_line_bytes),
            });
        }
        if self.packing != Packing::Plain {
            *held = Some(Held { url, lines });
        }
        Ok(read)
    }
}

/// A compressed object that is open where the last partition ended.
pub(super) struct Held {
    url: String,
    lines: Lines,
}

/// The fingerprint that a scan of the first `most` rows gives.
pub(super) fn fingerprint(
    storage: &Storage,
    place: (&Location, Packing),
    name: &str,
    most: u64,
) -> Result<String, InputError> {
    let mut lines = Lines::open(storage, place, name, super::DEFAULT_MAX_LINE_BYTES, (1, 0))?;
    let mut hasher = LineHasher::default();
    for _ in 0..most {
        let Some(line) = lines.next()? else { break };
        hasher.add(&line);
    }
    Ok(hasher.finish())
}

/// Hashes rows; where lines end and which are blank makes no difference.
#[derive(Default)]
struct LineHasher(Sha256);

impl LineHasher {
    fn add(&mut self, line: &Line) {
        self.0.update(line.bytes.as_deref().unwrap_or(b"too long"));
        self.0.update(b"\n");
    }

    fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn parse(line: &Line, max_bytes: usize) -> Result<Map<String, Value>, RowFailure> {
    let fail = |code, message: String| Err(RowFailure::new(code, message));
    let Some(bytes) = &line.bytes else {
        return fail(
            FailureCode::LineTooLong,
            format!("the line is longer than {max_bytes} bytes"),
        );
    };
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            return fail(
                FailureCode::InvalidUtf8,
                format!("byte {} of the line is not UTF-8", error.valid_up_to()),
            );
        }
    };
    match serde_json::from_str(text) {
        Ok(Value::Object(columns)) => Ok(columns),
        Ok(_) => fail(FailureCode::MalformedJson, "the line is not a JSON object".into()),
        Err(error) => {
            // The error's own line is always 1 here and would be taken for the object's.
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            fail(
                FailureCode::MalformedJson,
                format!("the line is not valid JSON at column {}: {message}", error.column()),
            )
        }
    }
}
