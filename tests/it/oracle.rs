//! A second oracle, where it is right: candle-transformers' DeepSeek-V2 with greedy routing.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::deepseek2::{DeepSeekV2, DeepSeekV2Config};
use nightshift::model::{Model, Step};
use nightshift::ops::{BLOCK_TOKENS, Form, Held, Span};
use tempfile::TempDir;

use crate::goldens::{fixture, goldens, ids};

/// It computes softmax and rotation in another order than the reference.
const TOLERANCE: f32 = 2e-3;

#[test]
fn logits_agree_with_candle_transformers() {
    let prompts = goldens("b_litelike")["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .take(6)
        .map(|p| ids(&p["ids"]))
        .collect();
    agree(&fixture("b_litelike"), prompts);
}

/// Widths that are no multiple of anything, so that every padding is used.
#[test]
fn logits_agree_for_odd_shapes() {
    for (query_rank, shared, dense_layers) in
        [(None, Some(1), 1), (Some(21), Some(3), 0), (None, None, 0)]
    {
        let folder = odd_model(query_rank, shared, dense_layers);
        let prompts = [1, 5, 16, 17, 47].map(|n| (0..n).map(|i| i * 13 % 61).collect()).into();
        agree(folder.path(), prompts);
    }
}

/// Writes a random model of odd shapes.
fn odd_model(query_rank: Option<usize>, shared: Option<usize>, dense_layers: usize) -> TempDir {
    let (hidden, heads, nope, rope, value, latent, layers, experts, width) =
        (50, 3, 10, 6, 14, 20, 2, 7, 11);
    let config = serde_json::json!({
        "model_type": "deepseek_v2", "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": heads,
        "qk_nope_head_dim": nope, "qk_rope_head_dim": rope, "v_head_dim": value, "kv_lora_rank": latent,
        "q_lora_rank": query_rank, "num_hidden_layers": layers, "n_routed_experts": experts, "num_experts_per_tok": 3,
        "n_shared_experts": shared, "moe_intermediate_size": width, "intermediate_size": 37, "vocab_size": 61,
        "first_k_dense_replace": dense_layers, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "attention_bias": false,
        "hidden_act": "silu", "scoring_func": "softmax",
    });
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let seed = name.len() + tensors.len();
        let element = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5;
        let scale = (shape.len() as f32 - 1.0) * 4.0 / (*shape.last().unwrap() as f32).sqrt();
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|i| if scale == 0.0 { 1.0 } else { element(i) * scale })
            .collect();
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
    };
    add("model.embed_tokens.weight".into(), &[61, hidden]);
    add("lm_head.weight".into(), &[61, hidden]);
    add("model.norm.weight".into(), &[hidden]);
    for layer in 0..layers {
        let mut layer_tensor =
            |name: &str, shape: &[usize]| add(format!("model.layers.{layer}.{name}.weight"), shape);
        layer_tensor("input_layernorm", &[hidden]);
        layer_tensor("post_attention_layernorm", &[hidden]);
        match query_rank {
            None => layer_tensor("self_attn.q_proj", &[heads * (nope + rope), hidden]),
            Some(rank) => {
                layer_tensor("self_attn.q_a_proj", &[rank, hidden]);
                layer_tensor("self_attn.q_a_layernorm", &[rank]);
                layer_tensor("self_attn.q_b_proj", &[heads * (nope + rope), rank]);
            }
        }
        layer_tensor("self_attn.kv_a_proj_with_mqa", &[latent + rope, hidden]);
        layer_tensor("self_attn.kv_a_layernorm", &[latent]);
        layer_tensor("self_attn.kv_b_proj", &[heads * (nope + value), latent]);
        layer_tensor("self_attn.o_proj", &[hidden, heads * value]);
        let mut mlp = |prefix: &str, width: usize| {
            layer_tensor(&format!("{prefix}gate_proj"), &[width, hidden]);
            layer_tensor(&format!("{prefix}up_proj"), &[width, hidden]);
            layer_tensor(&format!("{prefix}down_proj"), &[hidden, width]);
        };
        if layer < dense_layers {
            mlp("mlp.", 37);
            continue;
        }
        (0..experts).for_each(|id| mlp(&format!("mlp.experts.{id}."), width));
        if let Some(count) = shared {
            mlp("mlp.shared_experts.", count * width);
        }
        layer_tensor("mlp.gate", &[experts, hidden]);
    }
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    folder
}

fn agree(folder: &Path, prompts: Vec<Vec<u32>>) {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config: DeepSeekV2Config = serde_json::from_str(&config).unwrap();
    let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    let builder = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).unwrap();
    let mut other = DeepSeekV2::new(&config, builder).unwrap();
    let model = Model::load(folder, Held::F32, &|_, _| {}).unwrap();
    for tokens in prompts {
        other.clear_kv_cache();
        let input = Tensor::new(tokens.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let expected =
            other.forward(&input, 0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let found = prefill(&model, &tokens);
        let difference =
            found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference <= TOLERANCE, "{} tokens: {difference}", tokens.len());
    }
}

fn prefill(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let blocks = tokens.len().div_ceil(BLOCK_TOKENS);
    let mut pool = model.cache(blocks).unwrap();
    let all = 0..tokens.len() as u32;
    let span = Span {
        first_row: 0,
        count: tokens.len(),
        first_position: 0,
        form: Form::Prompt,
        blocks: (0..blocks as u32).collect(),
    };
    let step = Step {
        tokens: tokens.to_vec(),
        positions: all.clone().collect(),
        slots: all.clone().collect(),
        spans: vec![span],
        outputs: vec![all.end - 1],
    };
    model.forward(&step, &mut pool).unwrap().logits.flatten_all().unwrap().to_vec1().unwrap()
}
