//! Lines of a JSONL object, plain or compressed, in bounded memory.

use std::io::{BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::InputError;
use super::discover::Packing;
use crate::storage::{Location, Storage};

/// One line that is a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// 1-based number among all lines, blank ones included.
    pub(super) number: u64,
    /// Where it begins in the decompressed object.
    pub(super) offset: u64,
    /// Its bytes without line end; none if there are too many of them.
    pub(super) bytes: Option<Vec<u8>>,
}

/// Reads the rows' lines one after another.
pub(super) struct Lines {
    source: Box<dyn BufRead + Send>,
    object: String,
    max_bytes: usize,
    number: u64,
    offset: u64,
}

impl Lines {
    /// Begins at a line: its number and its offset in the decompressed object.
    pub(super) fn open(
        storage: &Storage,
        (location, packing): (&Location, Packing),
        object: &str,
        max_bytes: usize,
        (number, offset): (u64, u64),
    ) -> Result<Self, InputError> {
        let begin = if packing == Packing::Plain { offset } else { 0 };
        let raw = BufReader::with_capacity(1 << 18, storage.reader(location, begin)?);
        let unreadable = |error: std::io::Error| InputError::Read {
            object: object.into(),
            message: error.to_string(),
        };
        let mut source: Box<dyn BufRead + Send> = match packing {
            Packing::Plain => Box::new(raw),
            Packing::Gzip => Box::new(BufReader::new(MultiGzDecoder::new(raw))),
            Packing::Zstd => {
                Box::new(BufReader::new(zstd::Decoder::with_buffer(raw).map_err(unreadable)?))
            }
        };
        if packing != Packing::Plain {
            std::io::copy(&mut source.by_ref().take(offset), &mut std::io::sink())
                .map_err(unreadable)?;
        }
        Ok(Self { source, object: object.into(), max_bytes, number: number - 1, offset })
    }

    /// Where the next line begins in the decompressed object.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes on to a later line: its number and its offset in the decompressed object.
    pub(super) fn skip_to(&mut self, number: u64, offset: u64) -> Result<(), InputError> {
        let ahead = offset.saturating_sub(self.offset);
        let skipped = std::io::copy(&mut self.source.by_ref().take(ahead), &mut std::io::sink());
        skipped.map_err(|error| InputError::Read {
            object: self.object.clone(),
            message: error.to_string(),
        })?;
        (self.number, self.offset) = (number - 1, offset);
        Ok(())
    }

    /// The next line that is not blank; none at the end.
    pub(super) fn next(&mut self) -> Result<Option<Line>, InputError> {
        loop {
            let offset = self.offset;
            let Some(mut bytes) = self.raw_line()? else { return Ok(None) };
            self.number += 1;
            if let Some(line) = &mut bytes {
                if offset == 0 && line.starts_with(b"\xef\xbb\xbf") {
                    line.drain(..3);
                }
                if line.trim_ascii().is_empty() {
                    continue;
                }
            }
            return Ok(Some(Line { number: self.number, offset, bytes }));
        }
    }

    /// The next line's bytes; `Some(None)` if they are too many.
    fn raw_line(&mut self) -> Result<Option<Option<Vec<u8>>>, InputError> {
        let mut line = Vec::new();
        let (mut any, mut too_long) = (false, false);
        loop {
            let unreadable = |error: std::io::Error| InputError::Read {
                object: self.object.clone(),
                message: error.to_string(),
            };
            let buffer = self.source.fill_buf().map_err(unreadable)?;
            if buffer.is_empty() {
                break;
            }
            any = true;
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let piece = &buffer[..end.unwrap_or(buffer.len())];
            too_long |= line.len() + piece.len() > self.max_bytes;
            if !too_long {
                line.extend_from_slice(piece);
            }
            let used = end.map_or(buffer.len(), |end| end + 1);
            self.source.consume(used);
            self.offset += used as u64;
            if end.is_some() {
                break;
            }
        }
        if !any {
            return Ok(None);
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some((!too_long).then_some(line)))
    }
}
