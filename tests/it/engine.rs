//! The engine's promise: no limit, neighbour, order or thread changes a bit of a completion.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use nightshift::engine::{Engine, EngineSpec, EngineStats, Logprobs};
use nightshift::model::{Config, Model};
use nightshift::ops::Held;
use nightshift::prompt::TextModel;
use nightshift::row::{DrawKey, FailureCode, Generation, PartitionId, Prompt, RowRef, StopReason};
use nightshift::sampling::Sampling;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::goldens::fixture;

const PLENTY: EngineSpec = EngineSpec {
    threads: 1,
    max_sequences: 16,
    max_step_tokens: 2048,
    cache_bytes: 8 << 20,
    share_prefixes: true,
    logprobs: Logprobs { chosen: true, top: 2 },
    routed_experts: true,
};

fn engine(folder: &Path, held: Held, spec: EngineSpec) -> Engine {
    let text = Arc::new(TextModel::load(folder).unwrap());
    Engine::new(Model::load(folder, held, &|_, _| {}).unwrap(), text, spec).unwrap()
}

pub(crate) fn prompt(index: u32, tokens: Vec<u32>, sampling: Sampling) -> Prompt {
    let row = RowRef { partition: PartitionId(0), offset: index };
    Prompt {
        row,
        draw_key: DrawKey(u64::from(index)),
        tokens: tokens.into(),
        sampling: Arc::new(sampling),
        continuations: Arc::default(),
    }
}

pub(crate) type Samples = BTreeMap<(u32, u32), Generation>;

pub(crate) fn generate(
    mut engine: Engine,
    prompts: impl IntoIterator<Item = Prompt>,
) -> (Samples, EngineStats) {
    prompts.into_iter().for_each(|prompt| engine.submit(prompt, Instant::now()));
    let mut samples = Samples::new();
    while !engine.is_idle() {
        for sample in engine.step().unwrap() {
            let key = (sample.row.offset, sample.sample_index);
            assert!(samples.insert(key, sample).is_none(), "{key:?} ended twice");
        }
        assert!(engine.stats().steps < 20_000, "the engine does not come to an end");
    }
    (samples, engine.stats())
}

/// Prompts of many lengths, some with a shared beginning, greedy and sampled, with penalties and stops.
pub(crate) fn mixed_prompts() -> Vec<Prompt> {
    let header: Vec<u32> = (0..40).map(|i| 100 + i * 7 % 300).collect();
    let tail = |i: u32, n: u32| (0..n).map(move |k| (i * 53 + k * 29) % 470);
    let plain = Sampling { max_tokens: 36, ignore_eos: true, ..Sampling::default() };
    let warm = Sampling { temperature: 0.8, n: 3, top_p: 0.9, seed: 5, ..plain.clone() };
    let fussy = Sampling {
        repetition_penalty: 1.2,
        frequency_penalty: 0.3,
        stop: vec!["e".into()],
        ..plain.clone()
    };
    let kinds = [plain, warm, fussy];
    let tokens = |i: u32| match i % 3 {
        0 => [header.clone(), tail(i, i).collect()].concat(),
        1 => tail(i, 1 + i * 7).collect(),
        _ => [header.clone(), tail(1, 3).collect()].concat(),
    };
    (0..10).map(|i| prompt(i, tokens(i), kinds[i as usize / 2 % 3].clone())).collect()
}

pub(crate) type Fixed = (Vec<u32>, Vec<u32>, Vec<Vec<u16>>, StopReason);

/// Everything of a completion that must not change, log-probabilities as bits.
pub(crate) fn fixed(samples: &Samples) -> Vec<Fixed> {
    let bits = |x: &f32| x.to_bits();
    let fixed = |sample: &Generation| {
        let generated = sample.result.as_ref().unwrap();
        (
            generated.token_ids.clone(),
            generated.logprobs.iter().map(bits).collect(),
            generated.routed_experts.clone(),
            generated.stop.clone(),
        )
    };
    samples.values().map(fixed).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_schedule_gives_the_same_bits(
        max_sequences in 1usize..16,
        max_step_tokens in 1usize..200,
        blocks in 9u64..60,
        threads in 1usize..3,
        rotation in 0usize..10,
        kind in 0usize..4,
        share_prefixes: bool,
    ) {
        let folder = fixture(["a_v2like", "b_litelike"][kind % 2]);
        let held = [Held::F32, Held::Bf16][kind / 2];
        // 3 layers, 16 tokens a block, 48 elements a row.
        let cache_bytes = blocks * 3 * 16 * 48 * 4;
        let spec = EngineSpec { max_sequences, max_step_tokens, cache_bytes, threads, share_prefixes, ..PLENTY };
        let mut prompts = mixed_prompts();
        let (expected, _) = generate(engine(&folder, held, PLENTY), prompts.clone());
        prompts.rotate_left(rotation);
        let (found, _) = generate(engine(&folder, held, spec), prompts);
        prop_assert_eq!(fixed(&found), fixed(&expected));
    }
}

#[test]
fn a_full_cache_preempts_and_changes_nothing() {
    let folder = fixture("a_v2like");
    let sampling =
        Sampling { max_tokens: 90, ignore_eos: true, temperature: 0.5, ..Sampling::default() };
    let prompts = || (0..6).map(|i| prompt(i, vec![i + 7; 20], sampling.clone()));
    let (expected, _) = generate(engine(&folder, Held::F32, PLENTY), prompts());
    let spec = EngineSpec { cache_bytes: 12 * 3 * 16 * 48 * 4, ..PLENTY };
    let (found, stats) = generate(engine(&folder, Held::F32, spec), prompts());
    assert!(stats.preemptions > 0 && stats.recomputed_tokens > 0, "{stats:?}");
    assert_eq!(fixed(&found), fixed(&expected));
}

#[test]
fn samples_of_one_prompt_share_its_cache() {
    let sampling = Sampling { n: 4, temperature: 1.0, max_tokens: 4, ..Sampling::default() };
    let tokens: Vec<u32> = (0..100).map(|i| i * 3 % 400).collect();
    let (samples, stats) =
        generate(engine(&fixture("b_litelike"), Held::F32, PLENTY), [prompt(0, tokens, sampling)]);
    let cached: u32 = samples.values().map(|sample| sample.cached_tokens).sum();
    assert_eq!(cached, 3 * 96);
    assert_eq!(stats.prefilled_tokens, 100 + 3 * 4);
}

#[test]
fn a_batch_of_256_gives_the_bits_of_a_batch_of_1() {
    let sampling = |i: u32| Sampling {
        max_tokens: 4 + i % 9,
        ignore_eos: true,
        temperature: (i % 2) as f32,
        ..Sampling::default()
    };
    let prompts = || (0..300).map(|i| prompt(i, vec![i; 1 + i as usize % 20], sampling(i)));
    let one = EngineSpec { max_sequences: 1, ..PLENTY };
    let (expected, _) = generate(engine(&fixture("a_v2like"), Held::F32, one), prompts());
    let many = EngineSpec { max_sequences: 256, threads: 2, cache_bytes: 32 << 20, ..PLENTY };
    let (found, stats) = generate(engine(&fixture("a_v2like"), Held::F32, many), prompts());
    assert!(stats.sequence_steps / stats.steps > 60, "{stats:?}");
    assert_eq!(fixed(&found), fixed(&expected));
}

#[test]
fn nothing_is_shared_unless_it_may_be() {
    let sampling = Sampling { n: 4, temperature: 1.0, max_tokens: 4, ..Sampling::default() };
    let prompts = || [prompt(0, (0..100).map(|i| i * 3 % 400).collect(), sampling.clone())];
    let (shared, _) = generate(engine(&fixture("b_litelike"), Held::F32, PLENTY), prompts());
    let alone = EngineSpec { share_prefixes: false, ..PLENTY };
    let (samples, stats) = generate(engine(&fixture("b_litelike"), Held::F32, alone), prompts());
    assert!(samples.values().all(|sample| sample.cached_tokens == 0));
    assert_eq!(stats.prefilled_tokens, 400);
    assert_eq!(fixed(&samples), fixed(&shared));
}

#[test]
fn identical_greedy_requests_are_computed_once() {
    let greedy = Sampling { max_tokens: 9, n: 2, ..Sampling::default() };
    let other = Sampling { seed: 7, n: 1, ..greedy.clone() };
    let longer = Sampling { max_tokens: 10, ..greedy.clone() };
    let warm = Sampling { temperature: 0.9, ..greedy.clone() };
    let prompts = [
        prompt(0, vec![5; 30], greedy.clone()),
        prompt(1, vec![5; 30], other),
        prompt(2, vec![5; 30], longer),
        prompt(3, vec![6; 30], greedy),
        prompt(4, vec![5; 30], warm.clone()),
        prompt(5, vec![5; 30], warm),
    ];
    let (samples, stats) = generate(engine(&fixture("a_v2like"), Held::F32, PLENTY), prompts);
    let reused: Vec<_> = samples.iter().filter(|(_, s)| s.reused).map(|(key, _)| *key).collect();
    assert_eq!(reused, [(0, 1), (1, 0), (2, 1), (3, 1)]);
    assert_eq!(stats.reused_samples, 4);
    assert_eq!(samples[&(1, 0)].result, samples[&(0, 0)].result);
    assert_eq!(samples[&(1, 0)].cached_tokens, 30);
}

#[test]
fn an_answer_is_kept_for_requests_that_come_later() {
    let mut engine = engine(&fixture("a_v2like"), Held::F32, PLENTY);
    let sampling = Sampling { max_tokens: 5, ..Sampling::default() };
    let mut answers = Vec::new();
    for row in 0..3 {
        engine.submit(prompt(row, vec![9; 10], sampling.clone()), Instant::now());
        while !engine.is_idle() {
            answers.extend(engine.step().unwrap());
        }
    }
    assert_eq!(answers.iter().map(|a| a.reused).collect::<Vec<_>>(), [false, true, true]);
    assert!(answers.iter().all(|answer| answer.result == answers[0].result));
    assert_eq!(
        engine.stats().generated_tokens as usize,
        answers[0].result.as_ref().unwrap().token_ids.len()
    );
}

#[test]
fn the_ledger_counts_every_route() {
    let mut engine = engine(&fixture("a_v2like"), Held::F32, PLENTY);
    let sampling = Sampling { max_tokens: 6, ignore_eos: true, ..Sampling::default() };
    let config = Config::load(&fixture("a_v2like")).unwrap();
    let moe = config.moe.unwrap();
    engine.submit(prompt(0, vec![3; 10], sampling), Instant::now());
    let mut samples = Vec::new();
    while !engine.is_idle() {
        samples.extend(engine.step().unwrap());
    }
    // 10 prompt tokens and all generated ones but the last, which is never fed back.
    let tokens = 10 + 5;
    for load in engine.ledger().layers() {
        assert_eq!(load.routes.iter().sum::<u64>(), tokens * moe.experts_per_token as u64);
        assert!(load.layer >= moe.first_layer && load.imbalance() >= 1.0);
    }
    assert_eq!(engine.ledger().layers().len(), config.layers - moe.first_layer);
    let routes = &samples[0].result.as_ref().unwrap().routed_experts;
    assert_eq!(routes.len(), 6);
    let width = engine.ledger().layers().len() * moe.experts_per_token;
    assert!(routes.iter().all(
        |r| r.len() == width && r.chunks(moe.experts_per_token).all(|layer| layer.is_sorted())
    ));
}

/// The text of each row under its constraint, or the code of its failure.
fn constrained(sampling: impl IntoIterator<Item = Sampling>) -> Vec<Result<String, FailureCode>> {
    let folder = fixture("a_v2like");
    let text = TextModel::load(&folder).unwrap();
    let prompts = sampling.into_iter().enumerate();
    let prompts = prompts.map(|(i, sampling)| prompt(i as u32, vec![i as u32 + 5; 4], sampling));
    let (samples, _) = generate(engine(&folder, Held::F32, PLENTY), prompts);
    let outcome = |sample: Generation| match sample.result {
        Ok(generated) => {
            let eos = usize::from(generated.stop == StopReason::Eos);
            Ok(text.decode(&generated.token_ids[..generated.token_ids.len() - eos], true))
        }
        Err(failure) => Err(failure.code),
    };
    samples.into_values().map(outcome).collect()
}

#[test]
fn completions_meet_their_constraints() {
    let schema = r#"{"type": "object", "properties": {"name": {"enum": ["Ann", "Bob"]},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99},
        "minItems": 2, "maxItems": 3}}, "required": ["name", "ages"], "additionalProperties": false}"#;
    let free = Sampling { max_tokens: 200, temperature: 1.0, ..Sampling::default() };
    let json = Sampling { json_schema: Some(schema.into()), ..free.clone() };
    let regex = Sampling { regex: Some("[a-f]{3}-[0-9]{2,4}".into()), ..free.clone() };
    let choice = Sampling { choice: vec!["yes (1)".into(), "<no> & ~#".into()], ..free.clone() };
    let many = (0..8).flat_map(|_| [json.clone(), regex.clone(), choice.clone()]);
    for (index, text) in constrained(many).into_iter().enumerate() {
        let text = text.unwrap();
        let (head, tail) = text.split_once('-').unwrap_or_default();
        match index % 3 {
            0 => {
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert!(value["name"] == "Ann" || value["name"] == "Bob", "{text}");
                assert!((2..=3).contains(&value["ages"].as_array().unwrap().len()), "{text}");
            }
            1 => assert!(
                head.len() == 3
                    && head.chars().all(|c| ('a'..='f').contains(&c))
                    && (2..=4).contains(&tail.len())
                    && tail.chars().all(|c| c.is_ascii_digit()),
                "{text}"
            ),
            _ => assert!(text == "yes (1)" || text == "<no> & ~#", "{text}"),
        }
    }
}

#[test]
fn constraints_that_cannot_be_met_cost_one_row_each() {
    let plain = Sampling { max_tokens: 5, ..Sampling::default() };
    let with = |change: fn(&mut Sampling)| {
        let mut sampling = plain.clone();
        change(&mut sampling);
        sampling
    };
    let outcomes = constrained([
        with(|s| s.regex = Some("[0-9]{40}".into())),
        with(|s| s.regex = Some("(".into())),
        with(|s| s.json_schema = Some("{".into())),
        with(|s| s.json_schema = Some(r#"{"type": "strin"}"#.into())),
        with(|s| (s.choice, s.min_tokens) = (vec!["a".into()], 4)),
        with(|s| s.choice = vec!["a".into(), "b".into()]),
    ]);
    assert_eq!(outcomes[0], Err(FailureCode::ConstraintUnmet));
    assert_eq!(outcomes[1], Err(FailureCode::InvalidConstraint));
    assert_eq!(outcomes[2], Err(FailureCode::InvalidConstraint));
    assert_eq!(outcomes[3], Err(FailureCode::InvalidConstraint));
    assert!(outcomes[5].is_ok(), "{outcomes:?}");
}

/// What is scored has the log-probabilities that it has when it is generated, to the bit; and several
/// continuations of one prompt share its cache.
#[test]
fn given_tokens_have_the_log_probabilities_of_generated_ones() {
    let folder = fixture("a_v2like");
    let greedy = Sampling { max_tokens: 30, ignore_eos: true, ..Sampling::default() };
    let tokens = |i: u32| (0..40 + 3 * i).map(|k| (k * 31 + i) % 470).collect::<Vec<_>>();
    let generated: Vec<Prompt> = (0..6).map(|i| prompt(i, tokens(i), greedy.clone())).collect();
    let (samples, _) = generate(engine(&folder, Held::F32, PLENTY), generated.clone());
    let token_ids = |i: u32| samples[&(i, 0)].result.as_ref().unwrap().token_ids.clone();
    let given = |i: u32| Prompt {
        // One that ends with an end-of-sequence token in its middle, and one of a single token.
        continuations: [token_ids(i), vec![7, 1, 9], vec![token_ids(i)[0]]].into(),
        ..generated[i as usize].clone()
    };
    let (expected, _) = generate(engine(&folder, Held::F32, PLENTY), (0..6).map(given));
    for i in 0..6 {
        let of = |sample: u32| expected[&(i, sample)].result.as_ref().unwrap();
        let first = samples[&(i, 0)].result.as_ref().unwrap();
        assert_eq!((&of(0).token_ids, &of(0).logprobs), (&first.token_ids, &first.logprobs));
        assert_eq!((&of(0).top_logprobs, &of(0).stop), (&first.top_logprobs, &StopReason::Given));
        assert_eq!((&of(1).token_ids[..], of(1).logprobs.len()), (&[7, 1, 9][..], 3));
        assert_eq!(of(2).logprobs, first.logprobs[..1]);
        assert!(expected[&(i, 2)].cached_tokens >= 32, "{:?}", expected[&(i, 2)]);
    }
    // Single tokens share one sequence, and have the same scores as in sequences of their own.
    let letters = |alone: bool| {
        let mut continuations = (3..9).map(|id| vec![id]).collect::<Vec<_>>();
        continuations.extend(alone.then(|| vec![3, 4]));
        let with = |i: u32| Prompt {
            continuations: continuations.clone().into(),
            ..generated[i as usize].clone()
        };
        generate(engine(&folder, Held::F32, PLENTY), (0..6).map(with))
    };
    let ((together, stats), (alone, _)) = (letters(false), letters(true));
    assert_eq!((together.len(), stats.generated_tokens), (36, 6));
    let of = |samples: &Samples, key: &(u32, u32)| samples[key].result.clone().unwrap();
    assert!(together.keys().all(|key| of(&together, key) == of(&alone, key)));
    assert!(
        together
            .iter()
            .all(|((_, index), s)| of(&together, &(s.row.offset, *index)).token_ids == [index + 3])
    );
    // Neither the batch nor what is asked to be reported changes them.
    let small = EngineSpec {
        max_sequences: 2,
        max_step_tokens: 7,
        logprobs: Logprobs::default(),
        cache_bytes: 14 * 3 * 16 * 48 * 4,
        ..PLENTY
    };
    let (found, _) = generate(engine(&folder, Held::F32, small), (0..6).map(given));
    for (key, sample) in &found {
        let logprobs = |sample: &Generation| sample.result.as_ref().unwrap().logprobs.clone();
        assert_eq!(logprobs(sample), logprobs(&expected[key]), "{key:?}");
    }
}

#[test]
fn a_stop_string_stays_if_it_shall() {
    let folder = fixture("a_v2like");
    let ended = |include_stop: bool| {
        let sampling = Sampling {
            max_tokens: 200,
            temperature: 1.0,
            ignore_eos: true,
            stop: vec!["e".into()],
            include_stop,
            ..Sampling::default()
        };
        let (samples, _) =
            generate(engine(&folder, Held::F32, PLENTY), [prompt(0, vec![8; 5], sampling)]);
        match &samples[&(0, 0)].result.as_ref().unwrap().stop {
            StopReason::StopString { text_end, .. } => *text_end,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ended(true), ended(false) + 1);
}

#[test]
fn a_row_that_makes_steps_fail_is_found_and_the_others_do_not_notice() {
    let folder = fixture("a_v2like");
    let sampling = Sampling { max_tokens: 12, ignore_eos: true, ..Sampling::default() };
    let prompts = |poison: Option<u32>| {
        let sampling = sampling.clone();
        (0..11).map(move |i| {
            let mut tokens = vec![i + 3; 5 + i as usize];
            if poison == Some(i) {
                // No input gets here with such an id: it takes the embedding's index out of bounds.
                tokens[2] = 1 << 30;
            }
            prompt(i, tokens, sampling.clone())
        })
    };
    let (mut expected, _) = generate(engine(&folder, Held::F32, PLENTY), prompts(None));
    let (mut found, _) = generate(engine(&folder, Held::F32, PLENTY), prompts(Some(6)));
    let poisoned = found.remove(&(6, 0)).unwrap().result.unwrap_err();
    assert_eq!(poisoned.code, FailureCode::Engine);
    assert!(poisoned.message.contains("index"), "{}", poisoned.message);
    expected.remove(&(6, 0));
    assert_eq!(fixed(&found), fixed(&expected));
}

#[test]
fn an_engine_that_fails_with_every_row_stops_the_job() {
    let mut engine = engine(&fixture("a_v2like"), Held::F32, PLENTY);
    for i in 0..30 {
        engine.submit(prompt(i, vec![1 << 30, i], Sampling::default()), Instant::now());
    }
    let stopped = (0..30).find_map(|_| engine.step().err()).unwrap();
    assert!(stopped.to_string().contains("sequences failed one by one"), "{stopped}");
}

#[test]
fn a_sequence_that_cannot_fit_alone_fails_and_the_others_do_not() {
    let spec = EngineSpec { cache_bytes: 4 * 3 * 16 * 48 * 4, ..PLENTY };
    let sampling = |max_tokens| Sampling { max_tokens, ignore_eos: true, ..Sampling::default() };
    let prompts = [
        prompt(0, vec![1; 64], sampling(2)),
        prompt(1, vec![2; 50], sampling(100)),
        prompt(2, vec![3; 30], sampling(5)),
    ];
    let (samples, _) = generate(engine(&fixture("a_v2like"), Held::F32, spec), prompts);
    let code = |row| samples[&(row, 0)].result.as_ref().err().map(|failure| failure.code);
    assert_eq!(
        (code(0), code(1), code(2)),
        (Some(FailureCode::PromptTooLong), Some(FailureCode::PromptTooLong), None)
    );
}

/// A copy of a fixture with an edited config.
fn edited(name: &str, key: &str, value: serde_json::Value) -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(path, config.to_string()).unwrap();
    folder
}

#[test]
fn sequences_end_for_the_reason_they_say() {
    let folder = edited("a_v2like", "max_position_embeddings", 40.into());
    let text = TextModel::load(folder.path()).unwrap();
    let ended = |change: &dyn Fn(&mut Sampling), tokens: usize| {
        let mut sampling = Sampling { max_tokens: 30, ignore_eos: true, ..Sampling::default() };
        change(&mut sampling);
        let spec = EngineSpec { logprobs: Logprobs::default(), ..PLENTY };
        let prompts = [prompt(0, (0..tokens as u32).collect(), sampling)];
        let (mut samples, _) = generate(engine(folder.path(), Held::F32, spec), prompts);
        samples.remove(&(0, 0)).unwrap().result.unwrap()
    };
    let free = ended(&|_| {}, 5);
    assert_eq!((free.stop.clone(), free.token_ids.len()), (StopReason::MaxTokens, 30));
    assert_eq!(ended(&|_| {}, 30).stop, StopReason::Context);
    assert_eq!(ended(&|_| {}, 30).token_ids.len(), 10);
    let third = free.token_ids[2];
    let stopped = ended(&|s| s.stop_token_ids = vec![third], 5);
    assert_eq!((stopped.stop, stopped.token_ids.len()), (StopReason::StopToken(third), 3));
    let later = ended(&|s| (s.stop_token_ids, s.min_tokens) = (vec![third], 6), 5);
    assert!(later.token_ids.len() >= 6 && !later.token_ids[..5].contains(&third));
    // A stop string over the border of two tokens ends at the second and is cut.
    let whole = text.decode(&free.token_ids, true);
    let cut = whole
        .char_indices()
        .map(|(at, _)| at)
        .find(|&at| at >= text.decode(&free.token_ids[..6], true).len())
        .unwrap();
    let (from, to) = (whole.floor_char_boundary(cut - 1), whole.ceil_char_boundary(cut + 1));
    let stop = whole[from..to].to_owned();
    let stopped = ended(&|s| s.stop = vec![stop.clone()], 5);
    let StopReason::StopString { stop: met, text_end } = stopped.stop else {
        panic!("{:?}", stopped.stop)
    };
    assert_eq!((met, Some(text_end)), (stop.clone(), whole.find(&stop)));
    assert!(stopped.token_ids.len() < 30);
}

#[test]
fn logits_that_are_not_numbers_fail_their_rows() {
    let folder = edited("b_litelike", "use_cache", true.into());
    let path = folder.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let norm = tensors.get_mut("model.norm.weight").unwrap();
    *norm = norm.affine(f64::NAN, 0.0).unwrap();
    candle_core::safetensors::save(&tensors, path).unwrap();
    let prompts = (0..3).map(|i| prompt(i, vec![i + 1; 4], Sampling::default()));
    let (samples, _) = generate(engine(folder.path(), Held::F32, PLENTY), prompts);
    assert_eq!(samples.len(), 3);
    assert!(
        samples
            .values()
            .all(|s| s.result.as_ref().is_err_and(|failure| failure.code == FailureCode::Numerics))
    );
}
