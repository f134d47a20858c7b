//! A checksum of what a part says, whatever its encoding: two runs of one job agree on it.
//!
//! The canonical form, hashed with SHA-256: first each column's name (a text), in order, and a 0xff byte;
//! then row by row, column by column, each value. Columns that tell how a run went (`cached_tokens` and
//! the timings) are left out. A value is 0x00 if null, else 0x01 and
//! - booleans: one byte, 0 or 1; numbers, times and decimals: their bytes, little-endian, in their width
//! - texts and binaries: their length as u64, little-endian, and their bytes
//! - lists and maps: the number of items as such a length, then the items as values
//!   (an entry of a map is a struct of key and value)
//! - dictionary entries: not 0x01 but the value they stand for
//!
//! Structs in a row are written field-wise: 0x00 or 0x01 for each of them, then for each field
//! the values of those that are not null.

use std::ops::Range;

use arrow::array::{Array, AsArray, RecordBatch, downcast_primitive_array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Schema, ToByteSlice};
use sha2::{Digest, Sha256};

use super::columns::{COLUMNS, Kind};
use super::hex;

/// The checksum of some rows of a part, in hexadecimal.
///
/// Columns that tell how a run went take no part in it; see the source file's head for the exact form.
pub fn content_checksum(rows: &RecordBatch) -> String {
    let mut checksum = ContentChecksum::new(&rows.schema());
    checksum.update(rows);
    checksum.finish()
}

/// A checksum in the making.
pub(super) struct ContentChecksum {
    columns: Vec<usize>,
    digest: Sha256,
}

impl ContentChecksum {
    /// Starts with a part's schema.
    pub(super) fn new(schema: &Schema) -> Self {
        let measured =
            |name: &str| COLUMNS.iter().any(|c| c.name == name && matches!(c.kind, Kind::Measured));
        let fields =
            schema.fields().iter().enumerate().filter(|(_, field)| !measured(field.name()));
        let mut form = Vec::new();
        let mut columns = Vec::new();
        for (index, field) in fields {
            text(field.name().as_bytes(), &mut form);
            columns.push(index);
        }
        form.push(0xff);
        Self { columns, digest: Sha256::new_with_prefix(form) }
    }

    /// Adds the next rows.
    pub(super) fn update(&mut self, rows: &RecordBatch) {
        let mut form = Vec::new();
        for row in 0..rows.num_rows() {
            for &column in &self.columns {
                values(rows.column(column), row..row + 1, &mut form);
            }
            self.digest.update(&form);
            form.clear();
        }
    }

    /// Gives the checksum of all rows.
    pub(super) fn finish(self) -> String {
        hex(&self.digest.finalize())
    }
}

/// Whether values of a type have a canonical form.
pub(super) fn knows(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null | DataType::Boolean => true,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => true,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            knows(item.data_type())
        }
        DataType::Map(entry, _) => knows(entry.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| knows(field.data_type())),
        DataType::Dictionary(_, value) => !value.is_nested() && knows(value),
        other => other.is_primitive(),
    }
}

const NULL: u8 = 0;
const PRESENT: u8 = 1;

/// Writes the values of a range.
fn values(array: &dyn Array, range: Range<usize>, form: &mut Vec<u8>) {
    downcast_primitive_array!(
        array => each(array, range, form, |index, form| form.extend_from_slice(array.value(index).to_byte_slice())),
        DataType::Null => form.extend(range.map(|_| NULL)),
        DataType::Boolean => {
            let array = array.as_boolean();
            each(array, range, form, |index, form| form.push(u8::from(array.value(index))));
        }
        DataType::Utf8 => {
            let array = array.as_string::<i32>();
            each(array, range, form, |index, form| text(array.value(index).as_bytes(), form));
        }
        DataType::LargeUtf8 => {
            let array = array.as_string::<i64>();
            each(array, range, form, |index, form| text(array.value(index).as_bytes(), form));
        }
        DataType::Utf8View => {
            let array = array.as_string_view();
            each(array, range, form, |index, form| text(array.value(index).as_bytes(), form));
        }
        DataType::Binary => {
            let array = array.as_binary::<i32>();
            each(array, range, form, |index, form| text(array.value(index), form));
        }
        DataType::LargeBinary => {
            let array = array.as_binary::<i64>();
            each(array, range, form, |index, form| text(array.value(index), form));
        }
        DataType::BinaryView => {
            let array = array.as_binary_view();
            each(array, range, form, |index, form| text(array.value(index), form));
        }
        DataType::FixedSizeBinary(_) => {
            let array = array.as_fixed_size_binary();
            each(array, range, form, |index, form| text(array.value(index), form));
        }
        _ => nested_values(array, range, form),
    );
}

fn nested_values(array: &dyn Array, range: Range<usize>, form: &mut Vec<u8>) {
    match array.data_type() {
        DataType::List(_) => {
            let array = array.as_list::<i32>();
            each(array, range, form, |index, form| {
                items(array.values(), span(array.offsets(), index), form)
            });
        }
        DataType::LargeList(_) => {
            let array = array.as_list::<i64>();
            each(array, range, form, |index, form| {
                items(array.values(), span(array.offsets(), index), form)
            });
        }
        DataType::Map(..) => {
            let array = array.as_map();
            each(array, range, form, |index, form| {
                items(array.entries(), span(array.offsets(), index), form)
            });
        }
        DataType::FixedSizeList(..) => {
            let array = array.as_fixed_size_list();
            each(array, range, form, |index, form| {
                let values = array.value(index);
                items(&values, 0..values.len(), form);
            });
        }
        DataType::Struct(_) => structs(array, range, form),
        DataType::Dictionary(..) => entries(array, range, form),
        other => unreachable!("{other} columns are refused when the output is opened"),
    }
}

/// Writes null or present for each index of a range, and the value of those that are present.
fn each(
    array: &dyn Array,
    range: Range<usize>,
    form: &mut Vec<u8>,
    value: impl Fn(usize, &mut Vec<u8>),
) {
    for index in range {
        if array.is_null(index) {
            form.push(NULL);
        } else {
            form.push(PRESENT);
            value(index, form);
        }
    }
}

fn length(length: usize, form: &mut Vec<u8>) {
    form.extend_from_slice(&(length as u64).to_le_bytes());
}

fn text(bytes: &[u8], form: &mut Vec<u8>) {
    length(bytes.len(), form);
    form.extend_from_slice(bytes);
}

fn items(array: &dyn Array, range: Range<usize>, form: &mut Vec<u8>) {
    length(range.len(), form);
    values(array, range, form);
}

fn span<O: arrow::array::OffsetSizeTrait>(offsets: &OffsetBuffer<O>, index: usize) -> Range<usize> {
    offsets[index].as_usize()..offsets[index + 1].as_usize()
}

/// Field-wise, so that a long list of small structs is not taken apart value by value.
fn structs(array: &dyn Array, range: Range<usize>, form: &mut Vec<u8>) {
    each(array, range.clone(), form, |_, _| {});
    let has_nulls = range.clone().any(|index| array.is_null(index));
    for field in array.as_struct().columns() {
        if !has_nulls {
            values(field, range.clone(), form);
            continue;
        }
        for index in range.clone().filter(|index| array.is_valid(*index)) {
            values(field, index..index + 1, form);
        }
    }
}

fn entries(array: &dyn Array, range: Range<usize>, form: &mut Vec<u8>) {
    let slice = array.slice(range.start, range.len());
    let dictionary = slice.as_any_dictionary();
    if dictionary.keys().null_count() == range.len() {
        form.extend(range.map(|_| NULL));
        return;
    }
    for (index, entry) in dictionary.normalized_keys().into_iter().enumerate() {
        match dictionary.keys().is_null(index) {
            true => form.push(NULL),
            false => values(dictionary.values(), entry..entry + 1, form),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, DictionaryArray, Float64Array, Int32Array, LargeStringArray, ListArray,
        StringArray, StructArray,
    };
    use arrow::datatypes::{Field, Fields, Int8Type, Int32Type};

    use super::*;

    fn of(name: &str, column: ArrayRef) -> String {
        content_checksum(&RecordBatch::try_from_iter_with_nullable([(name, column, true)]).unwrap())
    }

    fn strings(values: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    #[test]
    fn the_form_is_stable() {
        let mut form = Vec::new();
        form.extend_from_slice(&1u64.to_le_bytes());
        form.extend_from_slice(b"x\xff\x00\x01");
        form.extend_from_slice(&2u64.to_le_bytes());
        form.extend_from_slice(b"ab");
        assert_eq!(of("x", strings(&[None, Some("ab")])), hex(&Sha256::digest(form)));
    }

    #[test]
    fn the_encoding_of_a_column_does_not_matter() {
        let plain = of("x", strings(&[Some("a"), None, Some("b"), Some("a")]));
        let large = LargeStringArray::from(vec![Some("a"), None, Some("b"), Some("a")]);
        assert_eq!(plain, of("x", Arc::new(large)));
        let dictionary: DictionaryArray<Int8Type> =
            [Some("a"), None, Some("b"), Some("a")].into_iter().collect();
        assert_eq!(plain, of("x", Arc::new(dictionary)));
        let keys = Int32Array::from(vec![Some(2), Some(0), Some(1), Some(2)]);
        let null_in_values =
            DictionaryArray::<Int32Type>::new(keys, strings(&[None, Some("b"), Some("a")]));
        assert_eq!(plain, of("x", Arc::new(null_in_values)));
    }

    #[test]
    fn every_difference_of_content_shows() {
        let variants = [
            of("x", strings(&[Some("a"), Some("b")])),
            of("y", strings(&[Some("a"), Some("b")])),
            of("x", strings(&[Some("b"), Some("a")])),
            of("x", strings(&[Some("ab")])),
            of("x", strings(&[Some("ab"), Some("")])),
            of("x", strings(&[Some("ab"), None])),
            of(
                "x",
                Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([
                    Some([Some(1)]),
                    Some([Some(2)]),
                ])),
            ),
            of(
                "x",
                Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some([
                    Some(1),
                    Some(2),
                ])])),
            ),
        ];
        let distinct: std::collections::HashSet<&String> = variants.iter().collect();
        assert_eq!(distinct.len(), variants.len());
    }

    #[test]
    fn what_lies_under_a_null_does_not_matter() {
        let fields = Fields::from(vec![Field::new("a", DataType::Int32, true)]);
        let under = |hidden: i32| {
            let values: ArrayRef = Arc::new(Int32Array::from(vec![1, hidden]));
            let nulls = Some(vec![true, false].into());
            of("x", Arc::new(StructArray::new(fields.clone(), vec![values], nulls)))
        };
        assert_eq!(under(7), under(8));
    }

    #[test]
    fn a_slice_has_the_checksum_of_its_own_rows() {
        let whole: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([
            Some(vec![Some(9)]),
            None,
            Some(vec![None]),
        ]));
        let own: ArrayRef =
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([None, Some(vec![None])]));
        assert_eq!(of("x", whole.slice(1, 2)), of("x", own));
    }

    #[test]
    fn columns_that_tell_how_the_run_went_do_not_count() {
        let timed = |ms: f64| {
            let time: ArrayRef = Arc::new(Float64Array::from(vec![ms]));
            let columns = [("id", strings(&[Some("a")])), ("total_ms", time)];
            content_checksum(&RecordBatch::try_from_iter(columns).unwrap())
        };
        assert_eq!(timed(1.0), timed(2.0));
    }
}
