//! The schema of a part: which columns it has, and its description for people and tools. Kept columns
//! keep their names and types and come last.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::errors::ParquetError;
use serde_json::{Value, json};

use super::columns::{COLUMNS, Column, Kind};
use super::metadata::METADATA;
use super::{Include, OutputError, checksum};
use crate::row::FailureCode;

/// The columns of a part without the kept ones, in order.
pub(super) fn columns(include: Include) -> impl Iterator<Item = &'static Column> {
    COLUMNS.iter().filter(move |column| match column.kind {
        Kind::Content | Kind::Measured => true,
        Kind::Optional(is_included) => is_included(&include),
    })
}

/// Gives the Arrow schema of a part, or says which kept column does not fit in.
pub fn completion_schema(include: Include, kept: &Fields) -> Result<SchemaRef, OutputError> {
    let mut fields: Vec<Arc<Field>> =
        columns(include).map(|column| Arc::new(field(column))).collect();
    let own: HashSet<&str> = columns(include).map(|column| column.name).collect();
    let mut names = HashSet::new();
    for kept in kept {
        let column = kept.name().clone();
        if own.contains(column.as_str()) {
            return Err(OutputError::ColumnClash { column });
        }
        if !has_parquet_form(kept) {
            return Err(OutputError::KeptType { column, found: kept.data_type().to_string() });
        }
        if !names.insert(kept.name()) {
            return Err(OutputError::KeptTwice { column });
        }
        fields.push(kept.clone());
    }
    Ok(Arc::new(Schema::new(fields)))
}

fn field(column: &Column) -> Field {
    Field::new(column.name, (column.data_type)(), column.nullable)
}

/// Tries it, as the writer tells only then which types it has no form for.
fn has_parquet_form(field: &Field) -> bool {
    // The writer panics on some of the types that the checksum does not know either.
    checksum::knows(field.data_type()) && write_null(field).is_ok()
}

fn write_null(field: &Field) -> Result<(), ParquetError> {
    let schema = Arc::new(Schema::new(vec![field.clone().with_nullable(true)]));
    let row = RecordBatch::try_new(schema.clone(), vec![new_null_array(field.data_type(), 1)])?;
    let mut writer = ArrowWriter::try_new(std::io::sink(), schema, None)?;
    writer.write(&row)?;
    writer.close().map(|_| ())
}

/// Describes every column a part can have, its metadata and the error codes.
pub fn completion_schema_json() -> Value {
    let metadata = METADATA.iter().map(|(key, meaning)| json!({"key": key, "meaning": meaning}));
    let codes = FailureCode::ALL
        .iter()
        .map(|code| json!({"code": code.as_str(), "meaning": code.meaning()}));
    json!({
        "title": "nightshift completions",
        "description": "The Parquet parts under `parts/` of an output folder: one row per sample, in input order; \
            a row that failed before generation has one. The columns come in this order, then the columns of \
            `input.keep` with their names and types.",
        "columns": COLUMNS.iter().map(describe).collect::<Vec<_>>(),
        "file_metadata": metadata.collect::<Vec<_>>(),
        "error_codes": codes.collect::<Vec<_>>(),
    })
}

fn describe(column: &Column) -> Value {
    let (present, same_in_every_run) = match column.kind {
        Kind::Content => ("always".to_owned(), true),
        Kind::Measured => ("always".to_owned(), false),
        Kind::Optional(_) => (format!("if `output.include` names `{}`", column.name), true),
    };
    let data_type = (column.data_type)();
    json!({
        "name": column.name,
        "arrow_type": arrow_type(&data_type),
        "parquet_type": parquet_type(&data_type),
        "nullable": column.nullable,
        "present": present,
        "same_in_every_run": same_in_every_run,
        "meaning": column.meaning,
    })
}

fn arrow_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 => "string".to_owned(),
        DataType::List(element) => format!("list<{}>", arrow_type(element.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| format!("{}: {}", field.name(), arrow_type(field.data_type())))
                .collect();
            format!("struct<{}>", fields.join(", "))
        }
        DataType::Boolean => "bool".to_owned(),
        plain => plain.to_string().to_lowercase(),
    }
}

fn parquet_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 => "BYTE_ARRAY (STRING)".to_owned(),
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::UInt16 => "INT32 (UINT_16)".to_owned(),
        DataType::Int32 => "INT32".to_owned(),
        DataType::Int64 => "INT64".to_owned(),
        DataType::Float32 => "FLOAT".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::List(element) => format!("LIST of {}", parquet_type(element.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| format!("{} {}", parquet_type(field.data_type()), field.name()))
                .collect();
            format!("group {{ {} }}", fields.join("; "))
        }
        other => unreachable!("no column is {other}"),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{IntervalUnit, TimeUnit, UnionFields, UnionMode};

    use super::*;

    #[test]
    fn the_columns_come_in_their_documented_order() {
        let schema = completion_schema(Include::ALL, &Fields::empty()).unwrap();
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let expected = "input row_index id sample_index status completion finish_reason stop_reason error_code \
            error_message prompt_tokens completion_tokens cached_tokens reused queue_ms ttft_ms tpot_ms total_ms mean_batch \
            token_ids logprobs top_logprobs routed_experts messages prompt";
        assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
    }

    #[test]
    fn kept_columns_that_do_not_fit_are_refused_by_name() {
        let text = |name: &str| Field::new(name, DataType::Utf8, true);
        let union = Field::new("u", DataType::Union(UnionFields::empty(), UnionMode::Sparse), true);
        let interval = Field::new("i", DataType::Interval(IntervalUnit::MonthDayNano), true);
        let lists = DataType::new_list(DataType::Int32, true);
        let entries =
            Field::new("d", DataType::Dictionary(DataType::Int8.into(), lists.into()), true);
        for (kept, expected) in [
            (vec![text("id")], "kept column `id` has the name of an output column"),
            (vec![text("topic"), text("topic")], "column `topic` is kept twice"),
            (vec![union], "kept column `u` is Union"),
            (vec![interval], "kept column `i` is Interval"),
            (vec![entries], "kept column `d` is Dictionary"),
        ] {
            let error = completion_schema(Include::default(), &Fields::from(kept)).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
            assert!(error.hint().unwrap().contains("input.keep"), "{error}");
        }
    }

    #[test]
    fn a_kept_column_may_have_the_name_of_a_column_that_is_left_out() {
        let kept = Fields::from(vec![Field::new("messages", DataType::Utf8, true)]);
        assert!(completion_schema(Include::default(), &kept).is_ok());
        assert!(matches!(
            completion_schema(Include::ALL, &kept),
            Err(OutputError::ColumnClash { .. })
        ));
    }

    #[test]
    fn kept_columns_of_every_usual_type_are_taken() {
        let text = || DataType::Utf8;
        let entry =
            vec![Field::new("keys", text(), false), Field::new("values", DataType::Int8, true)];
        let entry = Arc::new(Field::new("entries", DataType::Struct(entry.into()), false));
        let strict = Fields::from(vec![Field::new("a", DataType::Int32, false)]);
        for data_type in [
            DataType::Null,
            DataType::Boolean,
            DataType::UInt64,
            DataType::Float16,
            DataType::LargeUtf8,
            DataType::Utf8View,
            DataType::BinaryView,
            DataType::FixedSizeBinary(16),
            DataType::Date32,
            DataType::Time64(TimeUnit::Nanosecond),
            DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
            DataType::Duration(TimeUnit::Second),
            DataType::Decimal128(38, 10),
            DataType::Decimal256(76, 10),
            DataType::Dictionary(DataType::UInt16.into(), DataType::LargeUtf8.into()),
            DataType::Dictionary(DataType::Int32.into(), DataType::Int64.into()),
            DataType::new_list(DataType::Struct(strict.clone()), true),
            DataType::new_large_list(text(), false),
            DataType::new_fixed_size_list(DataType::Float32, 3, true),
            DataType::Struct(strict),
            DataType::Map(entry, false),
        ] {
            let kept = Fields::from(vec![Field::new("kept", data_type.clone(), true)]);
            assert!(completion_schema(Include::ALL, &kept).is_ok(), "{data_type}");
        }
    }

    #[test]
    fn nested_types_are_described_in_words() {
        let described = completion_schema_json();
        let column = |name: &str| {
            described["columns"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap()
        };
        assert_eq!(
            column("top_logprobs")["arrow_type"],
            "list<list<struct<token_id: int32, logprob: float32>>>"
        );
        assert_eq!(column("token_ids")["parquet_type"], "LIST of INT32");
        assert_eq!(column("cached_tokens")["same_in_every_run"], false);
        assert_eq!(described["error_codes"].as_array().unwrap().len(), FailureCode::ALL.len());
    }
}
