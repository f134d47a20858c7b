//! Needles: a code is told somewhere in a long text of unrelated sentences and asked for at its end.

use crate::Task;
use crate::random::Random;
use crate::words::{CITIES, COLOURS, NAMES, NOUNS};

/// Tokens of one sentence of the filler, about.
const SENTENCE_TOKENS: usize = 9;

pub(crate) fn task(random: &mut Random, longest: usize) -> Task {
    let sentences = length(random, longest) / SENTENCE_TOKENS;
    let mut things: Vec<&str> = NOUNS.to_vec();
    random.shuffle(&mut things);
    let codes: Vec<(&str, usize)> = things
        .iter()
        .take(random.between(1, 5))
        .map(|thing| (*thing, random.between(1000, 9999)))
        .collect();
    let mut text: Vec<String> = (0..sentences).map(|_| filler(random)).collect();
    for (thing, code) in &codes {
        text.insert(random.below(text.len() + 1), needle(thing, *code));
    }
    let (thing, code) = codes[0];
    Task {
        question: format!("{} What is the code for {thing}?", text.join(" ")),
        answer: needle(thing, code),
        reference: code.to_string(),
        key: format!("{thing} {code}"),
    }
}

/// Short texts are the most, long ones come often enough.
fn length(random: &mut Random, longest: usize) -> usize {
    let mut limit = longest;
    while limit > 64 && random.chance(70) {
        limit /= 2;
    }
    random.between(limit / 2, limit)
}

fn needle(thing: &str, code: usize) -> String {
    format!("The code for {thing} is {code}.")
}

fn filler(random: &mut Random) -> String {
    let (name, city) = (random.pick(NAMES), random.pick(CITIES));
    let (thing, colour) = (random.pick(NOUNS), random.pick(COLOURS));
    match random.below(6) {
        0 => format!("{name} bought a {colour} {thing} in {city}."),
        1 => format!("The {thing} in {city} is {colour}."),
        2 => format!("{name} likes the {colour} {thing}."),
        3 => format!("There is a {thing} near {city}."),
        4 => format!("{name} lost {} of them in {city}.", random.between(2, 99)),
        _ => format!("In {city} {name} saw a {thing}."),
    }
}
