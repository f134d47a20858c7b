//! Many ranks: the same bytes as one, each with its own share of the work.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use nightshift::engine::{Engine, EngineSpec, Logprobs};
use nightshift::model::ModelParts;
use nightshift::ops::Held;
use nightshift::parallel::Topology;
use nightshift::prompt::TextModel;
use nightshift::row::FailureCode;
use nightshift::sampling::Sampling;
use serde_json::{Value, json};

use crate::engine::{Samples, fixed, generate, mixed_prompts, prompt};
use crate::goldens::fixture;
use crate::job::{Bench, model, read};

/// (stages, ranks of each)
const TOPOLOGIES: [(usize, usize); 8] =
    [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4), (2, 8)];

/// Rows with a shared beginning, and some without.
fn rows(count: usize) -> String {
    let header = "You answer questions about trees, and every answer has three words. ".repeat(3);
    let row = |i: usize| {
        let beginning = if i % 4 == 3 { "" } else { &header };
        json!({ "id": i, "prompt": format!("{beginning}Question {i}: {}", "why? ".repeat(i % 13)) })
    };
    (0..count).map(|i| row(i).to_string() + "\n").collect()
}

fn job(name: &str, more: &str) -> String {
    format!(
        "[model]\npath = '{}'\n[input]\npaths = ['rows.jsonl']\nprompt = 'prompt'\nid = 'id'\n[output]\npath = 'out'\nrows_per_part = 7\ninclude = ['token_ids', 'logprobs', 'routed_experts']\n{more}",
        model(name)
    )
}

/// Runs the job into a folder of its own and gives its report.
fn run(bench: &Bench, output: &str, set: &[String]) -> Value {
    let place = bench.path(output).display().to_string();
    let mut arguments = vec!["--json", "--output", &place];
    set.iter().for_each(|set| arguments.extend(["--set", set]));
    let run = bench.run(&arguments);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    serde_json::from_slice(&run.stdout).unwrap()
}

fn over((stages, ranks): (usize, usize), more: &[&str]) -> Vec<String> {
    let spread = [format!("devices.stages={stages}"), format!("devices.ranks={ranks}")];
    spread.into_iter().chain(more.iter().map(|set| (*set).to_owned())).collect()
}

#[test]
fn ranks_and_stages_change_no_byte() {
    let sampling = "[sampling]\nmax_tokens = 20\ntemperature = 0.9\nn = 2\n";
    for name in ["a_v2like", "b_litelike"] {
        let bench = Bench::new(&rows(24), &job(name, sampling));
        let mut expected = None;
        for topology in TOPOLOGIES {
            let output = format!("out{}x{}", topology.0, topology.1);
            run(&bench, &output, &over(topology, &[]));
            let found = bench.checksums(&output);
            assert_eq!(found.len(), 4);
            assert_eq!(&found, expected.get_or_insert(found.clone()), "{name} {topology:?}");
        }
    }
}

#[test]
fn full_caches_preempt_on_every_rank_and_change_no_byte() {
    let sampling = "[sampling]\nmax_tokens = 120\nignore_eos = true\ntemperature = 0.9\n";
    let bench = Bench::new(&rows(30), &job("a_v2like", sampling));
    run(&bench, "one", &over((1, 1), &[]));
    for topology in [(1, 2), (2, 4)] {
        let output = format!("out{}x{}", topology.0, topology.1);
        // 26 blocks of 9,216 bytes for each rank; a sequence takes up to 23.
        let cache = format!("batch.cache={}", 26 * 9216 * topology.1);
        let report = run(&bench, &output, &over(topology, &[&cache]));
        assert!(report["occupancy"]["preemptions"].as_u64().unwrap() > 0, "{report}");
        assert!(report["tokens"]["recomputed"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(bench.checksums(&output), bench.checksums("one"), "{topology:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_over_other_ranks() {
    let sampling = "[sampling]\nmax_tokens = 300\nignore_eos = true\ntemperature = 0.8\n";
    let bench = Bench::new(&rows(60), &job("a_v2like", sampling));
    run(&bench, "whole", &over((1, 1), &[]));
    let mut carried = 0;
    for topology in [(1, 4), (2, 2), (1, 1)] {
        let set = over(topology, &["devices.threads=1"]);
        let mut arguments = vec!["--quiet"];
        set.iter().for_each(|set| arguments.extend(["--set", set]));
        let mut child = bench.command(&arguments).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(400));
        let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        carried += u64::from(child.wait().unwrap().code() == Some(130));
    }
    assert!(carried > 0, "no run was interrupted");
    let place = bench.path("out").display().to_string();
    let arguments = ["--json", "--output", &place, "--set", "devices.ranks=8"];
    let last = bench.run(&arguments);
    assert!(last.status.success(), "{}", String::from_utf8_lossy(&last.stderr));
    let report: Value = serde_json::from_slice(&last.stdout).unwrap();
    assert!(report["tokens"]["carried_tokens"].as_u64().unwrap() > 100, "{report}");
    assert_eq!(bench.checksums("out"), bench.checksums("whole"));
}

const SPEC: EngineSpec = EngineSpec {
    threads: 2,
    max_sequences: 16,
    max_step_tokens: 2048,
    cache_bytes: 16 << 20,
    share_prefixes: true,
    logprobs: Logprobs { chosen: true, top: 2 },
    routed_experts: true,
};

fn engine(folder: &Path, (stages, ranks_per_stage): (usize, usize), spec: EngineSpec) -> Engine {
    let topology = Topology { stages, ranks_per_stage };
    let model = ModelParts::load(folder, Held::F32, topology, &|_, _| {}).unwrap();
    Engine::new(model, Arc::new(TextModel::load(folder).unwrap()), spec).unwrap()
}

#[test]
fn every_kind_of_request_has_the_same_bits_over_ranks() {
    let folder = fixture("d_freq2_bias");
    let (expected, _) = generate(engine(&folder, (1, 1), SPEC), mixed_prompts());
    for topology in [(3, 1), (1, 3), (5, 8)] {
        let (found, _) = generate(engine(&folder, topology, SPEC), mixed_prompts());
        assert_eq!(fixed(&found), fixed(&expected), "{topology:?}");
    }
}

#[test]
fn ranks_fill_evenly() {
    let folder = fixture("a_v2like");
    let sampling = Sampling { max_tokens: 12, ignore_eos: true, ..Sampling::default() };
    let prompts = (0..16).map(|i| prompt(i, vec![i + 3; 4 + i as usize], sampling.clone()));
    let (_, stats) = generate(engine(&folder, (1, 4), SPEC), prompts);
    // All 16 run from the first step to the last: four on each rank, which is all that a rank takes.
    assert_eq!((stats.steps, stats.sequence_steps), (12, 12 * 16));
}

#[test]
fn a_rank_that_fails_fails_its_row_and_hangs_nobody() {
    let folder = fixture("a_v2like");
    let sampling = Sampling { max_tokens: 12, ignore_eos: true, ..Sampling::default() };
    let prompts = |poison: Option<u32>| {
        let sampling = sampling.clone();
        (0..11).map(move |i| {
            let mut tokens = vec![i + 3; 5 + i as usize];
            if poison == Some(i) {
                // No input gets here with such an id: it takes the embedding's index out of bounds on the
                // rank that has the row, amid a step of all ranks.
                tokens[2] = 1 << 30;
            }
            prompt(i, tokens, sampling.clone())
        })
    };
    let (mut expected, _) = generate(engine(&folder, (1, 1), SPEC), prompts(None));
    let (mut found, _): (Samples, _) = generate(engine(&folder, (2, 4), SPEC), prompts(Some(6)));
    let poisoned = found.remove(&(6, 0)).unwrap().result.unwrap_err();
    assert_eq!(poisoned.code, FailureCode::Engine);
    assert!(poisoned.message.contains("index"), "{}", poisoned.message);
    expected.remove(&(6, 0));
    assert_eq!(fixed(&found), fixed(&expected));
}

#[test]
fn an_engine_gives_its_model_back() {
    let folder = fixture("a_v2like");
    let text = Arc::new(TextModel::load(&folder).unwrap());
    let mut first = engine(&folder, (2, 2), SPEC);
    first.submit(prompt(0, vec![5; 9], Sampling::default()), Instant::now());
    first.step().unwrap();
    let again = Engine::new(first.into_model(), text, SPEC).unwrap();
    let sampling = Sampling { max_tokens: 4, ..Sampling::default() };
    let (samples, _) = generate(again, [prompt(0, vec![5; 9], sampling)]);
    assert!(samples[&(0, 0)].result.is_ok());
}

#[test]
fn the_ledger_tells_ranks_and_suggests_a_placement() {
    let bench = Bench::new(&rows(20), &job("a_v2like", "[sampling]\nmax_tokens = 8\n"));
    let report = run(&bench, "out", &over((1, 4), &[]));
    let number = |name: &str| report["experts"][name].as_f64().unwrap();
    assert_eq!(number("ranks"), 4.0);
    assert!(number("rank_imbalance") >= number("suggested_rank_imbalance"));
    assert!(number("suggested_rank_imbalance") >= 1.0);
    let of_ranks = report["experts"]["rank_tokens"].as_array().unwrap();
    let of_ranks: u64 = of_ranks.iter().map(|tokens| tokens.as_u64().unwrap()).sum();
    let runs = std::fs::read_dir(bench.path("out/_nightshift/runs")).unwrap();
    let mut files = runs.map(|entry| entry.unwrap().path());
    let ledger = files.find(|path| path.to_string_lossy().ends_with(".experts.parquet")).unwrap();
    let ledger = read(&ledger);
    let column = |name: &str| {
        ledger.column_by_name(name).unwrap().as_primitive::<Int32Type>().values().to_vec()
    };
    let tokens = ledger.column_by_name("tokens").unwrap().as_primitive::<Int64Type>();
    assert_eq!(tokens.values().iter().sum::<i64>() as u64, of_ranks);
    let of_first = &column("rank")[..16];
    assert_eq!(of_first, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);
    let suggested = &column("suggested_rank")[..16];
    assert!((0..4).all(|rank| suggested.iter().filter(|&&other| other == rank).count() == 4));
}

#[test]
fn a_layout_that_cannot_be_is_refused_before_weights_load() {
    let bench = Bench::new(&rows(3), &job("a_v2like", ""));
    for (set, words, hint) in [
        (
            ["devices.stages=4", "devices.ranks=1"],
            "4 stages × 1 rank cannot share 3 layers",
            "`devices.stages`",
        ),
        (["devices.stages=1", "devices.ranks=17"], "and 16 routed experts", "`devices.ranks`"),
        (
            ["devices.ranks=2", "batch.cache='90TB'"],
            "does not fit: the ranks take",
            "`batch.cache`",
        ),
    ] {
        let run = bench.run(&["--set", set[0], "--set", set[1]]);
        let found = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(1), "{found}");
        assert!(
            found.contains(words) && found.contains("hint:") && found.contains(hint),
            "{found}"
        );
    }
}

fn planned(arguments: &[&str]) -> (i32, Value, String) {
    let plan = Command::new(env!("CARGO_BIN_EXE_nightshift"))
        .arg("plan")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let json = serde_json::from_slice(&plan.stdout).unwrap_or_default();
    (plan.status.code().unwrap(), json, String::from_utf8_lossy(&plan.stderr).into_owned())
}

#[test]
fn a_plan_needs_no_weights_and_chooses_a_layout_that_fits() {
    let v2 = ["--model", "tests/configs/DeepSeek-V2.json", "--hardware", "8xH100-80GB"];
    let (code, plan, words) = planned(&[&v2[..], &["--json"]].concat());
    assert_eq!(code, 0, "{words}");
    assert_eq!(
        (&plan["parameters"], &plan["stages"], &plan["ranks_per_stage"]),
        (&json!(235_741_434_880u64), &json!(2), &json!(4))
    );
    assert_eq!(plan["ranks"].as_array().unwrap().len(), 8);
    assert_eq!(plan["ranks"][5]["experts"], json!({ "start": 40, "end": 80 }));
    let rates: Vec<f64> = plan["decode"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["tokens_per_second"].as_f64().unwrap())
        .collect();
    assert!(rates.len() >= 8 && rates.is_sorted(), "{rates:?}");
    let (code, _, words) = planned(&[&v2[..], &["--stages", "1", "--ranks", "8"]].concat());
    assert_eq!(code, 1);
    assert!(words.contains("does not fit"), "{words}");
    assert!(words.contains("`devices.stages = 2` with `devices.ranks = 4`"), "{words}");
    let (code, _, words) = planned(&[&v2[..], &["--stages", "4", "--ranks", "4"]].concat());
    assert_eq!(code, 1);
    assert!(words.contains("takes 16 devices, there are 8"), "{words}");
    assert_eq!(planned(&[]).0, 2);
}

#[test]
fn a_job_is_planned_as_it_would_run() {
    let (code, plan, words) =
        planned(&["jobs/quickstart.toml", "--set", "devices.ranks=4", "--json"]);
    assert_eq!(code, 0, "{words}");
    assert_eq!((&plan["ranks_per_stage"], &plan["weight_bits"]), (&json!(4), &json!(32)));
    assert_eq!(plan["decode"], json!([]));
}
