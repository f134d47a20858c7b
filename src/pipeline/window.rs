//! The bound of a run's memory: how many rows are read but not committed.

use std::sync::{Condvar, Mutex};

/// Lets partitions in as long as their rows fit.
#[derive(Debug)]
pub(super) struct RowWindow {
    limit: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rows: u64,
    closed: bool,
}

impl RowWindow {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits for room; a partition larger than the window enters alone. Says no once closed.
    pub(super) fn enter(&self, rows: u64) -> bool {
        let full =
            |state: &mut State| !state.closed && state.rows > 0 && state.rows + rows > self.limit;
        let state = self.state.lock().expect("no holder of the window panics");
        let mut state =
            self.changed.wait_while(state, full).expect("no holder of the window panics");
        state.rows += rows;
        !state.closed
    }

    /// Makes room: a partition is committed.
    pub(super) fn leave(&self, rows: u64) {
        self.state.lock().expect("no holder of the window panics").rows -= rows;
        self.changed.notify_all();
    }

    /// Lets nobody in any more.
    pub(super) fn close(&self) {
        self.state.lock().expect("no holder of the window panics").closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_waits_until_its_rows_fit() {
        let window = RowWindow::new(10);
        assert!(window.enter(25));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| window.enter(10));
            window.leave(25);
            assert!(waiting.join().unwrap());
            let refused = scope.spawn(|| window.enter(1));
            window.close();
            assert!(!refused.join().unwrap());
        });
    }
}
