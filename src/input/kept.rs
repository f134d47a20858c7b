//! Columns that are passed through: their types, and JSONL values in those types.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use arrow::json::reader::infer_json_schema_from_iterator;
use serde_json::{Map, Value};

use super::jsonl::RawRow;
use crate::row::{FailureCode, RowFailure};

/// The types of kept columns as the sampled rows show them; text where nothing tells.
pub(super) fn infer(keep: &[String], sample: &[Map<String, Value>]) -> Vec<Field> {
    let field = |column: &String| {
        let values = sample.iter().filter_map(|row| {
            Some(Ok(Value::Object(Map::from_iter([(column.clone(), row.get(column)?.clone())]))))
        });
        let inferred = infer_json_schema_from_iterator(values).ok();
        let found = inferred.and_then(|schema| {
            schema.field_with_name(column).ok().map(|field| field.data_type().clone())
        });
        Field::new(column, found.map_or(DataType::Utf8, without_null), true)
    };
    keep.iter().map(field).collect()
}

/// Types that hold nothing but nulls in the sample become text.
fn without_null(found: DataType) -> DataType {
    match found {
        DataType::Null => DataType::Utf8,
        DataType::List(item) => DataType::List(Arc::new(Field::new(
            item.name(),
            without_null(item.data_type().clone()),
            true,
        ))),
        DataType::Struct(fields) => {
            let field = |field: &Arc<Field>| {
                Field::new(field.name(), without_null(field.data_type().clone()), true)
            };
            DataType::Struct(fields.iter().map(field).collect())
        }
        other => other,
    }
}

/// The kept columns of JSONL rows. A value that does not fit costs its row.
pub(super) fn decode(fields: &Fields, rows: &mut [RawRow]) -> RecordBatch {
    let schema: SchemaRef = Arc::new(Schema::new(fields.clone()));
    if fields.is_empty() {
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        return RecordBatch::try_new_with_options(schema, Vec::new(), &options)
            .expect("no columns have any length");
    }
    let pick = |row: &RawRow| -> Map<String, Value> {
        let Ok(columns) = &row.columns else { return Map::new() };
        let kept = fields
            .iter()
            .filter_map(|field| Some((field.name().clone(), columns.get(field.name())?.clone())));
        kept.collect()
    };
    let picked: Vec<Map<String, Value>> = rows.iter().map(pick).collect();
    if let Some(batch) = try_decode(&schema, &picked) {
        return batch;
    }
    let empty = || RecordBatch::new_empty(schema.clone());
    let nulls = || try_decode(&schema, &[Map::new()]).unwrap_or_else(empty);
    let each = rows.iter_mut().zip(&picked).map(|(row, picked)| {
        try_decode(&schema, std::slice::from_ref(picked)).unwrap_or_else(|| {
            let failure = RowFailure::new(FailureCode::WrongType, misfit(&schema, picked));
            row.columns = Err(failure);
            nulls()
        })
    });
    let batches: Vec<RecordBatch> = each.collect();
    concat_batches(&schema, &batches).expect("all batches have the schema")
}

fn try_decode(schema: &SchemaRef, rows: &[Map<String, Value>]) -> Option<RecordBatch> {
    let builder = ReaderBuilder::new(schema.clone())
        .with_coerce_primitive(true)
        .with_batch_size(rows.len().max(1));
    let mut decoder = builder.build_decoder().ok()?;
    decoder.serialize(rows).ok()?;
    let batch = decoder.flush().ok()?;
    let batch = batch.unwrap_or_else(|| RecordBatch::new_empty(schema.clone()));
    (batch.num_rows() == rows.len()).then_some(batch)
}

/// Names the first kept column whose value does not have its type.
fn misfit(schema: &SchemaRef, picked: &Map<String, Value>) -> String {
    let alone = |field: &&Arc<Field>| {
        let one = Arc::new(Schema::new(vec![field.as_ref().clone()]));
        let value = picked.get(field.name()).cloned().unwrap_or_default();
        try_decode(&one, &[Map::from_iter([(field.name().clone(), value)])]).is_none()
    };
    let field = schema.fields().iter().find(alone);
    field.map_or_else(
        || "a kept column has a value of another type than the first rows".into(),
        |field| {
            format!(
                "kept column `{}` has a value that is not {}, its type in the first rows",
                field.name(),
                field.data_type()
            )
        },
    )
}
