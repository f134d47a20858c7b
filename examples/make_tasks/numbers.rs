//! Addition and subtraction of up to three-digit numbers; comparing, sorting and, in training, repeating lists.

use crate::Task;
use crate::random::Random;

/// With `drill` differences, and those below zero, come more often: they are the hard ones.
pub(crate) fn arithmetic(random: &mut Random, drill: bool) -> Task {
    let (a, b) = (random.number(), random.number());
    let (sums, ordered) = if drill { (35, 60) } else { (50, 88) };
    match random.chance(sums) {
        true => sum(a, b, random),
        // The others are as they come, and half of them below zero.
        false if random.chance(ordered) => difference(a.max(b), a.min(b), random),
        false => difference(a, b, random),
    }
}

fn sum(a: usize, b: usize, random: &mut Random) -> Task {
    let question = match random.below(5) {
        0 => format!("What is {a} + {b}?"),
        1 => format!("What is {a} plus {b}?"),
        2 => format!("Add {a} and {b}."),
        3 => format!("Calculate {a} + {b}."),
        _ => format!("What is the sum of {a} and {b}?"),
    };
    let result = a + b;
    let (answer, key) = (format!("{a} + {b} = {result}"), format!("{} + {}", a.min(b), a.max(b)));
    Task { reference: result.to_string(), ..Task::new(question, answer, key) }
}

fn difference(a: usize, b: usize, random: &mut Random) -> Task {
    let question = match random.below(5) {
        0 => format!("What is {a} - {b}?"),
        1 => format!("What is {a} minus {b}?"),
        2 => format!("Subtract {b} from {a}."),
        3 => format!("Calculate {a} - {b}."),
        _ => format!("How much is {a} less {b}?"),
    };
    let result = a as i64 - b as i64;
    let (answer, key) = (format!("{a} - {b} = {result}"), format!("{a} - {b}"));
    Task { reference: result.to_string(), ..Task::new(question, answer, key) }
}

/// Lists have 2 to 6 numbers. With `drill` some are longer, and some are only to be repeated: they teach to keep
/// the digits of a number together.
pub(crate) fn order(random: &mut Random, drill: bool) -> Task {
    match random.below(100) {
        0..20 if drill => repeat(random),
        0..40 => compare(random),
        _ => sort(random, drill),
    }
}

fn repeat(random: &mut Random) -> Task {
    let count = random.between(3, 16);
    let mut numbers = distinct(count, random);
    let question = listed(&numbers);
    let backwards = random.chance(50);
    if backwards {
        numbers.reverse();
    }
    let verb = if backwards { "Reverse" } else { "Repeat" };
    let answer = joined(&numbers);
    let key = format!("{verb} {answer}");
    Task::new(format!("{verb} {question}."), answer, key)
}

/// `count` numbers that all differ; like ones come often, since they are the hard ones.
fn distinct(count: usize, random: &mut Random) -> Vec<usize> {
    let mut numbers: Vec<usize> = Vec::with_capacity(count);
    while numbers.len() < count {
        let number = match numbers.last() {
            Some(&last) if random.chance(30) => (last + random.between(1, 20)).min(999),
            _ => random.number(),
        };
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    random.shuffle(&mut numbers);
    numbers
}

fn compare(random: &mut Random) -> Task {
    let count = random.between(2, 5);
    let numbers = distinct(count, random);
    let larger = random.chance(50);
    let best = if larger { numbers.iter().max() } else { numbers.iter().min() };
    let best = best.expect("at least two numbers").to_string();
    let question = if let [a, b] = numbers[..] {
        let word = if larger { "larger" } else { "smaller" };
        format!("Which is {word}, {a} or {b}?")
    } else {
        let word = if larger { "largest" } else { "smallest" };
        format!("Which is the {word} of {}?", listed(&numbers))
    };
    Task::new(question, best, key("best", &numbers, larger))
}

fn sort(random: &mut Random, drill: bool) -> Task {
    let long = drill && random.chance(25);
    let count = if long { random.between(7, 10) } else { random.between(3, 6) };
    let numbers = distinct(count, random);
    let descending = random.chance(35);
    let mut sorted = numbers.clone();
    sorted.sort_unstable_by(|a, b| if descending { b.cmp(a) } else { a.cmp(b) });
    let question = match (descending, random.below(3)) {
        (true, _) => format!("Sort {} from largest to smallest.", listed(&numbers)),
        (false, 0) => format!("Sort {}.", listed(&numbers)),
        (false, 1) => format!("Sort {} from smallest to largest.", listed(&numbers)),
        (false, _) => format!("Put {} in order.", listed(&numbers)),
    };
    let answer = joined(&sorted);
    Task::new(question, answer, key("sort", &numbers, descending))
}

fn key(kind: &str, numbers: &[usize], down: bool) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    format!("{kind} {down} {}", joined(&sorted))
}

fn joined(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// "9, 4 and 7"
fn listed(numbers: &[usize]) -> String {
    let (last, rest) = numbers.split_last().expect("a list has numbers");
    format!("{} and {last}", joined(rest))
}
