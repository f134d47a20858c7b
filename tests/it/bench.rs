//! `nightshift bench` from outside: that it measures what it was asked to, not how fast it was.

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tiny");
    Command::new(env!("CARGO_BIN_EXE_nightshift"))
        .args(["bench", model])
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn a_benchmark_measures_each_size_once() {
    let arguments =
        ["--batch", "1,3", "--context", "20,40", "--prompt", "33", "--repetitions", "2", "--json"];
    let output = bench(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["machine"]["fma_gflops"].as_f64().unwrap() > 0.0);
    let measured = report["measurements"].as_array().unwrap();
    let sizes: Vec<_> = measured
        .iter()
        .map(|m| {
            let context = m["context"].as_f64().unwrap();
            (m["phase"].as_str().unwrap(), m["sequences"].as_u64().unwrap(), context)
        })
        .collect();
    // 62 prompts of 33 tokens fill a step. A decode step attends to the prompt, the first token and
    // the warm-up's; of two steps the slower one is reported.
    assert_eq!(sizes[0], ("prefill", 62, 33.0));
    for (found, expected) in sizes[1..].iter().zip([(1, 20), (3, 20), (1, 40), (3, 40)]) {
        let after = found.2 - f64::from(expected.1);
        assert!(found.1 == expected.0 && (2.0..=3.0).contains(&after), "{found:?}");
    }
    assert_eq!(sizes.len(), 5);
    for m in measured {
        assert!(m["gflops"].as_f64() > Some(0.0) && m["roofline"].as_f64() > Some(0.0), "{m}");
        assert!(m["experts"].as_f64() >= Some(1.0), "{m}");
    }
}

#[test]
fn a_benchmark_refuses_what_it_cannot_measure() {
    for (arguments, code, message) in [
        (&["--context", "100000"][..], 1, "longer than the model's"),
        (&["--dtype", "f99"], 2, "`model.dtype`"),
        (&["--batch", "0"], 2, "--batch"),
    ] {
        let output = bench(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && text.contains(message), "{text}");
    }
}
