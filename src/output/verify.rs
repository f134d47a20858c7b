//! A part read back and checked: what it says about itself against what is in it.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::checksum::ContentChecksum;
use super::{PartId, metadata, seal};

/// Rows that are decoded at a time.
const BATCH_ROWS: usize = 4096;

/// What a sound part holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartContent {
    /// Output rows.
    pub samples: u64,
    /// Input rows with a failure.
    pub failed: u64,
}

/// Reads a part from its bytes, hands its rows on, and says what is wrong with it if anything is: it is
/// another job's or another part, a byte of its content differs, a row is missing, doubled or out of order.
pub fn check_part(
    bytes: Bytes,
    (id, rows): (&PartId, u64),
    job_fingerprint: &str,
    mut each: impl FnMut(&RecordBatch) -> Result<(), String>,
) -> Result<PartContent, String> {
    if !seal::holds(&bytes) {
        return Err("its bytes are not those that were written".into());
    }
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| e.to_string())?;
    let pairs =
        builder.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
    let value = |key: &str| {
        let pair = pairs.iter().find(|pair| pair.key == key);
        pair.and_then(|pair| pair.value.as_deref()).unwrap_or_default()
    };
    expect("job fingerprint", value(metadata::JOB_FINGERPRINT), job_fingerprint)?;
    expect("object", value(metadata::OBJECT), &id.object_name)?;
    expect("first row", value(metadata::FIRST_ROW), &id.first_row.to_string())?;
    expect("row count", value(metadata::ROWS), &rows.to_string())?;
    let expected = value(metadata::CONTENT_SHA256).to_owned();
    let mut checksum = ContentChecksum::new(builder.schema());
    let mut order = RowOrder { next: id.first_row, ..RowOrder::default() };
    let mut samples = 0;
    for batch in builder.with_batch_size(BATCH_ROWS).build().map_err(|e| e.to_string())? {
        let batch = batch.map_err(|error| error.to_string())?;
        checksum.update(&batch);
        order.take(&batch, &id.object_name)?;
        samples += batch.num_rows() as u64;
        each(&batch)?;
    }
    if order.next != id.first_row + rows {
        return Err(format!("it ends before row {}", order.next));
    }
    expect("content checksum", &checksum.finish(), &expected)?;
    Ok(PartContent { samples, failed: order.failed })
}

fn expect(what: &str, found: &str, expected: &str) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("its {what} is `{found}`, expected `{expected}`"))
}

/// The rows of a part come in order, each with samples 0, 1, 2 …
#[derive(Default)]
struct RowOrder {
    /// The row after the last one seen.
    next: u64,
    /// The last sample seen.
    sample: i32,
    begun: bool,
    failed: u64,
    last_failed: Option<u64>,
}

impl RowOrder {
    fn take(&mut self, batch: &RecordBatch, object_name: &str) -> Result<(), String> {
        let column = |name: &str| {
            batch.column_by_name(name).ok_or_else(|| format!("it has no column `{name}`"))
        };
        let wrong = |name: &str| format!("its column `{name}` has another type");
        let (rows, samples) = (column("row_index")?, column("sample_index")?);
        let rows = rows.as_primitive_opt::<Int64Type>().ok_or_else(|| wrong("row_index"))?;
        let samples =
            samples.as_primitive_opt::<Int32Type>().ok_or_else(|| wrong("sample_index"))?;
        let names = column("input")?.as_string_opt::<i32>().ok_or_else(|| wrong("input"))?;
        let status = column("status")?.as_string_opt::<i32>().ok_or_else(|| wrong("status"))?;
        for index in 0..batch.num_rows() {
            let (row, sample) = (rows.value(index) as u64, samples.value(index));
            if names.value(index) != object_name {
                return Err(format!("row {row} is of `{}`", names.value(index)));
            }
            if sample == 0 && row == self.next {
                self.next += 1;
            } else if !(self.begun && row + 1 == self.next && sample == self.sample + 1) {
                let next = self.next;
                return Err(format!(
                    "row {row} sample {sample} comes where row {next} was expected: missing or twice"
                ));
            }
            (self.sample, self.begun) = (sample, true);
            if status.value(index) == "failed" && self.last_failed != Some(row) {
                self.failed += 1;
                self.last_failed = Some(row);
            }
        }
        Ok(())
    }
}
