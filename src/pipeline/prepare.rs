//! Stages 1 to 3: what there is to do, and whether it can be done, before any weight is read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::progress::Progress;
use super::{RunError, fetch};
use crate::input::{Input, InputError, InputObject, InputSpec, Partition, PromptColumns};
use crate::job::{ExamplesSpec, Job, fingerprint};
use crate::model::{self, Config, ModelError};
use crate::output::{InputFact, InputsRecord, JobFacts, Output, PartId};
use crate::prompt::{Encoder, Examples, Grammars, Limits, PromptError, TextModel};
use crate::row::RowFailure;
use crate::storage::Storage;

/// Bytes at each end of a weight file that go into its fingerprint.
const SAMPLED_BYTES: u64 = 1 << 20;

/// A job whose input and model folder were looked at.
pub struct Prepared {
    /// Where everything lies.
    pub storage: Storage,
    /// Objects and partitions.
    pub input: Input,
    /// The model's folder.
    pub model_folder: PathBuf,
    /// The model's shape.
    pub config: Config,
    /// Tokenizer and chat template.
    pub text: Arc<TextModel>,
    /// Rows to prompts.
    pub encoder: Encoder,
    /// SHA-256 of the worked examples that prompts show.
    examples_sha256: Option<String>,
}

impl Prepared {
    /// Looks at a job's input and model folder.
    pub fn new(storage: &Storage, job: &Job, progress: &Progress) -> Result<Self, RunError> {
        let model_folder = fetch::model_folder(storage, &job.model_path, &job.base, progress)?;
        let config = Config::load(&model_folder)?;
        let text = Arc::new(TextModel::load(&model_folder)?);
        let limits = Limits {
            vocabulary: config.vocab_size as u32,
            context: config.max_position_embeddings as u32,
        };
        let mut encoder = Encoder::new(text.clone(), job.prompt.clone(), limits)?;
        if matches!(job.input.prompt, PromptColumns::Messages(_)) || job.prompt.system.is_some() {
            encoder.require_chat()?;
        }
        if let Some(constraint) = job.input.sampling.defaults().constraint() {
            let grammars = Grammars::new(&text, config.vocab_size, &config.eos_token_ids)?;
            let guide = grammars.guide(constraint);
            guide.map_err(|message| PromptError::Constraint { message })?;
        }
        let mut examples_sha256 = None;
        if let Some(spec) = &job.examples {
            let rows = examples(storage, job, spec)?;
            examples_sha256 = Some(fingerprint(&json!(rows)));
            encoder = encoder.with_examples(Examples::new(rows, spec.by.clone(), spec.shots));
        }
        let input = Input::discover(storage, job.input.clone(), job.rows_per_part)?;
        let storage = storage.clone();
        Ok(Self { storage, input, model_folder, config, text, encoder, examples_sha256 })
    }

    /// The part that a partition becomes.
    pub fn part(&self, partition: &Partition) -> PartId {
        let object_name = self.input.objects()[partition.object as usize].name.clone();
        PartId { object_name, first_row: partition.first_row }
    }

    /// Opens the output folder: begins it, or finds that this very job began it.
    pub(super) fn open_output(&self, job: &Job, redo_changed: bool) -> Result<Output, RunError> {
        let model_fingerprint = model_fingerprint(&self.model_folder)?;
        let mut identity = job.identity.clone();
        if let Some(sha256) = &self.examples_sha256 {
            identity["input"]["examples_sha256"] = json!(sha256);
        }
        let facts = JobFacts {
            job_fingerprint: fingerprint(&json!({ "job": identity, "model": model_fingerprint })),
            job: identity,
            model_fingerprint,
            model_name: model_name(&self.model_folder),
        };
        let root = self.storage.locate(&job.output_path, &job.base)?;
        let (storage, kept) = (self.storage.clone(), self.input.kept_fields().clone());
        let output = Output::open(storage, root, job.output, kept, facts)?;
        output.accept_inputs(&self.inputs(job.rows_per_part), redo_changed)?;
        Ok(output)
    }

    fn inputs(&self, rows_per_part: u64) -> InputsRecord {
        let fact = |object: &InputObject| InputFact {
            name: object.name.clone(),
            url: object.url(),
            format: object.format().to_owned(),
            size: object.size,
            rows: object.rows,
            fingerprint: object.fingerprint.clone(),
        };
        InputsRecord { rows_per_part, objects: self.input.objects().iter().map(fact).collect() }
    }

    /// For each partition whether its part is committed.
    pub(super) fn committed(&self, output: &Output) -> Result<Vec<bool>, RunError> {
        let parts: Vec<_> =
            self.input.partitions().iter().map(|p| (self.part(p), p.rows)).collect();
        Ok(output.committed(&parts)?)
    }
}

/// Worked examples are part of every prompt: one that cannot be read stops the job.
fn examples(
    storage: &Storage,
    job: &Job,
    spec: &ExamplesSpec,
) -> Result<Vec<Map<String, Value>>, RunError> {
    let of = InputSpec { paths: spec.paths.clone(), limit: 0, ..job.input.all_columns() };
    let input = Input::discover(storage, of, job.rows_per_part)?;
    let mut rows = Vec::new();
    for partition in input.partitions() {
        for row in input.columns(partition)? {
            let object = || input.objects()[partition.object as usize].name.clone();
            let unread = |failure: RowFailure| InputError::Read {
                object: object(),
                message: failure.message,
            };
            rows.push(row.map_err(unread)?);
        }
    }
    Ok(rows)
}

fn model_name(folder: &Path) -> String {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.into());
    folder.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

/// SHA-256 over the model's text files and over name, size and both ends of each weight file.
fn model_fingerprint(folder: &Path) -> Result<String, RunError> {
    let mut hasher = Sha256::new();
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        if let Ok(bytes) = std::fs::read(folder.join(name)) {
            hasher.update(format!("{name} {}\n", bytes.len()));
            hasher.update(bytes);
        }
    }
    for name in model::shard_names(folder)? {
        let path = folder.join(&name);
        let (size, ends) = ends(&path).map_err(|source| ModelError::Read { path, source })?;
        hasher.update(format!("{name} {size}\n"));
        hasher.update(ends);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn ends(path: &Path) -> std::io::Result<(u64, Vec<u8>)> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::new();
    file.by_ref().take(SAMPLED_BYTES).read_to_end(&mut bytes)?;
    file.seek(SeekFrom::Start(size.saturating_sub(SAMPLED_BYTES)))?;
    file.take(SAMPLED_BYTES).read_to_end(&mut bytes)?;
    Ok((size, bytes))
}
