//! Writes the tiny model's questions, with their answers, as JSONL to standard output: endless for training,
//! disjoint for validation and evaluation.
//!
//! `cargo run --release --example make_tasks -- --split eval --seed 1 --count 1000 [--family sort] [--needle-tokens 2048]`
//!
//! A question belongs to the evaluation or the validation if the hash of what it asks for (its numbers, its words in
//! their order: not how it is phrased) says so, and to training otherwise: no family's splits overlap, whatever the
//! seeds. Families do not look at each other: a sum that is asked in the evaluation may be a worked line of a story.

#![allow(clippy::print_stdout)]

mod numbers;
mod random;
mod records;
mod retrieval;
mod stories;
mod words;

use std::collections::HashSet;
use std::io::{BufWriter, Write};

use clap::{Parser, ValueEnum};
use random::Random;
use serde_json::json;

/// A question, its answer, and what makes it the same question as another.
struct Task {
    /// What was asked and answered before, in one conversation.
    earlier: Vec<(String, String)>,
    question: String,
    /// What the model shall say.
    answer: String,
    /// The part of the answer that a scorer looks for.
    reference: String,
    key: String,
    /// The key of the same question in another form. Validation and evaluation ask it only if both forms are theirs.
    twin: Option<String>,
}

impl Task {
    /// A question by itself, to which the whole answer is wanted.
    fn new(question: String, answer: String, key: String) -> Self {
        Self { earlier: Vec::new(), question, reference: answer.clone(), answer, key, twin: None }
    }

    fn is_of(&self, wanted: Split) -> bool {
        let twin = self.twin.iter().filter(|_| wanted != Split::Train);
        [&self.key].into_iter().chain(twin).all(|key| split(key) == wanted)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Split {
    Train,
    /// What is looked at while training, so that nobody chooses by the evaluation.
    Valid,
    Eval,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Family {
    Arithmetic,
    Sort,
    Words,
    Story,
    Needle,
    Json,
}

/// How often training meets each family, out of 100: about the mean of the stages that the embedded model went through.
const MIX: [(Family, u32); 6] = [
    (Family::Arithmetic, 30),
    (Family::Sort, 18),
    (Family::Words, 24),
    (Family::Story, 12),
    (Family::Needle, 8),
    (Family::Json, 8),
];

/// One question in so many belongs to the evaluation, and another one to the validation.
const PARTS: u64 = 16;

#[derive(Parser)]
struct Arguments {
    #[arg(long, value_enum)]
    split: Split,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long)]
    count: usize,
    /// One family alone; all of them in the proportions of training otherwise.
    #[arg(long, value_enum)]
    family: Option<Family>,
    /// As many of each family, and no question twice.
    #[arg(long)]
    even: bool,
    /// The longest text around a needle, in tokens of the tiny model (about).
    #[arg(long, default_value_t = 2048)]
    needle_tokens: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let mut random = Random::new(arguments.seed);
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut asked = HashSet::new();
    for index in 0..arguments.count {
        let family = match arguments.even {
            true => MIX[index % MIX.len()].0,
            false => arguments.family.unwrap_or_else(|| mixed(&mut random)),
        };
        let mut task = task(family, &arguments, &mut random);
        while arguments.even && !asked.insert(task.key.clone()) {
            task = self::task(family, &arguments, &mut random);
        }
        let name = family.to_possible_value().expect("no family is hidden").get_name().to_owned();
        let row = json!({
            "id": format!("{name}-{}-{index}", arguments.seed),
            "family": name,
            "messages": messages(&task),
            "answer": task.answer,
            "reference": task.reference,
        });
        writeln!(out, "{row}")?;
    }
    Ok(out.flush()?)
}

fn messages(task: &Task) -> Vec<serde_json::Value> {
    let said = |role: &str, content: &str| json!({ "role": role, "content": content });
    let earlier = task.earlier.iter();
    earlier
        .flat_map(|(question, answer)| [said("user", question), said("assistant", answer)])
        .chain([said("user", &task.question)])
        .collect()
}

fn mixed(random: &mut Random) -> Family {
    let mut at = random.below(MIX.iter().map(|(_, share)| *share as usize).sum()) as u32;
    for (family, share) in MIX {
        if at < share {
            return family;
        }
        at -= share;
    }
    unreachable!("the shares cover every draw")
}

/// Draws until a question of the wanted split comes.
fn task(family: Family, arguments: &Arguments, random: &mut Random) -> Task {
    let drill = arguments.split == Split::Train;
    loop {
        let task = match family {
            Family::Arithmetic => numbers::arithmetic(random, drill),
            Family::Sort => numbers::order(random, drill),
            Family::Words => words::task(random, drill),
            Family::Story => stories::task(random),
            Family::Needle => retrieval::task(random, arguments.needle_tokens, drill),
            Family::Json => records::task(random),
        };
        if task.is_of(arguments.split) {
            return task;
        }
    }
}

fn split(key: &str) -> Split {
    match random::hash(key) % PARTS {
        0 => Split::Eval,
        1 => Split::Valid,
        _ => Split::Train,
    }
}
