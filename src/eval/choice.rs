//! Multiple choice: which option a reference means, and which continuation a model prefers.

use serde_json::Value;

use super::Length;

/// A continuation with the log-probabilities of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    /// Its text.
    pub text: String,
    /// Natural-log probability of each token.
    pub logprobs: Vec<f32>,
}

impl Continuation {
    /// The log-probability of the whole, divided by its length if it shall be.
    pub fn weight(&self, length: Length) -> f64 {
        let sum: f64 = self.logprobs.iter().map(|&logprob| f64::from(logprob)).sum();
        match length {
            Length::None => sum,
            Length::Tokens => sum / self.logprobs.len().max(1) as f64,
            Length::Bytes => sum / self.text.trim().len().max(1) as f64,
        }
    }
}

/// The index of the most probable of some weights, the first of equals.
pub(super) fn most_probable(weights: impl Iterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, weight) in weights.enumerate() {
        if best.is_none_or(|(_, most)| weight > most) {
            best = Some((index, weight));
        }
    }
    best.map(|(index, _)| index)
}

/// Which option a reference means: a number counts from 0, a text is an option's own text or its letter,
/// also as "(B)".
pub(super) fn option_of(reference: &Value, options: &[&str]) -> Option<usize> {
    let text = match reference {
        Value::Number(index) => return index.as_u64().map(|index| index as usize),
        Value::String(text) => text.trim(),
        _ => return None,
    };
    if let Some(index) = options.iter().position(|option| option.trim() == text) {
        return Some(index);
    }
    let bare = text.trim_matches(['(', ')', '[', ']', '.', ' ', '（', '）']);
    let mut characters = bare.chars();
    match (characters.next(), characters.next()) {
        (Some(letter), None) if letter.is_ascii_alphabetic() => {
            Some((letter.to_ascii_uppercase() as u8 - b'A').into())
        }
        _ => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_reference_is_an_index_a_letter_or_the_text_itself() {
        for (reference, options, expected) in [
            (json!(2), &[][..], Some(2)),
            (json!("C"), &[], Some(2)),
            (json!("(c)"), &[], Some(2)),
            (json!("3"), &[" 7", " 3"], Some(1)),
            (json!("3"), &[" A", " B"], Some(3)),
            (json!("B"), &[" A", " B"], Some(1)),
            (json!("Paris"), &["Rome", "Paris"], Some(1)),
            (json!("Oslo"), &["Rome", "Paris"], None),
            (json!(null), &[], None),
            (json!(-1), &[], None),
        ] {
            assert_eq!(option_of(&reference, options), expected, "{reference}");
        }
    }

    #[test]
    fn long_continuations_are_not_at_a_disadvantage_if_length_counts() {
        let of = |text: &str, logprobs: &[f32]| Continuation {
            text: text.into(),
            logprobs: logprobs.into(),
        };
        let all = [of(" yes", &[-1.0]), of(" certainly not", &[-0.8, -0.8])];
        let best = |length| most_probable(all.iter().map(|c| c.weight(length)));
        assert_eq!(best(Length::None), Some(0));
        assert_eq!(best(Length::Tokens), Some(1));
        assert_eq!(best(Length::Bytes), Some(1));
        assert_eq!(most_probable([-1.0, -1.0].into_iter()), Some(0));
    }
}
