//! A checkpoint that does not fit its config is refused with the tensor's name.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use nightshift::model::Model;
use nightshift::ops::Held;
use tempfile::TempDir;

use crate::goldens::fixture;

/// Copies a fixture with changed tensors and says why it is refused.
fn refusal(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> String {
    let (source, folder) = (fixture("b_litelike"), TempDir::new().unwrap());
    std::fs::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
    let mut tensors =
        candle_core::safetensors::load(source.join("model.safetensors"), &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    load(folder.path())
}

fn load(folder: &Path) -> String {
    match Model::load(folder, Held::F32, &|_, _| {}) {
        Ok(_) => "loaded".into(),
        Err(error) => {
            assert!(error.hint().is_some(), "{error}");
            error.to_string()
        }
    }
}

const NORM: &str = "model.layers.1.input_layernorm.weight";

#[test]
fn tensors_are_checked_by_name_shape_and_type() {
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    assert_eq!(refusal(|_| {}), "loaded");
    let missing = refusal(|tensors| drop(tensors.remove(NORM)));
    assert!(missing.starts_with(&format!("tensor `{NORM}` [96] is missing from ")), "{missing}");
    let misshapen = refusal(|tensors| drop(tensors.insert(NORM.into(), zeros(&[95], DType::F32))));
    assert!(
        misshapen.contains(NORM) && misshapen.ends_with("is [95], expected [96]"),
        "{misshapen}"
    );
    let wrong = refusal(|tensors| drop(tensors.insert(NORM.into(), zeros(&[96], DType::U8))));
    assert!(wrong.contains(NORM) && wrong.contains("U8, expected BF16, F16 or F32"), "{wrong}");
    let extra = refusal(|tensors| {
        drop(tensors.insert("model.layers.9.mlp.gate.weight".into(), zeros(&[1], DType::F32)))
    });
    assert!(extra.starts_with("1 tensors that `config.json` does not call for"), "{extra}");
    let buffer = refusal(|tensors| {
        tensors
            .insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), zeros(&[8], DType::F32));
    });
    assert_eq!(buffer, "loaded");
}

#[test]
fn damaged_and_hostile_files_are_refused() {
    let folder = TempDir::new().unwrap();
    std::fs::copy(fixture("b_litelike").join("config.json"), folder.path().join("config.json"))
        .unwrap();
    assert!(load(folder.path()).starts_with("no safetensors file in "));
    let weights = std::fs::read(fixture("b_litelike").join("model.safetensors")).unwrap();
    for damaged in [&weights[..weights.len() / 2], &weights[..4], &[0xff; 64]] {
        std::fs::write(folder.path().join("model.safetensors"), damaged).unwrap();
        assert!(load(folder.path()).contains("is not a valid safetensors file"));
    }
    let index = r#"{"weight_map": {"lm_head.weight": "../outside.safetensors"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert!(load(folder.path()).contains("does not name files of this folder"));
}
