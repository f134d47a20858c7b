//! Writes the prompts of the example jobs on templates: `jobs/prompts/questions.parquet`.
//!
//! `cargo run --release --example make_prompts`

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;

const TOPICS: [(&str, &[&str]); 4] = [
    (
        "arithmetic",
        &[
            "What is 17 plus 25?",
            "What is 91 minus 38?",
            "Which is larger, 307 or 370?",
            "Sort 9, 4 and 7.",
        ],
    ),
    (
        "words",
        &[
            "Spell the word lantern backwards.",
            "How many letters has the word harbour?",
            "Repeat the word cinnamon.",
            "Give a rhyme for night.",
        ],
    ),
    (
        "writing",
        &[
            "Write one sentence about a lighthouse keeper who counts the ships of a long winter night.",
            "Describe a market at dawn to somebody who has never seen one, in two or three sentences.",
            "Explain to a child why the moon is sometimes visible in daylight, with one example.",
            "Write a short note to a neighbour who watered the plants while you were away for a week.",
        ],
    ),
    (
        "facts",
        &[
            "Name a river.",
            "What do bees make?",
            "How many days has a leap year?",
            "Which metal is liquid at room temperature?",
        ],
    ),
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/prompts");
    std::fs::create_dir_all(&folder)?;
    write_questions(&folder.join("questions.parquet"))
}

fn write_questions(path: &Path) -> Result<(), Box<dyn Error>> {
    let rows: Vec<(&str, &str)> = TOPICS
        .iter()
        .flat_map(|(topic, questions)| questions.iter().map(move |question| (*topic, *question)))
        .collect();
    let column = |name: &'static str, array: ArrayRef| (name, array);
    let batch = RecordBatch::try_from_iter([
        column("question", Arc::new(rows.iter().map(|row| Some(row.1)).collect::<StringArray>())),
        column("topic", Arc::new(rows.iter().map(|row| Some(row.0)).collect::<StringArray>())),
        column(
            "words",
            Arc::new(
                rows.iter()
                    .map(|row| Some(8 + 4 * (row.1.len() as i32 % 4)))
                    .collect::<Int32Array>(),
            ),
        ),
    ])?;
    let mut writer = ArrowWriter::try_new(File::create(path)?, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(())
}
