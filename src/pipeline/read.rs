//! Stages 4 and 5 on a thread of their own: partitions to prompts, no further ahead than the window.

use std::collections::BTreeSet;
use std::sync::mpsc::{Sender, SyncSender};

use arrow::array::UInt32Array;
use arrow::compute::take_record_batch;
use rayon::prelude::*;

use super::commit::Arrival;
use super::progress::Progress;
use super::window::RowWindow;
use super::{Prepared, RunError};
use crate::input::{Partition, PartitionRows};
use crate::output::{Echo, Include, Journal, OpenPartition, RowFacts};
use crate::prompt::Encoded;
use crate::row::{Carried, Generation, Prompt, Work};

/// Where the reader's results go.
pub(super) struct Outlets {
    pub(super) work: SyncSender<Vec<Work>>,
    pub(super) arrivals: Sender<Arrival>,
}

/// A partition to do: all of its rows, or those of it that failed before.
pub(super) struct Task<'a> {
    pub(super) partition: &'a Partition,
    pub(super) only: Option<BTreeSet<u64>>,
}

impl Task<'_> {
    /// Rows to do.
    pub(super) fn rows(&self) -> u64 {
        self.only.as_ref().map_or(self.partition.rows, |only| only.len() as u64)
    }

    /// The rows to do, numbered anew.
    fn rows_of(&self, read: PartitionRows) -> PartitionRows {
        let Some(only) = &self.only else { return read };
        let (mut places, mut rows) = (Vec::new(), Vec::new());
        for (place, mut row) in (0u32..).zip(read.rows) {
            if only.contains(&row.row_index) {
                row.row.offset = rows.len() as u32;
                places.push(place);
                rows.push(row);
            }
        }
        let places = UInt32Array::from(places);
        let kept = take_record_batch(&read.kept, &places).expect("the places are the batch's own");
        PartitionRows { kept, rows, ..read }
    }
}

/// Reads and encodes the pending partitions in order; rows that the journal knows go on from there.
pub(super) fn read(
    prepared: &Prepared,
    pending: &[Task<'_>],
    mut journal: Journal,
    include: Include,
    (window, progress): (&RowWindow, &Progress),
    outlets: &Outlets,
) -> Result<(), RunError> {
    for task in pending {
        let partition = task.partition;
        if !window.enter(task.rows()) {
            return Ok(());
        }
        let PartitionRows { kept, rows, .. } = task.rows_of(prepared.input.read(partition)?);
        let part = prepared.part(partition);
        let encode = |row| prepared.encoder.encode(&part.object_name, row);
        let encoded: Vec<Encoded> = rows.into_par_iter().map(encode).collect();
        Progress::add(&progress.rows_read, task.rows());
        let (mut work, mut ended) = (Vec::new(), Vec::new());
        for row in &encoded {
            if let Ok(prompt) = &row.prompt {
                let carried = journal.take(&part.object_name, row.row_index);
                let (mut done, open): (Vec<_>, Vec<_>) =
                    carried.into_iter().partition(|sample| sample.ended);
                // What is wanted of a row's samples decides, not what a journal has.
                done.retain(|sample| sample.sample_index < prompt.samples());
                let known = done.iter().map(|sample| sample.sample_index).collect();
                ended.extend(done.into_iter().map(|sample| generation(prompt, sample)));
                work.push(Work { prompt: prompt.clone(), ended: known, carried: open });
            }
        }
        let rows = encoded.into_iter().map(|row| facts(row, include)).collect();
        // The partition must be open before its first sample can arrive. A closed channel means that
        // the run is ending, for a reason that its other end knows.
        let opened = OpenPartition { id: partition.id, part, kept, rows };
        let arrivals = std::iter::once(Arrival::Opened(opened))
            .chain(ended.into_iter().map(Arrival::Restored));
        for arrival in arrivals {
            if outlets.arrivals.send(arrival).is_err() {
                return Ok(());
            }
        }
        if outlets.work.send(work).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// A sample that ended in an earlier run.
fn generation(prompt: &Prompt, carried: Carried) -> Generation {
    Generation {
        row: prompt.row,
        sample_index: carried.sample_index,
        prompt_tokens: carried.prompt_tokens,
        cached_tokens: carried.cached_tokens,
        reused: carried.reused,
        result: Ok(carried.generated),
        timing: carried.timing,
    }
}

fn facts(row: Encoded, include: Include) -> RowFacts {
    let Encoded { row_index, id, messages, prompt_text, prompt, .. } = row;
    let echo = Echo {
        messages: messages.filter(|_| include.messages),
        prompt: prompt_text.filter(|_| include.prompt),
    };
    let samples = prompt.as_ref().map_or(0, Prompt::samples);
    RowFacts { row_index, id, echo, failure: prompt.err(), samples }
}
