//! Where the answer is in a completion. Nothing found is no answer, which is wrong, not an error.

use std::sync::LazyLock;

use regex::Regex;

use super::Extract;
use super::number::Number;

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the patterns of this file are valid")
}

/// Markers of a final answer, the surest first.
static FINAL: LazyLock<[Regex; 3]> = LazyLock::new(|| {
    [
        pattern(r"####"),
        pattern(r"(?i)\banswer\s+is\b\s*:?|\banswer\s*:|答案(?:是|为|:|：)+"),
        pattern(r"(?i)\s(?:is|=)\s"),
    ]
});

/// Letters behind words that announce an answer.
static ANNOUNCED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?:(?i:answer|choice|option)(?i:\s+is)?|答案|选项?|应选|故选)\s*(?:是|为)?\s*[:：]?\s*(?:\\boxed\{)?[*(（\[\s]*([A-Z])(?-u:\b)",
    )
});
static BOXED_LETTER: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\\boxed\{\s*(?:\\text\{)?\s*\(?([A-Z])(?-u:\b)"));
static LEADING: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^[\s*(（\[]*([A-Z])(?:[*)）\].:：,，、]|\s*(?:\n|$))"));
static BRACKETED: LazyLock<Regex> = LazyLock::new(|| pattern(r"[(（\[]([A-Z])[)）\]]"));
static ALONE: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?:^|\s)([A-Z])[.。]?\s*$"));

/// The answer of a completion. `own` is the job's own pattern, which comes before everything else: its
/// last match, or of it the first group.
pub(super) fn answer(extract: Extract, own: Option<&Regex>, completion: &str) -> Option<String> {
    let text = match own {
        None => completion.to_owned(),
        Some(own) => last(own, completion)?,
    };
    match extract {
        Extract::Whole => Some(text),
        Extract::FirstLine => lines(&text).next().map(str::to_owned),
        Extract::LastLine => lines(&text).next_back().map(str::to_owned),
        Extract::Final => Some(final_part(&text).to_owned()),
        Extract::Number => number(&text).map(|number| number.text),
        Extract::Boxed => boxed(&text).or_else(|| Some(final_part(&text).to_owned())),
        Extract::Choice => letter(&text).map(String::from),
        Extract::Code => Some(code(&text)),
    }
}

fn last(own: &Regex, text: &str) -> Option<String> {
    let found = own.captures_iter(text).last()?;
    found.get(1).or_else(|| found.get(0)).map(|found| found.as_str().to_owned())
}

fn lines(text: &str) -> impl DoubleEndedIterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

/// What stands behind the last marker of the last line, without its full stop; without any marker the
/// whole text.
fn final_part(text: &str) -> &str {
    let line = lines(text).next_back().unwrap_or_default();
    let behind = |marker: &Regex| {
        let found = marker.find_iter(line).last()?;
        Some(line[found.end()..].trim()).filter(|rest| !rest.is_empty())
    };
    let part = FINAL.iter().find_map(behind).unwrap_or_else(|| text.trim());
    let part = part.strip_suffix(['.', '。']).unwrap_or(part);
    part.trim_matches('*').trim()
}

/// A number: behind `####`, in `\boxed{}`, or the last of the text.
pub(super) fn number(text: &str) -> Option<Number> {
    match boxed(text).filter(|_| !text.contains("####")) {
        Some(inside) => Number::answer_in(&inside).or_else(|| Number::answer_in(text)),
        None => Number::answer_in(text),
    }
}

/// What the last `\boxed{…}` (or `\fbox{…}`) holds, braces in it balanced.
pub(super) fn boxed(text: &str) -> Option<String> {
    let (at, command) = ["\\boxed", "\\fbox"]
        .iter()
        .filter_map(|command| text.rfind(command).map(|at| (at, *command)))
        .max()?;
    let rest = text[at + command.len()..].trim_start();
    let Some(inside) = rest.strip_prefix('{') else {
        // "\boxed 5$": up to the end of the formula.
        let end = rest.find(['$', '\n', ' ']).unwrap_or(rest.len());
        return Some(rest[..end].trim().to_owned()).filter(|found| !found.is_empty());
    };
    let mut depth = 1;
    for (index, character) in inside.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(inside[..index].trim().to_owned());
        }
    }
    None
}

/// The letter of a choice: announced, boxed, at the beginning, in brackets, or alone at the end.
fn letter(text: &str) -> Option<char> {
    let of = |found: regex::Captures| found[1].chars().next();
    let last = |pattern: &Regex| pattern.captures_iter(text).last().and_then(of);
    last(&ANNOUNCED)
        .or_else(|| last(&BOXED_LETTER))
        .or_else(|| last(&LEADING))
        .or_else(|| last(&BRACKETED))
        .or_else(|| last(&ALONE))
}

/// The last fenced block, also one that nothing closes; the whole text where there is none.
fn code(text: &str) -> String {
    let mut block: Option<Vec<&str>> = None;
    let mut latest = None;
    for line in text.lines() {
        match (line.trim_start().starts_with("```"), &mut block) {
            (true, None) => block = Some(Vec::new()),
            (true, Some(_)) => latest = block.take(),
            (false, Some(lines)) => lines.push(line),
            (false, None) => {}
        }
    }
    let open = block.filter(|lines| latest.is_none() || !lines.is_empty());
    open.or(latest).map_or_else(|| text.to_owned(), |lines| lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(extract: Extract, text: &str) -> Option<String> {
        answer(extract, None, text)
    }

    #[test]
    fn a_final_answer_stands_behind_its_last_marker() {
        for (text, expected) in [
            ("17 + 29 = 46", "46"),
            ("The code for apple is 4821.", "4821"),
            ("3 + 4 = 7\n7 - 2 = 5\n#### 5", "5"),
            ("So the answer is (A).", "(A)"),
            ("Let's think.\nSo the answer is valid. ", "valid"),
            ("The answer is: True", "True"),
            ("答案是：B。", "B"),
            ("4, 7, 9", "4, 7, 9"),
            ("river stone\nlamp", "river stone\nlamp"),
            (r#"{"name": "Mia", "age": 9}"#, r#"{"name": "Mia", "age": 9}"#),
            ("the answer is", "the answer is"),
            ("**Answer:** 12", "12"),
            ("", ""),
        ] {
            assert_eq!(found(Extract::Final, text).as_deref(), Some(expected), "{text}");
        }
        // What merely ends like the answer is another answer.
        assert_ne!(found(Extract::Final, "1, 4, 7, 9").as_deref(), Some("4, 7, 9"));
        assert_eq!(found(Extract::Final, "17 + 29 = 146").as_deref(), Some("146"));
    }

    #[test]
    fn a_box_is_read_to_its_own_brace() {
        for (text, expected) in [
            (r"so $\boxed{\frac{1}{2}}$.", Some(r"\frac{1}{2}")),
            (r"\boxed{3} no, \boxed{ 4 }", Some("4")),
            (r"\fbox{x}", Some("x")),
            (r"$\boxed 7$", Some("7")),
            (r"\boxed{never closed", None),
            ("none", None),
        ] {
            assert_eq!(boxed(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn numbers_come_from_strokes_boxes_or_the_end() {
        for (text, expected) in [
            (r"It is \boxed{12} for 3 people", "12"),
            (r"\boxed{12} #### 13", "13"),
            ("first 1 then 2", "2"),
            (r"\boxed{x} and 5", "5"),
        ] {
            assert_eq!(found(Extract::Number, text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn letters_are_found_where_models_put_them() {
        for (text, expected) in [
            ("B", Some("B")),
            (" (C) because", Some("C")),
            ("B. Paris", Some("B")),
            ("The answer is (D).", Some("D")),
            ("**Answer: C**", Some("C")),
            ("答案是B", Some("B")),
            ("答案为C项，因为", Some("C")),
            ("答案：D。", Some("D")),
            ("故选 A", Some("A")),
            (r"Thus \boxed{\text{E}}", Some("E")),
            ("I think (A) is wrong and (B) is right", Some("B")),
            ("It must be\nD", Some("D")),
            ("C\nbecause of it", Some("C")),
            ("A bird sings", None),
            ("Answer: it depends", None),
            ("nothing", None),
            ("", None),
        ] {
            assert_eq!(found(Extract::Choice, text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn code_is_the_last_block_or_everything() {
        for (text, expected) in [
            ("x = 1", "x = 1"),
            ("Here:\n```python\na\n  b\n```\nDone", "a\n  b\n"),
            ("```\na\n```\n```py\nb\n```", "b\n"),
            ("```python\ncut of", "cut of\n"),
            ("```\na\n```\n```", "a\n"),
        ] {
            assert_eq!(found(Extract::Code, text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_pattern_of_the_job_comes_first() {
        let own = Regex::new(r"<answer>(.*?)</answer>").unwrap();
        let of = |extract, text| answer(extract, Some(&own), text);
        let text = "<answer>1</answer> <answer>about 25 kg</answer> 7";
        assert_eq!(of(Extract::Whole, text).as_deref(), Some("about 25 kg"));
        assert_eq!(of(Extract::Number, text).as_deref(), Some("25"));
        assert_eq!(of(Extract::Whole, "none"), None);
    }
}
