//! A complete output scored: its parts and its input to scores beside them, a report and a heat map. Nothing
//! of it is generated, so that it may be done again, by other rules, whenever somebody likes.

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::RunError;
use super::stop::Stop;
use crate::eval::sandbox::{Sandbox, SandboxError};
use crate::eval::{
    EvalReport, EvalSpec, Judged, RowPlace, Sample, ScoredRow, Scorer, Tables, code_of, heat_map,
    judge, score_continuations, score_samples,
};
use crate::input::{Input, InputSpec, Partition};
use crate::job::Job;
use crate::output::{PartId, SampleReader, ScoreWriter, StoredSample, StoredScore};
use crate::prompt::{RowTemplate, converted};
use crate::row::RowFailure;
use crate::storage::Storage;

/// The report's name in the folder of the evaluation.
const REPORT: &str = "report.json";
const HEAT_MAP: &str = "heat_map.svg";

/// Why an output cannot be scored; what is wrong with one row is a reason in that row's scores instead.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A column of `[eval]` is in no row of the input.
    #[error("no row of the input has the column `{column}`, which `{key}` names")]
    NoColumn { key: &'static str, column: String },
    /// Commands run only if the person at the terminal says so.
    #[error("scoring would run a command of the job file on what the model wrote: `{command}`")]
    CommandsNotAllowed { command: String },
    /// The sandbox cannot be set up.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

impl EvalError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoColumn { .. } => {
                "name a column of the input, whatever `input.keep` says".into()
            }
            Self::CommandsNotAllowed { .. } => {
                "add `--allow-commands` if you trust both; limits are in `[eval]`".into()
            }
            Self::Sandbox(_) => return None,
        })
    }
}

/// What judges a row.
struct Judge<'a> {
    spec: &'a EvalSpec,
    /// What makes a program of a row, and runs it.
    program: Option<(RowTemplate, Sandbox)>,
}

/// A row's columns, or why it has none.
type Columns = Result<Map<String, Value>, RowFailure>;

/// Rows that are looked at for the columns of `[eval]`, and how many at a time: some have megabytes.
const LOOKED_AT: (u64, u64) = (1000, 8);

/// Finds out before anything is generated whether a job could be scored.
pub fn expect_scorable(
    storage: &Storage,
    (job, spec): (&Job, &EvalSpec),
    allow_commands: bool,
) -> Result<(), RunError> {
    Judge::new(spec, allow_commands)?;
    let all = job.input.all_columns();
    let limit = if all.limit == 0 { LOOKED_AT.0 } else { all.limit.min(LOOKED_AT.0) };
    let input = Input::discover(storage, InputSpec { limit, ..all }, LOOKED_AT.1)?;
    let (mut missing, mut rows) = (named_columns(spec), 0);
    for partition in input.partitions() {
        for row in input.columns(partition)?.iter().flatten() {
            missing.retain(|(_, column)| !row.contains_key(*column));
            rows += 1;
        }
        if missing.is_empty() {
            break;
        }
    }
    // A column that none of the first rows has is a typing error.
    match missing.first() {
        Some((key, column)) if rows > 0 => {
            Err(EvalError::NoColumn { key, column: (*column).clone() }.into())
        }
        _ => Ok(()),
    }
}

/// The columns that `[eval]` names, and where.
fn named_columns(spec: &EvalSpec) -> Vec<(&'static str, &String)> {
    let reference = spec.reference.iter().map(|column| ("eval.reference", column));
    let group = spec.group.iter().map(|column| ("eval.group", column));
    let heat_map = spec.heat_map.iter().flatten().map(|column| ("eval.heat_map", column));
    reference.chain(group).chain(heat_map).collect()
}

/// Scores a complete output. None: it shall stop before it is done.
pub fn evaluate(
    storage: &Storage,
    (job, spec): (&Job, &EvalSpec),
    allow_commands: bool,
    stop: &Stop,
) -> Result<Option<EvalReport>, RunError> {
    let judge = Judge::new(spec, allow_commands)?;
    let root = storage.locate(&job.output_path, &job.base)?;
    let input = Input::discover(storage, job.input.all_columns(), job.rows_per_part)?;
    let reader = SampleReader::open(storage, &root)?;
    let writer = ScoreWriter::begin(storage, &root)?;
    let mut tables = Tables::new(spec, root.to_string());
    for partition in input.partitions() {
        if stop.requested() {
            return Ok(None);
        }
        let part = part(&input, partition);
        let columns = input.columns(partition)?;
        let samples = reader.read(&part, partition.rows)?;
        let rows = by_row(samples, partition, &columns);
        let scored: Vec<(RowPlace, ScoredRow, Vec<StoredScore>)> =
            rows.into_par_iter().map(|(columns, samples)| judge.row(columns, samples)).collect();
        let mut scores = Vec::new();
        for (place, row, stored) in scored {
            tables.add(place, &row);
            scores.extend(stored);
        }
        writer.write(&part, &scores)?;
    }
    let report = tables.report();
    let json = serde_json::to_string_pretty(&report).expect("a report has text keys only");
    writer.write_file(REPORT, Some(json + "\n"))?;
    let picture = spec.heat_map.as_ref().map(|[x, y]| {
        let measure = report.measures.first().map_or("", |measure| measure.measure.as_str());
        heat_map(&report.cells, [x, y], &format!("{}: {measure}, %", job.name))
    });
    writer.write_file(HEAT_MAP, picture)?;
    Ok(Some(report))
}

fn part(input: &Input, partition: &Partition) -> PartId {
    let object_name = input.objects()[partition.object as usize].name.clone();
    PartId { object_name, first_row: partition.first_row }
}

/// Each row's columns with its samples: parts have their rows in the order of the input.
fn by_row<'a>(
    samples: Vec<StoredSample>,
    partition: &Partition,
    columns: &'a [Columns],
) -> Vec<(&'a Columns, Vec<StoredSample>)> {
    let mut rows: Vec<(&Columns, Vec<StoredSample>)> =
        columns.iter().map(|columns| (columns, Vec::new())).collect();
    for sample in samples {
        rows[(sample.row_index - partition.first_row) as usize].1.push(sample);
    }
    rows
}

impl<'a> Judge<'a> {
    fn new(spec: &'a EvalSpec, allow_commands: bool) -> Result<Self, RunError> {
        let program = match &spec.command {
            None => None,
            Some(command) if !allow_commands => {
                let command = command.command.join(" ");
                return Err(EvalError::CommandsNotAllowed { command }.into());
            }
            Some(command) => {
                let template = RowTemplate::new(&command.program, "`eval.program`")?;
                let sandbox = Sandbox::new(command.clone()).map_err(EvalError::from)?;
                Some((template, sandbox))
            }
        };
        Ok(Self { spec, program })
    }

    fn row(
        &self,
        columns: &Columns,
        stored: Vec<StoredSample>,
    ) -> (RowPlace, ScoredRow, Vec<StoredScore>) {
        let nothing = Map::new();
        let columns = columns.as_ref().unwrap_or(&nothing);
        let reference = self.spec.reference.as_ref().and_then(|column| columns.get(column));
        let samples: Vec<Sample> = stored
            .iter()
            .map(|sample| Sample {
                sample_index: sample.sample_index,
                completion: sample.completion.clone(),
                logprobs: sample.logprobs.clone(),
            })
            .collect();
        let row = match self.spec.scorer {
            Scorer::Likelihood => {
                score_continuations(self.spec, &samples, reference.unwrap_or(&Value::Null))
            }
            _ => {
                let judged = samples.iter().map(|sample| self.sample(columns, reference, sample));
                score_samples(&self.spec.measures, &samples, judged.collect())
            }
        };
        let place = self.place(columns);
        let scores = stored.into_iter().zip(&row.samples).map(|(stored, scored)| StoredScore {
            row_index: stored.row_index,
            id: stored.id,
            sample_index: stored.sample_index,
            score: scored.verdict.score,
            answer: scored.verdict.answer.clone(),
            reference: reference.map(label),
            reason: scored.verdict.reason.clone(),
            logprob: scored.logprob,
            mean_logprob: scored.mean_logprob,
            majority: scored.majority,
            best: scored.best,
            group: place.group.clone(),
        });
        let scores = scores.collect();
        (place, row, scores)
    }

    fn sample(
        &self,
        columns: &Map<String, Value>,
        reference: Option<&Value>,
        sample: &Sample,
    ) -> Judged {
        let completion = match &sample.completion {
            Ok(completion) => completion,
            Err(failure) => return Judged::unjudged(failure.as_str()),
        };
        match (&self.program, reference) {
            (Some(program), _) => self.run(program, columns, completion),
            (None, Some(reference)) => judge(self.spec, completion, reference),
            (None, None) => Judged::unjudged("the row has no reference"),
        }
    }

    fn run(
        &self,
        (template, sandbox): &(RowTemplate, Sandbox),
        columns: &Map<String, Value>,
        completion: &str,
    ) -> Judged {
        let code = code_of(self.spec, completion).unwrap_or_default();
        let extra = |text: &str| converted(&Value::from(text));
        let extras = [("completion", extra(completion)), ("code", extra(&code))];
        match template.render(columns, &extras) {
            Ok(program) => sandbox.run(&program, code),
            Err(error) => Judged::unjudged(format!("the program could not be written: {error}")),
        }
    }

    fn place(&self, columns: &Map<String, Value>) -> RowPlace {
        let of = |column: &String| columns.get(column).map_or("(none)".to_owned(), label);
        let group = self.spec.group.as_ref().map(of);
        let cell = self.spec.heat_map.as_ref().map(|[x, y]| [of(x), of(y)]);
        RowPlace { group, cell }
    }
}

/// A value as a word in a table.
fn label(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
