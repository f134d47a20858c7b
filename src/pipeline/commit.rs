//! Stages 8 to 10 on a thread of their own: samples to text, rows to partitions, partitions to parts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::RunError;
use super::percentiles::Durations;
use super::progress::Progress;
use super::stop::Stop;
use super::window::RowWindow;
use crate::job::ErrorBudget;
use crate::output::{
    Collector, Committed, FinishedPartition, JournalEntry, OpenPartition, Output, PartId,
};
use crate::prompt::{TextModel, complete};
use crate::row::{Carried, Completion, FailureCode, Generation, PartitionId, RowRef};

/// What reaches the end of the road.
pub(super) enum Arrival {
    /// A partition was read.
    Opened(OpenPartition),
    /// A sample ended.
    Generated(Generation),
    /// A sample had ended in an earlier run.
    Restored(Generation),
    /// What is generated of samples that did not end.
    InFlight(Vec<(RowRef, Carried)>),
}

/// What was committed.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) parts: u64,
    pub(super) parts_found: u64,
    pub(super) rows_ok: u64,
    pub(super) rows_failed: u64,
    pub(super) failures: BTreeMap<FailureCode, u64>,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) ttft: Durations,
    pub(super) tpot: Durations,
    /// Samples that an earlier run had finished.
    pub(super) restored_samples: u64,
    /// More rows failed than the job allows.
    pub(super) too_many_errors: bool,
}

/// Commits partitions as they become whole, until nothing can arrive any more.
pub(super) fn commit(
    arrivals: Receiver<Arrival>,
    (output, run_id): (&Output, &str),
    text: &Arc<TextModel>,
    (max_errors, replace): (Option<ErrorBudget>, Option<HashMap<PartId, u64>>),
    (window, progress, stop): (&RowWindow, &Progress, &Stop),
) -> Result<Tally, RunError> {
    let mut committer = Committer {
        output,
        run_id,
        window,
        progress,
        stop,
        max_errors,
        replace,
        collector: Collector::new(),
        places: HashMap::new(),
        tally: Tally::default(),
    };
    for arrival in arrivals {
        let finished = match arrival {
            Arrival::Opened(partition) => {
                let rows: Vec<u64> = partition.rows.iter().map(|row| row.row_index).collect();
                committer.places.insert(partition.id, (partition.part.object_name.clone(), rows));
                committer.collector.open(partition)
            }
            Arrival::Generated(generation) => {
                let completion = complete(text, committer.located(generation));
                committer.tally.count(&completion);
                committer.collector.settle(completion)
            }
            Arrival::Restored(generation) => {
                committer.tally.restored_samples += 1;
                committer.collector.settle(complete(text, generation))
            }
            Arrival::InFlight(samples) => {
                committer.journal(samples);
                None
            }
        };
        finished.map_or(Ok(()), |partition| committer.commit(partition))?;
    }
    Ok(committer.tally)
}

struct Committer<'a> {
    output: &'a Output,
    run_id: &'a str,
    window: &'a RowWindow,
    progress: &'a Progress,
    stop: &'a Stop,
    max_errors: Option<ErrorBudget>,
    /// Rows of the parts that are there already and get some of their rows anew.
    replace: Option<HashMap<PartId, u64>>,
    collector: Collector,
    /// Object and row indices of open partitions, for messages.
    places: HashMap<PartitionId, (String, Vec<u64>)>,
    tally: Tally,
}

impl Committer<'_> {
    /// Names object and row in a failure that the engine found: it knows neither.
    fn located(&self, mut generation: Generation) -> Generation {
        let row = generation.row;
        if let (Err(failure), Some((object, rows))) =
            (&mut generation.result, self.places.get(&row.partition))
        {
            failure.message =
                format!("`{object}` row {}: {}", rows[row.offset as usize], failure.message);
        }
        generation
    }

    /// Stores what there is of open partitions: samples that ended, and those in flight. A journal only
    /// saves time, so that its failure is no reason to stop.
    fn journal(&self, in_flight: Vec<(RowRef, Carried)>) {
        let ended = self.collector.settled().filter_map(|(part, row_index, completion)| {
            let carried = ended(&completion.generation)?;
            Some(JournalEntry { object_name: part.object_name.clone(), row_index, carried })
        });
        let begun = in_flight.into_iter().filter_map(|(row, carried)| {
            let (object_name, rows) = self.places.get(&row.partition)?;
            let row_index = rows[row.offset as usize];
            Some(JournalEntry { object_name: object_name.clone(), row_index, carried })
        });
        let entries: Vec<JournalEntry> = ended.chain(begun).collect();
        tracing::debug!(samples = entries.len(), "journal");
        if let Err(error) = self.output.write_journal(self.run_id, entries) {
            tracing::warn!(%error, "the journal was not written: an interruption now costs more time");
        }
    }

    fn commit(&mut self, partition: FinishedPartition) -> Result<(), RunError> {
        let rows = partition.rows;
        let mut failed = 0;
        for failure in partition.outcomes.iter().filter_map(|outcome| outcome.failure()) {
            *self.tally.failures.entry(failure.code).or_default() += 1;
            failed += 1;
        }
        tracing::debug!(
            object = partition.id.object_name,
            first_row = partition.id.first_row,
            rows,
            failed,
            "commit"
        );
        match &self.replace {
            Some(whole) => {
                let rows = whole.get(&partition.id).copied().unwrap_or(rows);
                self.output.replace(rows, partition)?;
                self.tally.parts += 1;
            }
            None => match self.output.commit(partition)? {
                Committed::New => self.tally.parts += 1,
                Committed::Found => self.tally.parts_found += 1,
            },
        }
        self.tally.rows_failed += failed;
        self.tally.rows_ok += rows - failed;
        let done = self.tally.rows_failed + self.tally.rows_ok;
        if self.max_errors.is_some_and(|most| most.is_exceeded(self.tally.rows_failed, done)) {
            self.tally.too_many_errors = true;
            self.stop.request();
        }
        Progress::add(&self.progress.rows_done, rows);
        Progress::add(&self.progress.rows_failed, failed);
        Progress::add(&self.progress.parts, 1);
        self.window.leave(rows);
        Ok(())
    }
}

/// What a journal keeps of a sample that ended; failures are found again.
fn ended(generation: &Generation) -> Option<Carried> {
    Some(Carried {
        sample_index: generation.sample_index,
        prompt_tokens: generation.prompt_tokens,
        cached_tokens: generation.cached_tokens,
        reused: generation.reused,
        generated: generation.result.as_ref().ok()?.clone(),
        ended: true,
        timing: generation.timing,
    })
}

impl Tally {
    fn count(&mut self, completion: &Completion) {
        let Generation { prompt_tokens, cached_tokens, timing, result, .. } =
            &completion.generation;
        self.prompt_tokens += u64::from(*prompt_tokens);
        self.cached_tokens += u64::from(*cached_tokens);
        let tokens = result.as_ref().map_or(0, |generated| generated.token_ids.len());
        self.completion_tokens += tokens as u64;
        if let Some(ttft) = timing.ttft {
            self.ttft.add(ttft.as_secs_f64() * 1e3);
        }
        if let Some(decode) = timing.decode.filter(|_| tokens > 1) {
            self.tpot.add(decode.as_secs_f64() * 1e3 / (tokens - 1) as f64);
        }
    }
}
