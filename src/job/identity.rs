//! What makes two jobs the same: everything that changes a completion or its place, as JSON to be hashed.

use serde_json::{Value, json};

use super::file::{CacheDtype, Compute, DeviceKind, InputSection, ModelSection, OutputSection};
use crate::sampling::SamplingSpec;

/// The identity of a checked job; how fast it runs is no part of it.
pub(super) fn identity(
    model: &ModelSection,
    device: DeviceKind,
    input: &InputSection,
    (sampling, output): (&SamplingSpec, &OutputSection),
) -> Value {
    let mut identity = json!({
        "model": { "dtype": model.dtype },
        "input": {
            "paths": input.paths, "format": input.format, "messages": input.messages, "prompt": input.prompt,
            "prompt_token_ids": input.prompt_token_ids, "template": input.template, "system": input.system,
            "id": input.id, "keep": input.keep, "too_long": input.too_long, "limit": input.limit,
        },
        "sampling": sampling,
        "output": {
            "rows_per_part": output.rows_per_part, "include": output.include,
            "top_logprobs": output.top_logprobs, "compression": output.compression,
        },
    });
    // Named only where they are not the default, so that older outputs keep their name.
    if model.compute != Compute::default() {
        identity["model"]["compute"] = json!(model.compute);
    }
    if model.cache_dtype != CacheDtype::default() {
        identity["model"]["cache_dtype"] = json!(model.cache_dtype);
    }
    if device != DeviceKind::Cpu {
        // A GPU rounds and sums otherwise than the CPU.
        identity["model"]["device"] = json!(device);
    }
    // Written only where they say something: outputs of jobs without them stay the same job's.
    for (key, value) in [
        ("continuations", json!(input.continuations)),
        ("examples", json!(input.examples)),
        ("examples_by", json!(input.examples_by)),
        ("shots", json!(input.shots)),
    ] {
        if ![json!([]), json!(null), json!(0)].contains(&value) {
            identity["input"][key] = value;
        }
    }
    identity
}
