//! What an evaluation found: estimates of each measure, overall and by group, and the cells of a heat map.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::Serialize;

use super::statistics::{Estimate, Moments, macro_mean};
use super::{EvalSpec, ScoredRow};

/// Most kinds of reasons that are counted one by one.
const MAX_REASONS: usize = 20;

/// The report of an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EvalReport {
    /// The output folder.
    pub output: String,
    /// The scorer.
    pub scorer: String,
    /// Input rows.
    pub rows: u64,
    /// Samples of all rows.
    pub samples: u64,
    /// Rows of which a sample was not generated; that sample counts as wrong.
    pub failed_rows: u64,
    /// Rows of which a sample could not be judged; that sample counts as wrong.
    pub unscored_rows: u64,
    /// Samples without score, by reason; the most frequent ones.
    pub reasons: BTreeMap<String, u64>,
    /// Generated samples in which no answer was found; they are wrong.
    pub without_answer: u64,
    /// The job's measures.
    pub measures: Vec<MeasureReport>,
    /// What the heat map shows: the first measure.
    pub cells: Vec<Cell>,
}

/// What was found of one measure.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MeasureReport {
    /// Its name.
    pub measure: String,
    /// Its mean over rows.
    pub micro: Estimate,
    /// Its mean over groups, where there are any.
    #[serde(rename = "macro")]
    pub macro_: Option<Estimate>,
    /// Its mean over the rows of each group.
    pub groups: Vec<GroupEstimate>,
}

/// A measure in one group.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GroupEstimate {
    /// The group.
    pub group: String,
    /// Its rows.
    pub rows: u64,
    /// The mean over them.
    pub estimate: Estimate,
}

/// A cell of a heat map.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cell {
    /// Value of the column across.
    pub x: String,
    /// Value of the column down.
    pub y: String,
    /// Its rows.
    pub rows: u64,
    /// The mean over them.
    pub estimate: Estimate,
}

/// Where a row belongs in the tables.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowPlace {
    /// Its group.
    pub group: Option<String>,
    /// Its cell of the heat map.
    pub cell: Option<[String; 2]>,
}

/// Gathers rows; its memory grows with groups and cells, not with rows.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    report: EvalReport,
    /// For each measure: all rows, and the rows of each group.
    measures: Vec<(Moments, BTreeMap<String, Moments>)>,
    cells: BTreeMap<[String; 2], Moments>,
}

impl Tables {
    /// Tables without rows.
    pub fn new(spec: &EvalSpec, output: String) -> Self {
        let measure = |measure: &super::Measure| MeasureReport {
            measure: measure.name(),
            ..MeasureReport::default()
        };
        let report = EvalReport {
            output,
            scorer: spec.scorer.as_str().into(),
            measures: spec.measures.iter().map(measure).collect(),
            ..EvalReport::default()
        };
        let measures = vec![<(Moments, BTreeMap<String, Moments>)>::default(); spec.measures.len()];
        Self { report, measures, cells: BTreeMap::new() }
    }

    /// Adds a row.
    pub fn add(&mut self, place: RowPlace, row: &ScoredRow) {
        let report = &mut self.report;
        report.rows += 1;
        report.samples += row.samples.len() as u64;
        report.failed_rows += u64::from(row.failed);
        report.unscored_rows += u64::from(row.unscored);
        for verdict in row.samples.iter().map(|sample| &sample.verdict) {
            report.without_answer += u64::from(verdict.score.is_some() && verdict.answer.is_none());
            if let (None, Some(reason)) = (verdict.score, &verdict.reason) {
                // Of failures the code alone: messages differ from row to row.
                let kind = reason.split_once(": ").map_or(reason.as_str(), |(kind, _)| kind);
                if report.reasons.len() < MAX_REASONS || report.reasons.contains_key(kind) {
                    *report.reasons.entry(kind.to_owned()).or_default() += 1;
                }
            }
        }
        for ((all, groups), value) in self.measures.iter_mut().zip(&row.values) {
            all.add(*value);
            if let Some(group) = &place.group {
                groups.entry(group.clone()).or_default().add(*value);
            }
        }
        if let (Some(cell), Some(value)) = (place.cell, row.values.first()) {
            self.cells.entry(cell).or_default().add(*value);
        }
    }

    /// The report of the rows so far.
    pub fn report(mut self) -> EvalReport {
        for (measure, (all, groups)) in self.report.measures.iter_mut().zip(self.measures) {
            let by_group: Vec<Moments> = groups.values().copied().collect();
            measure.micro = all.mean();
            measure.macro_ = (!by_group.is_empty()).then(|| macro_mean(&by_group));
            let estimate = |(group, moments): (String, Moments)| GroupEstimate {
                group,
                rows: moments.count(),
                estimate: moments.mean(),
            };
            measure.groups = groups.into_iter().map(estimate).collect();
            measure.groups.sort_by(|a, b| natural(&a.group, &b.group));
        }
        let cell = |([x, y], moments): ([String; 2], Moments)| Cell {
            x,
            y,
            rows: moments.count(),
            estimate: moments.mean(),
        };
        self.report.cells = self.cells.into_iter().map(cell).collect();
        self.report.cells.sort_by(|a, b| natural(&a.x, &b.x).then(natural(&a.y, &b.y)));
        self.report
    }
}

/// Numbers by their value, everything else by its letters.
pub(super) fn natural(a: &str, b: &str) -> Ordering {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => a.total_cmp(&b),
        _ => a.cmp(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::samples::ScoredSample;
    use crate::eval::tests::spec;
    use crate::eval::{Scorer, Verdict};

    fn row(value: f64, reason: Option<&str>) -> ScoredRow {
        let score = reason.is_none().then_some(value);
        let verdict = Verdict { score, answer: None, reason: reason.map(str::to_owned) };
        let samples = vec![ScoredSample { verdict, ..ScoredSample::default() }];
        ScoredRow { samples, values: vec![value], failed: reason.is_some(), unscored: false }
    }

    #[test]
    fn rows_count_in_all_tables() {
        let mut tables = Tables::new(&spec(Scorer::Exact), "out".into());
        for (group, x, value, reason) in [
            ("b", "2048", 1.0, None),
            ("b", "512", 0.0, None),
            ("a", "512", 1.0, None),
            ("a", "512", 0.0, Some("engine: at row 7")),
        ] {
            let place = RowPlace { group: Some(group.into()), cell: Some([x.into(), "50".into()]) };
            tables.add(place, &row(value, reason));
        }
        let report = tables.report();
        assert_eq!((report.rows, report.failed_rows, report.without_answer), (4, 1, 3));
        assert_eq!(report.reasons, BTreeMap::from([("engine".into(), 1)]));
        let measure = &report.measures[0];
        assert_eq!((measure.micro.value, measure.macro_.unwrap().value), (0.5, 0.5));
        let groups: Vec<_> = measure.groups.iter().map(|g| (g.group.as_str(), g.rows)).collect();
        assert_eq!(groups, [("a", 2), ("b", 2)]);
        let cells: Vec<_> = report.cells.iter().map(|c| (c.x.as_str(), c.rows)).collect();
        assert_eq!(cells, [("512", 3), ("2048", 1)]);
    }
}
