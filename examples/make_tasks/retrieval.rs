//! Needles: codes are told in a long text of unrelated sentences and one is asked for at its end; in training also
//! the others, one after another.

use crate::random::Random;
use crate::words::{CITIES, COLOURS, NAMES, NOUNS};
use crate::{Split, Task, split};

/// Tokens of one sentence of the filler, about.
const SENTENCE_TOKENS: usize = 9;

/// Texts tell 1 to 5 codes and one is asked for. With `drill` there are more, and many are asked for one after
/// another: that teaches to tell codes apart by their things, since a text with one code is answered without.
pub(crate) fn task(random: &mut Random, longest: usize, drill: bool) -> Task {
    let sentences = length(random, longest) / SENTENCE_TOKENS;
    let most = if drill { (sentences / 2).clamp(5, 16) } else { 5 };
    let told = random.between(1, most);
    let mut things: Vec<&str> = NOUNS.to_vec();
    random.shuffle(&mut things);
    let codes: Vec<(&str, usize)> =
        things.iter().take(told).map(|thing| (*thing, random.between(1000, 9999))).collect();
    let filler_sentences = sentences.saturating_sub(told);
    let mut text: Vec<String> = (0..filler_sentences).map(|_| filler(random)).collect();
    for (thing, code) in &codes {
        text.insert(random.below(text.len() + 1), needle(thing, *code));
    }
    let text = text.join(" ");
    let (last, others) = codes.split_first().expect("one code at least");
    let asked =
        others.iter().filter(|(thing, code)| drill && split(&key(thing, *code)) == Split::Train);
    let mut turns: Vec<(String, String)> =
        asked.chain([last]).map(|(thing, code)| (question(thing), needle(thing, *code))).collect();
    turns[0].0.insert_str(0, &format!("{text} "));
    let (question, answer) = turns.pop().expect("the last code is asked for");
    let (thing, code) = *last;
    let task = Task::new(question, answer, key(thing, code));
    Task { earlier: turns, reference: code.to_string(), ..task }
}

fn question(thing: &str) -> String {
    format!("What is the code for {thing}?")
}

fn key(thing: &str, code: usize) -> String {
    format!("{thing} {code}")
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
