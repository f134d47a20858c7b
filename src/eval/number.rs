//! Numbers in text: found, read and compared.

use std::sync::LazyLock;

use regex::Regex;

/// A number as people write it: sign, currency, thousands in groups, decimals, a fraction or an exponent.
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    let whole = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)";
    let pattern = format!(
        r"(?x) (?P<sign>[-−–+]?) \s?[$€£¥]?[-−]?
           (?: (?P<mixed>\d+)\s+(?P<part>\d+)/(?P<of>[1-9]\d*)
             | (?P<number>{whole}) (?: (?P<exponent>[eE][-+]?\d{{1,3}}\b) | \s?/\s?(?P<below>{whole}) )? )"
    );
    Regex::new(&pattern).expect("the pattern is valid")
});

static LATEX_FRACTION: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"\\[dtc]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}";
    Regex::new(pattern).expect("the pattern is valid")
});

/// A number with the form in which equal numbers are equal texts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Number {
    /// Its value, as near as 64 bits come.
    pub(super) value: f64,
    /// Digits of a whole number, else the value in the fewest digits.
    pub(super) text: String,
}

impl Number {
    /// The last number of a text; with `####` in it, the first behind the last `####`.
    pub(super) fn answer_in(text: &str) -> Option<Self> {
        match text.rsplit_once("####") {
            Some((_, behind)) => Self::all_in(behind).into_iter().next(),
            None => Self::all_in(text).pop(),
        }
    }

    /// Every number of a text, in order.
    pub(super) fn all_in(text: &str) -> Vec<Self> {
        let plain = text.replace("{,}", ",").replace("\\$", "$").replace("\\!", "");
        let plain = LATEX_FRACTION.replace_all(&plain, "$1/$2");
        let read = |found: regex::Captures| {
            let start = found.get(0).map_or(0, |whole| whole.start());
            let before = plain[..start].chars().next_back();
            // In "10-20" and "x-3" the stroke is no sign.
            let may_sign = !before.is_some_and(|c| c.is_alphanumeric() || c == ')' || c == '}');
            let written = &found[0];
            let negative = may_sign && written.contains(['-', '−', '–']) && !exponent_only(written);
            Self::read(&found, negative)
        };
        NUMBER.captures_iter(&plain).filter_map(read).collect()
    }

    fn read(found: &regex::Captures, negative: bool) -> Option<Self> {
        let sign = if negative { -1.0 } else { 1.0 };
        let digits = |name: &str| found.name(name).map(|m| m.as_str().replace(',', ""));
        let value = |name: &str| digits(name).and_then(|text| text.parse::<f64>().ok());
        if let (Some(whole), Some(part), Some(of)) = (value("mixed"), value("part"), value("of")) {
            return Some(Self::of(sign * (whole + part / of)));
        }
        let text = digits("number")?;
        let number: f64 = text.parse().ok()?;
        if let Some(below) = value("below").filter(|below| *below != 0.0) {
            return Some(Self::of(sign * number / below));
        }
        if let Some(exponent) = digits("exponent") {
            return format!("{text}{exponent}").parse().ok().map(|x: f64| Self::of(sign * x));
        }
        // Whole numbers of any length stay exact.
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let digits = text.trim_start_matches('0');
            let digits = if digits.is_empty() { "0" } else { digits };
            let minus = if negative && digits != "0" { "-" } else { "" };
            return Some(Self { value: sign * number, text: format!("{minus}{digits}") });
        }
        Some(Self::of(sign * number))
    }

    fn of(value: f64) -> Self {
        // Fractions that are equal as people reckon differ in their last bits.
        let rounded: f64 = format!("{value:.11e}").parse().unwrap_or(value);
        let rounded = if rounded == 0.0 { 0.0 } else { rounded };
        Self { value, text: rounded.to_string() }
    }

    /// Whether two numbers are the same.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// Whether the only stroke of a number is its exponent's.
fn exponent_only(written: &str) -> bool {
    let strokes = written.matches(['-', '−', '–']).count();
    strokes == 1 && (written.contains("e-") || written.contains("E-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        for (text, expected) in [
            ("42", "42"),
            ("-42", "-42"),
            ("−7 degrees", "-7"),
            ("$1,234.50", "1234.5"),
            ("-$5", "-5"),
            ("$-5", "-5"),
            ("€ 3", "3"),
            ("1,000,000 people", "1000000"),
            ("007", "7"),
            ("3.0", "3"),
            (".5", "0.5"),
            ("3/4", "0.75"),
            ("1 1/2 cups", "1.5"),
            (r"\frac{1}{3}", "0.333333333333"),
            (r"-\dfrac{1}{2}", "-0.5"),
            (r"10{,}000", "10000"),
            ("50%", "50"),
            ("2e3", "2000"),
            ("1.5e-3", "0.0015"),
            ("-0", "0"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("10-20", "20"),
            ("x-3", "3"),
            ("46 - 17 = 29.", "29"),
            ("it is 5.", "5"),
            ("1, 2", "2"),
        ] {
            let found = Number::answer_in(text).map(|number| number.text);
            assert_eq!(found.as_deref(), Some(expected), "{text}");
        }
        assert_eq!(Number::answer_in("none at all"), None);
    }

    #[test]
    fn four_strokes_tell_where_the_answer_is() {
        for (text, expected) in [
            ("12 + 3 = 15\n#### 15", Some("15")),
            ("#### 1\nNo: #### $1,200 for 3 days", Some("1200")),
            ("48/2 = 24. So 72 in all", Some("72")),
            ("5 apples ####", None),
        ] {
            let found = Number::answer_in(text).map(|number| number.text);
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
