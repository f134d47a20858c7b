//! Tokenizer and chat template agree with an independent reference.

use std::sync::Arc;

use nightshift::prompt::TextModel;
use nightshift::row::Message;
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
