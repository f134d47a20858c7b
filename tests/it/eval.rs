//! Evaluations from outside: the real binary on rows of the benchmarks' published columns.
//!
//! Scores are exact although the models are noise: the rows bring completions written by hand, and a choice
//! of one is a constraint that only that text meets.

use std::path::{Path, PathBuf};
use std::process::Output;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Float64Type;
use serde_json::{Value, json};

use crate::job::{Bench, model, read, text};

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn fixtures(path: &str) -> String {
    root().join("tests/fixtures/eval").join(path).display().to_string()
}

/// Evaluates a job and gives its report.
fn evaluated(bench: &Bench, job: &Path, more: &[&str]) -> Value {
    let run =
        bench.tool(&[&["eval", &job.display().to_string(), "--json", "--quiet"], more].concat());
    let words = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{} {:?}: {words}", job.display(), run.status);
    serde_json::from_slice(&run.stdout).unwrap()
}

/// The scores of all parts, in the order of their names.
fn scores(bench: &Bench, output: &str) -> RecordBatch {
    let mut files = Vec::new();
    for folder in std::fs::read_dir(bench.path(output).join("eval/scores")).unwrap() {
        let entries = std::fs::read_dir(folder.unwrap().path()).unwrap();
        files.extend(entries.map(|entry| entry.unwrap().path()));
    }
    files.sort();
    let batches: Vec<RecordBatch> = files.iter().map(|path| read(path)).collect();
    arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap()
}

fn score(rows: &RecordBatch, row: usize) -> Option<f64> {
    let column = rows.column_by_name("score").unwrap().as_primitive::<Float64Type>();
    (!column.is_null(row)).then(|| column.value(row))
}

/// A benchmark's job on the fixture of its layout.
fn benchmark(bench: &Bench, name: &str, input: &str, more: &[&str]) -> Value {
    let (model, input) = (format!("model.path='{}'", model("a_v2like")), fixtures(input));
    let output = bench.path(name).display().to_string();
    let common =
        ["--set", &model, "--set", "model.dtype=f32", "--input", &input, "--output", &output];
    let job = root().join(format!("jobs/eval/{name}.toml"));
    evaluated(bench, &job, &[&common, more].concat())
}

#[test]
fn completions_of_every_generative_benchmark_get_their_scores() {
    let bench = Bench::new("", "");
    let forced = ["--set", "sampling.choice={column='completion'}", "--set", "sampling.n=1"];
    let (gsm8k, mbpp) = (fixtures("gsm8k/train.jsonl"), fixtures("mbpp/prompt.jsonl"));
    let examples = |path: &str| format!("input.examples=['{path}']");
    let (gsm8k, mbpp) = (examples(&gsm8k), examples(&mbpp));
    let commands =
        ["--allow-commands", "--set", "eval.measures=['pass@1']", "--set", "eval.seconds=3"];
    let shots = |examples| [["--set", examples], ["--set", "input.shots=1"]].concat();
    for (name, input, more, groups) in [
        ("bbh", "bbh/*/test.jsonl", vec![], 3),
        ("gsm8k", "gsm8k/test.jsonl", shots(gsm8k.as_str()), 0),
        ("math", "math/test.jsonl", vec![], 2),
        ("humaneval", "humaneval/test.jsonl", commands.to_vec(), 0),
        ("mbpp", "mbpp/test.jsonl", [shots(mbpp.as_str()), commands.to_vec()].concat(), 0),
        ("livecodebench", "livecodebench/test.jsonl", commands.to_vec(), 2),
    ] {
        let report = benchmark(&bench, name, input, &[&forced[..], &more].concat());
        let rows = scores(&bench, name);
        let mut right = 0.0;
        for row in 0..rows.num_rows() {
            let place = Path::new(text(&rows, "input", row));
            let line = rows.column_by_name("row_index").unwrap();
            let line = line.as_primitive::<arrow::datatypes::Int64Type>().value(row) as usize;
            let source = std::fs::read_to_string(place).unwrap();
            let source: Value = serde_json::from_str(source.lines().nth(line).unwrap()).unwrap();
            let expected = source["expected"].as_f64();
            let reason = text(&rows, "reason", row);
            assert_eq!(score(&rows, row), expected, "{name} row {row}: {reason} {source}");
            right += expected.unwrap();
        }
        let measure = &report["measures"][0];
        let mean = right / rows.num_rows() as f64;
        assert!((measure["micro"]["value"].as_f64().unwrap() - mean).abs() < 1e-12, "{report}");
        assert_eq!(measure["groups"].as_array().unwrap().len(), groups, "{name}");
        assert_eq!((&report["failed_rows"], &report["unscored_rows"]), (&json!(0), &json!(0)));
    }
    let reasons = scores(&bench, "humaneval");
    let reason = |row| text(&reasons, "reason", row);
    assert!(reason(1).starts_with("exit code 1: AssertionError"), "{}", reason(1));
    assert!(reason(2).contains("ends before its tests"), "{}", reason(2));
    assert!(reason(3).contains("SyntaxError"), "{}", reason(3));
    let reasons = scores(&bench, "livecodebench");
    assert!(text(&reasons, "reason", 1).contains("test 0: '-1"), "{}", text(&reasons, "reason", 1));
    assert!(text(&reasons, "reason", 4).contains("3 s"), "{}", text(&reasons, "reason", 4));
    let last = text(&reasons, "reason", reasons.num_rows() - 1);
    assert!(last.contains("ends before its answer"), "{last}");
}

#[test]
fn letters_of_every_multiple_choice_benchmark_are_compared_by_log_probability() {
    let bench = Bench::new("", "");
    for (name, input, examples, rows, groups) in [
        ("mmlu", "mmlu/test.jsonl", "mmlu/dev.jsonl", 3, 2),
        ("ceval", "ceval/*/val.jsonl", "ceval/*/dev.jsonl", 3, 2),
        ("cmmlu", "cmmlu/test/*.jsonl", "cmmlu/dev/*.jsonl", 2, 1),
    ] {
        let examples = format!("input.examples=['{}']", fixtures(examples));
        let more =
            ["--set", &examples, "--set", "input.shots=1", "--set", "output.include=['prompt']"];
        let report = benchmark(&bench, name, input, &more);
        assert_eq!(
            (&report["rows"], &report["samples"]),
            (&json!(rows), &json!(4 * rows)),
            "{name}"
        );
        assert_eq!(report["measures"][0]["groups"].as_array().unwrap().len(), groups, "{name}");
        let (scores, parts) = (scores(&bench, name), bench.rows(name));
        let logprob = scores.column_by_name("logprob").unwrap().as_primitive::<Float64Type>();
        let best = scores.column_by_name("best").unwrap().as_boolean();
        let mut right = 0.0;
        for row in 0..rows {
            let of_row = 4 * row..4 * row + 4;
            let top = of_row.clone().max_by(|a, b| logprob.value(*a).total_cmp(&logprob.value(*b)));
            let chosen: Vec<usize> = of_row.filter(|sample| best.value(*sample)).collect();
            assert_eq!(chosen, [top.unwrap()], "{name} row {row}");
            let letter = ["A", "B", "C", "D"][chosen[0] % 4];
            assert_eq!(text(&scores, "answer", chosen[0]), letter);
            assert_eq!(text(&parts, "completion", chosen[0]).trim(), letter);
            let reference = text(&scores, "reference", chosen[0]);
            let index = ["A", "B", "C", "D"].iter().position(|letter| *letter == reference);
            let index = index.unwrap_or_else(|| reference.parse().unwrap());
            let is_right = f64::from(u8::from(index == chosen[0] % 4));
            assert_eq!(score(&scores, chosen[0]), Some(is_right), "{name} row {row}");
            right += is_right;
        }
        let value = report["measures"][0]["micro"]["value"].as_f64().unwrap();
        assert!((value - right / rows as f64).abs() < 1e-12, "{report}");
    }
    let prompt = bench.rows("mmlu");
    assert!(text(&prompt, "prompt", 0).contains("about astronomy.\n\nWhich of these is a star?"));
    assert!(
        text(&prompt, "prompt", 0).contains("Answer: A\n\nWhich planet"),
        "{:?}",
        text(&prompt, "prompt", 0)
    );
    assert!(text(&prompt, "prompt", 0).ends_with("D. Earth\nAnswer:"));
    let prompts = bench.rows("ceval");
    let mut history = (0..12).map(|row| text(&prompts, "prompt", row));
    let history = history.find(|prompt| prompt.contains("关于history考试")).unwrap();
    assert!(history.contains("答案：A\n\n长城"), "{history}");
}

/// The rows of a JSONL file as Parquet, lists and all.
fn as_parquet(jsonl: &str, parquet: &Path) {
    use arrow::json::reader::{ReaderBuilder, infer_json_schema_from_seekable};
    let mut file = std::io::BufReader::new(std::fs::File::open(jsonl).unwrap());
    let (schema, _) = infer_json_schema_from_seekable(&mut file, None).unwrap();
    let mut rows = ReaderBuilder::new(schema.clone().into()).build(file).unwrap();
    let file = std::fs::File::create(parquet).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, schema.into(), None).unwrap();
    rows.try_for_each(|batch| writer.write(&batch.unwrap())).unwrap();
    writer.close().unwrap();
}

/// Several of the benchmarks are published so.
#[test]
fn a_benchmark_in_parquet_is_the_benchmark_in_jsonl() {
    let benches = [Bench::new("", ""), Bench::new("", "")];
    let files = ["test", "dev"].map(|split| {
        let file = benches[1].path(&format!("{split}.parquet"));
        as_parquet(&fixtures(&format!("mmlu/{split}.jsonl")), &file);
        file.display().to_string()
    });
    let run = |bench: &Bench, input: &str, examples: &str| {
        let examples = format!("input.examples=['{examples}']");
        benchmark(bench, "mmlu", input, &["--set", &examples, "--set", "input.shots=1"]);
        let scores = scores(bench, "mmlu");
        let row = |row| {
            [text(&scores, "answer", row), text(&scores, "reference", row)].map(str::to_owned)
        };
        let logprobs = scores.column_by_name("logprob").unwrap().as_primitive::<Float64Type>();
        (0..scores.num_rows()).map(|at| (row(at), logprobs.value(at).to_bits())).collect::<Vec<_>>()
    };
    let published = run(&benches[1], &files[0], &files[1]);
    assert_eq!(published, run(&benches[0], "mmlu/test.jsonl", &fixtures("mmlu/dev.jsonl")));
}

/// Its card and README tell what it scores; this is a part of its examination.
#[test]
fn the_embedded_model_answers_its_questions() {
    let bench = Bench::new("", "");
    let output = bench.path("out").display().to_string();
    let questions = root().join("jobs/prompts/quickstart.jsonl").display().to_string();
    let job = root().join("jobs/tiny-eval.toml");
    let report = evaluated(&bench, &job, &["--input", &questions, "--output", &output]);
    let accuracy = report["measures"][0]["micro"]["value"].as_f64().unwrap();
    assert!(accuracy >= 0.95, "{report}");
}

const FORCED: &str = "[sampling]\nchoice = { column = 'say' }\nmax_tokens = 200\n[output]\npath = 'out'\nrows_per_part = 2\n";

fn forced(eval: &str) -> String {
    format!(
        "[model]\npath = '{}'\n[input]\npaths = ['rows.jsonl']\nprompt = 'q'\n{FORCED}{eval}",
        model("a_v2like")
    )
}

fn row(id: usize, say: &str, answer: Value, family: &str) -> String {
    json!({ "id": id, "q": format!("Q{id}"), "say": [say], "answer": answer, "family": family })
        .to_string()
        + "\n"
}

#[test]
fn what_failed_or_cannot_be_judged_counts_as_wrong_and_is_shown() {
    let rows = row(0, "It is 5.", json!("5"), "a")
        + &row(1, "It is 6.", json!("5"), "a")
        + "{oops\n"
        + &row(3, "It is 5.", json!(null), "b")
        + &row(4, "no number", json!(7), "b")
        + &row(5, "7", json!("none"), "b");
    let job = forced("[eval]\nscorer = 'number'\nreference = 'answer'\ngroup = 'family'\n");
    let bench = Bench::new(&rows, &job);
    let run = bench.tool(&["eval", &bench.path("job.toml").display().to_string(), "--quiet"]);
    let table = String::from_utf8_lossy(&run.stdout).into_owned();
    assert_eq!(run.status.code(), Some(3), "{table}{}", String::from_utf8_lossy(&run.stderr));
    let report = std::fs::read_to_string(bench.path("out/eval/report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["rows"], &report["failed_rows"]), (&json!(6), &json!(1)));
    assert_eq!((&report["unscored_rows"], &report["without_answer"]), (&json!(2), &json!(1)));
    assert_eq!(report["reasons"]["malformed_json"], 1);
    let value = report["measures"][0]["micro"]["value"].as_f64().unwrap();
    assert!((value - 1.0 / 6.0).abs() < 1e-12);
    let rows = scores(&bench, "out");
    let found: Vec<Option<f64>> = (0..6).map(|row| score(&rows, row)).collect();
    assert_eq!(found, [Some(1.0), Some(0.0), None, None, Some(0.0), None]);
    assert_eq!(text(&rows, "answer", 1), "6");
    assert!(text(&rows, "reason", 3).contains("null"), "{}", text(&rows, "reason", 3));
    for words in
        ["a              2   50.0 %", "micro", "1 rows failed", "2 rows could not be judged"]
    {
        assert!(table.contains(words), "{words} in\n{table}");
    }
}

#[test]
fn scoring_again_by_other_rules_leaves_the_parts_alone() {
    let rows = row(0, "Paris", json!("paris"), "a") + &row(1, "Rome", json!("Rome"), "a");
    let eval = "[eval]\nscorer = 'exact'\nreference = 'answer'\n";
    let bench = Bench::new(&rows, &forced(eval));
    let job = bench.path("job.toml");
    assert_eq!(evaluated(&bench, &job, &[])["measures"][0]["micro"]["value"], 0.5);
    let before = bench.checksums("out");
    bench.write_job(&forced(&format!("{eval}normalise = ['case']\n")));
    assert_eq!(evaluated(&bench, &job, &[])["measures"][0]["micro"]["value"], 1.0);
    assert_eq!(bench.checksums("out"), before);
    let sound = bench.tool(&["verify", &bench.path("out").display().to_string()]);
    assert!(sound.status.success(), "{}", String::from_utf8_lossy(&sound.stdout));
    for (eval, code, words) in [
        (eval.replace("'answer'", "'anser'"), 1, "no row of the input has the column `anser`"),
        (eval.replace("exact", "exactly"), 2, "unknown variant `exactly`"),
        (eval.replace("exact", "command"), 2, "eval.command"),
        (eval.replace("exact", "likelihood"), 2, "input.continuations"),
        (format!("{eval}pattern = '('\n"), 2, "no regular expression"),
        (format!("{eval}measures = ['pass@2']\n"), 2, "pass@k"),
        (format!("{eval}measures = ['median']\n"), 2, "median"),
        (String::new(), 2, "no `[eval]`"),
    ] {
        bench.write_job(&forced(&eval));
        let run = bench.tool(&["eval", &job.display().to_string(), "--quiet"]);
        let found = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(code), "{found}");
        assert!(found.contains(words), "{words} in {found}");
    }
}

#[test]
fn what_could_not_be_scored_is_not_generated() {
    let eval = "[eval]\nscorer = 'exact'\nreference = 'anser'\n";
    let bench = Bench::new(&row(0, "Paris", json!("Paris"), "a"), &forced(eval));
    let run = bench.tool(&["eval", &bench.path("job.toml").display().to_string(), "--quiet"]);
    assert_eq!(run.status.code(), Some(1), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(!bench.path("out").exists());
}

#[test]
fn samples_vote_and_the_most_probable_one_is_known() {
    let rows: String = (0..12)
        .map(|id| json!({ "q": format!("Q{id}"), "answer": "1" }).to_string() + "\n")
        .collect();
    let job = format!(
        "[model]\npath = '{}'\n[input]\npaths = ['rows.jsonl']\nprompt = 'q'\n[sampling]\nn = 9\ntemperature = 3.0\nregex = '[123]'\n[output]\npath = 'out'\ninclude = ['logprobs']\n[eval]\nscorer = 'exact'\nreference = 'answer'\nmeasures = ['accuracy', 'majority', 'best_logprob', 'best_score', 'pass@1', 'pass@5']\n",
        model("a_v2like")
    );
    let bench = Bench::new(&rows, &job);
    let report = evaluated(&bench, &bench.path("job.toml"), &[]);
    let rows = scores(&bench, "out");
    let flags = |name: &str| rows.column_by_name(name).unwrap().as_boolean().clone();
    let logprob = rows.column_by_name("mean_logprob").unwrap().as_primitive::<Float64Type>();
    let (majority, best) = (flags("majority"), flags("best"));
    let mut expected = [0.0; 5];
    for row in 0..12 {
        let samples = 9 * row..9 * row + 9;
        let count =
            |answer: &str| samples.clone().filter(|s| text(&rows, "answer", *s) == answer).count();
        let votes: Vec<usize> = samples.clone().filter(|s| majority.value(*s)).collect();
        let most = ["1", "2", "3"].iter().map(|answer| count(answer)).max().unwrap();
        assert_eq!((votes.len(), count(text(&rows, "answer", votes[0]))), (1, most));
        let first: Vec<usize> = samples.clone().filter(|s| best.value(*s)).collect();
        let top = samples.clone().map(|s| logprob.value(s)).fold(f64::MIN, f64::max);
        assert_eq!((first.len(), logprob.value(first[0])), (1, top));
        let right = count("1") as f64;
        expected[0] += right / 9.0 / 12.0;
        expected[1] += score(&rows, votes[0]).unwrap() / 12.0;
        expected[2] += score(&rows, first[0]).unwrap() / 12.0;
        expected[3] += f64::from(u8::from(right > 0.0)) / 12.0;
        expected[4] += right / 9.0 / 12.0;
    }
    for (measure, expected) in report["measures"].as_array().unwrap().iter().zip(expected) {
        let found = measure["micro"]["value"].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-9, "{measure} {expected}");
    }
    let of = |at: usize| report["measures"][at]["micro"]["value"].as_f64().unwrap();
    assert!(of(4) < of(5) && of(5) <= of(3), "{report}");
}

/// Programs of rows, run by the shell: each says what became of it.
fn programs(programs: &[&str], more: &str) -> (Bench, Output) {
    let rows: String =
        programs.iter().map(|p| json!({ "q": "x", "program": p }).to_string() + "\n").collect();
    let job = format!(
        "[model]\npath = '{}'\n[input]\npaths = ['rows.jsonl']\nprompt = 'q'\n[sampling]\nmax_tokens = 1\n[output]\npath = 'out'\n[eval]\nscorer = 'command'\ncommand = ['sh']\nprogram = '{{{{ program }}}}'\nseconds = 2\n{more}",
        model("a_v2like")
    );
    let bench = Bench::new(&rows, &job);
    let job = bench.path("job.toml").display().to_string();
    let run = bench.tool(&["eval", &job, "--quiet", "--json", "--allow-commands"]);
    (bench, run)
}

/// The system does not hold root to this limit.
#[cfg(target_os = "linux")]
#[test]
fn programs_start_no_more_processes_than_they_may() {
    let user = std::process::Command::new("id").arg("-u").output().unwrap();
    if user.stdout == b"0\n" {
        eprintln!("skipped: root is not held to a number of processes");
        return;
    }
    let many = "i=0; while [ $i -lt 3000 ]; do sleep 1 & i=$((i+1)); done; exit 5";
    let (bench, run) = programs(&[many], "processes = 4\n");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let rows = scores(&bench, "out");
    let reason = text(&rows, "reason", 0);
    assert!(score(&rows, 0) == Some(0.0) && !reason.contains("exit code 5"), "{reason}");
}

#[cfg(unix)]
#[test]
fn commands_are_kept_within_their_limits() {
    let mark = format!("nightshift-left-{}", std::process::id());
    let mark = std::env::temp_dir().join(mark);
    let left = format!("(sleep 4; touch {}) & echo started", mark.display());
    let (bench, run) = programs(
        &[
            "test \"$(ls | wc -l)\" -eq 1 && test -z \"$HOME$USER$LANG\"",
            "sleep 30",
            "while :; do :; done",
            "head -c 3000000 /dev/zero > large || exit 7",
            "yes",
            "echo one >&2; echo two; exit 3",
            "kill -9 $$",
            &left,
            "ulimit -v; exit 9",
        ],
        "file_size = '1MB'\nmemory = '512MiB'\n",
    );
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let rows = scores(&bench, "out");
    let found: Vec<(Option<f64>, &str)> =
        (0..rows.num_rows()).map(|row| (score(&rows, row), text(&rows, "reason", row))).collect();
    for ((score, reason), (expected, words)) in found.iter().zip([
        (1.0, ""),
        (0.0, "not done after 2 s"),
        (0.0, "not done after 2 s"),
        (0.0, ""),
        (0.0, ""),
        (0.0, "exit code 3: two"),
        (0.0, "killed by signal 9"),
        (1.0, ""),
        (0.0, "exit code 9: 524288"),
    ]) {
        assert_eq!(*score, Some(expected), "{found:?}");
        assert!(reason.contains(words), "{words}: {reason}");
    }
    // What a program leaves running goes with it.
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert!(!mark.exists());
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["measures"][0]["measure"], "pass@1");
}

#[test]
fn commands_run_only_if_they_are_allowed_and_there() {
    let (bench, _) = programs(&["exit 0"], "");
    let job = bench.path("job.toml").display().to_string();
    let refused = bench.tool(&["eval", &job, "--quiet"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(words.contains("`sh`") && words.contains("--allow-commands"), "{words}");
    let set = ["--set", "eval.command=['no-such-command']"];
    let missing = bench.tool(&[&["eval", &job, "--quiet", "--allow-commands"], &set[..]].concat());
    let words = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert_eq!(missing.status.code(), Some(1), "{words}");
    assert!(words.contains("`no-such-command` is not in PATH"), "{words}");
}

#[test]
fn a_grid_of_needles_is_made_run_and_drawn() {
    let bench = Bench::new("", "");
    let text_of: String = (0..60).map(|i| format!("Sentence {i} says little. ")).collect();
    std::fs::write(bench.path("haystack.txt"), text_of).unwrap();
    let (model, grid) = (model("a_v2like"), bench.path("niah.jsonl").display().to_string());
    let haystack = bench.path("haystack.txt").display().to_string();
    let arguments = [
        "niah",
        "--model",
        &model,
        "--haystack",
        &haystack,
        "--lengths",
        "200,400",
        "--depths",
        "0,50,100",
        "--repeats",
        "2",
        "--prompt",
        "{context} {question}",
        "--output",
        &grid,
    ];
    let made = bench.tool(&arguments);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let rows = std::fs::read_to_string(&grid).unwrap();
    assert_eq!(rows.lines().count(), 12);
    let output = bench.path("out").display().to_string();
    let model = format!("model.path='{model}'");
    let job = root().join("jobs/niah.toml");
    let common = ["--set", &model, "--input", &grid, "--output", &output];
    let report = evaluated(&bench, &job, &common);
    assert_eq!((&report["rows"], report["cells"].as_array().unwrap().len()), (&json!(12), 6));
    let parts = bench.rows("out");
    let tokens = parts.column_by_name("prompt_tokens").unwrap();
    let tokens = tokens.as_primitive::<arrow::datatypes::Int32Type>();
    for (row, line) in rows.lines().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["prompt_tokens"], tokens.value(row), "{line}");
        assert!(line["context_tokens"].as_i64().unwrap() - i64::from(tokens.value(row)) < 30);
    }
    let svg = std::fs::read_to_string(bench.path("out/eval/heat_map.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.matches("<rect").count() == 7, "{svg}");
    assert!(svg.contains(">100</text>") && !svg.contains(">100.0</text>"), "{svg}");
    let refused = bench.tool(&["niah", "--model", "x", "--haystack", "y", "--depths", "101"]);
    assert_eq!(refused.status.code(), Some(2));
}
