//! Inputs that change, outputs that are proved and merged.

use std::path::Path;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use nightshift::output::content_checksum;
use serde_json::Value;

use crate::job::{Bench, chat_job, chat_rows, read, text};

const JOB: &str = "[sampling]\nmax_tokens = 6\n[output]\npath = 'out'\nrows_per_part = 10\n";

/// Two objects with 35 and 12 rows, answered.
fn answered() -> Bench {
    let job = chat_job(JOB).replace("['rows.jsonl']", "['in/*.jsonl']");
    let bench = Bench::new("", &job);
    std::fs::create_dir(bench.path("in")).unwrap();
    std::fs::write(bench.path("in/a.jsonl"), chat_rows(35)).unwrap();
    std::fs::write(bench.path("in/b.jsonl"), chat_rows(12)).unwrap();
    let run = bench.run(&[]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    bench
}

/// Exit code and what was found.
fn verified(bench: &Bench) -> (i32, Value) {
    let out = bench.path("out").display().to_string();
    let found = bench.tool(&["verify", &out, "--json"]);
    let value = serde_json::from_slice(&found.stdout).unwrap_or_default();
    (found.status.code().unwrap(), value)
}

fn a_part(bench: &Bench) -> std::path::PathBuf {
    let objects = std::fs::read_dir(bench.path("out/parts")).unwrap();
    let mut folders: Vec<_> = objects.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders[0].join("000000000010.parquet")
}

#[test]
fn a_sound_output_is_proved_sound() {
    let (code, found) = verified(&answered());
    assert_eq!(code, 0, "{found}");
    let count = |name: &str| found[name].as_u64().unwrap();
    assert_eq!((count("rows"), count("parts"), count("missing_rows")), (47, 6, 0));
}

#[test]
fn every_damage_to_a_part_is_found() {
    let bench = answered();
    let part = a_part(&bench);
    let whole = std::fs::read(&part).unwrap();
    let mut unseen = Vec::new();
    for at in (0..whole.len()).step_by(whole.len() / 150) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        std::fs::write(&part, flipped).unwrap();
        if verified(&bench).0 == 0 {
            unseen.push(at);
        }
    }
    assert!(unseen.is_empty(), "{unseen:?}");
    std::fs::write(&part, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(verified(&bench).1["missing_rows"], 10);
    std::fs::remove_file(&part).unwrap();
    let (code, found) = verified(&bench);
    assert_eq!((code, &found["missing_rows"]), (1, &10.into()));
    assert!(found["problems"][0].as_str().unwrap().contains("is missing"), "{found}");
    // A part of the other object in its place: right rows, wrong place.
    let other = part.parent().unwrap().join("000000000020.parquet");
    std::fs::copy(&other, &part).unwrap();
    assert_eq!(verified(&bench).1["missing_rows"], 10);
    std::fs::write(&part, &whole).unwrap();
    assert_eq!(verified(&bench).0, 0);
    std::fs::copy(&other, part.with_file_name("copy.parquet")).unwrap();
    let (code, found) = verified(&bench);
    assert!(code == 1 && found["problems"][0].as_str().unwrap().contains("no part of this job"));
}

#[test]
fn a_changed_input_is_refused_and_done_again_if_asked() {
    let bench = answered();
    let before = bench.checksums("out");
    let b = bench.path("in/b.jsonl");
    // The same rows with another time and other line ends are the same.
    std::fs::write(&b, chat_rows(12).replace('\n', "\r\n")).unwrap();
    assert!(bench.run(&[]).status.success());
    assert_eq!(verified(&bench).0, 0);
    // The same size, other rows.
    std::fs::write(&b, chat_rows(12).replace("Question 3", "Question 9")).unwrap();
    assert_eq!(verified(&bench).0, 1);
    let refused = bench.run(&[]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(words.contains("changed: `in/b.jsonl`") && words.contains("--redo-changed"), "{words}");
    assert_eq!(bench.checksums("out"), before);
    assert!(bench.run(&["--redo-changed"]).status.success());
    assert_eq!(verified(&bench).0, 0);
    let after = bench.checksums("out");
    assert_eq!(after.len(), before.len());
    let same = before.iter().filter(|(part, sum)| after.get(*part) == Some(sum)).count();
    assert_eq!(same, 5, "the parts of the other object and of later rows are as they were");
    std::fs::remove_file(&b).unwrap();
    let refused = bench.run(&[]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("gone: `in/b.jsonl`"));
    assert!(bench.run(&["--redo-changed"]).status.success());
    assert_eq!((verified(&bench).0, bench.parts("out").len()), (0, 4));
}

#[test]
fn failed_rows_are_done_again_and_nothing_else_is_touched() {
    // Every fifth row asks for a constraint that 6 tokens cannot meet; two have no conversation.
    let good = chat_rows(30);
    let row = |(i, line): (usize, &str)| match i {
        7 | 19 => "{\"id\": 7}\n".to_owned(),
        i if i % 5 == 0 => format!("{},\"form\":\"[a-z]{{40}}\"}}\n", &line[..line.len() - 1]),
        _ => format!("{line}\n"),
    };
    let rows: String = (0..).zip(good.lines()).map(row).collect();
    let more = "= 6\nregex = { column = 'form' }\nn = 2\ntemperature = 1.0";
    let bench = Bench::new(&rows, &chat_job(&JOB.replace("= 6", more)));
    assert_eq!(bench.run(&[]).status.code(), Some(3));
    let before = bench.rows("out");
    let file = bench.path("job.toml").display().to_string();
    let retry = |more: &[&str]| bench.tool(&[&["retry-failed", &file, "--json"], more].concat());
    let again = retry(&["--code", "constraint_unmet"]);
    assert_eq!(again.status.code(), Some(3), "{}", String::from_utf8_lossy(&again.stderr));
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&report["rows"]["ok"], &report["rows"]["failed"]), (&0.into(), &6.into()));
    assert_eq!(verified(&bench).0, 0);
    assert_eq!(content_checksum(&bench.rows("out")), content_checksum(&before));
    assert_eq!(retry(&["--code", "nonsense"]).status.code(), Some(2));
    let none: Value = serde_json::from_slice(&retry(&["--code", "numerics"]).stdout).unwrap();
    assert_eq!(none["parts"]["committed"], 0);
}

#[test]
fn rows_that_a_small_cache_failed_succeed_with_a_larger_one() {
    let long = |i: usize| if i.is_multiple_of(4) { "why? ".repeat(40) } else { "why?".to_owned() };
    let row = |i: usize| {
        format!(
            "{{\"id\":{i},\"messages\":[{{\"role\":\"user\",\"content\":\"{} {i}\"}}]}}\n",
            long(i)
        )
    };
    let bench = Bench::new(&(0..25).map(row).collect::<String>(), &chat_job(JOB));
    let whole = bench.path("whole").display().to_string();
    assert!(bench.run(&["--output", &whole]).status.success());
    assert_eq!(bench.run(&["--set", "batch.cache=60000"]).status.code(), Some(3));
    let file = bench.path("job.toml").display().to_string();
    let again = bench.tool(&["retry-failed", &file, "--json"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&report["rows"]["ok"], &report["complete"]), (&7.into(), &true.into()));
    assert_eq!(verified(&bench).1["failed_rows"], 0);
    assert_eq!(bench.checksums("out"), bench.checksums("whole"));
}

#[test]
fn added_objects_are_new_work() {
    let bench = answered();
    let before = bench.checksums("out");
    std::fs::write(bench.path("in/aa.jsonl"), chat_rows(5)).unwrap();
    let run = bench.run(&["--json"]);
    assert!(run.status.success());
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["parts"]["committed"], 1);
    let after = bench.checksums("out");
    assert!(before.iter().all(|(part, sum)| after.get(part) == Some(sum)));
    assert_eq!((verified(&bench).0, after.len()), (0, 7));
    let out = bench.path("out").display().to_string();
    let status = bench.tool(&["status", &out, "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&status["rows"]["total"], &status["complete"]), (&52.into(), &true.into()));
}

#[test]
fn parts_are_merged_in_the_order_of_the_input() {
    let bench = answered();
    let at = |name: &str| bench.path(name).display().to_string();
    let merged = bench.tool(&["merge", &at("out"), &at("whole")]);
    assert!(merged.status.success(), "{}", String::from_utf8_lossy(&merged.stderr));
    let rows = read(Path::new(&at("whole/part-00000.parquet")));
    let indices = rows.column_by_name("row_index").unwrap().as_primitive::<Int64Type>();
    assert_eq!(rows.num_rows(), 47);
    assert!(
        (0..35).all(|row| indices.value(row) == row as i64
            && text(&rows, "input", row).ends_with("a.jsonl"))
    );
    assert!((35..47).all(|row| indices.value(row) == row as i64 - 35));
    // Small files, as JSON lines; never over what is there.
    let jsonl = ["merge", &at("out"), &at("lines"), "--format", "jsonl", "--file-size", "2KiB"];
    assert!(bench.tool(&jsonl).status.success());
    let files = std::fs::read_dir(at("lines")).unwrap().count();
    assert!(files > 2, "{files}");
    let first = std::fs::read_to_string(at("lines/part-00000.jsonl")).unwrap();
    let first: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!(first["completion"], text(&rows, "completion", 0));
    assert_eq!(bench.tool(&jsonl).status.code(), Some(1));
    std::fs::remove_file(a_part(&bench)).unwrap();
    let incomplete = bench.tool(&["merge", &at("out"), &at("rest")]);
    assert_eq!(incomplete.status.code(), Some(1));
    assert_eq!(read(Path::new(&at("rest/part-00000.parquet"))).num_rows(), 37);
}
