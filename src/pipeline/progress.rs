//! What a run is doing right now: written by the stages, read by whoever shows it. Counters only, so
//! that showing a run never slows it down.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The phase a run is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Input objects are listed and cut into partitions, committed parts are looked up.
    #[default]
    Planning,
    /// The model is brought from a bucket to the local disk.
    Fetching,
    /// Weights are read.
    Loading,
    /// Rows are generated and committed.
    Generating,
    /// Nothing is left to do.
    Done,
}

/// Live counters of a run.
#[derive(Debug, Default)]
pub struct Progress {
    phase: Mutex<Phase>,
    /// Weight bytes to read.
    pub load_bytes_total: AtomicU64,
    /// Weight bytes read.
    pub load_bytes: AtomicU64,
    /// Rows of all partitions, committed ones included.
    pub rows_total: AtomicU64,
    /// Rows in parts that lay there when the run began.
    pub rows_before: AtomicU64,
    /// Rows with an outcome, this run.
    pub rows_done: AtomicU64,
    /// Rows whose outcome is a failure, this run.
    pub rows_failed: AtomicU64,
    /// Rows read and encoded, this run.
    pub rows_read: AtomicU64,
    /// Prompt tokens taken into the cache, this run.
    pub prompt_tokens: AtomicU64,
    /// Tokens generated, this run.
    pub completion_tokens: AtomicU64,
    /// Tokens of all rows read so far that are still to be prefilled or generated, as expected now.
    pub expected_tokens_left: AtomicU64,
    /// Sequences in the running batch.
    pub running: AtomicU64,
    /// Parts committed, this run.
    pub parts: AtomicU64,
}

impl Progress {
    /// The phase the run is in.
    pub fn phase(&self) -> Phase {
        *self.phase.lock().expect("no holder of the phase panics")
    }

    /// Enters a phase.
    pub fn enter(&self, phase: Phase) {
        *self.phase.lock().expect("no holder of the phase panics") = phase;
    }

    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Relaxed);
    }
}
