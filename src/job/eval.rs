//! `[eval]`, checked.

use std::time::Duration;

use regex::Regex;

use super::eval_section::EvalSection;
use super::file::InputSection;
use super::report::Report;
use crate::eval::sandbox::ProcessLimits;
use crate::eval::{CommandSpec, EvalSpec, Measure, Scorer};
use crate::output::Include;
use crate::sampling::SamplingSpec;

/// Checks the section; none if the job has none.
pub(super) fn eval_spec(
    section: EvalSection,
    (input, sampling, include): (&InputSection, &SamplingSpec, Include),
    report: &mut Report,
) -> Option<EvalSpec> {
    let Some(scorer) = section.scorer else {
        let unused = section.reference.is_none() && section.command.is_empty();
        report.expect(unused && section.measures.is_empty(), "eval.scorer", "is missing");
        return None;
    };
    let runs = scorer == Scorer::Command;
    report.expect(
        runs || section.reference.is_some(),
        "eval.reference",
        "is missing: the column with the right answer",
    );
    let scored = !input.continuations.is_empty();
    report.expect(
        scored == (scorer == Scorer::Likelihood),
        "eval.scorer",
        "`likelihood` and `input.continuations` need each other",
    );
    let pattern = section.pattern.as_deref().map(Regex::new).transpose();
    if let Err(error) = &pattern {
        report.problem("eval.pattern", format!("is no regular expression: {error}"));
    }
    let heat_map = <[String; 2]>::try_from(section.heat_map.clone()).ok();
    report.expect(
        heat_map.is_some() || section.heat_map.is_empty(),
        "eval.heat_map",
        "expected two columns: across and down",
    );
    let measures = measures(&section, scorer, (sampling, include), report);
    Some(EvalSpec {
        scorer,
        reference: section.reference.clone(),
        extract: section.extract.unwrap_or(scorer.usual_extract()),
        pattern: pattern.unwrap_or_default(),
        normalise: section.normalise.clone(),
        length: section.length,
        group: section.group.clone(),
        heat_map,
        measures,
        command: command(section, runs, report),
    })
}

fn measures(
    section: &EvalSection,
    scorer: Scorer,
    (sampling, include): (&SamplingSpec, Include),
    report: &mut Report,
) -> Vec<Measure> {
    if section.measures.is_empty() {
        let usual = if scorer == Scorer::Command { Measure::PassAt(1) } else { Measure::Accuracy };
        return vec![usual];
    }
    let key = "eval.measures";
    let mut measures = Vec::new();
    for text in &section.measures {
        match Measure::parse(text) {
            Some(measure) => measures.push(measure),
            None => report.problem(key, format!("has `{text}`, expected `accuracy`, `majority`, `best_logprob`, `best_score` or `pass@` with a number")),
        }
    }
    let has = |measure: Measure| measures.contains(&measure);
    let likelihood = scorer == Scorer::Likelihood;
    let only_accuracy = measures.iter().all(|measure| *measure == Measure::Accuracy);
    report.expect(!likelihood || only_accuracy, key, "with `likelihood` only `accuracy` is meant");
    report.expect(
        !has(Measure::BestLogprob) || include.logprobs,
        key,
        "has `best_logprob`, which needs `logprobs` in `output.include`",
    );
    report.expect(
        !(has(Measure::Majority) && scorer == Scorer::Command),
        key,
        "has `majority`, but programs cannot be voted on",
    );
    let most = measures.iter().filter_map(|measure| match measure {
        Measure::PassAt(k) => Some(*k),
        _ => None,
    });
    let enough = sampling.n.column.is_some() || most.max().is_none_or(|k| k <= sampling.n.default);
    report.expect(enough, key, "has a pass@k with more than the `sampling.n` samples of a row");
    measures
}

fn command(section: EvalSection, runs: bool, report: &mut Report) -> Option<CommandSpec> {
    let given = !section.command.is_empty();
    report.expect(given == runs, "eval.command", "and the scorer `command` need each other");
    let time = Duration::try_from_secs_f64(section.seconds).unwrap_or_default();
    report.expect(!time.is_zero(), "eval.seconds", "expected seconds above 0");
    let mut bytes = |key: &str, text: &str| {
        let bytes = text.parse::<bytesize::ByteSize>().map(|size| size.as_u64());
        report.expect(bytes.is_ok(), key, "expected bytes such as \"2GiB\"");
        bytes.unwrap_or_default()
    };
    let limits = ProcessLimits {
        time,
        memory_bytes: bytes("eval.memory", &section.memory),
        file_bytes: bytes("eval.file_size", &section.file_size),
        processes: section.processes,
    };
    let plain = !section.file.is_empty() && !section.file.contains(['/', '\\', '\0']);
    let plain = plain && !section.file.starts_with('.');
    report.expect(plain, "eval.file", "expected a plain file name");
    let EvalSection { command, program, file, .. } = section;
    runs.then_some(CommandSpec { command, program, file, limits })
}
