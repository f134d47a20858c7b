//! Whether one completion is right.

use regex::Regex;
use serde_json::Value;

use super::choice::option_of;
use super::{EvalSpec, Extract, Scorer, extract, normalise};
use crate::eval::number::Number;

/// What became of one sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// 0 (wrong) to 1 (right); none if it could not be judged.
    pub score: Option<f64>,
    /// What was taken for its answer.
    pub answer: Option<String>,
    /// Why there is no score, or what a command said.
    pub reason: Option<String>,
}

/// A verdict with the form of the answer by which votes are counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// Equal for answers that say the same; none if there is no answer.
    pub vote: Option<String>,
}

impl Judged {
    /// A sample that cannot be judged.
    pub fn unjudged(reason: impl Into<String>) -> Self {
        let verdict = Verdict { reason: Some(reason.into()), ..Verdict::default() };
        Self { verdict, vote: None }
    }
}

/// The program text of a completion.
pub fn code_of(spec: &EvalSpec, completion: &str) -> Option<String> {
    extract::answer(spec.extract, spec.pattern.as_ref(), completion)
}

/// Judges a completion by the row's reference; commands and continuations are judged elsewhere.
pub fn judge(spec: &EvalSpec, completion: &str, reference: &Value) -> Judged {
    let references = match texts(reference) {
        Ok(references) => references,
        Err(reason) => return Judged::unjudged(reason),
    };
    let answer = extract::answer(spec.extract, spec.pattern.as_ref(), completion);
    // A reference that is none shows also where there is no answer to compare it with.
    let score = score(spec, answer.as_deref().unwrap_or_default(), &references, reference);
    match score {
        Err(reason) => Judged::unjudged(reason),
        Ok(score) => {
            let vote = answer.as_deref().and_then(|answer| vote(spec, answer));
            let score = Some(if answer.is_some() { score } else { 0.0 });
            Judged { verdict: Verdict { score, answer, reason: None }, vote }
        }
    }
}

/// The references as texts: one, or a list of which each will do.
fn texts(reference: &Value) -> Result<Vec<String>, String> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        Value::Null => Err("the reference is null".to_owned()),
        _ => Err("the reference is neither a text nor a list of texts".to_owned()),
    };
    match reference {
        Value::Array(values) if values.is_empty() => Err("the reference is an empty list".into()),
        Value::Array(values) => values.iter().map(text).collect(),
        value => text(value).map(|text| vec![text]),
    }
}

fn vote(spec: &EvalSpec, answer: &str) -> Option<String> {
    match spec.scorer {
        Scorer::Number => Number::answer_in(answer).map(|number| number.text),
        Scorer::Math => Some(normalise::formula(answer)),
        _ => Some(normalise::text(answer, &spec.normalise)),
    }
}

fn score(
    spec: &EvalSpec,
    answer: &str,
    references: &[String],
    reference: &Value,
) -> Result<f64, String> {
    let plain = |text: &str| normalise::text(text, &spec.normalise);
    let given = plain(answer);
    let right = match spec.scorer {
        Scorer::Exact => references.iter().any(|text| plain(text) == given),
        Scorer::Contains => references.iter().any(|text| given.contains(&plain(text))),
        Scorer::Regex => any_matches(references, answer)?,
        Scorer::Number => is_number(answer, references)?,
        Scorer::Math => is_formula(answer, references),
        Scorer::Choice => {
            let right = option_of(reference, &[]);
            let right = right.ok_or("the reference names no choice")?;
            option_of(&Value::String(answer.into()), &[]) == Some(right)
        }
        Scorer::Needle => return Ok(recall(&given, references, &plain)),
        Scorer::Likelihood | Scorer::Command => {
            return Err(format!("{} does not look at texts", spec.scorer.as_str()));
        }
    };
    Ok(f64::from(u8::from(right)))
}

fn any_matches(references: &[String], answer: &str) -> Result<bool, String> {
    for reference in references {
        let pattern =
            Regex::new(reference).map_err(|_| "the reference is no regular expression")?;
        if pattern.is_match(answer) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_number(answer: &str, references: &[String]) -> Result<bool, String> {
    let numbers = references
        .iter()
        .map(|text| extract::number(text).ok_or_else(|| "the reference has no number".to_owned()));
    let numbers = numbers.collect::<Result<Vec<Number>, String>>()?;
    let given = Number::answer_in(answer);
    Ok(given.is_some_and(|given| numbers.iter().any(|number| number.is(&given))))
}

/// References of MATH are whole solutions with their answer in a box.
fn is_formula(answer: &str, references: &[String]) -> bool {
    let given = normalise::formula(answer);
    let of = |text: &String| normalise::formula(&extract::boxed(text).unwrap_or(text.clone()));
    references.iter().any(|text| of(text) == given)
}

/// The share of references that stand in a text with no letter or digit of their own next to them.
fn recall(given: &str, references: &[String], plain: &impl Fn(&str) -> String) -> f64 {
    let found = references.iter().filter(|needle| stands_in(given, &plain(needle))).count();
    found as f64 / references.len() as f64
}

fn stands_in(text: &str, needle: &str) -> bool {
    let glued = |next: Option<char>, edge: Option<char>| {
        edge.is_some_and(char::is_alphanumeric) && next.is_some_and(|c| c.is_ascii_alphanumeric())
    };
    !needle.is_empty()
        && text.match_indices(needle).any(|(at, found)| {
            let before = text[..at].chars().next_back();
            let after = text[at + found.len()..].chars().next();
            !glued(before, needle.chars().next()) && !glued(after, needle.chars().next_back())
        })
}

impl Scorer {
    /// Where answers are unless a job says otherwise.
    pub fn usual_extract(self) -> Extract {
        match self {
            Self::Number => Extract::Number,
            Self::Math => Extract::Boxed,
            Self::Choice => Extract::Choice,
            Self::Command => Extract::Code,
            _ => Extract::Whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::eval::tests::spec;

    fn judged(scorer: Scorer, completion: &str, reference: Value) -> Result<f64, String> {
        let Judged { verdict, .. } = judge(&spec(scorer), completion, &reference);
        verdict.score.ok_or(verdict.reason.unwrap_or_default())
    }

    #[test]
    fn each_scorer_tells_right_from_wrong() {
        for (scorer, completion, reference, right) in [
            (Scorer::Exact, " Paris\n", json!("Paris"), 1.0),
            (Scorer::Exact, "paris", json!("Paris"), 0.0),
            (Scorer::Exact, "b", json!(["a", "b"]), 1.0),
            (Scorer::Exact, "7", json!(7), 1.0),
            (Scorer::Contains, "It is in Paris.", json!("Paris"), 1.0),
            (Scorer::Contains, "It is in Rome.", json!(["Oslo", "Rome"]), 1.0),
            (Scorer::Contains, "It is in Rome.", json!("Paris"), 0.0),
            (Scorer::Regex, "colour", json!("^colou?r$"), 1.0),
            (Scorer::Regex, "colours", json!("^colou?r$"), 0.0),
            (Scorer::Number, "so 1,234 in all", json!("9 + 1 = 10\n#### 1234"), 1.0),
            (Scorer::Number, "0.5", json!("1/2"), 1.0),
            (Scorer::Number, "no idea", json!(5), 0.0),
            (Scorer::Math, r"Thus $\boxed{0.5}$", json!(r"So $\boxed{\frac{1}{2}}$."), 1.0),
            (Scorer::Math, r"\boxed{(1,2)}", json!(r"\boxed{(2,1)}"), 0.0),
            (Scorer::Math, "The answer is 5.", json!(r"\boxed{5}"), 1.0),
            (Scorer::Choice, "The answer is (B).", json!("B"), 1.0),
            (Scorer::Choice, "B", json!(1), 1.0),
            (Scorer::Choice, "C.", json!("(B)"), 0.0),
            (Scorer::Needle, "The code is 4821.", json!("4821"), 1.0),
            (Scorer::Needle, "The code is 14821.", json!("4821"), 0.0),
            (Scorer::Needle, "4821 and 7", json!(["4821", "99"]), 0.5),
            (Scorer::Needle, "代码是4821。", json!("4821"), 1.0),
        ] {
            assert_eq!(
                judged(scorer, completion, reference.clone()),
                Ok(right),
                "{scorer:?} {completion:?} {reference}"
            );
        }
    }

    #[test]
    fn a_reference_that_is_none_gives_no_score_but_a_reason() {
        for (scorer, reference, reason) in [
            (Scorer::Exact, json!(null), "null"),
            (Scorer::Exact, json!([]), "empty list"),
            (Scorer::Exact, json!({ "a": 1 }), "neither"),
            (Scorer::Regex, json!("("), "no regular expression"),
            (Scorer::Number, json!("none"), "no number"),
            (Scorer::Choice, json!("Paris"), "no choice"),
        ] {
            let found = judged(scorer, "B 5", reference.clone()).unwrap_err();
            assert!(found.contains(reason), "{scorer:?} {reference}: {found}");
        }
    }
}
