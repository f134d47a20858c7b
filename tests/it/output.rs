//! Parts as their readers see them, and the output folder as the next run finds it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, Int64Array, ListArray, RecordBatch,
    RecordBatchOptions, StringArray, StructArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{
    DataType, Field, Fields, Float32Type, Float64Type, Int8Type, Int32Type, Int64Type, Schema,
};
use bytes::Bytes;
use nightshift::output::{
    Committed, Compression, Echo, FinishedPartition, Include, InputFact, InputsRecord, JobFacts,
    Output, OutputError, OutputSpec, PartId, RowOutcome, Status, content_checksum,
};
use nightshift::row::{
    Completion, FailureCode, Generated, Generation, Message, PartitionId, RowFailure, RowRef,
    StopReason, Timing, TokenLogprob,
};
use nightshift::storage::{Location, Storage};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::json;

const ALL: OutputSpec = OutputSpec { include: Include::ALL, compression: Compression::Zstd };

struct World {
    storage: Storage,
    root: Location,
}

impl World {
    fn new() -> Self {
        let storage = Storage::new().unwrap();
        let root = storage.locate("memory:///out", Path::new("/")).unwrap();
        Self { storage, root }
    }

    fn on_disk(folder: &Path) -> Self {
        let storage = Storage::new().unwrap();
        let root = storage.locate("out", folder).unwrap();
        Self { storage, root }
    }

    fn open(&self, spec: OutputSpec, kept: &Fields) -> Output {
        self.try_open(spec, kept, facts("job1")).unwrap()
    }

    fn try_open(
        &self,
        spec: OutputSpec,
        kept: &Fields,
        facts: JobFacts,
    ) -> Result<Output, OutputError> {
        Output::open(self.storage.clone(), self.root.clone(), spec, kept.clone(), facts)
    }

    fn bytes(&self, id: &PartId) -> Bytes {
        self.storage.get(&self.root.child(&id.path())).unwrap()
    }

    fn read(&self, id: &PartId) -> RecordBatch {
        let reader =
            ParquetRecordBatchReaderBuilder::try_new(self.bytes(id)).unwrap().build().unwrap();
        let schema = arrow::array::RecordBatchReader::schema(&reader);
        concat_batches(&schema, &reader.collect::<Result<Vec<_>, _>>().unwrap()).unwrap()
    }

    fn metadata(&self, id: &PartId, key: &str) -> String {
        let reader = ParquetRecordBatchReaderBuilder::try_new(self.bytes(id)).unwrap();
        let pairs = reader.metadata().file_metadata().key_value_metadata().unwrap().clone();
        pairs
            .into_iter()
            .find(|pair| pair.key == key)
            .unwrap_or_else(|| panic!("no {key}"))
            .value
            .unwrap()
    }
}

fn facts(job_fingerprint: &str) -> JobFacts {
    JobFacts {
        job: json!({"sampling": {"max_tokens": 128}}),
        job_fingerprint: job_fingerprint.into(),
        model_fingerprint: "model1".into(),
        model_name: "tiny".into(),
    }
}

fn inputs(rows: u64, rows_per_part: u64) -> InputsRecord {
    let object = InputFact {
        name: "a.jsonl".into(),
        url: "memory:///a.jsonl".into(),
        format: "jsonl".into(),
        size: 1,
        rows,
        fingerprint: "f".into(),
    };
    InputsRecord { rows_per_part, objects: vec![object] }
}

fn kept(columns: Vec<(&str, ArrayRef)>, rows: usize) -> RecordBatch {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, column)| Field::new(*name, column.data_type().clone(), true))
        .collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options).unwrap()
}

fn ok(offset: u32, sample_index: u32, tokens: u32) -> Completion {
    let logprob = |token_id: u32| TokenLogprob { token_id, logprob: -(token_id as f32) };
    let generated = Generated {
        token_ids: (0..tokens).collect(),
        logprobs: (0..tokens).map(|token| -(token as f32)).collect(),
        top_logprobs: (0..tokens).map(|token| (0..token).map(logprob).collect()).collect(),
        routed_experts: (0..tokens).map(|token| vec![token as u16, 9]).collect(),
        stop: StopReason::StopToken(7),
    };
    let timing = Timing {
        queue: Duration::from_millis(5),
        ttft: Some(Duration::from_millis(10)),
        decode: (tokens > 1).then(|| Duration::from_millis(40)),
        total: Duration::from_millis(55),
        mean_batch: 2.5,
    };
    Completion {
        generation: generation(offset, sample_index, Ok(generated), timing),
        text: format!("text {offset}"),
    }
}

fn failed(offset: u32, sample_index: u32) -> Completion {
    let failure = RowFailure::new(FailureCode::Numerics, "row 1: not a number");
    Completion {
        generation: generation(offset, sample_index, Err(failure), Timing::default()),
        text: String::new(),
    }
}

fn generation(
    offset: u32,
    sample_index: u32,
    result: Result<Generated, RowFailure>,
    timing: Timing,
) -> Generation {
    let row = RowRef { partition: PartitionId(0), offset };
    Generation {
        row,
        sample_index,
        prompt_tokens: 3,
        cached_tokens: 1,
        reused: false,
        result,
        timing,
    }
}

fn part(
    first_row: u64,
    results: Vec<Result<Vec<Completion>, RowFailure>>,
    kept: RecordBatch,
) -> FinishedPartition {
    let turn = |content: &str| Message { role: "user".into(), content: content.into() };
    let outcome = |(row_index, result)| RowOutcome {
        row_index,
        id: format!("id{row_index}"),
        echo: Echo { messages: Some(vec![turn("hello")]), prompt: Some("<user>hello".into()) },
        result,
    };
    let outcomes: Vec<RowOutcome> = (first_row..).zip(results).map(outcome).collect();
    let id = PartId { object_name: "prompts/a.jsonl".into(), first_row };
    FinishedPartition { id, rows: outcomes.len() as u64, kept, outcomes }
}

fn bad_line() -> RowFailure {
    RowFailure::new(FailureCode::MalformedJson, "`a.jsonl` line 3: not JSON")
}

/// Row 0 with two samples, row 1 with one failed of two, row 2 failed before generation.
fn mixed() -> FinishedPartition {
    let results = vec![
        Ok(vec![ok(0, 0, 3), ok(0, 1, 1)]),
        Ok(vec![ok(1, 0, 2), failed(1, 1)]),
        Err(bad_line()),
    ];
    part(2000, results, kept(vec![], 3))
}

fn column<'a>(rows: &'a RecordBatch, name: &str) -> &'a ArrayRef {
    rows.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"))
}

fn texts(rows: &RecordBatch, name: &str) -> Vec<Option<String>> {
    column(rows, name).as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()
}

fn some(texts: &[&str]) -> Vec<Option<String>> {
    texts.iter().map(|text| (*text != "-").then(|| (*text).to_owned())).collect()
}

#[test]
fn a_part_has_one_row_per_sample_in_input_order() {
    let world = World::new();
    let part = mixed();
    let id = part.id.clone();
    assert_eq!(world.open(ALL, &Fields::empty()).commit(part).unwrap(), Committed::New);
    let rows = world.read(&id);
    for (name, expected) in [
        ("input", ["prompts/a.jsonl"; 5]),
        ("id", ["id2000", "id2000", "id2001", "id2001", "id2002"]),
        ("status", ["ok", "ok", "ok", "failed", "failed"]),
        ("completion", ["text 0", "text 0", "text 1", "-", "-"]),
        ("finish_reason", ["stop", "stop", "stop", "-", "-"]),
        ("stop_reason", ["7", "7", "7", "-", "-"]),
        ("error_code", ["-", "-", "-", "numerics", "malformed_json"]),
        ("error_message", ["-", "-", "-", "row 1: not a number", "`a.jsonl` line 3: not JSON"]),
        ("prompt", ["<user>hello"; 5]),
    ] {
        assert_eq!(texts(&rows, name), some(&expected), "{name}");
    }
    let row_index: Vec<i64> =
        column(&rows, "row_index").as_primitive::<Int64Type>().values().to_vec();
    assert_eq!(row_index, [2000, 2000, 2001, 2001, 2002]);
    for (name, expected) in [
        ("sample_index", [Some(0), Some(1), Some(0), Some(1), Some(0)]),
        ("prompt_tokens", [Some(3), Some(3), Some(3), Some(3), None]),
        ("completion_tokens", [Some(3), Some(1), Some(2), None, None]),
        ("cached_tokens", [Some(1), Some(1), Some(1), None, None]),
    ] {
        assert_eq!(
            column(&rows, name).as_primitive::<Int32Type>().iter().collect::<Vec<_>>(),
            expected,
            "{name}"
        );
    }
    for (name, expected) in [
        ("queue_ms", [Some(5.0), Some(5.0), Some(5.0), None, None]),
        ("ttft_ms", [Some(10.0), Some(10.0), Some(10.0), None, None]),
        ("tpot_ms", [Some(20.0), None, Some(40.0), None, None]),
        ("total_ms", [Some(55.0), Some(55.0), Some(55.0), None, None]),
    ] {
        assert_eq!(
            column(&rows, name).as_primitive::<Float64Type>().iter().collect::<Vec<_>>(),
            expected,
            "{name}"
        );
    }
    assert_eq!(column(&rows, "mean_batch").as_primitive::<Float32Type>().value(0), 2.5);
}

#[test]
fn lists_and_structs_come_back_as_they_went_in() {
    let world = World::new();
    let part = mixed();
    let id = part.id.clone();
    world.open(ALL, &Fields::empty()).commit(part).unwrap();
    let rows = world.read(&id);
    let token_ids = column(&rows, "token_ids").as_list::<i32>();
    assert_eq!(token_ids.value(0).as_primitive::<Int32Type>().values().to_vec(), [0, 1, 2]);
    assert!(token_ids.is_null(3) && token_ids.is_null(4));
    let logprobs = column(&rows, "logprobs").as_list::<i32>();
    assert_eq!(logprobs.value(2).as_primitive::<Float32Type>().values().to_vec(), [-0.0, -1.0]);
    let positions = column(&rows, "top_logprobs").as_list::<i32>().value(0);
    let positions = positions.as_list::<i32>();
    assert_eq!((positions.value_length(0), positions.value_length(2)), (0, 2));
    let best = positions.value(2);
    assert_eq!(
        best.as_struct()
            .column_by_name("token_id")
            .unwrap()
            .as_primitive::<Int32Type>()
            .values()
            .to_vec(),
        [0, 1]
    );
    let turns = |row: usize| {
        let turns = column(&rows, "messages").as_list::<i32>().value(row);
        let turns = turns.as_struct();
        let text = |index: usize| {
            turns
                .column(index)
                .as_string::<i32>()
                .iter()
                .map(|t| t.unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        text(0).into_iter().zip(text(1)).collect::<Vec<_>>()
    };
    let (asked, answered) =
        (("user".to_owned(), "hello".to_owned()), ("assistant".to_owned(), "text 1".to_owned()));
    assert_eq!(turns(2), [asked.clone(), answered]);
    assert_eq!(turns(3), [asked], "a failed sample has no last turn");
}

#[test]
fn a_part_says_what_it_is() {
    let world = World::new();
    let part = mixed();
    let id = part.id.clone();
    world.open(ALL, &Fields::empty()).commit(part).unwrap();
    for (key, expected) in [
        ("nightshift.version", env!("CARGO_PKG_VERSION")),
        ("nightshift.model", "tiny"),
        ("nightshift.model_fingerprint", "model1"),
        ("nightshift.job_fingerprint", "job1"),
        ("nightshift.object", "prompts/a.jsonl"),
        ("nightshift.first_row", "2000"),
        ("nightshift.rows", "3"),
        ("nightshift.ok_rows", "1"),
        ("nightshift.failed_rows", "2"),
        ("nightshift.failures", r#"{"malformed_json":1,"numerics":1}"#),
        ("nightshift.content_sha256", &content_checksum(&world.read(&id))),
    ] {
        assert_eq!(world.metadata(&id, key), expected, "{key}");
    }
}

#[test]
fn kept_columns_keep_their_types_and_follow_their_rows() {
    let dictionary: DictionaryArray<Int8Type> = [Some("a"), None, Some("b")].into_iter().collect();
    let dictionary: ArrayRef = Arc::new(dictionary);
    let lists = ListArray::from_iter_primitive::<Int64Type, _, _>([
        Some(vec![Some(1), None]),
        None,
        Some(vec![]),
    ]);
    let names: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None, Some("z")]));
    let numbers: ArrayRef = Arc::new(lists);
    let fields = Fields::from(vec![
        Field::new("name", DataType::Utf8, true),
        Field::new("numbers", numbers.data_type().clone(), true),
    ]);
    let nested: ArrayRef = Arc::new(StructArray::new(
        fields,
        vec![names, numbers],
        Some(vec![true, false, true].into()),
    ));
    let stamps: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    let stamps = arrow::compute::cast(
        &stamps,
        &DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into())),
    )
    .unwrap();
    let keep = kept(vec![("topic", dictionary), ("nested", nested), ("stamp", stamps)], 3);
    let world = World::new();
    let part = FinishedPartition { kept: keep.clone(), ..mixed() };
    let id = part.id.clone();
    world.open(ALL, keep.schema().fields()).commit(part).unwrap();
    let rows = world.read(&id);
    let repeated = arrow::array::UInt32Array::from(vec![0, 0, 1, 1, 2]);
    for (name, given) in
        [("topic", keep.column(0)), ("nested", keep.column(1)), ("stamp", keep.column(2))]
    {
        let found = column(&rows, name);
        assert_eq!(found.data_type(), given.data_type(), "{name}");
        assert_eq!(found, &arrow::compute::take(given, &repeated, None).unwrap(), "{name}");
    }
    assert_eq!(
        rows.schema().fields().iter().rev().take(3).map(|f| f.name().as_str()).collect::<Vec<_>>(),
        ["stamp", "nested", "topic"]
    );
    assert_eq!(
        world.metadata(&id, "nightshift.content_sha256"),
        content_checksum(&rows),
        "read back, in one piece"
    );
}

#[test]
fn parts_without_rows_or_without_ok_rows_have_the_full_schema() {
    let topics = |rows: usize| -> RecordBatch {
        kept(vec![("topic", Arc::new(StringArray::from(vec!["t"; rows])) as ArrayRef)], rows)
    };
    let world = World::new();
    let output = world.open(ALL, topics(0).schema().fields());
    let parts =
        [part(0, vec![], topics(0)), part(1000, vec![Err(bad_line()), Err(bad_line())], topics(2))];
    for (part, expected_rows) in parts.into_iter().zip([0, 2]) {
        let id = part.id.clone();
        output.commit(part).unwrap();
        let rows = world.read(&id);
        assert_eq!((rows.num_rows(), rows.num_columns()), (expected_rows, 26));
        assert!(column(&rows, "completion").null_count() == expected_rows);
    }
}

#[test]
fn optional_columns_are_there_only_if_asked_for() {
    let world = World::new();
    let include = Include { logprobs: true, ..Include::default() };
    let part = mixed();
    let id = part.id.clone();
    world
        .open(OutputSpec { include, ..OutputSpec::default() }, &Fields::empty())
        .commit(part)
        .unwrap();
    let schema = world.read(&id).schema();
    assert_eq!(schema.fields().len(), 20);
    assert_eq!(schema.field(19).name(), "logprobs");
}

#[test]
fn every_compression_gives_the_same_rows() {
    let mut read = Vec::new();
    for compression in [
        Compression::Zstd,
        Compression::Snappy,
        Compression::Gzip,
        Compression::Lz4,
        Compression::None,
    ] {
        let world = World::new();
        let part = mixed();
        let id = part.id.clone();
        world.open(OutputSpec { compression, ..ALL }, &Fields::empty()).commit(part).unwrap();
        read.push(world.read(&id));
    }
    assert!(read.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_long_part_is_one_sequence_of_rows() {
    let results =
        (0..700).map(|offset| Ok((0..3).map(|sample| ok(offset, sample, 2)).collect())).collect();
    let offsets: ArrayRef = Arc::new(Int64Array::from_iter_values(0..700));
    let keep = kept(vec![("offset", offsets)], 700);
    let world = World::new();
    let part = part(0, results, keep.clone());
    let id = part.id.clone();
    world.open(ALL, keep.schema().fields()).commit(part).unwrap();
    let rows = world.read(&id);
    assert_eq!(rows.num_rows(), 2100);
    assert_eq!(column(&rows, "offset"), column(&rows, "row_index"));
    assert_eq!(world.metadata(&id, "nightshift.content_sha256"), content_checksum(&rows));
}

#[test]
fn the_same_rows_give_the_same_bytes_and_other_timings_the_same_checksum() {
    let encoded = |later: Duration| {
        let world = World::new();
        let mut part = mixed();
        let id = part.id.clone();
        for sample in
            part.outcomes.iter_mut().filter_map(|outcome| outcome.result.as_mut().ok()).flatten()
        {
            sample.generation.timing.total += later;
        }
        world.open(ALL, &Fields::empty()).commit(part).unwrap();
        (world.bytes(&id), world.metadata(&id, "nightshift.content_sha256"))
    };
    let (once, checksum) = encoded(Duration::ZERO);
    assert_eq!(encoded(Duration::ZERO), (once.clone(), checksum.clone()));
    let (other, same_checksum) = encoded(Duration::from_millis(1));
    assert_ne!(other, once);
    assert_eq!(same_checksum, checksum);
}

#[test]
fn a_part_committed_twice_is_found() {
    let folder = tempfile::tempdir().unwrap();
    for world in [World::new(), World::on_disk(folder.path())] {
        let output = world.open(ALL, &Fields::empty());
        assert_eq!(output.commit(mixed()).unwrap(), Committed::New);
        let before = world.bytes(&mixed().id);
        assert_eq!(output.commit(mixed()).unwrap(), Committed::Found);
        assert_eq!(
            world.open(ALL, &Fields::empty()).commit(mixed()).unwrap(),
            Committed::Found,
            "by another runner"
        );
        assert_eq!(world.bytes(&mixed().id), before);
    }
}

#[test]
fn a_part_in_the_place_of_another_is_refused() {
    let world = World::new();
    let place = world.root.child(&mixed().id.path());
    let output = world.open(ALL, &Fields::empty());
    let elsewhere = World::new();
    let shorter = part(2000, vec![Err(bad_line())], kept(vec![], 1));
    let other_job = elsewhere.try_open(ALL, &Fields::empty(), facts("job2")).unwrap();
    other_job.commit(mixed()).unwrap();
    let other_bytes = elsewhere.bytes(&mixed().id);
    let fewer = World::new();
    fewer.open(ALL, &Fields::empty()).commit(shorter).unwrap();
    let alien = parquet::arrow::ArrowWriter::try_new(Vec::new(), Arc::new(Schema::empty()), None);
    for (bytes, expected) in [
        (other_bytes.clone(), "its job fingerprint is job2, expected job1"),
        (
            fewer.bytes(&mixed().id),
            "it holds 1 rows from row 2000 of `prompts/a.jsonl`, expected 3 rows from row 2000",
        ),
        (alien.unwrap().into_inner().unwrap().into(), "nightshift did not write it"),
        (Bytes::new(), "is damaged: it has 0 bytes"),
        (
            other_bytes.slice(..other_bytes.len() - 1),
            "is damaged: it does not end as a Parquet file",
        ),
        (
            Bytes::from_static(b"PAR1xxxx\xff\0\0\0PAR1"),
            "is damaged: its footer is longer than the file",
        ),
        (Bytes::from_static(b"PAR1xxxx\x04\0\0\0PAR1"), "is damaged: its footer cannot be read"),
    ] {
        world.storage.put(&place, bytes).unwrap();
        let error = output.commit(mixed()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains(&place.to_string()), "{error}");
        assert!(error.hint().is_some(), "{error}");
        let wanted = [(mixed().id, 3)];
        assert_eq!(output.committed(&wanted).unwrap_err().to_string(), error.to_string());
    }
}

#[test]
fn a_footer_longer_than_the_first_read_is_read_whole() {
    let columns: Vec<String> = (0..600).map(|index| format!("column_{index:0100}")).collect();
    let one = || Arc::new(Int64Array::from(vec![1])) as ArrayRef;
    let keep = kept(columns.iter().map(|name| (name.as_str(), one())).collect(), 1);
    let world = World::new();
    let output = world.open(ALL, keep.schema().fields());
    let part = part(0, vec![Err(bad_line())], keep);
    assert_eq!(output.commit(part.clone()).unwrap(), Committed::New);
    assert_eq!(output.commit(part).unwrap(), Committed::Found);
}

#[test]
fn only_whole_parts_of_the_expected_names_count_and_the_rest_stays() {
    let folder = tempfile::tempdir().unwrap();
    for world in [World::new(), World::on_disk(folder.path())] {
        let output = world.open(ALL, &Fields::empty());
        let wanted: Vec<(PartId, u64)> =
            [0, 1000, 2000].map(|first_row| (PartId { first_row, ..mixed().id }, 3)).to_vec();
        assert_eq!(
            output.committed(&wanted).unwrap(),
            [false, false, false],
            "nothing is there yet"
        );
        output.commit(mixed()).unwrap();
        let staged = world.root.child(&format!("{}.tmp", wanted[0].0.path()));
        let foreign = world.root.child("parts/other-00000000/000000001000.parquet");
        for place in [&staged, &foreign] {
            world.storage.put(place, Bytes::from_static(b"half")).unwrap();
        }
        assert_eq!(output.committed(&wanted).unwrap(), [false, false, true]);
        assert!(
            world.storage.head(&staged).unwrap().is_some()
                && world.storage.head(&foreign).unwrap().is_some()
        );
    }
}

#[test]
fn staging_files_of_a_killed_run_are_not_parts() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::on_disk(folder.path());
    let output = world.open(ALL, &Fields::empty());
    output.commit(mixed()).unwrap();
    let committed = world.root.child(&mixed().id.path()).local_path().unwrap();
    let pending = PartId { first_row: 3000, ..mixed().id };
    let staged = committed.with_file_name("000000003000.parquet#1");
    std::fs::write(&staged, b"PAR1half").unwrap();
    assert_eq!(output.committed(&[(mixed().id, 3), (pending.clone(), 3)]).unwrap(), [true, false]);
    let part = FinishedPartition { id: pending, ..mixed() };
    assert_eq!(output.commit(part).unwrap(), Committed::New);
    assert!(staged.exists());
}

#[test]
fn an_empty_file_in_the_place_of_a_part_is_an_error_that_names_it() {
    let world = World::new();
    let output = world.open(ALL, &Fields::empty());
    let id = mixed().id;
    world.storage.put(&world.root.child(&id.path()), Bytes::from_static(b"PAR1PAR1")).unwrap();
    let later = PartId { first_row: 3000, ..id.clone() };
    output.commit(FinishedPartition { id: later.clone(), ..mixed() }).unwrap();
    let error = output.committed(&[(id.clone(), 3), (later, 3)]).unwrap_err().to_string();
    assert!(error.contains(&id.path()) && error.contains("8 bytes"), "{error}");
}

#[test]
fn an_output_of_another_job_is_refused_with_the_differences() {
    let world = World::new();
    world.open(ALL, &Fields::empty());
    let before = world.storage.get(&world.root.child("_nightshift/job.json")).unwrap();
    let mut other = facts("job2");
    other.job = json!({"sampling": {"max_tokens": 64}});
    other.model_fingerprint = "model2".into();
    let Err(error) = world.try_open(ALL, &Fields::empty(), other) else {
        panic!("another job is let in")
    };
    let OutputError::DifferentJob { differences, .. } = &error else { panic!("{error}") };
    assert_eq!(differences[0], "`sampling.max_tokens` was 128, is 64");
    assert_eq!(differences[1], "the model was tiny (model1), is tiny (model2)");
    assert!(error.to_string().contains("max_tokens"), "{error}");
    assert!(error.hint().unwrap().contains("output.path"));
    assert_eq!(world.storage.get(&world.root.child("_nightshift/job.json")).unwrap(), before);
}

#[test]
fn a_torn_job_record_is_an_error_that_names_it() {
    let world = World::new();
    let record = world.root.child("_nightshift/job.json");
    for torn in ["", "{\"nightshift\": \"0.1", "[]", "{}", "\u{0}\u{0}"] {
        world.storage.put(&record, Bytes::from(torn)).unwrap();
        let Err(error) = world.try_open(ALL, &Fields::empty(), facts("job1")) else {
            panic!("{torn:?} is taken")
        };
        assert!(matches!(&error, OutputError::DamagedRecord { .. }), "{torn:?}: {error}");
        assert!(
            error.to_string().contains("_nightshift/job.json") && error.hint().is_some(),
            "{error}"
        );
        assert!(matches!(
            Status::read(&world.storage, &world.root),
            Err(OutputError::DamagedRecord { .. })
        ));
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("out"), "a file, not a folder").unwrap();
    let world = World::on_disk(folder.path());
    let Err(error) = world.try_open(ALL, &Fields::empty(), facts("job1")) else {
        panic!("it cannot be written")
    };
    assert!(matches!(&error, OutputError::NotWritable { .. }), "{error}");
    assert!(error.to_string().contains("out"), "{error}");
}

#[test]
fn a_clash_of_names_leaves_no_trace() {
    let world = World::new();
    let keep = Fields::from(vec![Field::new("prompt_tokens", DataType::Utf8, true)]);
    assert!(
        matches!(world.try_open(ALL, &keep, facts("job1")), Err(OutputError::ColumnClash { column }) if column == "prompt_tokens")
    );
    assert!(world.storage.list(&world.root).unwrap().is_empty());
}

#[test]
fn status_comes_from_the_store_alone() {
    let world = World::new();
    let output = world.open(ALL, &Fields::empty());
    output.accept_inputs(&inputs(10, 3), false).unwrap();
    output.commit(mixed()).unwrap();
    output.commit(part(0, vec![Ok(vec![ok(0, 0, 2)]), Err(bad_line())], kept(vec![], 2))).unwrap();
    world.storage.put(&world.root.child("parts/notes.txt"), Bytes::from_static(b"?")).unwrap();
    world
        .storage
        .put(&world.root.child("parts/x/torn.parquet"), Bytes::from_static(b"PAR1"))
        .unwrap();
    let status = Status::read(&world.storage, &world.root).unwrap();
    assert!(status.last_run.is_none() && !status.complete);
    assert_eq!((status.parts.total, status.parts.committed), (4, 2));
    let rows = &status.rows;
    assert_eq!((rows.total, rows.ok, rows.failed, rows.samples), (10, 2, 3, 7));
    assert_eq!(json!(status.failures), json!({"malformed_json": 2, "numerics": 1}));
    assert_eq!((status.unknown.len(), status.damaged.len()), (1, 1), "{status:?}");
    assert_eq!(status.record.model, "tiny");
}

#[test]
fn status_shows_the_newest_report_that_is_whole() {
    let world = World::new();
    let output = world.open(ALL, &Fields::empty());
    output.write_report("run-1", r#"{"complete": false}"#).unwrap();
    output.write_report("run-2", r#"{"complete": true}"#).unwrap();
    let last = Status::read(&world.storage, &world.root).unwrap().last_run.unwrap();
    assert_eq!((last.id.as_str(), last.report), ("run-2", json!({"complete": true})));
    world
        .storage
        .put(&world.root.child("_nightshift/runs/run-3.json"), Bytes::from_static(b"{"))
        .unwrap();
    assert_eq!(Status::read(&world.storage, &world.root).unwrap().last_run.unwrap().id, "run-2");
}

#[test]
fn an_output_is_complete_when_all_its_parts_are_there() {
    let world = World::new();
    let output = world.open(ALL, &Fields::empty());
    assert!(!Status::read(&world.storage, &world.root).unwrap().complete);
    output.accept_inputs(&inputs(10, 10), false).unwrap();
    assert!(!Status::read(&world.storage, &world.root).unwrap().complete);
    output.commit(mixed()).unwrap();
    assert!(Status::read(&world.storage, &world.root).unwrap().complete);
}

#[test]
fn a_folder_without_a_job_record_has_no_status() {
    let world = World::new();
    let error = Status::read(&world.storage, &world.root).unwrap_err();
    assert!(matches!(&error, OutputError::NotAnOutput { .. }), "{error}");
    assert!(error.to_string().contains("out") && error.hint().is_some(), "{error}");
}
