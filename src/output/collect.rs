//! Stage 9: rows in any order, until a partition's last one is in. It does not know in which order rows
//! were generated, nor what is done with a finished partition.

use std::collections::HashMap;

use arrow::array::RecordBatch;

use super::{Echo, FinishedPartition, PartId, RowOutcome};
use crate::row::{Completion, PartitionId, RowFailure};

/// A partition whose rows are on their way.
#[derive(Clone, Debug)]
pub struct OpenPartition {
    /// Its number in this run, by which completions find it.
    pub id: PartitionId,
    /// The part it becomes.
    pub part: PartId,
    /// The kept columns, one row per input row.
    pub kept: RecordBatch,
    /// One entry per input row, in input order.
    pub rows: Vec<RowFacts>,
}

/// What is known of a row before it is generated.
#[derive(Clone, Debug)]
pub struct RowFacts {
    /// 0-based position in its input object.
    pub row_index: u64,
    /// The row's id.
    pub id: String,
    /// What is repeated of its prompt.
    pub echo: Echo,
    /// Why it will not be generated; such a row has its outcome already.
    pub failure: Option<RowFailure>,
    /// Completions to wait for, at least 1; of no meaning for a failed row.
    pub samples: u32,
}

/// Gathers completions until a partition is whole; every row comes out exactly once.
#[derive(Debug, Default)]
pub struct Collector {
    open: HashMap<PartitionId, Gathering>,
}

#[derive(Debug)]
struct Gathering {
    part: PartId,
    kept: RecordBatch,
    rows: Vec<GatheringRow>,
    /// Samples not yet in.
    missing: u64,
}

#[derive(Debug)]
struct GatheringRow {
    row_index: u64,
    id: String,
    echo: Echo,
    result: Result<Vec<Option<Completion>>, RowFailure>,
}

impl Collector {
    /// Makes a collector without partitions.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of partitions that wait for rows.
    pub fn open_partitions(&self) -> usize {
        self.open.len()
    }

    /// Waits for the rows of a partition; gives it back at once if there is none to wait for.
    ///
    /// # Panics
    /// If the partition is open already, a row waits for no sample, or `kept` has another number of rows:
    /// bugs of the caller.
    pub fn open(&mut self, partition: OpenPartition) -> Option<FinishedPartition> {
        let OpenPartition { id, part, kept, rows } = partition;
        assert_eq!(kept.num_rows(), rows.len(), "{id:?}: kept columns have one row per input row");
        let rows: Vec<GatheringRow> = rows.into_iter().map(GatheringRow::new).collect();
        let missing = rows.iter().map(GatheringRow::missing).sum();
        let gathering = Gathering { part, kept, rows, missing };
        if missing == 0 {
            return Some(gathering.finish());
        }
        let before = self.open.insert(id, gathering);
        assert!(before.is_none(), "{id:?} is opened twice");
        None
    }

    /// Takes in one sample; gives its partition if that was the last one.
    ///
    /// # Panics
    /// If nothing waits for this sample: its row would be written twice.
    pub fn settle(&mut self, completion: Completion) -> Option<FinishedPartition> {
        let partition = completion.generation.row.partition;
        let name = format!(
            "sample {} of {:?}",
            completion.generation.sample_index, completion.generation.row
        );
        let gathering =
            self.open.get_mut(&partition).unwrap_or_else(|| panic!("nothing waits for {name}"));
        let place =
            gathering.place(&completion).unwrap_or_else(|| panic!("nothing waits for {name}"));
        assert!(place.replace(completion).is_none(), "{name} is settled twice");
        gathering.missing -= 1;
        if gathering.missing > 0 {
            return None;
        }
        self.open.remove(&partition).map(Gathering::finish)
    }
}

impl Collector {
    /// The samples that are in, of partitions that are not whole.
    pub fn settled(&self) -> impl Iterator<Item = (&PartId, u64, &Completion)> {
        self.open.values().flat_map(|gathering| {
            let samples = gathering.rows.iter().flat_map(|row| {
                let samples = row.result.as_deref().unwrap_or_default();
                samples.iter().flatten().map(|completion| (row.row_index, completion))
            });
            samples.map(|(row_index, completion)| (&gathering.part, row_index, completion))
        })
    }
}

impl Gathering {
    fn place(&mut self, completion: &Completion) -> Option<&mut Option<Completion>> {
        let row = self.rows.get_mut(completion.generation.row.offset as usize)?;
        row.result.as_mut().ok()?.get_mut(completion.generation.sample_index as usize)
    }

    fn finish(self) -> FinishedPartition {
        let outcomes: Vec<RowOutcome> = self.rows.into_iter().map(GatheringRow::finish).collect();
        FinishedPartition { id: self.part, rows: outcomes.len() as u64, kept: self.kept, outcomes }
    }
}

impl GatheringRow {
    fn new(facts: RowFacts) -> Self {
        let RowFacts { row_index, id, echo, failure, samples } = facts;
        let result = match failure {
            Some(failure) => Err(failure),
            None => {
                assert!(samples > 0, "row {row_index} waits for no sample");
                Ok((0..samples).map(|_| None).collect())
            }
        };
        Self { row_index, id, echo, result }
    }

    fn missing(&self) -> u64 {
        self.result.as_ref().map_or(0, |samples| samples.len() as u64)
    }

    fn finish(self) -> RowOutcome {
        let settled = |sample: Option<Completion>| {
            sample.expect("a partition ends when no sample is missing")
        };
        let result = self.result.map(|samples| samples.into_iter().map(settled).collect());
        RowOutcome { row_index: self.row_index, id: self.id, echo: self.echo, result }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::RecordBatchOptions;
    use arrow::datatypes::Schema;
    use proptest::prelude::*;

    use super::*;
    use crate::row::{FailureCode, Generated, Generation, RowRef, Timing};

    fn completion(partition: u32, offset: u32, sample_index: u32) -> Completion {
        let generation = Generation {
            row: RowRef { partition: PartitionId(partition), offset },
            sample_index,
            prompt_tokens: 3,
            cached_tokens: 0,
            reused: false,
            result: Ok(Generated::default()),
            timing: Timing::default(),
        };
        Completion { generation, text: format!("{partition}/{offset}/{sample_index}") }
    }

    /// A partition of rows with so many samples each; 0 is a failed row.
    fn partition(id: u32, samples: &[u32]) -> OpenPartition {
        let options = RecordBatchOptions::new().with_row_count(Some(samples.len()));
        let kept =
            RecordBatch::try_new_with_options(Schema::empty().into(), vec![], &options).unwrap();
        let facts = |(row_index, &samples): (u64, &u32)| RowFacts {
            row_index,
            id: row_index.to_string(),
            echo: Echo::default(),
            failure: (samples == 0).then(|| RowFailure::new(FailureCode::EmptyPrompt, "empty")),
            samples,
        };
        let part = PartId { object_name: format!("{id}.jsonl"), first_row: 0 };
        OpenPartition {
            id: PartitionId(id),
            part,
            kept,
            rows: (0..).zip(samples).map(facts).collect(),
        }
    }

    fn all_completions(partitions: &[Vec<u32>]) -> Vec<Completion> {
        let mut all = Vec::new();
        for (id, rows) in (0..).zip(partitions) {
            for (offset, &samples) in (0..).zip(rows) {
                all.extend((0..samples).map(|sample| completion(id, offset, sample)));
            }
        }
        all
    }

    fn orders() -> impl Strategy<Value = (Vec<Vec<u32>>, Vec<Completion>)> {
        let partitions = prop::collection::vec(prop::collection::vec(0..4u32, 0..6), 0..5);
        partitions.prop_flat_map(|partitions| {
            let completions = Just(all_completions(&partitions)).prop_shuffle();
            (Just(partitions), completions)
        })
    }

    proptest! {
        /// Every row read is written exactly once, in input order, whatever order it was generated in.
        #[test]
        fn completions_in_any_order_give_the_same_partitions((partitions, completions) in orders()) {
            let mut collector = Collector::new();
            let mut finished: HashMap<String, FinishedPartition> = HashMap::new();
            for (id, samples) in (0..).zip(&partitions) {
                let at_once = collector.open(partition(id, samples));
                prop_assert_eq!(at_once.is_some(), samples.iter().all(|samples| *samples == 0));
                finished.extend(at_once.map(|part| (part.id.object_name.clone(), part)));
            }
            for completion in completions {
                let part = collector.settle(completion);
                finished.extend(part.map(|part| (part.id.object_name.clone(), part)));
            }
            prop_assert_eq!(collector.open_partitions(), 0);
            prop_assert_eq!(finished.len(), partitions.len());
            for (id, samples) in partitions.iter().enumerate() {
                let part = &finished[&format!("{id}.jsonl")];
                prop_assert_eq!(part.rows, samples.len() as u64);
                let texts: Vec<Vec<&str>> = part.outcomes.iter().map(texts).collect();
                let expected: Vec<Vec<String>> = samples.iter().enumerate()
                    .map(|(offset, n)| (0..*n).map(|sample| format!("{id}/{offset}/{sample}")).collect()).collect();
                prop_assert_eq!(texts, expected);
                prop_assert!(part.outcomes.iter().enumerate().all(|(index, row)| row.row_index == index as u64));
            }
        }
    }

    fn texts(outcome: &RowOutcome) -> Vec<&str> {
        outcome.result.iter().flatten().map(|sample| sample.text.as_str()).collect()
    }

    #[test]
    fn a_partition_without_rows_is_finished_when_it_opens() {
        let part = Collector::new().open(partition(0, &[])).unwrap();
        assert_eq!((part.rows, part.outcomes.len()), (0, 0));
    }

    #[test]
    #[should_panic(
        expected = "sample 1 of RowRef { partition: PartitionId(0), offset: 0 } is settled twice"
    )]
    fn a_sample_settled_twice_is_a_bug() {
        let mut collector = Collector::new();
        collector.open(partition(0, &[2]));
        collector.settle(completion(0, 0, 1));
        collector.settle(completion(0, 0, 1));
    }

    #[test]
    fn a_sample_that_nothing_waits_for_is_a_bug() {
        for (name, unexpected) in [
            ("unknown partition", completion(1, 0, 0)),
            ("unknown row", completion(0, 2, 0)),
            ("unknown sample", completion(0, 0, 1)),
            ("failed row", completion(0, 1, 0)),
        ] {
            let settled = std::panic::catch_unwind(|| {
                let mut collector = Collector::new();
                collector.open(partition(0, &[1, 0]));
                collector.settle(unexpected)
            });
            let message = *settled.expect_err(name).downcast::<String>().unwrap();
            assert!(message.starts_with("nothing waits for"), "{name}: {message}");
        }
    }
}
