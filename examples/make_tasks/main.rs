//! Writes the tiny model's questions, with their answers, as JSONL to standard output: endless for training,
//! disjoint for evaluation.
//!
//! `cargo run --release --example make_tasks -- --split eval --seed 1 --count 1000 [--family sort] [--needle-tokens 2048]`
//!
//! A question belongs to the evaluation if the hash of what it asks for (its numbers, its words: not how it is
//! phrased) says so, and to training otherwise: the two never overlap, whatever the seeds.

#![allow(clippy::print_stdout)]

mod numbers;
mod random;
mod records;
mod retrieval;
mod stories;
mod words;

use std::io::{BufWriter, Write};

use clap::{Parser, ValueEnum};
use random::Random;
use serde_json::json;

/// A question, its answer, and what makes it the same question as another.
struct Task {
    question: String,
    /// What the model shall say.
    answer: String,
    /// The part of the answer that a scorer looks for.
    reference: String,
    key: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Split {
    Train,
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

/// How often training meets each family, out of 100.
const MIX: [(Family, u32); 6] = [
    (Family::Arithmetic, 25),
    (Family::Sort, 18),
    (Family::Words, 22),
    (Family::Story, 20),
    (Family::Needle, 7),
    (Family::Json, 8),
];

/// One question in so many is kept for the evaluation.
const EVAL_SHARE: u64 = 16;

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
    /// The longest text around a needle, in tokens of the tiny model (about).
    #[arg(long, default_value_t = 2048)]
    needle_tokens: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let mut random = Random::new(arguments.seed);
    let mut out = BufWriter::new(std::io::stdout().lock());
    for index in 0..arguments.count {
        let family = arguments.family.unwrap_or_else(|| mixed(&mut random));
        let task = task(family, &arguments, &mut random);
        let name = family.to_possible_value().expect("no family is hidden").get_name().to_owned();
        let row = json!({
            "id": format!("{name}-{}-{index}", arguments.seed),
            "family": name,
            "messages": [{ "role": "user", "content": task.question }],
            "answer": task.answer,
            "reference": task.reference,
        });
        writeln!(out, "{row}")?;
    }
    Ok(out.flush()?)
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
    loop {
        let task = match family {
            Family::Arithmetic => numbers::arithmetic(random),
            Family::Sort => numbers::order(random),
            Family::Words => words::task(random, arguments.split == Split::Train),
            Family::Story => stories::task(random),
            Family::Needle => retrieval::task(random, arguments.needle_tokens),
            Family::Json => records::task(random),
        };
        let held_out = random::hash(&task.key).is_multiple_of(EVAL_SHARE);
        if held_out == (arguments.split == Split::Eval) {
            return task;
        }
    }
}
