//! The model agrees with an independent reference, alone and in ragged batches.

use std::path::PathBuf;

use nightshift::model::{Model, ModelParts, Step, compare};
use nightshift::ops::{
    BLOCK_TOKENS, CacheFormat, Compute, DeviceKind, Form, Held, LatentPool, Numerics, Span,
};
use nightshift::parallel::Topology;
use serde_json::Value;

/// Largest difference of logits that two right f32 implementations have.
const TOLERANCE: f64 = 3e-4;
/// The same where sums run in a GPU's order.
const CUDA_TOLERANCE: f64 = 1e-3;
/// Activations rounded to BF16.
const ROUNDED: Numerics =
    Numerics { held: Held::Bf16, compute: Compute::Bf16, cache: CacheFormat::F32 };
/// Latents rounded to BF16.
const HALF_CACHE: Numerics =
    Numerics { held: Held::Bf16, compute: Compute::F32, cache: CacheFormat::Bf16 };
const FIXTURES: [&str; 4] = ["a_v2like", "b_litelike", "c_plain_tied", "d_freq2_bias"];

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

pub(crate) fn goldens(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(name).join("goldens.json")).unwrap())
        .unwrap()
}

fn load(name: &str) -> Model {
    Model::load(&fixture(name), Held::F32, &|_, _| {}).unwrap()
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn difference(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

/// One sequence that a test steps by hand; sequence i owns its own run of blocks.
struct Hand {
    tokens: Vec<u32>,
    prompt: usize,
    done: usize,
    blocks: std::sync::Arc<[u32]>,
}

const BLOCKS_EACH: usize = 40;

impl Hand {
    fn new(index: usize, prompt: Vec<u32>) -> Self {
        let blocks =
            (index * BLOCKS_EACH..(index + 1) * BLOCKS_EACH).map(|block| block as u32).collect();
        Self { prompt: prompt.len(), tokens: prompt, done: 0, blocks }
    }

    /// Adds up to `most` of the tokens that are not in the cache yet; says whether all are now.
    fn add_to(&mut self, step: &mut Step, most: usize) -> bool {
        let end = self.tokens.len().min(self.done.saturating_add(most));
        let boundary = self.prompt.clamp(self.done, end);
        for (range, form) in [(self.done..boundary, Form::Prompt), (boundary..end, Form::Generated)]
        {
            if range.is_empty() {
                continue;
            }
            let first_row = step.tokens.len();
            for position in range.clone() {
                step.tokens.push(self.tokens[position]);
                step.positions.push(position as u32);
                let block = self.blocks[position / BLOCK_TOKENS];
                step.slots.push(block * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32);
            }
            step.spans.push(Span {
                first_row,
                count: range.len(),
                first_position: range.start,
                form,
                blocks: self.blocks.clone(),
            });
        }
        self.done = end;
        end == self.tokens.len()
    }
}

fn pool(model: &Model, sequences: usize) -> LatentPool {
    model.cache(sequences * BLOCKS_EACH).unwrap()
}

/// A fixture on a GPU, if this program was built for one and there is one.
fn load_on_cuda(name: &str, numerics: impl Into<Numerics>) -> Option<Model> {
    let device = DeviceKind::Cuda.open(0).map_err(|error| eprintln!("skipped: {error}")).ok()?;
    let (folder, whole) = (fixture(name), Topology::SINGLE);
    let parts = ModelParts::load_on(&[device], &folder, numerics, whole, &|_, _| {}).unwrap();
    parts.into_parts().pop()
}

#[test]
fn logits_and_greedy_ids_agree_with_the_reference_in_a_ragged_batch() {
    for name in FIXTURES {
        generate_as_the_reference((name, load(name)), TOLERANCE);
    }
}

#[test]
fn a_gpu_agrees_with_the_reference_in_f32() {
    for name in FIXTURES {
        if let Some(model) = load_on_cuda(name, Held::F32) {
            generate_as_the_reference((name, model), CUDA_TOLERANCE);
        }
    }
}

#[test]
fn a_gpu_in_bf16_is_as_far_from_the_reference_as_rounding_is() {
    for name in FIXTURES {
        let Some(model) = load_on_cuda(name, HALF_CACHE) else { continue };
        let goldens = goldens(name);
        let noise = numbers(&goldens["noise"]["bf16_rms"]);
        for (prompt, noise) in goldens["prompts"].as_array().unwrap().iter().zip(noise) {
            // The reference's own tokens: rounding may choose others.
            let mut hand = Hand::new(0, ids(&prompt["ids"]));
            hand.tokens.extend(&ids(&prompt["greedy_ids"])[..63]);
            let mut step = Step::default();
            hand.add_to(&mut step, usize::MAX);
            step.outputs = vec![hand.prompt as u32 - 1, step.tokens.len() as u32 - 1];
            let output = model.forward(&step, &mut pool(&model, 1)).unwrap();
            let logits = output.logits.to_vec2::<f32>().unwrap();
            let expected = ["last_logits", "step64_logits"].map(|key| numbers(&prompt[key]));
            let pairs = logits.iter().flatten().zip(expected.iter().flatten());
            let squares: f64 = pairs.map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
            let rms = (squares / (2 * logits[0].len()) as f64).sqrt();
            assert!(rms <= 2.0 * noise + 0.05, "{name} {}: {rms}", prompt["name"]);
        }
    }
}

fn generate_as_the_reference((name, model): (&str, Model), tolerance: f64) {
    let goldens = goldens(name);
    let prompts = goldens["prompts"].as_array().unwrap();
    let mut hands: Vec<Hand> =
        prompts.iter().enumerate().map(|(i, p)| Hand::new(i, ids(&p["ids"]))).collect();
    let mut pool = pool(&model, hands.len());
    for generated in 0..64 {
        let mut step = Step::default();
        for hand in &mut hands {
            assert!(hand.add_to(&mut step, usize::MAX));
            step.outputs.push(step.tokens.len() as u32 - 1);
        }
        let logits = model.forward(&step, &mut pool).unwrap().logits.to_vec2::<f32>().unwrap();
        for ((hand, prompt), logits) in hands.iter_mut().zip(prompts).zip(&logits) {
            let expected = match generated {
                0 => Some(&prompt["last_logits"]),
                63 => Some(&prompt["step64_logits"]),
                _ => None,
            };
            if let Some(expected) = expected {
                let difference = difference(logits, &numbers(expected));
                assert!(
                    difference <= tolerance,
                    "{name} {} token {generated}: {difference}",
                    prompt["name"]
                );
            }
            hand.tokens.push(argmax(logits));
        }
    }
    for (hand, prompt) in hands.iter().zip(prompts) {
        assert_eq!(
            hand.tokens[hand.prompt..],
            ids(&prompt["greedy_ids"]),
            "{name} {}",
            prompt["name"]
        );
    }
}

#[test]
fn log_probabilities_of_every_position_agree_with_the_reference() {
    for name in FIXTURES {
        let (model, goldens) = (load(name), goldens(name));
        let per_position = &goldens["per_position"];
        let prompt = &goldens["prompts"][per_position["prompt"].as_u64().unwrap() as usize];
        let mut step = Step::default();
        Hand::new(0, ids(&prompt["ids"])).add_to(&mut step, usize::MAX);
        step.outputs = (0..step.tokens.len() as u32).collect();
        let logits =
            model.forward(&step, &mut pool(&model, 1)).unwrap().logits.to_vec2::<f32>().unwrap();
        for (position, logits) in logits.iter().enumerate() {
            let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            let expected_ids = ids(&per_position["top20_ids"][position]);
            let expected = numbers(&per_position["top20_logprobs"][position]);
            for (id, expected) in expected_ids.into_iter().zip(expected) {
                let found = f64::from(logits[id as usize]) - sum.ln();
                assert!(
                    (found - expected).abs() <= TOLERANCE,
                    "{name} position {position} id {id}"
                );
            }
        }
    }
}

#[test]
fn chunks_neighbours_and_recomputation_leave_every_bit_as_it_is() {
    let forms = [Held::F32.into(), Held::Bf16.into(), Held::Int8.into(), ROUNDED, HALF_CACHE];
    let forms = forms.into_iter().filter(|form: &Numerics| form.compute.is_available());
    for (name, form) in
        FIXTURES.into_iter().flat_map(|name| forms.clone().map(move |form| (name, form)))
    {
        let model = Model::load(&fixture(name), form, &|_, _| {}).unwrap();
        let goldens = goldens(name);
        let prompt =
            &goldens["prompts"][goldens["per_position"]["prompt"].as_u64().unwrap() as usize];
        let mut tokens = ids(&prompt["ids"]);
        let prompt_tokens = tokens.len();
        tokens.extend(ids(&prompt["greedy_ids"]));

        // Token by token, alone.
        let mut alone = Hand::new(0, tokens[..prompt_tokens].to_vec());
        alone.tokens = tokens.clone();
        let mut alone_pool = pool(&model, 1);
        let mut expected = Vec::new();
        while alone.done < tokens.len() {
            let mut step = Step::default();
            alone.add_to(&mut step, 1);
            step.outputs = vec![0];
            expected.extend(
                model.forward(&step, &mut alone_pool).unwrap().logits.to_vec2::<f32>().unwrap(),
            );
        }

        // In chunks of many sizes, beside a neighbour that moves at its own pace.
        for chunk in [2, 7, 16, 33, 200] {
            let mut neighbour = Hand::new(0, tokens[1..].to_vec());
            let mut hand = Hand::new(1, tokens[..prompt_tokens].to_vec());
            hand.tokens = tokens.clone();
            let mut pool = pool(&model, 2);
            while hand.done < tokens.len() {
                let mut step = Step::default();
                neighbour.add_to(&mut step, chunk / 2 + 1);
                let (first, position) = (step.tokens.len(), hand.done);
                hand.add_to(&mut step, chunk);
                step.outputs = (first as u32..step.tokens.len() as u32).collect();
                let logits =
                    model.forward(&step, &mut pool).unwrap().logits.to_vec2::<f32>().unwrap();
                assert!(
                    logits == expected[position..hand.done],
                    "{name} {form:?} chunk {chunk} at {position}"
                );
            }
        }
    }
}

#[test]
fn a_cache_of_half_the_bytes_moves_logits_by_no_more_than_bf16_does() {
    for name in FIXTURES {
        let goldens = goldens(name);
        let index = goldens["per_position"]["prompt"].as_u64().unwrap() as usize;
        let mut step = Step::default();
        Hand::new(0, ids(&goldens["prompts"][index]["ids"])).add_to(&mut step, usize::MAX);
        step.outputs = (0..step.tokens.len() as u32).collect();
        let logits = |model: &Model| {
            let output = model.forward(&step, &mut pool(model, 1)).unwrap();
            output.logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (model, half) =
            (load(name), Model::load(&fixture(name), HALF_CACHE, &|_, _| {}).unwrap());
        let quality = compare(&model, &half, &[ids(&goldens["prompts"][index]["ids"])]).unwrap();
        // In these random models rounding can turn a route, which moves one position by half a nat.
        assert!((1e-12..0.1).contains(&quality.mean_kl), "{name} {quality:?}");
        assert!(quality.top1_agreement > 0.9, "{name} {quality:?}");
        let (half, exact) = (logits(&half), logits(&model));
        let squares = exact.iter().zip(&half).map(|(a, b)| f64::from(a - b).powi(2));
        let rms = (squares.sum::<f64>() / exact.len() as f64).sqrt();
        // The fixtures' own measure of BF16, and not nothing: the cache is really held so.
        let allowed = 2.0 * goldens["noise"]["bf16_rms"][index].as_f64().unwrap() + 0.05;
        assert!((1e-5..allowed).contains(&rms), "{name}: {rms} of {allowed}");
    }
}
