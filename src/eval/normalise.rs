//! Texts made comparable: what plain answers may differ in, and what formulas may.

use std::sync::LazyLock;

use regex::Regex;

use super::Normalisation;
use super::number::Number;

/// A text without what does not matter; outer white space never does.
pub(super) fn text(text: &str, ways: &[Normalisation]) -> String {
    let has = |way: Normalisation| ways.contains(&way);
    let mut text = text.trim().to_owned();
    if has(Normalisation::Case) {
        text = text.to_lowercase();
    }
    if has(Normalisation::Punctuation) {
        text.retain(|c| c.is_alphanumeric() || c.is_whitespace());
    }
    if has(Normalisation::Articles) {
        let is_article = |word: &&str| ["a", "an", "the"].contains(&word.to_lowercase().as_str());
        text = text.split(' ').filter(|word| !is_article(word)).collect::<Vec<_>>().join(" ");
    }
    if has(Normalisation::Whitespace) {
        text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    text.trim().to_owned()
}

macro_rules! patterns {
    ($($name:ident = $text:literal;)+) => {
        $(static $name: LazyLock<Regex> =
            LazyLock::new(|| Regex::new($text).expect("the pattern is valid"));)+
    };
}

patterns! {
    UNIT = r"\s*\\(?:text|mbox|mathrm)\{\s+[^{}]*\}$";
    WORDS = r"\\(?:text|mbox|mathrm|textbf|mathbf)\{([^{}]*)\}";
    SIZE = r"\\(?:left|right|[bB]igg?[lr]?)(?P<bracket>[\[\](){}|.]|\\[{}|])";
    SPACE = r"\\[!,;: ]|\\quad|\\qquad|~";
    DEGREES = r"\^\{?\\circ\}?|\\degree";
    SHORT_FRACTION = r"\\frac(?P<a>[0-9A-Za-z])(?P<b>[0-9A-Za-z])";
    HALF_FRACTION = r"\\frac\{(?P<a>[^{}]*)\}(?P<b>[0-9A-Za-z])";
    SLASH = r"^(?P<sign>-?)(?P<a>\d+)/(?P<b>\d+)$";
    SHORT_ROOT = r"\\sqrt(?P<a>[0-9A-Za-z])";
    DECIMAL = r"(?P<before>^|[^\d])\.(?P<after>\d)";
    THOUSANDS = r"(?P<a>\d),(?P<b>\d{3})(?P<end>\D|$)";
    PLAIN = r"^-?(?:\d+(?:\.\d+)?|\\frac\{-?[\d.]+\}\{[\d.]+\})$";
}

/// A formula in the form that MATH's graders compare: LaTeX that only shapes it taken away, fractions and
/// roots spelled out, units and a leading `x =` dropped. Plain numbers become their value.
///
/// After the rules of Hendrycks et al., "Measuring Mathematical Problem Solving With the MATH Dataset"
/// (arXiv:2103.03874), and of Lewkowycz et al. (arXiv:2206.14858), appendix D.
pub(super) fn formula(text: &str) -> String {
    let mut text = text.trim().trim_matches('$').trim().to_owned();
    text = text.strip_suffix('.').unwrap_or(&text).to_owned();
    for (from, to) in [
        // A line break of a matrix must not be taken for an escaped space.
        ("\\\\", "\u{0}"),
        ("\n", " "),
        ("\\$", ""),
        ("$", ""),
        ("\\%", ""),
        ("%", ""),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\cdot", "*"),
        ("\\times", "*"),
        ("{,}", ","),
    ] {
        text = text.replace(from, to);
    }
    text = SIZE.replace_all(&text, "$bracket").into_owned();
    text = UNIT.replace(&text, "").into_owned();
    text = WORDS.replace_all(&text, "$1").into_owned();
    text = SPACE.replace_all(&text, "").into_owned();
    text = DEGREES.replace_all(&text, "").into_owned();
    text = DECIMAL.replace_all(&text, "${before}0.$after").into_owned();
    text = without_name(&text).to_owned();
    text.retain(|c| !c.is_whitespace());
    text = HALF_FRACTION.replace_all(&text, "\\frac{$a}{$b}").into_owned();
    text = SHORT_FRACTION.replace_all(&text, "\\frac{$a}{$b}").into_owned();
    text = SHORT_ROOT.replace_all(&text, "\\sqrt{$a}").into_owned();
    text = SLASH.replace(&text, "$sign\\frac{$a}{$b}").into_owned();
    while THOUSANDS.is_match(&text) && !text.contains(['(', '[', '\\']) {
        text = THOUSANDS.replace_all(&text, "$a$b$end").into_owned();
    }
    if PLAIN.is_match(&text.replace("-\\frac", "\\frac")) {
        return Number::answer_in(&text).map_or(text, |number| number.text);
    }
    text
}

/// "x = 5" says 5.
fn without_name(text: &str) -> &str {
    match text.split_once('=') {
        Some((name, value)) if name.trim().chars().count() <= 2 && !value.contains('=') => value,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_takes_one_difference_away() {
        use Normalisation::{Articles, Case, Punctuation, Whitespace};
        for (ways, found) in [
            (&[][..], "The Cat,  sat."),
            (&[Case], "the cat,  sat."),
            (&[Punctuation], "The Cat  sat"),
            (&[Whitespace], "The Cat, sat."),
            (&[Case, Punctuation, Articles, Whitespace], "cat sat"),
        ] {
            assert_eq!(text(" The Cat,  sat. ", ways), found, "{ways:?}");
        }
    }

    #[test]
    fn formulas_that_say_the_same_are_the_same() {
        for (a, b) in [
            (r"\frac{1}{2}", "1/2"),
            (r"\dfrac12", r"\frac{1}{2}"),
            (r"\frac{1}{2}", "0.5"),
            (r"-\frac{3}{4}", "-0.75"),
            (".5", "0.5"),
            (r"x = 5", "5"),
            (r"1{,}234", "1234"),
            ("1,234,567", "1234567"),
            (r"5\text{ cm}", "5"),
            (r"\text{Evelyn}", "Evelyn"),
            (r"30^\circ", "30"),
            (r"30^{\circ}", "30"),
            (r"50\%", "50"),
            (r"\$12.50", "12.5"),
            (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
            (r"\sqrt3", r"\sqrt{3}"),
            (r"2\sqrt{3}", r"2 \sqrt{3}"),
            (r"x^2 + 2x", "x^2+2x"),
            (r"$7$.", "7"),
            (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ] {
            assert_eq!(formula(a), formula(b), "{a} and {b}");
        }
        for (a, b) in [
            ("1/2", "2"),
            ("(1, 234)", "1234"),
            (r"\sqrt{3}", "3"),
            ("x^2", "x2"),
            ("(1,2)", "(2,1)"),
            ("-5", "5"),
        ] {
            assert_ne!(formula(a), formula(b), "{a} and {b}");
        }
    }
}
