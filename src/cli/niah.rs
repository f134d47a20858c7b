//! `nightshift niah`: the prompts of a needle-in-a-haystack grid.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::exit::Exit;
use super::terminal;
use crate::eval::{Grid, NeedleText};
use crate::pipeline::{self, NiahSpec, RunError};
use crate::storage::Storage;

/// Writes the prompts of a needle-in-a-haystack grid as JSONL, for a job that `nightshift eval` scores:
/// context length × depth, lengths in the model's own tokens.
#[derive(Debug, Args)]
pub(super) struct NiahArgs {
    /// The model whose tokens count: a Hugging Face folder.
    #[arg(long, value_name = "PATH")]
    model: String,
    /// The text in which needles are hidden; repeated where it is too short.
    #[arg(long, value_name = "FILE")]
    haystack: String,
    /// Lengths of whole prompts, in tokens.
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 2048, 4096, 8192, 16384, 32768])]
    lengths: Vec<usize>,
    /// Percent of the haystack that comes before the needle.
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0])]
    depths: Vec<f64>,
    /// Prompts of each cell, each with its own needle.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// The hidden sentence. `{key}` stands for one of the keys, `{value}` for a number of four digits.
    #[arg(long, default_value = "The code for {key} is {value}.")]
    needle: String,
    /// The question.
    #[arg(long, default_value = "What is the code for {key}?")]
    question: String,
    /// The answer that is looked for.
    #[arg(long, default_value = "{value}")]
    reference: String,
    /// What `{key}` may be.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "apple,river,stone,lamp,garden,window,bridge,cloud"
    )]
    keys: Vec<String>,
    /// The whole prompt.
    #[arg(long, default_value = "{context}\n\n{question}")]
    prompt: String,
    /// Seed of needles and beginnings.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Writes to this file instead of stdout.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn niah(args: NiahArgs) -> Exit {
    let problems = problems(&args);
    if !problems.is_empty() {
        terminal::say(&format!("error: {}", problems.join("\nerror: ")));
        return Exit::Usage;
    }
    let mut text = String::new();
    let output = args.output.clone();
    // Before the grid is computed: that takes a while.
    if let Some(folder) = output.as_deref().and_then(Path::parent)
        && let Err(error) = std::fs::create_dir_all(folder)
    {
        terminal::say(&format!("error: cannot make the folder `{}`: {error}", folder.display()));
        return Exit::Error;
    }
    let rows = Storage::new().map_err(RunError::from).and_then(|storage| {
        pipeline::niah(&storage, &spec(args), |row| {
            text += &format!("{row}\n");
            Ok(())
        })
    });
    let rows = match rows {
        Ok(rows) => rows,
        Err(error) => {
            terminal::report(&error, error.hint());
            return Exit::Error;
        }
    };
    match output {
        None => terminal::data(text.trim_end()),
        Some(path) => {
            if let Err(error) =
                std::fs::File::create(&path).and_then(|mut f| f.write_all(text.as_bytes()))
            {
                terminal::say(&format!("error: cannot write `{}`: {error}", path.display()));
                return Exit::Error;
            }
            terminal::say(&format!("{rows} prompts in {}", path.display()));
        }
    }
    Exit::Ok
}

fn problems(args: &NiahArgs) -> Vec<&'static str> {
    let checks = [
        (
            args.lengths.is_empty() || args.depths.is_empty() || args.repeats == 0,
            "the grid is empty",
        ),
        (
            args.depths.iter().any(|depth| !(0.0..=100.0).contains(depth)),
            "--depths are percent, 0 to 100",
        ),
        (
            !args.prompt.contains("{context}") || !args.prompt.contains("{question}"),
            "--prompt needs `{context}` and `{question}`",
        ),
        (
            !args.reference.contains("{value}") && !args.needle.contains(args.reference.as_str()),
            "--reference is no part of --needle",
        ),
        (
            args.reference.contains("{value}") && !args.needle.contains("{value}"),
            "--needle has no `{value}`: say with --reference what is looked for",
        ),
    ];
    checks.into_iter().filter(|(wrong, _)| *wrong).map(|(_, words)| words).collect()
}

fn spec(args: NiahArgs) -> NiahSpec {
    let NiahArgs { lengths, depths, repeats, seed, .. } = args;
    NiahSpec {
        model: args.model,
        haystack: args.haystack,
        grid: Grid { lengths, depths, repeats, seed },
        needle: NeedleText {
            needle: args.needle,
            question: args.question,
            reference: args.reference,
            keys: args.keys,
            // Shells make a line break hard to write.
            prompt: args.prompt.replace("\\n", "\n"),
        },
    }
}
