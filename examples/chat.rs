//! Answers conversations through a whole job: rows in a file, completions in Parquet parts.
//!
//! `cargo run --release --example chat -- "What do bees make?"`

#![allow(clippy::print_stdout, reason = "an example talks to its user")]

use std::error::Error;
use std::path::Path;

use nightshift::job::{Job, Overrides};
use nightshift::pipeline::{self, RunChoice, Stop, progress::Progress};
use nightshift::storage::Storage;
use parquet::record::RowAccessor;
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let question = std::env::args().nth(1).unwrap_or_else(|| "What do bees make?".into());
    let folder = std::env::temp_dir().join(format!("nightshift-chat-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let row = json!({ "messages": [{ "role": "user", "content": question }] });
    std::fs::write(folder.join("chat.jsonl"), row.to_string())?;
    let job = format!(
        "[model]\npath = '{}'\n[input]\npaths = ['chat.jsonl']\nmessages = 'messages'\n[sampling]\nmax_tokens = 32\n[output]\npath = 'out'\n",
        root.join("examples/tiny").display()
    );
    std::fs::write(folder.join("job.toml"), job)?;
    let job = Job::load(&folder.join("job.toml"), &Overrides::default())?;
    let report = pipeline::run(
        &Storage::new()?,
        &job,
        RunChoice::default(),
        &Progress::default(),
        &Stop::default(),
    )?;
    println!("{} row answered, {} tokens", report.rows.ok, report.tokens.completion);
    for part in parts(&folder.join("out/parts"))? {
        let reader = parquet::file::reader::SerializedFileReader::new(std::fs::File::open(&part)?)?;
        for row in reader {
            println!("{:?}", row?.get_string(5)?);
        }
    }
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

fn parts(folder: &Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for object in std::fs::read_dir(folder)? {
        for part in std::fs::read_dir(object?.path())? {
            found.push(part?.path());
        }
    }
    Ok(found)
}
