//! Rows of files as people have them: other tools' Parquet, JSONL with every kind of damage.

use std::io::Write;
use std::path::Path;

use arrow::array::AsArray;
use nightshift::input::{FormatChoice, Input, InputError, InputSpec, PartitionRows, PromptColumns};
use nightshift::row::{FailureCode, PromptRow, PromptSource};
use nightshift::sampling::{SamplingSpec, Setting};
use nightshift::storage::Storage;
use proptest::prelude::*;
use tempfile::TempDir;

fn spec(base: &Path, paths: &[&str], prompt: PromptColumns) -> InputSpec {
    InputSpec {
        base: base.into(),
        paths: paths.iter().map(|path| path.to_string()).collect(),
        format: FormatChoice::Auto,
        prompt,
        id: None,
        keep: Vec::new(),
        limit: 0,
        sampling: SamplingSpec::default(),
        max_line_bytes: 500,
    }
}

fn discover(spec: InputSpec, rows_per_part: u64) -> Result<Input, InputError> {
    Input::discover(&Storage::new().unwrap(), spec, rows_per_part)
}

fn read(spec: InputSpec, rows_per_part: u64) -> Vec<PartitionRows> {
    let input = discover(spec, rows_per_part).unwrap();
    input.partitions().iter().map(|partition| input.read(partition).unwrap()).collect()
}

fn rows(spec: InputSpec, rows_per_part: u64) -> Vec<PromptRow> {
    read(spec, rows_per_part).into_iter().flat_map(|partition| partition.rows).collect()
}

fn outcome(row: &PromptRow) -> Result<PromptSource, FailureCode> {
    row.request.as_ref().map(|request| request.source.clone()).map_err(|failure| failure.code)
}

fn text(text: &str) -> PromptColumns {
    PromptColumns::Text(text.into())
}

fn write(folder: &TempDir, name: &str, bytes: &[u8]) {
    std::fs::write(folder.path().join(name), bytes).unwrap();
}

#[test]
fn each_kind_of_bad_line_has_its_code_and_leaves_its_neighbours_alone() {
    let long = format!(r#"{{"p": "{}"}}"#, "x".repeat(600));
    let deep = format!(r#"{{"p": {}{}}}"#, "[".repeat(200), "]".repeat(200));
    let cases: Vec<(&[u8], Option<FailureCode>)> = vec![
        (b"\xef\xbb\xbf{\"p\": \"good\"}", None),
        (b"{\"p\": ", Some(FailureCode::MalformedJson)),
        (b"[1]", Some(FailureCode::MalformedJson)),
        (b"{\"p\": \"x\"} tail", Some(FailureCode::MalformedJson)),
        (b"{\"p\": \"\\ud800\"}", Some(FailureCode::MalformedJson)),
        (b"{\"p\": NaN}", Some(FailureCode::MalformedJson)),
        (deep.as_bytes(), Some(FailureCode::MalformedJson)),
        (b"{\"p\": \"\xff\"}", Some(FailureCode::InvalidUtf8)),
        (long.as_bytes(), Some(FailureCode::LineTooLong)),
        (b"{\"q\": 1}", Some(FailureCode::MissingColumn)),
        (b"{\"p\": null}", Some(FailureCode::NullValue)),
        (b"{\"p\": 7}", Some(FailureCode::WrongType)),
        (b"{\"p\": \"\"}", Some(FailureCode::EmptyPrompt)),
        (b"{\"p\": \"good\", \"t\": -1}", Some(FailureCode::InvalidSampling)),
        (b"{\"p\": \"good\", \"t\": \"hot\"}", Some(FailureCode::WrongType)),
        (b"{\"p\": \"good\", \"t\": null}\r", None),
        (b"{\"p\": \"good\"}", None),
    ];
    let folder = TempDir::new().unwrap();
    // A blank line after each: no row, but a line.
    let lines: Vec<&[u8]> = cases.iter().flat_map(|(line, _)| [*line, b"  "]).collect();
    write(&folder, "a.jsonl", &lines[..lines.len() - 1].join(&b'\n'));
    let mut spec = spec(folder.path(), &["a.jsonl"], text("p"));
    spec.sampling.temperature = Setting { default: 0.0, column: Some("t".into()) };
    let rows = rows(spec, 3);
    assert_eq!(rows.len(), cases.len());
    for (index, (row, (line, code))) in rows.iter().zip(&cases).enumerate() {
        let line = String::from_utf8_lossy(line);
        match (&row.request, code) {
            (Ok(request), None) => assert_eq!(request.source, PromptSource::Text("good".into())),
            (Err(failure), Some(code)) => {
                assert_eq!(failure.code, *code, "{line}");
                let place = format!("`a.jsonl` line {} (row {index}): ", 2 * index + 1);
                assert!(failure.message.starts_with(&place), "{}", failure.message);
            }
            (found, expected) => panic!("{line}: {found:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn conversations_are_read_in_both_forms() {
    let turn = |line: &str| {
        let folder = TempDir::new().unwrap();
        write(&folder, "a.jsonl", line.as_bytes());
        outcome(
            &rows(spec(folder.path(), &["a.jsonl"], PromptColumns::Messages("m".into())), 10)[0],
        )
    };
    let messages = |source: Result<PromptSource, FailureCode>| match source {
        Ok(PromptSource::Messages(messages)) => {
            messages.into_iter().map(|m| (m.role, m.content)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let pair = |role: &str, content: &str| (role.to_owned(), content.to_owned());
    let share_gpt = r#"{"m": [{"from": "system", "value": "s"}, {"from": "human", "value": "h"}, {"from": "gpt", "value": "g", "weight": 0}]}"#;
    assert_eq!(
        messages(turn(share_gpt)),
        [pair("system", "s"), pair("user", "h"), pair("assistant", "g")]
    );
    let parts = r#"{"m": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}"#;
    assert_eq!(messages(turn(parts)), [pair("user", "ab")]);
    for (line, code) in [
        (r#"{"m": []}"#, FailureCode::EmptyMessages),
        (r#"{"m": "x"}"#, FailureCode::WrongType),
        (r#"{"m": ["x"]}"#, FailureCode::WrongType),
        (r#"{"m": [{"role": "tool", "content": "x"}]}"#, FailureCode::UnknownRole),
        (r#"{"m": [{"content": "x"}]}"#, FailureCode::MissingColumn),
        (r#"{"m": [{"role": "user", "content": null}]}"#, FailureCode::NullValue),
    ] {
        assert_eq!(turn(line), Err(code), "{line}");
    }
}

fn fixture(prompt: PromptColumns, keep: &[&str]) -> Vec<PartitionRows> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let spec = InputSpec {
        keep: keep.iter().map(|k| k.to_string()).collect(),
        id: Some("number".into()),
        ..spec(&folder, &["rows.parquet"], prompt)
    };
    read(spec, 4)
}

#[test]
fn other_tools_parquet_is_read_by_row_groups_and_parts() {
    let all = |prompt| fixture(prompt, &[]).into_iter().flat_map(|p| p.rows).collect::<Vec<_>>();
    for (column, failing) in [("messages", 3), ("large_messages", 3)] {
        let rows = all(PromptColumns::Messages(column.into()));
        assert_eq!(rows.iter().filter(|row| row.request.is_err()).count(), failing, "{column}");
        assert_eq!(outcome(&rows[3]), Err(FailureCode::NullValue));
        assert_eq!(outcome(&rows[4]), Err(FailureCode::EmptyMessages));
        assert_eq!(outcome(&rows[5]), Err(FailureCode::UnknownRole));
        assert_eq!(rows[11].id, "11");
    }
    for (column, expected) in [
        ("dictionary", "text 1"),
        ("large", "text 11"),
        ("view", "a text that is longer than twelve bytes 11"),
    ] {
        assert_eq!(
            outcome(&all(text(column))[11]),
            Ok(PromptSource::Text(expected.into())),
            "{column}"
        );
    }
    assert_eq!(outcome(&all(text("dictionary"))[9]), Err(FailureCode::NullValue));
    assert_eq!(
        outcome(&all(PromptColumns::TokenIds("ids".into()))[11]),
        Ok(PromptSource::TokenIds(vec![1, 2, 11]))
    );
    assert_eq!(
        outcome(&all(PromptColumns::TokenIds("ids64".into()))[7]),
        Err(FailureCode::InvalidTokenId)
    );
    let Ok(PromptSource::Columns(columns)) = outcome(&all(PromptColumns::Template)[6]) else {
        panic!("no columns")
    };
    assert_eq!(columns["nested"], serde_json::json!([[6], [6, 6]]));
    // Its own eleven, `_file` and `_folder`.
    assert_eq!((columns.len(), &columns["_file"]), (13, &serde_json::json!("rows")));
}

#[test]
fn kept_columns_keep_their_types_and_values() {
    let parts = fixture(text("large"), &["nested", "dictionary", "price", "when"]);
    let kept = &parts[2].kept;
    let types: Vec<String> =
        kept.schema().fields().iter().map(|field| field.data_type().to_string()).collect();
    assert!(types[0].starts_with("List(List("), "{types:?}");
    assert_eq!(types[1], "Dictionary(Int32, Utf8)");
    assert_eq!(types[2], "Decimal128(10, 2)");
    assert_eq!(kept.num_rows(), 4);
    let nested = kept.column(0).as_list::<i32>().value(3);
    assert_eq!(
        nested.as_list::<i32>().value(1).as_primitive::<arrow::datatypes::Int64Type>().values(),
        &[11, 11]
    );
}

#[test]
fn kept_columns_of_json_lines_have_inferred_types_and_a_misfit_costs_its_row() {
    let folder = TempDir::new().unwrap();
    let good: String =
        (0..1000).map(|i| format!("{{\"p\": \"x\", \"k\": {i}, \"l\": [\"a\"]}}\n")).collect();
    write(&folder, "a.jsonl", format!("{good}{{\"p\": \"x\", \"k\": [1]}}\nbroken\n").as_bytes());
    let spec = InputSpec {
        keep: vec!["k".into(), "l".into()],
        ..spec(folder.path(), &["a.jsonl"], text("p"))
    };
    let parts = read(spec, 1002);
    let rows = &parts[0].rows;
    assert_eq!(
        parts[0].kept.column(0).as_primitive::<arrow::datatypes::Int64Type>().value(999),
        999
    );
    assert!(parts[0].kept.column(0).is_null(1000) && parts[0].kept.column(1).is_null(1001));
    assert!(outcome(&rows[999]).is_ok());
    assert_eq!(outcome(&rows[1000]), Err(FailureCode::WrongType));
    assert_eq!(outcome(&rows[1001]), Err(FailureCode::MalformedJson));
}

#[test]
fn objects_are_found_once_in_order_and_a_limit_cuts_them() {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir_all(folder.path().join("in/deep")).unwrap();
    for name in ["in/b.jsonl", "in/a.jsonl", "in/deep/c.ndjson"] {
        write(&folder, name, b"{\"p\": \"1\"}\n{\"p\": \"2\"}\n{\"p\": \"3\"}\n");
    }
    write(&folder, "in/empty.jsonl", b"");
    write(&folder, "in/_hidden.jsonl", b"{\"p\": \"0\"}\n");
    write(&folder, "in/notes.txt", b"no rows");
    let names = |paths: &[&str], limit: u64| {
        let input =
            discover(InputSpec { limit, ..spec(folder.path(), paths, text("p")) }, 2).unwrap();
        let objects: Vec<String> = input
            .objects()
            .iter()
            .map(|object| format!("{}:{}", object.name, object.rows))
            .collect();
        (objects, input.partitions().len())
    };
    assert_eq!(
        names(&["in"], 0).0,
        ["in/a.jsonl:3", "in/b.jsonl:3", "in/deep/c.ndjson:3", "in/empty.jsonl:0"]
    );
    assert_eq!(names(&["in/*.jsonl", "in/a.jsonl"], 0).0.len(), 4);
    assert_eq!(names(&["in/**/*.ndjson"], 0).0, ["in/deep/c.ndjson:3"]);
    assert_eq!(
        names(&["in/a.jsonl", "in/b.jsonl"], 4),
        (vec!["in/a.jsonl:3".into(), "in/b.jsonl:1".into()], 3)
    );
}

#[test]
fn input_errors_name_the_object_and_the_nearest_column() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.jsonl", b"{\"prompt\": \"1\"}\n");
    write(&folder, "a.csv", b"x");
    write(&folder, "bad.parquet", b"PAR1 this is not it PAR1");
    let error = |path: &str, prompt| {
        discover(spec(folder.path(), &[path], prompt), 2).err().map(|error| error.to_string())
    };
    for (path, column, words) in [
        ("none.jsonl", "prompt", "no object matches `none.jsonl`"),
        ("a.csv", "prompt", "`a.csv`: the extension names no known format"),
        ("a.jsonl", "promt", "`a.jsonl` has no column `promt`; did you mean `prompt`?"),
        ("bad.parquet", "prompt", "`bad.parquet` is not a readable Parquet file"),
    ] {
        let found = error(path, text(column)).unwrap();
        assert!(found.starts_with(words), "{found}");
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let found =
        discover(spec(&fixtures, &["rows.parquet"], text("number")), 2).err().unwrap().to_string();
    assert_eq!(found, "`rows.parquet`: column `number` is Int64, expected a string");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Resuming is right only if any cut of an object gives the same rows.
    #[test]
    fn partitions_of_any_size_give_the_same_rows(
        lines in prop::collection::vec(prop_oneof!["\\{\"p\": \"[a-z]{1,9}\"\\}", "[ ]{0,3}", "broken[a-z]{0,5}", "\\{\"p\": \"x\"\\}\r"], 0..40),
        rows_per_part in 1u64..9,
        packing in 0..3usize,
    ) {
        let folder = TempDir::new().unwrap();
        let bytes = lines.join("\n").into_bytes();
        let (name, bytes) = match packing {
            0 => ("a.jsonl", bytes),
            1 => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&bytes).unwrap();
                ("a.jsonl.gz", encoder.finish().unwrap())
            }
            _ => ("a.jsonl.zst", zstd::encode_all(bytes.as_slice(), 1).unwrap()),
        };
        write(&folder, name, &bytes);
        let columns = || spec(folder.path(), &[name], PromptColumns::Template);
        let whole = rows(columns(), 1000);
        let cut = rows(columns(), rows_per_part);
        prop_assert_eq!(whole.len(), cut.len());
        for (index, (a, b)) in whole.iter().zip(&cut).enumerate() {
            prop_assert_eq!(b.row_index, index as u64);
            prop_assert_eq!((&a.place, outcome(a)), (&b.place, outcome(b)));
        }
        // Some of them, back and forth, as a run reads them that continues another.
        let input = discover(columns(), rows_per_part).unwrap();
        let partitions = input.partitions();
        for index in (0..partitions.len()).map(|i| (i * 5 + 3) % partitions.len()) {
            let first = partitions[index].first_row as usize;
            for (a, b) in whole[first.min(whole.len())..].iter().zip(input.read(&partitions[index]).unwrap().rows) {
                prop_assert_eq!((&a.place, outcome(a)), (&b.place, outcome(&b)));
            }
        }
    }
}
