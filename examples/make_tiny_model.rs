//! Writes `examples/tiny`: a small DeepSeek-V2 model with seeded random weights, in the layout of a
//! Hugging Face folder. It has every part of the architecture and runs in milliseconds; what it says is noise.
//!
//! `cargo run --release --example make_tiny_model [FOLDER]`

#![recursion_limit = "256"]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

const HIDDEN: usize = 64;
const LAYERS: usize = 3;
const HEADS: usize = 4;
const NOPE: usize = 16;
const ROPE: usize = 16;
const VALUE: usize = 16;
const LATENT: usize = 32;
const QUERY_RANK: usize = 48;
const DENSE: usize = 160;
const EXPERT: usize = 32;
const EXPERTS: usize = 16;
const VOCABULARY: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::args().nth(1).map_or_else(|| root.join("examples/tiny"), PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    // The fixtures' tokenizer: byte-level BPE with DeepSeek's own rules and chat template.
    let tokenizer = root.join("tests/goldens/a_v2like");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tokenizer.join(name), folder.join(name))?;
    }
    std::fs::write(folder.join("config.json"), pretty(&config()))?;
    let generation = json!({ "bos_token_id": 480, "eos_token_id": 481, "do_sample": false });
    std::fs::write(folder.join("generation_config.json"), pretty(&generation))?;
    let tensors = tensors();
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        Ok((name, TensorView::new(Dtype::BF16, shape.clone(), bytes)?))
    });
    let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(views, Some(metadata), &folder.join("model.safetensors"))?;
    Ok(())
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("plain JSON") + "\n"
}

fn config() -> Value {
    json!({
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "torch_dtype": "bfloat16",
        "hidden_size": HIDDEN, "intermediate_size": DENSE, "moe_intermediate_size": EXPERT,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "vocab_size": VOCABULARY, "q_lora_rank": QUERY_RANK, "kv_lora_rank": LATENT,
        "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE, "v_head_dim": VALUE,
        "n_routed_experts": EXPERTS, "num_experts_per_tok": 3, "n_shared_experts": 1,
        "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "scoring_func": "softmax",
        "norm_topk_prob": false, "routed_scaling_factor": 4.0, "first_k_dense_replace": 1, "moe_layer_freq": 1,
        "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 4096,
        "rope_scaling": {
            "type": "yarn", "factor": 4, "original_max_position_embeddings": 1024,
            "beta_fast": 32, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707,
        },
        "attention_bias": false, "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02,
        "tie_word_embeddings": false, "aux_loss_alpha": 0.001, "seq_aux": true, "pretraining_tp": 1,
        "ep_size": 1, "use_cache": true, "bos_token_id": 480, "eos_token_id": 481,
    })
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn tensors() -> Tensors {
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize], deviation: f32| {
        let count: usize = shape.iter().product();
        let mut random = Random(fnv(&name));
        let value =
            |random: &mut Random| if deviation == 0.0 { 1.0 } else { random.normal() * deviation };
        let bytes =
            (0..count).flat_map(|_| bf16::from_f32(value(&mut random)).to_le_bytes()).collect();
        tensors.insert(name, (shape.to_vec(), bytes));
    };
    // Products keep the scale of their input; the head spreads logits to a deviation of about 3.
    let keep = |inputs: usize| (inputs as f32).powf(-0.5);
    add("model.embed_tokens.weight".into(), &[VOCABULARY, HIDDEN], 1.0);
    add("lm_head.weight".into(), &[VOCABULARY, HIDDEN], 3.0 * keep(HIDDEN));
    add("model.norm.weight".into(), &[HIDDEN], 0.0);
    for layer in 0..LAYERS {
        let prefix = format!("model.layers.{layer}");
        for (name, width) in [
            ("input_layernorm", HIDDEN),
            ("post_attention_layernorm", HIDDEN),
            ("self_attn.q_a_layernorm", QUERY_RANK),
            ("self_attn.kv_a_layernorm", LATENT),
        ] {
            add(format!("{prefix}.{name}.weight"), &[width], 0.0);
        }
        for (name, outputs, inputs) in [
            ("q_a_proj", QUERY_RANK, HIDDEN),
            ("q_b_proj", HEADS * (NOPE + ROPE), QUERY_RANK),
            ("kv_a_proj_with_mqa", LATENT + ROPE, HIDDEN),
            ("kv_b_proj", HEADS * (NOPE + VALUE), LATENT),
            ("o_proj", HIDDEN, HEADS * VALUE),
        ] {
            add(format!("{prefix}.self_attn.{name}.weight"), &[outputs, inputs], keep(inputs));
        }
        let mut mlp = |prefix: String, width: usize| {
            add(format!("{prefix}.gate_proj.weight"), &[width, HIDDEN], keep(HIDDEN));
            add(format!("{prefix}.up_proj.weight"), &[width, HIDDEN], keep(HIDDEN));
            add(format!("{prefix}.down_proj.weight"), &[HIDDEN, width], keep(width));
        };
        if layer == 0 {
            mlp(format!("{prefix}.mlp"), DENSE);
            continue;
        }
        (0..EXPERTS).for_each(|id| mlp(format!("{prefix}.mlp.experts.{id}"), EXPERT));
        mlp(format!("{prefix}.mlp.shared_experts"), EXPERT);
        add(format!("{prefix}.mlp.gate.weight"), &[EXPERTS, HIDDEN], 1.5 * keep(HIDDEN));
    }
    tensors
}

/// A tensor's seed: FNV-1a of its name.
fn fnv(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Nearly normal: the sum of twelve uniform numbers, which needs no library function whose last bit
    /// differs between systems.
    fn normal(&mut self) -> f32 {
        let uniform = |random: &mut Self| (random.next() >> 40) as f32 / (1u32 << 24) as f32;
        (0..12).map(|_| uniform(self)).sum::<f32>() - 6.0
    }
}
