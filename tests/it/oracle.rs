//! A second oracle, where it is right: candle-transformers' DeepSeek-V2 with greedy routing.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::deepseek2::{DeepSeekV2, DeepSeekV2Config};
use nightshift::model::{Model, Step};
use nightshift::ops::{BLOCK_TOKENS, Form, Held, LatentPool, Span};

use crate::goldens::{fixture, goldens, ids};

/// It computes softmax and rotation in another order than the reference.
const TOLERANCE: f32 = 2e-3;

#[test]
fn logits_agree_with_candle_transformers() {
    let folder = fixture("b_litelike");
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config: DeepSeekV2Config = serde_json::from_str(&config).unwrap();
    let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    let builder = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).unwrap();
    let mut other = DeepSeekV2::new(&config, builder).unwrap();
    let model = Model::load(&folder, Held::F32, &|_, _| {}).unwrap();
    for prompt in goldens("b_litelike")["prompts"].as_array().unwrap().iter().take(6) {
        let tokens = ids(&prompt["ids"]);
        other.clear_kv_cache();
        let input = Tensor::new(tokens.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let expected =
            other.forward(&input, 0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let found = prefill(&model, &tokens);
        let difference =
            found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference <= TOLERANCE, "{}: {difference}", prompt["name"]);
    }
}

fn prefill(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let blocks = tokens.len().div_ceil(BLOCK_TOKENS);
    let mut pool = LatentPool::new(model.config().layers, blocks, model.config().latent_width());
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
