//! A request to end a run early, made from anywhere, seen by every stage.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Shared by whoever may stop a run and the stages that must notice.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks the run to end: finished partitions are committed, the others are left to the next run.
    pub fn request(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether the run shall end.
    pub fn requested(&self) -> bool {
        self.0.load(Relaxed)
    }
}
