//! A row's samples to what is reported of the row: their mean, the vote, the best of them, pass@k.

use std::collections::HashMap;

use serde_json::Value;

use super::choice::{Continuation, most_probable, option_of};
use super::statistics::pass_at;
use super::{EvalSpec, Judged, Measure, Verdict};

/// A sample as the output has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// 0-based index among the row's samples.
    pub sample_index: u32,
    /// Its text, or why it has none.
    pub completion: Result<String, String>,
    /// Natural-log probability of each of its tokens, where the output has them.
    pub logprobs: Option<Vec<f32>>,
}

/// A sample with its score.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoredSample {
    /// 0-based index among the row's samples.
    pub sample_index: u32,
    /// What became of it.
    pub verdict: Verdict,
    /// Natural-log probability of all its tokens.
    pub logprob: Option<f64>,
    /// The same divided by their number.
    pub mean_logprob: Option<f64>,
    /// Whether it gives the answer that most samples of its row give; of equal ones only the first.
    pub majority: bool,
    /// Whether it is the most probable one of its row.
    pub best: bool,
}

/// A row with its samples and what they amount to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoredRow {
    /// The samples, in order.
    pub samples: Vec<ScoredSample>,
    /// A value for each measure of the job.
    pub values: Vec<f64>,
    /// Whether a sample was not generated.
    pub failed: bool,
    /// Whether a sample was generated but could not be judged.
    pub unscored: bool,
}

impl Sample {
    fn scored(&self, verdict: Verdict) -> ScoredSample {
        let logprobs = self.logprobs.as_ref().filter(|logprobs| !logprobs.is_empty());
        let sum = logprobs.map(|logprobs| logprobs.iter().map(|x| f64::from(*x)).sum::<f64>());
        let mean = sum.zip(logprobs).map(|(sum, logprobs)| sum / logprobs.len() as f64);
        ScoredSample {
            sample_index: self.sample_index,
            verdict,
            logprob: sum,
            mean_logprob: mean,
            ..ScoredSample::default()
        }
    }
}

/// Puts a row's judged samples together. What failed or could not be judged counts as wrong.
pub fn score_samples(measures: &[Measure], samples: &[Sample], judged: Vec<Judged>) -> ScoredRow {
    let winner = majority(judged.iter().map(|judged| judged.vote.as_deref()));
    let failed = samples.iter().any(|sample| sample.completion.is_err());
    let unscored = samples
        .iter()
        .zip(&judged)
        .any(|(sample, judged)| sample.completion.is_ok() && judged.verdict.score.is_none());
    let mut samples: Vec<ScoredSample> =
        samples.iter().zip(judged).map(|(sample, judged)| sample.scored(judged.verdict)).collect();
    let mean = |sample: &ScoredSample| sample.mean_logprob.unwrap_or(f64::NEG_INFINITY);
    let best = most_probable(samples.iter().map(mean))
        .filter(|&index| samples[index].mean_logprob.is_some());
    winner.into_iter().for_each(|index| samples[index].majority = true);
    best.into_iter().for_each(|index| samples[index].best = true);
    let values = measures.iter().map(|measure| value(*measure, &samples, winner, best)).collect();
    ScoredRow { samples, values, failed, unscored }
}

fn value(
    measure: Measure,
    samples: &[ScoredSample],
    majority: Option<usize>,
    best: Option<usize>,
) -> f64 {
    let score = |sample: &ScoredSample| sample.verdict.score.unwrap_or(0.0);
    let of = |index: Option<usize>| index.map_or(0.0, |index| score(&samples[index]));
    match measure {
        Measure::Accuracy => samples.iter().map(score).sum::<f64>() / samples.len().max(1) as f64,
        Measure::Majority => of(majority),
        Measure::BestLogprob => of(best),
        Measure::BestScore => samples.iter().map(score).fold(0.0, f64::max),
        Measure::PassAt(k) => {
            let right = samples.iter().filter(|sample| score(sample) >= 1.0).count() as u32;
            // A row that failed before it had samples has none that is right.
            pass_at(k, right, (samples.len() as u32).max(k)).unwrap_or(0.0)
        }
    }
}

/// The first sample with the answer that most samples give; of answers with as many votes the one that
/// came first.
fn majority<'a>(votes: impl Iterator<Item = Option<&'a str>>) -> Option<usize> {
    let mut counts: HashMap<&str, (u32, usize)> = HashMap::new();
    for (index, vote) in votes.enumerate() {
        if let Some(vote) = vote {
            counts.entry(vote).or_insert((0, index)).0 += 1;
        }
    }
    let most = counts.into_values().max_by_key(|(count, first)| (*count, usize::MAX - first));
    most.map(|(_, first)| first)
}

/// Scores a row whose samples are continuations: the most probable one is its answer.
pub fn score_continuations(spec: &EvalSpec, samples: &[Sample], reference: &Value) -> ScoredRow {
    let scored = |verdict: &Verdict| samples.iter().map(|s| s.scored(verdict.clone())).collect();
    let nothing = |reason: &str, failed: bool| ScoredRow {
        samples: scored(&Verdict { reason: Some(reason.into()), ..Verdict::default() }),
        values: vec![0.0; spec.measures.len()],
        failed,
        unscored: !failed,
    };
    let mut continuations = Vec::with_capacity(samples.len());
    for sample in samples {
        match (&sample.completion, &sample.logprobs) {
            (Err(failure), _) => return nothing(failure, true),
            (Ok(_), None) => return nothing("there are no log-probabilities", false),
            (Ok(text), Some(logprobs)) => {
                continuations.push(Continuation { text: text.clone(), logprobs: logprobs.clone() })
            }
        }
    }
    let texts: Vec<&str> = continuations.iter().map(|c| c.text.as_str()).collect();
    let Some(right) = option_of(reference, &texts).filter(|right| *right < texts.len()) else {
        return nothing(&format!("the reference {reference} is none of the continuations"), false);
    };
    let best = most_probable(continuations.iter().map(|c| c.weight(spec.length)));
    let mut samples: Vec<ScoredSample> = scored(&Verdict::default());
    let score = f64::from(u8::from(best == Some(right)));
    if let Some(best) = best {
        samples[best].best = true;
        samples[best].verdict = Verdict {
            score: Some(score),
            answer: Some(texts[best].trim().to_owned()),
            reason: None,
        };
    }
    let values = vec![score; spec.measures.len()];
    ScoredRow { samples, values, failed: false, unscored: false }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::eval::tests::spec;
    use crate::eval::{Length, Scorer, judge};

    fn sample(sample_index: u32, text: &str, logprobs: &[f32]) -> Sample {
        let logprobs = Some(logprobs.to_vec());
        Sample { sample_index, completion: Ok(text.into()), logprobs }
    }

    fn row(measures: &[Measure], samples: &[Sample], reference: Value) -> ScoredRow {
        let spec = spec(Scorer::Number);
        let judged = |sample: &Sample| match &sample.completion {
            Ok(text) => judge(&spec, text, &reference),
            Err(failure) => Judged::unjudged(failure.as_str()),
        };
        score_samples(measures, samples, samples.iter().map(judged).collect())
    }

    #[test]
    fn samples_are_averaged_voted_on_and_chosen_from() {
        let samples = [
            sample(0, "it is 7", &[-0.1, -0.1]),
            sample(1, "5", &[-3.0]),
            sample(2, "#### 5.0", &[-1.0, -1.0]),
            Sample { sample_index: 3, completion: Err("engine: oh".into()), logprobs: None },
            sample(4, "no idea", &[-0.5]),
        ];
        use Measure::{Accuracy, BestLogprob, BestScore, Majority, PassAt};
        let measures = [Accuracy, Majority, BestLogprob, BestScore, PassAt(1), PassAt(4)];
        let row = row(&measures, &samples, json!("5"));
        let expected = [0.4, 1.0, 0.0, 1.0, 0.4, 1.0];
        for ((measure, found), expected) in measures.iter().zip(&row.values).zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{measure:?} {found}");
        }
        let flags: Vec<_> = row.samples.iter().map(|s| (s.majority, s.best)).collect();
        assert_eq!(
            flags,
            [(false, true), (true, false), (false, false), (false, false), (false, false)]
        );
        assert_eq!((row.failed, row.unscored), (true, false));
        assert_eq!(row.samples[3].verdict.reason.as_deref(), Some("engine: oh"));
        assert_eq!(row.samples[2].mean_logprob, Some(-1.0));
    }

    #[test]
    fn a_tied_vote_goes_to_the_earliest_answer_and_none_to_silence() {
        assert_eq!(majority([Some("a"), Some("b"), Some("b"), Some("a")].into_iter()), Some(0));
        assert_eq!(majority([None, Some("b"), Some("a"), Some("a")].into_iter()), Some(2));
        assert_eq!(majority([None, None].into_iter()), None);
        let silent = row(&[Measure::Majority], &[sample(0, "none", &[])], json!(1));
        assert_eq!((silent.values, silent.unscored), (vec![0.0], false));
    }

    #[test]
    fn the_most_probable_continuation_is_the_answer() {
        let samples =
            [sample(0, " A", &[-2.0]), sample(1, " B", &[-0.5]), sample(2, " C", &[-1.0])];
        let spec = spec(Scorer::Likelihood);
        for (reference, value) in [(json!("B"), 1.0), (json!(1), 1.0), (json!("C"), 0.0)] {
            let row = score_continuations(&spec, &samples, &reference);
            assert_eq!(row.values, [value], "{reference}");
            assert_eq!(row.samples[1].verdict.answer.as_deref(), Some("B"));
            assert_eq!(row.samples[0].verdict.score, None);
        }
        for reference in [json!("Z"), json!(null), json!(3)] {
            let row = score_continuations(&spec, &samples, &reference);
            assert!(row.unscored && row.values == [0.0], "{reference}");
        }
        let mut normalised = spec;
        normalised.length = Length::Tokens;
        let samples = [sample(0, " no", &[-1.0]), sample(1, " not at all", &[-0.6, -0.6, -0.6])];
        let row = score_continuations(&normalised, &samples, &json!("not at all"));
        assert_eq!(row.values, [1.0]);
        let failed = [Sample {
            sample_index: 0,
            completion: Err("prompt_too_long: x".into()),
            logprobs: None,
        }];
        let row = score_continuations(&normalised, &failed, &json!(0));
        assert!(row.failed && !row.unscored && row.values == [0.0]);
    }
}
