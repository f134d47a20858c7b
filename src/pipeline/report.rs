//! What a run did, as plain numbers: the end of the log, `--json`, and the run's own file.

use std::collections::BTreeMap;

use serde::Serialize;

/// The report of one run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunReport {
    /// Whether every row of the job now has its outcome.
    pub complete: bool,
    /// Whether a signal ended the run early.
    pub interrupted: bool,
    /// The output folder.
    pub output: String,
    /// Parts: of the job, found at the start, committed by this run.
    pub parts: Parts,
    /// Which share of the job this run took; none: all of it.
    pub shard: Option<ShardReport>,
    /// Rows: of the job, found done at the start, answered and failed in this run.
    pub rows: Rows,
    /// Failed rows of this run by error code.
    pub failures: BTreeMap<String, u64>,
    /// Tokens of this run.
    pub tokens: Tokens,
    /// Wall-clock seconds of this run.
    pub seconds: Seconds,
    /// Tokens per second while generating.
    pub throughput: Throughput,
    /// Admission to first token, milliseconds.
    pub ttft_ms: Percentiles,
    /// Between tokens, milliseconds.
    pub tpot_ms: Percentiles,
    /// How full the batch was.
    pub occupancy: Occupancy,
    /// Where tokens were routed.
    pub experts: Experts,
    /// What was held in memory.
    pub memory: Memory,
}

/// Part counts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Parts {
    /// Parts of the whole job.
    pub total: u64,
    /// Committed before this run.
    pub before: u64,
    /// Committed by this run.
    pub committed: u64,
    /// Finished by this run but found committed by another.
    pub found_committed: u64,
}

/// A run's share of a job.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ShardReport {
    /// Which one, from 0.
    pub index: u64,
    /// Of how many.
    pub of: u64,
    /// Its parts that were not committed when it began.
    pub parts: u64,
    /// Those of them that are now.
    pub done: u64,
}

/// Row counts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Rows {
    /// Input rows of the whole job.
    pub total: u64,
    /// Rows of parts committed before this run.
    pub before: u64,
    /// Rows answered by this run (all samples ok).
    pub ok: u64,
    /// Rows failed in this run (at least one sample).
    pub failed: u64,
    /// Failed rows in parts committed before this run.
    pub failed_before: u64,
}

/// Token counts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tokens {
    /// Prompt tokens of finished samples.
    pub prompt: u64,
    /// Prompt tokens that were in the cache already.
    pub cached: u64,
    /// Generated tokens.
    pub completion: u64,
    /// Tokens computed a second time, because their sequence had given its cache back.
    pub recomputed: u64,
    /// Samples that took the answer of an identical greedy request; their tokens count above.
    pub reused_samples: u64,
    /// Samples that an earlier run had finished or begun, taken from its journal.
    pub carried_samples: u64,
    /// Tokens of those that were begun.
    pub carried_tokens: u64,
}

/// Wall-clock times.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Seconds {
    /// Listing and planning.
    pub plan: f64,
    /// Reading weights.
    pub load: f64,
    /// From the first step to the last commit.
    pub generate: f64,
    /// All of it.
    pub total: f64,
}

/// Tokens per second.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Throughput {
    /// Prompt tokens prefilled per second of generation.
    pub prefill_tokens_per_second: f64,
    /// Tokens generated per second of generation.
    pub decode_tokens_per_second: f64,
}

/// Three points of a distribution; zero where there is nothing to measure.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
}

/// How full the running batch was.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Occupancy {
    /// Engine steps.
    pub steps: u64,
    /// Mean sequences in a step.
    pub mean_running: f64,
    /// The batch limit.
    pub max_sequences: u64,
    /// `mean_running / max_sequences`.
    pub fraction: f64,
    /// Steps with fewer than half of `max_sequences`: the tail, mostly.
    pub tail_steps: u64,
    /// Sequences that had to give their cache back and start over.
    pub preemptions: u64,
}

/// How evenly the experts were used: the busiest expert of a layer ÷ the mean of its experts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Experts {
    /// Mixture layers.
    pub layers: u64,
    /// Mean over layers.
    pub mean_imbalance: f64,
    /// The worst layer's.
    pub max_imbalance: f64,
    /// Which layer that is.
    pub worst_layer: u64,
    /// Ranks that shared the experts of each layer.
    pub ranks: u64,
    /// Tokens that each rank's experts had, over all layers.
    pub rank_tokens: Vec<u64>,
    /// The busiest rank of a layer ÷ the mean of its ranks, in the mean over layers.
    pub rank_imbalance: f64,
    /// The same, had the experts lain where the ledger suggests.
    pub suggested_rank_imbalance: f64,
}

/// Bytes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Memory {
    /// Largest resident memory of the process.
    pub peak_bytes: u64,
    /// The weights as they are held.
    pub weight_bytes: u64,
    /// The latent cache's limit; its memory is taken as it is used.
    pub cache_bytes: u64,
}
