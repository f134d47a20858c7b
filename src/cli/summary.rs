//! What a run did, for a person.

use std::fmt::{Display, Write};

use crate::pipeline::report::{Experts, Percentiles, RunReport, ShardReport};

/// The final summary, aligned.
pub(super) fn of_run(report: &RunReport) -> String {
    let mut lines = Lines::default();
    progress(report, &mut lines);
    if report.occupancy.steps > 0 {
        generation(report, &mut lines);
    }
    if report.experts.layers > 0 {
        experts(&report.experts, &mut lines);
    }
    costs(report, &mut lines);
    lines.0.trim_end().to_owned()
}

/// A name and what there is to say of it; lines without a name belong to the one before.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name:<10} {value}");
    }
}

/// What is done of the job, and who did it.
fn progress(report: &RunReport, lines: &mut Lines) {
    let RunReport { parts, rows, tokens, .. } = report;
    let state = match (report.complete, report.interrupted) {
        (true, _) => "complete",
        (false, true) => "interrupted: run the same command to continue",
        (false, false) => "not complete",
    };
    lines.add("job", state);
    if parts.before > 0 {
        let (before, total) = (parts.before, parts.total);
        lines.add(
            "continued",
            format!("{before} of {total} parts with {} rows were there already", rows.before),
        );
    }
    if let Some(ShardReport { index, of, parts, done }) = &report.shard {
        lines.add("shard", format!("{index} of {of}: {done} of its {parts} open parts are done"));
    }
    if tokens.carried_samples > 0 {
        let (samples, tokens) = (tokens.carried_samples, tokens.carried_tokens);
        lines.add(
            "carried",
            format!("{samples} samples from the journal, {tokens} tokens of begun ones"),
        );
    }
    if rows.failed_before > 0 {
        lines.add("", format!("{} of them failed", rows.failed_before));
    }
    lines.add("rows", format!("{} ok, {} failed, {} in all", rows.ok, rows.failed, rows.total));
    for (code, count) in &report.failures {
        lines.add("", format!("{count} {code}"));
    }
    if parts.found_committed > 0 {
        let found = parts.found_committed;
        lines.add("twice", format!("{found} parts were committed by another run meanwhile"));
    }
}

/// How fast tokens came, and how full the batch was.
fn generation(report: &RunReport, lines: &mut Lines) {
    let RunReport { tokens, throughput, occupancy, .. } = report;
    lines.add(
        "tokens",
        format!(
            "{} in ({} from the cache), {} out, {} computed twice",
            tokens.prompt, tokens.cached, tokens.completion, tokens.recomputed
        ),
    );
    if tokens.reused_samples > 0 {
        lines.add("", format!("{} answers of identical requests", tokens.reused_samples));
    }
    let (prefill, decode) =
        (throughput.prefill_tokens_per_second, throughput.decode_tokens_per_second);
    lines.add("speed", format!("{prefill:.0} tokens/s prefill, {decode:.0} tokens/s decode"));
    lines.add("TTFT", percentiles(&report.ttft_ms));
    lines.add("TPOT", percentiles(&report.tpot_ms));
    let (mean, most, share) =
        (occupancy.mean_running, occupancy.max_sequences, occupancy.fraction * 100.0);
    lines.add(
        "batch",
        format!(
            "{mean:.1} of {most} sequences ({share:.0} %) over {} steps, {} below half, {} preempted",
            occupancy.steps, occupancy.tail_steps, occupancy.preemptions
        ),
    );
}

/// How evenly tokens were routed.
fn experts(experts: &Experts, lines: &mut Lines) {
    lines.add(
        "experts",
        format!(
            "{:.2} imbalance (busiest by mean), {:.2} at worst in layer {}",
            experts.mean_imbalance, experts.max_imbalance, experts.worst_layer
        ),
    );
    if experts.ranks > 1 {
        lines.add(
            "",
            format!(
                "{:.2} imbalance of {} ranks, {:.2} with experts as the ledger suggests",
                experts.rank_imbalance, experts.ranks, experts.suggested_rank_imbalance
            ),
        );
    }
}

/// What it took, and where the result is.
fn costs(report: &RunReport, lines: &mut Lines) {
    let RunReport { parts, seconds, memory, .. } = report;
    lines.add(
        "time",
        format!(
            "{:.1} s: {:.1} planning, {:.1} loading, {:.1} generating",
            seconds.total, seconds.plan, seconds.load, seconds.generate
        ),
    );
    lines.add(
        "memory",
        format!(
            "{:.0} MiB at most ({:.0} weights, up to {:.0} cache)",
            mebibytes(memory.peak_bytes),
            mebibytes(memory.weight_bytes),
            mebibytes(memory.cache_bytes)
        ),
    );
    lines.add(
        "output",
        format!("{} ({} of {} parts by this run)", report.output, parts.committed, parts.total),
    );
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn percentiles(p: &Percentiles) -> String {
    format!("{:.1} ms p50, {:.1} ms p95, {:.1} ms p99", p.p50, p.p95, p.p99)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::report::*;

    #[test]
    fn a_summary_says_what_was_done_and_what_was_there() {
        let report = RunReport {
            complete: true,
            output: "out".into(),
            parts: Parts { total: 8, before: 3, committed: 5, found_committed: 0 },
            rows: Rows { total: 800, before: 300, ok: 498, failed: 2, failed_before: 0 },
            failures: [("malformed_json".into(), 2)].into(),
            tokens: Tokens {
                prompt: 1000,
                cached: 10,
                completion: 2000,
                recomputed: 7,
                reused_samples: 3,
                ..Tokens::default()
            },
            seconds: Seconds { plan: 0.1, load: 0.2, generate: 4.0, total: 4.3 },
            throughput: Throughput {
                prefill_tokens_per_second: 250.0,
                decode_tokens_per_second: 500.0,
            },
            ttft_ms: Percentiles { p50: 1.0, p95: 2.0, p99: 3.0 },
            tpot_ms: Percentiles { p50: 0.5, p95: 0.6, p99: 0.7 },
            occupancy: Occupancy {
                steps: 40,
                mean_running: 50.0,
                max_sequences: 64,
                fraction: 0.78,
                tail_steps: 4,
                preemptions: 1,
            },
            experts: Experts {
                layers: 2,
                mean_imbalance: 1.5,
                max_imbalance: 1.75,
                worst_layer: 3,
                ranks: 4,
                rank_tokens: vec![900, 700, 800, 600],
                rank_imbalance: 1.31,
                suggested_rank_imbalance: 1.02,
            },
            memory: Memory { peak_bytes: 64 << 20, weight_bytes: 20 << 20, cache_bytes: 30 << 20 },
            ..RunReport::default()
        };
        insta::assert_snapshot!(of_run(&report), @r"
        job        complete
        continued  3 of 8 parts with 300 rows were there already
        rows       498 ok, 2 failed, 800 in all
                   2 malformed_json
        tokens     1000 in (10 from the cache), 2000 out, 7 computed twice
                   3 answers of identical requests
        speed      250 tokens/s prefill, 500 tokens/s decode
        TTFT       1.0 ms p50, 2.0 ms p95, 3.0 ms p99
        TPOT       0.5 ms p50, 0.6 ms p95, 0.7 ms p99
        batch      50.0 of 64 sequences (78 %) over 40 steps, 4 below half, 1 preempted
        experts    1.50 imbalance (busiest by mean), 1.75 at worst in layer 3
                   1.31 imbalance of 4 ranks, 1.02 with experts as the ledger suggests
        time       4.3 s: 0.1 planning, 0.2 loading, 4.0 generating
        memory     64 MiB at most (20 weights, up to 30 cache)
        output     out (5 of 8 parts by this run)
        ");
    }
}
