//! Tokenizer and chat template agree with an independent reference.

use std::sync::Arc;

use nightshift::prompt::{Encoder, Limits, PromptSpec, TextModel, TooLong};
use nightshift::row::{
    FailureCode, Message, PartitionId, PromptRequest, PromptRow, PromptSource, RowRef,
};
use nightshift::sampling::Sampling;
use serde_json::Value;

use crate::goldens::{fixture, ids};

const FIXTURES: [&str; 4] = ["a_v2like", "b_litelike", "c_plain_tied", "d_freq2_bias"];

fn each(mut check: impl FnMut(&Arc<TextModel>, &Value)) {
    for name in FIXTURES {
        let folder = fixture(name);
        let goldens = std::fs::read_to_string(folder.join("tokenizer_goldens.json")).unwrap();
        check(
            &Arc::new(TextModel::load(&folder).unwrap()),
            &serde_json::from_str(&goldens).unwrap(),
        );
    }
}

#[test]
fn texts_encode_and_decode_as_the_reference_does() {
    each(|text, goldens| {
        for case in goldens["encode"].as_array().unwrap() {
            let source = case["text"].as_str().unwrap();
            let found = text.encode(source).unwrap();
            assert_eq!(found, ids(&case["ids"]), "{source:?}");
            assert_eq!(text.decode(&found, false), case["decoded"].as_str().unwrap());
            assert_eq!(text.decode(&found, true), case["decoded_skip_special"].as_str().unwrap());
        }
        let case = &goldens["with_bos_example"];
        let found = text.encode_completion(case["text"].as_str().unwrap()).unwrap();
        assert_eq!(found, ids(&case["expected_prompt_ids"]));
    });
}

#[test]
fn conversations_render_as_the_reference_does() {
    each(|text, goldens| {
        for case in goldens["chat"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let rendered = text
                .chat()
                .unwrap()
                .render(&messages, case["add_generation_prompt"].as_bool().unwrap())
                .unwrap();
            assert_eq!(rendered, case["text"].as_str().unwrap());
            assert_eq!(text.encode(&rendered).unwrap(), ids(&case["ids"]));
        }
    });
}

#[test]
fn text_is_released_id_by_id_as_the_reference_does() {
    each(|text, goldens| {
        for case in goldens["incremental"].as_array().unwrap() {
            let mut detokenizer = text.detokenizer(case["skip_special_tokens"].as_bool().unwrap());
            let mut whole = String::new();
            for (id, step) in ids(&case["ids"]).into_iter().zip(case["steps"].as_array().unwrap()) {
                let piece = detokenizer.push(id);
                assert_eq!(piece.as_deref(), step.as_str());
                whole.extend(piece);
            }
            whole.extend(detokenizer.finish());
            assert_eq!(whole, case["full_decode"].as_str().unwrap());
        }
    });
}

fn encoder(spec: PromptSpec, context: u32) -> Encoder {
    let text = Arc::new(TextModel::load(&fixture("a_v2like")).unwrap());
    Encoder::new(text, spec, Limits { vocabulary: 512, context }).unwrap()
}

fn row(source: PromptSource) -> PromptRow {
    PromptRow {
        row: RowRef { partition: PartitionId(0), offset: 0 },
        row_index: 3,
        id: "3".into(),
        place: "`a.jsonl` line 4 (row 3)".into(),
        request: Ok(PromptRequest { source, sampling: Sampling::default() }),
    }
}

fn tokens(encoder: &Encoder, source: PromptSource) -> Result<Vec<u32>, FailureCode> {
    encoder.encode("a.jsonl", row(source)).prompt.map(|prompt| prompt.tokens.to_vec()).map_err(
        |failure| {
            assert!(
                failure.message.starts_with("`a.jsonl` line 4 (row 3): "),
                "{}",
                failure.message
            );
            failure.code
        },
    )
}

#[test]
fn prompts_that_are_too_long_fail_or_lose_one_end() {
    let ids = PromptSource::TokenIds(vec![480, 1, 2, 3, 4, 5]);
    for (too_long, expected) in [
        (TooLong::Fail, Err(FailureCode::PromptTooLong)),
        (TooLong::TruncateLeft, Ok(vec![480, 4, 5])),
        (TooLong::TruncateRight, Ok(vec![480, 1, 2])),
    ] {
        let encoder = encoder(PromptSpec { too_long, ..PromptSpec::default() }, 4);
        assert_eq!(tokens(&encoder, ids.clone()), expected, "{too_long:?}");
    }
}

#[test]
fn a_template_sees_all_columns_and_its_failure_costs_one_row() {
    let columns = |value: Value| PromptSource::Columns(value.as_object().unwrap().clone());
    let plain = encoder(
        PromptSpec { template: Some("Q: {{ q.strip() }}".into()), ..PromptSpec::default() },
        100,
    );
    let text = TextModel::load(&fixture("a_v2like")).unwrap();
    let found = tokens(&plain, columns(serde_json::json!({ "q": " why " })));
    assert_eq!(found, Ok(text.encode_completion("Q: why").unwrap()));
    assert_eq!(
        tokens(&plain, columns(serde_json::json!({ "p": 1 }))),
        Err(FailureCode::TemplateFailed)
    );
    let empty =
        encoder(PromptSpec { template: Some("{{ q }}".into()), ..PromptSpec::default() }, 100);
    assert_eq!(
        tokens(&empty, columns(serde_json::json!({ "q": "" }))),
        Err(FailureCode::EmptyPrompt)
    );
    let chat = PromptSpec {
        template: Some("{{ q }}".into()),
        system: Some("S".into()),
        ..PromptSpec::default()
    };
    let found = tokens(&encoder(chat, 100), columns(serde_json::json!({ "q": "why" })));
    assert_eq!(
        found,
        Ok(text.encode("<｜begin▁of▁sentence｜>S\n\nUser: why\n\nAssistant:").unwrap())
    );
    let endless = encoder(
        PromptSpec {
            template: Some(
                "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
                    .into(),
            ),
            ..PromptSpec::default()
        },
        100,
    );
    assert_eq!(tokens(&endless, columns(serde_json::json!({}))), Err(FailureCode::TemplateFailed));
}

#[test]
fn ids_outside_of_the_vocabulary_are_refused() {
    let encoder = encoder(PromptSpec::default(), 100);
    assert_eq!(tokens(&encoder, PromptSource::TokenIds(vec![511])), Ok(vec![511]));
    assert_eq!(
        tokens(&encoder, PromptSource::TokenIds(vec![512])),
        Err(FailureCode::InvalidTokenId)
    );
}

#[test]
fn continuations_follow_one_prompt_or_cost_their_row() {
    let columns = |c: &str| {
        let columns = serde_json::json!({ "q": "What?", "a": "no", "b": "yes", "c": c });
        PromptSource::Columns(columns.as_object().unwrap().clone())
    };
    let texts = ["{{ a }}", " {{ b }}", "{{ c }}"].map(str::to_owned);
    let spec = || PromptSpec {
        template: Some("{{ q }}".into()),
        continuations: texts.to_vec(),
        ..PromptSpec::default()
    };
    let text = TextModel::load(&fixture("a_v2like")).unwrap();
    let prompt = encoder(spec(), 4096).encode("a.jsonl", row(columns(""))).prompt.unwrap();
    let decoded: Vec<String> =
        prompt.continuations.iter().map(|ids| text.decode(ids, false)).collect();
    assert_eq!((decoded, prompt.samples()), (vec!["no".to_owned(), " yes".to_owned()], 2));
    assert_eq!(prompt.tokens[..], text.encode_completion("What?").unwrap()[..]);
    let longest = text.encode(&"long ".repeat(20)).unwrap().len();
    let context = prompt.tokens.len() + longest;
    for (room, fits) in [(context, true), (context - 1, false)] {
        let encoded =
            encoder(spec(), room as u32).encode("a.jsonl", row(columns(&"long ".repeat(20))));
        assert_eq!(encoded.prompt.is_ok(), fits, "{:?}", encoded.prompt);
    }
    // Of a tokenizer with more tokens than the model knows.
    let few = Limits { vocabulary: prompt.tokens.iter().max().unwrap() + 1, context: 4096 };
    let few = Encoder::new(Arc::new(text), spec(), few).unwrap();
    let failure = few.encode("a.jsonl", row(columns("<｜end▁of▁sentence｜>")));
    assert_eq!(failure.prompt.unwrap_err().code, FailureCode::InvalidTokenId);
    let mut inner = spec();
    inner.continuations.swap(0, 2);
    let failure = encoder(inner, 4096).encode("a.jsonl", row(columns(""))).prompt.unwrap_err();
    assert_eq!(failure.code, FailureCode::TemplateFailed);
}
