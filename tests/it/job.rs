//! The main job from outside: the real binary on real files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Int32Type, Int64Type};
use arrow::record_batch::RecordBatchReader;
use nightshift::model::Config;
use nightshift::ops::DeviceKind;
use nightshift::output::content_checksum;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::goldens::{fixture, goldens, ids};

/// A folder with a job in it.
pub(crate) struct Bench {
    folder: TempDir,
}

impl Bench {
    pub(crate) fn new(rows: &str, job: &str) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
        let bench = Self { folder };
        bench.write_job(job);
        bench
    }

    pub(crate) fn write_job(&self, job: &str) {
        std::fs::write(self.path("job.toml"), job).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightshift"));
        command.arg("run").arg(self.path("job.toml")).args(arguments).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Any other command.
    pub(crate) fn tool(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_nightshift")).args(arguments).output().unwrap()
    }

    /// Parts of an output folder by their path below it.
    pub(crate) fn parts(&self, output: &str) -> BTreeMap<String, RecordBatch> {
        let root = self.path(output).join("parts");
        let mut parts = BTreeMap::new();
        for object in std::fs::read_dir(root).unwrap() {
            for part in std::fs::read_dir(object.unwrap().path()).unwrap() {
                let path = part.unwrap().path();
                let name =
                    path.strip_prefix(self.path(output)).unwrap().to_string_lossy().into_owned();
                assert!(name.ends_with(".parquet"), "a stray file: {name}");
                parts.insert(name, read(&path));
            }
        }
        parts
    }

    pub(crate) fn checksums(&self, output: &str) -> BTreeMap<String, String> {
        self.parts(output)
            .into_iter()
            .map(|(name, batch)| (name, content_checksum(&batch)))
            .collect()
    }

    pub(crate) fn rows(&self, output: &str) -> RecordBatch {
        let parts: Vec<RecordBatch> = self.parts(output).into_values().collect();
        arrow::compute::concat_batches(&parts[0].schema(), &parts).unwrap()
    }
}

pub(crate) fn read(path: &Path) -> RecordBatch {
    let file = std::fs::File::open(path).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let schema = reader.schema();
    let batches: Vec<RecordBatch> = reader.map(|batch| batch.unwrap()).collect();
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

pub(crate) fn text<'a>(rows: &'a RecordBatch, column: &str, row: usize) -> &'a str {
    let column = rows.column_by_name(column).unwrap().as_string::<i32>();
    if column.is_null(row) { "" } else { column.value(row) }
}

pub(crate) fn model(name: &str) -> String {
    fixture(name).display().to_string()
}

fn tiny() -> String {
    model("a_v2like")
}

pub(crate) fn chat_rows(count: usize) -> String {
    let row = |i: usize| json!({ "id": i, "messages": [{ "role": "user", "content": format!("Question {i}: {}", "why? ".repeat(i % 13)) }] });
    (0..count).map(|i| row(i).to_string() + "\n").collect()
}

pub(crate) fn chat_job(more: &str) -> String {
    format!(
        "[model]\npath = '{}'\n[input]\npaths = ['rows.jsonl']\nmessages = 'messages'\nid = 'id'\n{more}",
        tiny()
    )
}

#[test]
fn goldens_hold_through_the_job_interface() {
    for name in ["a_v2like", "b_litelike", "c_plain_tied", "d_freq2_bias"] {
        let goldens = goldens(name);
        let prompts = goldens["prompts"].as_array().unwrap();
        let rows: String =
            prompts.iter().map(|p| json!({ "ids": p["ids"] }).to_string() + "\n").collect();
        let bench = Bench::new(
            &rows,
            &format!(
                "[model]\npath = '{}'\n[input]\npaths = ['rows.jsonl']\nprompt_token_ids = 'ids'\n[sampling]\nmax_tokens = 64\nignore_eos = true\n[output]\npath = 'out'\ninclude = ['token_ids', 'logprobs']\n",
                model(name)
            ),
        );
        let output = bench.run(&[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let rows = bench.rows("out");
        assert_eq!(rows.num_rows(), prompts.len());
        for (row, prompt) in prompts.iter().enumerate() {
            let tokens = rows.column_by_name("token_ids").unwrap().as_list::<i32>().value(row);
            let tokens: Vec<u32> =
                tokens.as_primitive::<Int32Type>().values().iter().map(|&id| id as u32).collect();
            assert_eq!(tokens, ids(&prompt["greedy_ids"]), "{name} {}", prompt["name"]);
            let logprobs = rows.column_by_name("logprobs").unwrap().as_list::<i32>().value(row);
            let expected = prompt["greedy_logprob"].as_array().unwrap();
            for (found, expected) in
                logprobs.as_primitive::<Float32Type>().values().iter().zip(expected)
            {
                assert!(
                    (f64::from(*found) - expected.as_f64().unwrap()).abs() < 3e-4,
                    "{name} {}",
                    prompt["name"]
                );
            }
            assert_eq!(text(&rows, "stop_reason", row), "max_tokens");
        }
    }
}

#[test]
fn a_stop_token_ends_a_completion_and_is_its_last_id() {
    let goldens = goldens("a_v2like");
    let stop = &goldens["stop_test"];
    let prompt = &goldens["prompts"][stop["prompt"].as_u64().unwrap() as usize];
    let bench = Bench::new(
        &json!({ "ids": prompt["ids"] }).to_string(),
        &format!(
            "[model]\npath = '{}'\n[input]\npaths = ['rows.jsonl']\nprompt_token_ids = 'ids'\n[sampling]\nmax_tokens = 64\nignore_eos = true\nstop_token_ids = [{}]\n[output]\npath = 'out'\ninclude = ['token_ids']\n",
            model("a_v2like"),
            stop["stop_token_id"]
        ),
    );
    assert!(bench.run(&[]).status.success());
    let rows = bench.rows("out");
    let tokens = rows.column_by_name("token_ids").unwrap().as_list::<i32>().value(0);
    let tokens: Vec<u32> =
        tokens.as_primitive::<Int32Type>().values().iter().map(|&id| id as u32).collect();
    assert_eq!(tokens, ids(&stop["expected_ids_including_stop"]));
    assert_eq!(text(&rows, "finish_reason", 0), "stop");
    assert_eq!(text(&rows, "stop_reason", 0), stop["stop_token_id"].to_string());
}

#[test]
fn batch_limits_threads_and_cache_change_no_byte() {
    let bench = Bench::new(
        &chat_rows(40),
        &chat_job(
            "[sampling]\nmax_tokens = 24\ntemperature = 0.9\nn = 2\n[output]\npath = 'out'\nrows_per_part = 7\ninclude = ['token_ids', 'logprobs', 'routed_experts']\n",
        ),
    );
    let mut expected = None;
    for (index, set) in [
        &["batch.max_sequences=1", "devices.threads=1"][..],
        &["batch.max_sequences=64"],
        &["batch.max_sequences=5", "batch.max_step_tokens=9", "devices.threads=2"],
        &["batch.cache=60000", "batch.window_rows=3"],
        &["batch.share_prefixes=false", "batch.max_sequences=256"],
    ]
    .iter()
    .enumerate()
    {
        let output = format!("out{index}");
        let place = bench.path(&output).display().to_string();
        let mut arguments = vec!["--output", &place];
        set.iter().for_each(|set| arguments.extend(["--set", set]));
        let run = bench.run(&arguments);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let found = bench.checksums(&output);
        assert_eq!(found.len(), 6);
        assert_eq!(&found, expected.get_or_insert(found.clone()), "{set:?}");
    }
}

#[test]
fn continuations_are_scored_and_examples_are_shown() {
    let rows = r#"{"q": "2+2?", "subject": "x", "choices": ["3", "4"], "id": 1}
{"q": "3+3?", "subject": "x", "choices": ["6"], "id": 2}
{"q": "1+1?", "subject": "none", "choices": ["2", "3"], "id": 3}
"#;
    let job = format!(
        "[model]\npath = '{}'\n[input]\npaths = ['rows.jsonl']\nid = 'id'\nexamples = ['dev.jsonl']\nshots = 1\nexamples_by = 'subject'\ntemplate = '{{% for e in examples %}}{{{{ e.q }}}} {{{{ e.a }}}}, {{% endfor %}}{{{{ q }}}}'\ncontinuations = [' {{{{ choices[0] }}}}', '{{% if choices|length > 1 %}} {{{{ choices[1] }}}}{{% endif %}}']\n[output]\npath = 'out'\ninclude = ['prompt']\n",
        tiny()
    );
    let bench = Bench::new(rows, &job);
    let dev = r#"{"q": "5+5?", "a": "10", "subject": "x"}"#;
    std::fs::write(bench.path("dev.jsonl"), dev).unwrap();
    let run = bench.run(&[]);
    assert_eq!(run.status.code(), Some(3), "{}", String::from_utf8_lossy(&run.stderr));
    let rows = bench.rows("out");
    let column = |name: &str| (0..4).map(|row| text(&rows, name, row).to_owned()).collect();
    let (ids, completions, reasons): (Vec<String>, Vec<String>, Vec<String>) =
        (column("id"), column("completion"), column("stop_reason"));
    assert_eq!(ids, ["1", "1", "2", "3"]);
    assert_eq!(completions, [" 3", " 4", " 6", ""]);
    assert_eq!(reasons, ["given", "given", "given", ""]);
    assert_eq!(text(&rows, "prompt", 0), "5+5? 10, 2+2?");
    assert_eq!(text(&rows, "error_code", 3), "template_failed");
    let logprobs = rows.column_by_name("logprobs").unwrap().as_list::<i32>().value(0);
    assert!(logprobs.as_primitive::<Float32Type>().values().iter().all(|x| *x < 0.0));
    // Examples are part of what the job is.
    std::fs::write(bench.path("dev.jsonl"), dev.replace("10", "11")).unwrap();
    let other = bench.run(&[]);
    let words = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(other.status.code() == Some(1) && words.contains("examples_sha256"), "{words}");
    bench.write_job(&job.replace("[output]", "[sampling]\nn = 2\nregex = 'a'\n[output]"));
    let refused = bench.run(&[]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && words.contains("continuations"), "{words}");
}

/// Memory beside weights and cache: the program, 8,192 rows of the window, parts in the making.
const OTHER_MEMORY: u64 = 256 << 20;

#[test]
fn a_long_job_stays_within_its_memory_and_reports_it() {
    let row = |i: usize| format!("{{\"ids\": [{}, {}, 3, 7, 9, 11]}}\n", i % 470, i / 470);
    let bench = Bench::new(
        &(0..200_000).map(row).collect::<String>(),
        &format!(
            "[model]\npath = '{}'\n[input]\npaths = ['rows.jsonl']\nprompt_token_ids = 'ids'\n[sampling]\nmax_tokens = 2\nignore_eos = true\n[batch]\ncache = '8MiB'\n[output]\npath = 'out'\n",
            model("a_v2like")
        ),
    );
    let run = bench.run(&["--json"]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["rows"]["ok"], 200_000);
    let bytes = |name: &str| report["memory"][name].as_u64().unwrap();
    assert_eq!(bytes("cache_bytes"), 8 << 20);
    let allowed = bytes("weight_bytes") + bytes("cache_bytes") + OTHER_MEMORY;
    assert!((1..=allowed).contains(&bytes("peak_bytes")), "{} of {allowed}", bytes("peak_bytes"));
}

#[test]
fn a_run_leaves_its_expert_ledger() {
    let bench = Bench::new(&chat_rows(9), &chat_job("[output]\npath = 'out'\n"));
    let run = bench.run(&["--json"]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    let runs = std::fs::read_dir(bench.path("out/_nightshift/runs")).unwrap();
    let mut ledgers = runs
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".experts.parquet"));
    let rows = read(&ledgers.next().unwrap());
    assert!(ledgers.next().is_none());
    let tokens = rows.column_by_name("tokens").unwrap().as_primitive::<Int64Type>();
    let layers = rows.column_by_name("layer").unwrap().as_primitive::<Int32Type>();
    let config = Config::load(Path::new(&tiny())).unwrap();
    let moe = config.moe.unwrap();
    assert_eq!(rows.num_rows(), (config.layers - moe.first_layer) * moe.routed_experts);
    assert_eq!(layers.value(0) as usize, moe.first_layer);
    let of_first: i64 = tokens.values()[..moe.routed_experts].iter().sum();
    assert!(of_first > 0 && of_first % moe.experts_per_token as i64 == 0);
    assert_eq!(report["experts"]["layers"], config.layers - moe.first_layer);
    assert!(report["experts"]["max_imbalance"].as_f64().unwrap() >= 1.0);
}

#[test]
fn a_constraint_holds_for_every_row_and_a_bad_one_is_refused_at_once() {
    let job =
        |sampling: &str| chat_job(&format!("[sampling]\n{sampling}\n[output]\npath = 'out'\n"));
    let bench =
        Bench::new(&chat_rows(20), &job("choice = ['yes', 'no', 'maybe']\ntemperature = 1.0"));
    assert!(bench.run(&[]).status.success());
    let rows = bench.rows("out");
    let of = |row| text(&rows, "completion", row);
    assert!((0..20).all(|row| ["yes", "no", "maybe"].contains(&of(row))), "{}", of(0));
    assert!((0..20).all(|row| ["constraint", "eos"].contains(&text(&rows, "stop_reason", row))));
    bench.write_job(&job("regex = '('"));
    let refused = bench.run(&[]);
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("constraint cannot be used"), "{message}");
    bench.write_job(&job("regex = 'a'\nchoice = ['b']"));
    assert_eq!(bench.run(&[]).status.code(), Some(2));
}

#[test]
fn bad_rows_cost_one_row_each() {
    let rows = [
        r#"{"id": 1, "messages": [{"role": "user", "content": "fine"}]}"#,
        r#"{"id": 2, "messages": "#,
        r#"{"id": 3, "messages": []}"#,
        r#"{"id": 4, "messages": [{"role": "robot", "content": "x"}]}"#,
        r#"{"id": 5}"#,
        r#"{"id": 6, "messages": [{"role": "user", "content": "fine too"}], "top_p": 7}"#,
        r#"{"id": 7, "conversations": 1, "messages": [{"from": "human", "value": "ShareGPT"}]}"#,
    ];
    let bench = Bench::new(
        &rows.join("\n"),
        &chat_job(
            "[sampling]\nmax_tokens = 4\ntop_p = { column = 'top_p', default = 1.0 }\n[output]\npath = 'out'\n",
        ),
    );
    let run = bench.run(&["--json"]);
    assert_eq!(run.status.code(), Some(3), "{}", String::from_utf8_lossy(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!((&report["rows"]["ok"], &report["rows"]["failed"]), (&json!(2), &json!(5)));
    let rows = bench.rows("out");
    let codes: Vec<&str> = (0..7).map(|row| text(&rows, "error_code", row)).collect();
    assert_eq!(
        codes,
        [
            "",
            "malformed_json",
            "empty_messages",
            "unknown_role",
            "missing_column",
            "invalid_sampling",
            ""
        ]
    );
    assert!(
        text(&rows, "error_message", 4).contains("`rows.jsonl` line 5 (row 4)"),
        "{}",
        text(&rows, "error_message", 4)
    );
    assert_eq!(
        rows.column_by_name("row_index").unwrap().as_primitive::<Int64Type>().values(),
        &[0, 1, 2, 3, 4, 5, 6]
    );
    // A finished job says so again, with the same exit code.
    assert_eq!(bench.run(&[]).status.code(), Some(3));
}

#[test]
fn a_killed_run_continues_and_ends_with_the_same_bytes() {
    let job = chat_job("[sampling]\nmax_tokens = 64\n[output]\npath = 'out'\nrows_per_part = 20\n");
    let bench = Bench::new(&chat_rows(400), &job);
    let whole = bench.path("whole").display().to_string();
    assert!(bench.run(&["--output", &whole]).status.success());
    let mut kills = 0;
    for pause in (0..40).map(|i| Duration::from_millis(20 + 11 * (i % 9))) {
        let mut child = bench
            .command(&["--quiet", "--set", "batch.max_sequences=8", "--set", "devices.threads=1"])
            .spawn()
            .unwrap();
        std::thread::sleep(pause);
        // SIGKILL: the process has no say.
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            break;
        }
        kills += 1;
    }
    assert!(kills > 0, "no run was killed");
    let last = bench.run(&[]);
    assert!(last.status.success(), "{}", String::from_utf8_lossy(&last.stderr));
    assert_eq!(bench.checksums("out"), bench.checksums("whole"));
}

/// Starts the job, and ends it with a signal after a while.
#[cfg(unix)]
fn signalled(bench: &Bench, signal: &str, after: u64, arguments: &[&str]) -> Output {
    let child = bench.command(arguments).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(after));
    // It may have ended by itself.
    let _ = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    child.wait_with_output().unwrap()
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_token_by_token() {
    let job = chat_job(
        "[sampling]\nmax_tokens = 400\nignore_eos = true\ntemperature = 0.8\nn = 2\nstop = ['zq']\nregex = { column = 'form' }\n[output]\npath = 'out'\nrows_per_part = 50\ninclude = ['token_ids', 'logprobs', 'routed_experts']\n",
    );
    // Some of the rows are constrained, so that guides are carried over too.
    let rows = chat_rows(100);
    let rows: String = (0..)
        .zip(rows.lines())
        .map(|(i, line)| match i % 7 {
            0 => format!("{},\"form\":\"[a-z]{{60}}\"}}\n", &line[..line.len() - 1]),
            _ => format!("{line}\n"),
        })
        .collect();
    let bench = Bench::new(&rows, &job);
    let whole = bench.path("whole").display().to_string();
    assert!(bench.run(&["--output", &whole]).status.success());
    let one = ["--set", "devices.threads=1"];
    let ended = signalled(&bench, "-TERM", 600, &one);
    let words = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(130), "{words}");
    assert!(words.contains("run the same command to continue"), "{words}");
    let ended = signalled(&bench, "-INT", 600, &one);
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    let last = bench.run(&["--json"]);
    assert!(last.status.success(), "{}", String::from_utf8_lossy(&last.stderr));
    let report: Value = serde_json::from_slice(&last.stdout).unwrap();
    assert!(report["tokens"]["carried_tokens"].as_u64().unwrap() > 100, "{report}");
    assert_eq!(bench.checksums("out"), bench.checksums("whole"));
    let left = std::fs::read_dir(bench.path("out/_nightshift/journal")).map(Iterator::count);
    assert_eq!(left.unwrap_or(0), 0, "a complete job needs no journal");
}

#[cfg(unix)]
#[test]
fn kills_amid_journals_lose_nothing_and_damaged_ones_are_passed_over() {
    let job = chat_job(
        "[sampling]\nmax_tokens = 200\nignore_eos = true\ntemperature = 0.8\n[run]\njournal_seconds = 0.03\n[output]\npath = 'out'\nrows_per_part = 40\n",
    );
    let bench = Bench::new(&chat_rows(200), &job);
    let whole = bench.path("whole").display().to_string();
    assert!(bench.run(&["--output", &whole]).status.success());
    let (mut kills, mut damaged) = (0, 0);
    for round in 0..25u64 {
        let ended =
            signalled(&bench, "-KILL", 60 + 17 * (round % 7), &["--set", "devices.threads=1"]);
        if ended.status.success() {
            break;
        }
        kills += 1;
        // Every third time what it left is damaged: cut, flipped, empty.
        for entry in std::fs::read_dir(bench.path("out/_nightshift/journal")).into_iter().flatten()
        {
            let path = entry.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            if round % 3 != 2 || bytes.is_empty() {
                continue;
            }
            let middle = bytes.len() / 2;
            match round % 2 {
                0 => bytes.truncate(middle),
                _ => bytes[middle] ^= 0x40,
            }
            std::fs::write(path, bytes).unwrap();
            damaged += 1;
        }
    }
    // What a kill amid a put leaves; `checksums` refuses everything that is no part.
    let staged = bench.path("out/parts/begun");
    std::fs::create_dir_all(&staged).unwrap();
    std::fs::write(staged.join("000000000000.parquet#1"), "PAR1").unwrap();
    let last = bench.run(&[]);
    assert!(last.status.success(), "{}", String::from_utf8_lossy(&last.stderr));
    assert!(kills > 0 && damaged > 0, "{kills} kills, {damaged} journals damaged");
    assert_eq!(bench.checksums("out"), bench.checksums("whole"));
}

/// The longest test: a minute on two cores.
#[cfg(unix)]
#[test]
fn hundreds_of_kills_at_random_moments_lose_nothing() {
    let job = chat_job(
        "[sampling]\nmax_tokens = 160\nignore_eos = true\ntemperature = 0.8\nn = 2\n[run]\njournal_seconds = 0.05\n[output]\npath = 'out'\nrows_per_part = 25\n",
    );
    let bench = Bench::new(&chat_rows(300), &job);
    let whole = bench.path("whole").display().to_string();
    assert!(bench.run(&["--output", &whole]).status.success());
    let (mut kills, mut jobs, mut moment) = (0, 0, 12_345u64);
    while kills < 400 {
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let signal = ["-KILL", "-KILL", "-KILL", "-TERM"][(moment >> 40) as usize % 4];
        let ended =
            signalled(&bench, signal, (moment >> 33) % 260, &["--set", "devices.threads=1"]);
        if ended.status.success() {
            assert_eq!(bench.checksums("out"), bench.checksums("whole"), "after {kills} kills");
            std::fs::remove_dir_all(bench.path("out")).unwrap();
            jobs += 1;
        } else {
            kills += 1;
        }
    }
    if bench.path("out").exists() {
        assert!(bench.run(&[]).status.success());
        assert_eq!(bench.checksums("out"), bench.checksums("whole"));
    }
    eprintln!("{kills} kills over {jobs} finished jobs: 0 rows lost, 0 twice, 0 different");
}

/// Only root may mount the small disk that this needs.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_stops_the_job_and_more_room_continues_it() {
    let job = chat_job(
        "[sampling]\nmax_tokens = 30\nignore_eos = true\n[output]\npath = 'disk/out'\nrows_per_part = 20\ninclude = ['token_ids', 'logprobs']\n",
    );
    let bench = Bench::new(&chat_rows(300), &job);
    std::fs::create_dir(bench.path("disk")).unwrap();
    let disk = bench.path("disk").display().to_string();
    let mount = |options: &str| {
        let arguments = ["-t", "tmpfs", "-o", options, "tmpfs", &disk];
        Command::new("mount").args(arguments).output().is_ok_and(|done| done.status.success())
    };
    if !mount("size=120k") {
        eprintln!("skipped: a small disk cannot be mounted here");
        return;
    }
    let full = bench.run(&[]);
    let larger = mount("remount,size=20m");
    let last = bench.run(&[]);
    let whole = bench.path("whole").display().to_string();
    let clean = bench.run(&["--output", &whole]);
    let sums =
        last.status.success().then(|| (bench.checksums("disk/out"), bench.checksums("whole")));
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    let words = String::from_utf8_lossy(&full.stderr).into_owned();
    assert_eq!(full.status.code(), Some(1), "{words}");
    assert!(words.contains("space") && words.contains("hint: free some space"), "{words}");
    assert!(larger && clean.status.success());
    let (found, expected) = sums.expect("the next run ends");
    assert_eq!(found, expected);
}

#[test]
fn too_many_errors_stop_the_job_with_everything_committed() {
    let good = chat_rows(300);
    let rows: String = (0..)
        .zip(good.lines())
        .map(|(i, line)| if i % 3 == 0 { "{oops\n".into() } else { format!("{line}\n") })
        .collect();
    let job = |most: &str| {
        chat_job(&format!(
            "[sampling]\nmax_tokens = 4\n[run]\nmax_errors = {most}\n[output]\npath = 'out'\nrows_per_part = 10\n[batch]\nwindow_rows = 20\n"
        ))
    };
    let bench = Bench::new(&rows, &job("20"));
    let stopped = bench.run(&[]);
    assert_eq!(stopped.status.code(), Some(1));
    let words = String::from_utf8_lossy(&stopped.stderr).into_owned();
    assert!(words.contains("malformed_json") && words.contains("max_errors"), "{words}");
    let parts = bench.parts("out").len();
    assert!((5..30).contains(&parts), "{parts}");
    bench.write_job(&job("'50%'"));
    assert_eq!(bench.run(&[]).status.code(), Some(3));
    assert_eq!(bench.parts("out").len(), 30);
    bench.write_job(&job("'many'"));
    assert_eq!(bench.run(&[]).status.code(), Some(2));
}

#[test]
fn shards_share_one_output() {
    let job = chat_job("[sampling]\nmax_tokens = 8\n[output]\npath = 'out'\nrows_per_part = 5\n");
    let bench = Bench::new(&chat_rows(120), &job);
    let whole = bench.path("whole").display().to_string();
    assert!(bench.run(&["--output", &whole]).status.success());
    let start = |shard: &str| bench.command(&["--shard", shard, "--quiet"]).spawn().unwrap();
    // Another number of shards in between, one of them twice.
    assert!(bench.run(&["--shard", "0/2", "--limit", "0"]).status.success());
    let runs: Vec<_> = ["0/3", "1/3", "1/3", "2/3"].map(start).into_iter().collect();
    for run in runs {
        assert!(run.wait_with_output().unwrap().status.success());
    }
    assert_eq!(bench.checksums("out"), bench.checksums("whole"));
    assert_eq!(bench.run(&["--shard", "3/3"]).status.code(), Some(2));
}

#[test]
fn two_runners_by_mistake_do_no_harm() {
    let job = chat_job(
        "[sampling]\nmax_tokens = 60\nignore_eos = true\n[output]\npath = 'out'\nrows_per_part = 5\n",
    );
    let bench = Bench::new(&chat_rows(60), &job);
    let whole = bench.path("whole").display().to_string();
    assert!(bench.run(&["--output", &whole]).status.success());
    let start = || {
        bench
            .command(&["--json", "--set", "devices.threads=1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let runs = [start(), start()].map(|run| run.wait_with_output().unwrap());
    let counted = |run: &Output, what: &str| -> u64 {
        let report: Value = serde_json::from_slice(&run.stdout).unwrap();
        report["parts"][what].as_u64().unwrap()
    };
    assert!(runs.iter().all(|run| run.status.success()));
    let total = |what: &str| runs.iter().map(|run| counted(run, what)).sum::<u64>();
    assert_eq!(total("committed"), 12);
    assert!(total("before") + total("found_committed") <= 12);
    assert_eq!(bench.checksums("out"), bench.checksums("whole"));
}

#[test]
fn another_job_is_refused_with_what_differs() {
    let job = |tokens: u32| {
        chat_job(&format!("[sampling]\nmax_tokens = {tokens}\n[output]\npath = 'out'\n"))
    };
    let bench = Bench::new(&chat_rows(3), &job(4));
    assert!(bench.run(&[]).status.success());
    bench.write_job(&job(5));
    let run = bench.run(&[]);
    let words = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{words}");
    assert!(words.contains("max_tokens") && words.contains("hint:"), "{words}");
}

#[test]
fn job_errors_say_what_where_and_how_to_mend_it() {
    let bench = Bench::new(&chat_rows(1), "");
    let good = chat_job("[output]\npath = 'out'\n");
    for (job, code, words) in [
        (good.replace("rows.jsonl", "none.jsonl"), 1, "no object matches `none.jsonl`"),
        (good.replace("'messages'", "'mesages'"), 1, "did you mean `messages`?"),
        (good.replace(&tiny(), "nowhere"), 1, "config.json"),
        (good.replace("paths", "pahts"), 2, "did you mean `paths`?"),
    ] {
        bench.write_job(&job);
        let run = bench.run(&[]);
        let found = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(code), "{found}");
        assert!(found.contains(words) && found.contains("hint:"), "{found}");
    }
}

#[test]
fn a_job_for_cuda_says_what_is_missing_for_it() {
    let Err(missing) = DeviceKind::Cuda.open(0) else { return eprintln!("skipped: CUDA is there") };
    let bench =
        Bench::new(&chat_rows(1), &chat_job("[output]\npath = 'out'\n[devices]\nkind = 'cuda'\n"));
    let run = bench.run(&[]);
    let found = String::from_utf8_lossy(&run.stderr).into_owned();
    let code = if DeviceKind::Cuda.is_built() { 1 } else { 2 };
    assert_eq!(run.status.code(), Some(code), "{found}");
    assert!(found.contains(&missing.to_string()) && found.contains(missing.hint()), "{found}");
}
