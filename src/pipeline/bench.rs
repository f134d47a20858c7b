//! A job's model brought here, loaded and measured; its rows are not looked at.

use std::sync::Arc;

use super::progress::{Phase, Progress};
use candle_core::Device;

use super::{RunError, fetch, load_model, memory};
use crate::bench::{self, BenchError, BenchReport, BenchSpec};
use crate::job::Job;
use crate::ops::DeviceKind;
use crate::prompt::TextModel;
use crate::storage::Storage;

/// Measures a job's model; `told` gets the report as it grows.
pub fn bench(
    storage: &Storage,
    job: &Job,
    spec: &BenchSpec,
    progress: &Progress,
    told: &mut dyn FnMut(&BenchReport),
) -> Result<BenchReport, RunError> {
    if job.device != DeviceKind::Cpu {
        return Err(BenchError::Device.into());
    }
    let folder = fetch::model_folder(storage, &job.model_path, &job.base, progress)?;
    let text = Arc::new(TextModel::load(&folder)?);
    let model = load_model(job, &[Device::Cpu], &folder, progress)?;
    progress.enter(Phase::Done);
    Ok(bench::bench(model, &text, spec, memory::free_bytes().unwrap_or(u64::MAX), told)?)
}
