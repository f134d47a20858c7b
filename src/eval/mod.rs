//! Completions to scores: where an answer is, whether it is right, what many of them amount to.
//!
//! Takes completions, references and log-probabilities as plain values and gives verdicts, estimates with
//! confidence intervals, and pictures of them. Pure, but for [`sandbox`], which runs a user's own command.
//! Knows neither jobs nor files: [`pipeline`](crate::pipeline) brings the rows and stores what comes of them.

mod choice;
mod extract;
mod haystack;
mod heat_map;
mod judge;
mod normalise;
mod number;
mod report;
mod samples;
pub mod sandbox;
pub mod statistics;

use regex::Regex;
use serde::Deserialize;

pub use choice::Continuation;
pub use haystack::{CountTokens, Grid, Haystack, NeedleText, NiahRow};
pub use heat_map::heat_map;
pub use judge::{Judged, Verdict, code_of, judge};
pub use report::{Cell, EvalReport, GroupEstimate, MeasureReport, RowPlace, Tables};
pub use samples::{Sample, ScoredRow, score_continuations, score_samples};

/// How a job's completions are scored.
#[derive(Clone, Debug)]
pub struct EvalSpec {
    /// What makes an answer right.
    pub scorer: Scorer,
    /// The column with the right answer; commands may do without.
    pub reference: Option<String>,
    /// Where the answer is in a completion.
    pub extract: Extract,
    /// A pattern that finds the answer before `extract` looks at it.
    pub pattern: Option<Regex>,
    /// What texts may differ in.
    pub normalise: Vec<Normalisation>,
    /// What the log-probability of a continuation is divided by.
    pub length: Length,
    /// The column that groups rows.
    pub group: Option<String>,
    /// The columns of a heat map: across and down.
    pub heat_map: Option<[String; 2]>,
    /// What is reported; the first is the main one.
    pub measures: Vec<Measure>,
    /// How programs are run.
    pub command: Option<CommandSpec>,
}

macro_rules! named {
    ($(#[doc = $what:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $variant:ident => $text:literal,)+ }) => {
        $(#[doc = $what])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// Its name in job files.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

named! {
    /// What makes an answer right.
    Scorer {
        /// It is the reference, or one of them if it is a list.
        Exact => "exact",
        /// The reference, or one of them, is somewhere in it.
        Contains => "contains",
        /// The reference is a regular expression that matches somewhere in it.
        Regex => "regex",
        /// It is the same number.
        Number => "number",
        /// It is the same formula, by the rules of MATH.
        Math => "math",
        /// It is the same letter.
        Choice => "choice",
        /// Of the row's continuations the right one has the highest log-probability.
        Likelihood => "likelihood",
        /// The share of references that stand in it as whole words: recall of needles in a haystack.
        Needle => "needle",
        /// A command ends with 0 for the program made of it.
        Command => "command",
    }
}

named! {
    /// Where the answer is in a completion.
    Extract {
        /// All of it.
        Whole => "whole",
        /// The first line with text.
        FirstLine => "first_line",
        /// The last line with text.
        LastLine => "last_line",
        /// Behind the last `####`, `answer is`, ` is ` or ` = ` of the last line; all of it without those.
        Final => "final",
        /// A number: behind `####`, in `\boxed{}`, or the last one.
        Number => "number",
        /// In the last `\boxed{}`; as `final` without one.
        Boxed => "boxed",
        /// The letter of a choice.
        Choice => "choice",
        /// The last fenced block of code; all of it without one.
        Code => "code",
    }
}

named! {
    /// A difference between texts that does not count.
    Normalisation {
        /// Upper and lower case.
        Case => "case",
        /// Characters that are neither letters, digits nor white space.
        Punctuation => "punctuation",
        /// The words a, an and the.
        Articles => "articles",
        /// How much white space there is.
        Whitespace => "whitespace",
    }
}

named! {
    /// What the log-probability of a continuation is divided by.
    Length {
        /// Nothing.
        None => "none",
        /// Its tokens.
        Tokens => "tokens",
        /// Its bytes.
        Bytes => "bytes",
    }
}

/// What is made of a row's samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Their mean score.
    Accuracy,
    /// The score of the answer that most of them give, the earliest of equals.
    Majority,
    /// The score of the sample with the highest mean log-probability.
    BestLogprob,
    /// The highest score.
    BestScore,
    /// The chance that one of k drawn from them is right: 1 − C(n−c, k) / C(n, k).
    PassAt(u32),
}

impl Measure {
    /// Reads its name in a job file.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "accuracy" => Self::Accuracy,
            "majority" => Self::Majority,
            "best_logprob" => Self::BestLogprob,
            "best_score" => Self::BestScore,
            _ => Self::PassAt(text.strip_prefix("pass@")?.parse().ok().filter(|k| *k > 0)?),
        })
    }

    /// Its name in job files and reports.
    pub fn name(self) -> String {
        match self {
            Self::Accuracy => "accuracy".into(),
            Self::Majority => "majority".into(),
            Self::BestLogprob => "best_logprob".into(),
            Self::BestScore => "best_score".into(),
            Self::PassAt(k) => format!("pass@{k}"),
        }
    }
}

/// How programs are run.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandSpec {
    /// The command with its arguments; `{file}` in one of them is the program's file, else it is stdin.
    pub command: Vec<String>,
    /// Template of the program over the row's columns, `completion` and `code`.
    pub program: String,
    /// The file's name.
    pub file: String,
    /// What the process may take.
    pub limits: sandbox::ProcessLimits,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A scorer with its usual settings.
    pub(super) fn spec(scorer: Scorer) -> EvalSpec {
        EvalSpec {
            scorer,
            reference: Some("answer".into()),
            extract: scorer.usual_extract(),
            pattern: None,
            normalise: Vec::new(),
            length: Length::None,
            group: None,
            heat_map: None,
            measures: vec![Measure::Accuracy],
            command: None,
        }
    }

    proptest! {
        /// Completions and references are data: whatever they are, they get a score or a reason.
        #[test]
        fn any_text_is_judged(
            completion in "(?s)(\\\\boxed|\\\\frac|####|answer is|[-0-9,./{}()$ ]|.){0,24}",
            reference in "(?s)([-0-9,./{}()$ ]|.){0,12}",
        ) {
            use Extract::*;
            for scorer in ["exact", "contains", "regex", "number", "math", "choice", "needle"] {
                let scorer: Scorer = serde_json::from_value(scorer.into()).unwrap();
                for extract in [Whole, FirstLine, LastLine, Final, Number, Boxed, Choice, Code] {
                    let spec = EvalSpec { extract, ..spec(scorer) };
                    let Judged { verdict, .. } = judge(&spec, &completion, &reference.as_str().into());
                    prop_assert!(verdict.score.is_some() != verdict.reason.is_some(), "{verdict:?}");
                }
            }
        }

        /// A text is its own answer.
        #[test]
        fn the_reference_itself_is_right(text in "[a-z0-9 ]{0,6}[a-z0-9]") {
            for scorer in [Scorer::Exact, Scorer::Contains, Scorer::Math, Scorer::Needle] {
                let spec = EvalSpec { extract: Extract::Whole, ..spec(scorer) };
                let verdict = judge(&spec, &text, &text.as_str().into()).verdict;
                prop_assert_eq!(verdict.score, Some(1.0), "{:?}", scorer);
            }
        }
    }

    #[test]
    fn measures_are_known_by_their_names() {
        for name in ["accuracy", "majority", "best_logprob", "best_score", "pass@1", "pass@100"] {
            assert_eq!(Measure::parse(name).map(Measure::name).as_deref(), Some(name));
        }
        for name in ["pass@0", "pass@", "pass", "mean", "pass@-1"] {
            assert_eq!(Measure::parse(name), None, "{name}");
        }
    }
}
