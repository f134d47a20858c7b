//! Stages 4 and 5 on a thread of their own: partitions to prompts, no further ahead than the window.

use std::sync::mpsc::{Sender, SyncSender};

use rayon::prelude::*;

use super::commit::Arrival;
use super::progress::Progress;
use super::window::RowWindow;
use super::{Prepared, RunError};
use crate::input::{Partition, PartitionRows};
use crate::output::{Echo, Include, OpenPartition, RowFacts};
use crate::prompt::Encoded;
use crate::row::Prompt;

/// Reads and encodes the pending partitions in order.
pub(super) fn read(
    prepared: &Prepared,
    pending: &[&Partition],
    include: Include,
    (window, progress): (&RowWindow, &Progress),
    prompts: &SyncSender<Vec<Prompt>>,
    arrivals: &Sender<Arrival>,
) -> Result<(), RunError> {
    for partition in pending {
        if !window.enter(partition.rows) {
            return Ok(());
        }
        let PartitionRows { kept, rows, .. } = prepared.input.read(partition)?;
        let part = prepared.part(partition);
        let encode = |row| prepared.encoder.encode(&part.object_name, row);
        let encoded: Vec<Encoded> = rows.into_par_iter().map(encode).collect();
        Progress::add(&progress.rows_read, partition.rows);
        let work: Vec<Prompt> =
            encoded.iter().filter_map(|row| row.prompt.as_ref().ok().cloned()).collect();
        let rows = encoded.into_iter().map(|row| facts(row, include)).collect();
        // The partition must be open before its first sample can arrive. A closed channel means that
        // the run is ending, for a reason that its other end knows.
        let opened =
            arrivals.send(Arrival::Opened(OpenPartition { id: partition.id, part, kept, rows }));
        if opened.is_err() || prompts.send(work).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn facts(row: Encoded, include: Include) -> RowFacts {
    let Encoded { row_index, id, messages, prompt_text, prompt, .. } = row;
    let echo = Echo {
        messages: messages.filter(|_| include.messages),
        prompt: prompt_text.filter(|_| include.prompt),
    };
    let samples = prompt.as_ref().map_or(0, |prompt| prompt.sampling.n);
    RowFacts { row_index, id, echo, failure: prompt.err(), samples }
}
