//! JSON on request: from named values, or from a sentence that tells them.

use serde_json::{Map, Value};

use crate::Task;
use crate::random::Random;
use crate::words::{CITIES, COLOURS, NAMES, NOUNS};

pub(crate) fn task(random: &mut Random) -> Task {
    let fields = if random.chance(50) { person(random) } else { thing(random) };
    let answer = written(&fields);
    let [form, other] = if random.chance(50) { ["named", "told"] } else { ["told", "named"] };
    let question = if form == "named" { named(&fields) } else { told(&fields) };
    let [key, twin] = [form, other].map(|form| format!("{form} {answer}"));
    Task { twin: Some(twin), ..Task::new(question, answer, key) }
}

type Fields = Map<String, Value>;

fn person(random: &mut Random) -> Fields {
    let mut fields = Fields::new();
    fields.insert("name".into(), random.pick(NAMES).into());
    fields.insert("age".into(), random.between(5, 99).into());
    fields.insert("city".into(), random.pick(CITIES).into());
    fields
}

fn thing(random: &mut Random) -> Fields {
    let mut fields = Fields::new();
    fields.insert("item".into(), random.pick(NOUNS).into());
    fields.insert("colour".into(), random.pick(COLOURS).into());
    fields.insert("price".into(), random.between(1, 999).into());
    fields
}

/// As people write it, with a space after colon and comma.
fn written(fields: &Fields) -> String {
    let pairs: Vec<String> =
        fields.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

fn named(fields: &Fields) -> String {
    let pairs: Vec<String> =
        fields.iter().map(|(key, value)| format!("{key} {}", plain(value))).collect();
    format!("Write a JSON object with {}.", pairs.join(", "))
}

fn told(fields: &Fields) -> String {
    let value = |key: &str| plain(&fields[key]);
    let sentence = if fields.contains_key("name") {
        format!(
            "A person named {} is {} years old and lives in {}.",
            value("name"),
            value("age"),
            value("city")
        )
    } else {
        format!("The {} {} costs {} coins.", value("colour"), value("item"), value("price"))
    };
    let keys: Vec<&str> = fields.keys().map(String::as_str).collect();
    format!("Answer as JSON with the keys {}: {sentence}", keys.join(", "))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
