//! What the repository publishes agrees with the program: schemas, job files, embedded model.

use std::path::{Path, PathBuf};

use nightshift::job::{Job, Overrides, input_row_schema, job_schema};
use nightshift::output::completion_schema_json;

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// `NIGHTSHIFT_WRITE_SCHEMAS=1 cargo test` rewrites them.
#[test]
fn schemas_are_what_the_program_says() {
    for (name, schema) in [
        ("job", job_schema()),
        ("input-row", input_row_schema()),
        ("completion", completion_schema_json()),
    ] {
        let path = root().join(format!("schemas/{name}.schema.json"));
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("NIGHTSHIFT_WRITE_SCHEMAS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let published = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            published == text,
            "{} is stale: run the tests with NIGHTSHIFT_WRITE_SCHEMAS=1",
            path.display()
        );
    }
}

#[test]
fn every_job_file_is_valid() {
    let folders =
        ["jobs", "jobs/eval"].map(|folder| std::fs::read_dir(root().join(folder)).unwrap());
    let files = folders.into_iter().flatten().map(|entry| entry.unwrap().path());
    let jobs: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    assert!(jobs.len() >= 12, "{jobs:?}");
    for path in jobs {
        let job = Job::load(&path, &Overrides::default());
        assert!(job.is_ok(), "{}", job.unwrap_err());
    }
}

#[test]
fn the_job_file_in_the_readme_is_valid() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks: Vec<&str> =
        readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty(), "README shows no job file");
    for block in blocks {
        let job = Job::parse(block, "readme".into(), Path::new("jobs"), &Overrides::default());
        assert!(job.is_ok(), "{:#?}", job.unwrap_err());
    }
}

#[test]
fn every_failure_code_is_in_the_readme() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    for code in nightshift::row::FailureCode::ALL {
        assert!(readme.contains(&format!("`{}`", code.as_str())), "{}", code.as_str());
    }
}
