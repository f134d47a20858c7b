//! Word problems in the style of GSM8K: worked lines, then `#### ` and the number.

use crate::Task;
use crate::random::Random;
use crate::words::{NAMES, NOUNS};

/// What a story tells, what it asks, and the way to the answer.
struct Story {
    question: String,
    worked: String,
    result: usize,
    key: String,
}

pub(crate) fn task(random: &mut Random) -> Task {
    let story = story(random);
    let answer = format!("{}\n#### {}", story.worked, story.result);
    Task { reference: story.result.to_string(), ..Task::new(story.question, answer, story.key) }
}

fn story(random: &mut Random) -> Story {
    let kind = random.below(10);
    let who = random.pick(NAMES);
    let other = loop {
        let other = random.pick(NAMES);
        if other != who {
            break other;
        }
    };
    let things = loop {
        let noun = random.pick(NOUNS);
        // The plurals of these would need more than an s.
        if !noun.ends_with('y') && !noun.ends_with("sh") {
            break format!("{noun}s");
        }
    };
    let (a, b, c) = (random.between(2, 99), random.between(2, 99), random.between(2, 99));
    let (small, few) = (random.between(2, 12), random.between(2, 12));
    let (question, worked, result, numbers) = match kind {
        0 => (
            format!(
                "{who} has {a} {things}. {who} buys {b} more. How many {things} does {who} have now?"
            ),
            format!("{a} + {b} = {}", a + b),
            a + b,
            vec![a, b],
        ),
        1 => {
            let c = 1 + c % (a + b - 1);
            (
                format!(
                    "{who} has {a} {things}, finds {b} more and gives {c} to {other}. How many {things} are left?"
                ),
                format!("{a} + {b} = {}\n{} - {c} = {}", a + b, a + b, a + b - c),
                a + b - c,
                vec![a, b, c],
            )
        }
        2 => (
            format!(
                "There are {small} boxes with {few} {things} each. How many {things} are there?"
            ),
            format!("{small} * {few} = {}", small * few),
            small * few,
            vec![small, few],
        ),
        3 => (
            format!(
                "{who} fills {small} bags with {few} {things} each and has {a} {things} left over. How many {things} does {who} have?"
            ),
            format!(
                "{small} * {few} = {}\n{} + {a} = {}",
                small * few,
                small * few,
                small * few + a
            ),
            small * few + a,
            vec![small, few, a],
        ),
        4 => (
            format!(
                "{who} has {a} {things}. {other} has {b} more than {who}. How many {things} do they have together?"
            ),
            format!("{a} + {b} = {}\n{a} + {} = {}", a + b, a + b, a + a + b),
            a + a + b,
            vec![a, b],
        ),
        5 => {
            let paid = small * few + c;
            (
                format!(
                    "{things} cost {small} coins each. {who} buys {few} and pays with {paid} coins. How many coins does {who} get back?"
                ),
                format!("{small} * {few} = {}\n{paid} - {} = {c}", small * few, small * few),
                c,
                vec![small, few, paid],
            )
        }
        6 => (
            format!(
                "{who} shares {} {things} among {few} friends. How many does each get?",
                small * few
            ),
            format!("{} / {few} = {small}", small * few),
            small,
            vec![small * few, few],
        ),
        7 => {
            let pages = small * few + c;
            (
                format!(
                    "{who} reads {small} pages a day for {few} days. The book has {pages} pages. How many pages are left?"
                ),
                format!("{small} * {few} = {}\n{pages} - {} = {c}", small * few, small * few),
                c,
                vec![small, few, pages],
            )
        }
        8 => (
            format!(
                "{who} has {a} {things}. {other} has twice as many. How many {things} do they have together?"
            ),
            format!("{a} * 2 = {}\n{a} + {} = {}", a * 2, a * 2, a * 3),
            a * 3,
            vec![a],
        ),
        _ => {
            let (most, least) = (a.max(b), a.min(b));
            (
                format!(
                    "{who} counted {most} {things} and {other} counted {least}. How many more did {who} count?"
                ),
                format!("{most} - {least} = {}", most - least),
                most - least,
                vec![most, least],
            )
        }
    };
    Story { question, worked, result, key: format!("{kind} {numbers:?}") }
}
