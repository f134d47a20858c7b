//! The expert ledger of a run as one small Parquet file beside its report.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch};
use arrow::error::ArrowError;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;

/// How often one expert was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertLoad {
    /// Index of the layer in the model.
    pub layer: usize,
    /// Index of the expert in the layer.
    pub expert: usize,
    /// Tokens that were routed to it, prompt and completion tokens alike.
    pub tokens: u64,
    /// The rank that held it.
    pub rank: usize,
    /// The rank that should hold it, so that ranks have equal work.
    pub suggested_rank: usize,
}

/// Columns `layer`, `expert` (int32), `tokens` (int64), `rank` and `suggested_rank` (int32).
pub(super) fn encode(loads: &[ExpertLoad]) -> Result<Bytes, ArrowError> {
    let int32 = |value: fn(&ExpertLoad) -> usize| -> ArrayRef {
        Arc::new(loads.iter().map(|load| i32::try_from(value(load)).ok()).collect::<Int32Array>())
    };
    let tokens: Int64Array = loads.iter().map(|load| i64::try_from(load.tokens).ok()).collect();
    let batch = RecordBatch::try_from_iter([
        ("layer", int32(|load| load.layer)),
        ("expert", int32(|load| load.expert)),
        ("tokens", Arc::new(tokens)),
        ("rank", int32(|load| load.rank)),
        ("suggested_rank", int32(|load| load.suggested_rank)),
    ])?;
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(bytes.into())
}
