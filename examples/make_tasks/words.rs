//! Counting, copying and reversing lists of words; and the words that all families use.

use crate::Task;
use crate::random::Random;

pub(crate) const NOUNS: &[&str] = &[
    "apple", "river", "stone", "lamp", "garden", "window", "bridge", "cloud", "pencil", "basket",
    "mirror", "candle", "anchor", "blanket", "bottle", "button", "camera", "carpet", "castle",
    "chair", "clock", "coin", "cup", "door", "drum", "feather", "flower", "forest", "fork",
    "glove", "hammer", "harbour", "hat", "island", "jacket", "kettle", "key", "ladder", "lemon",
    "letter", "lion", "market", "melon", "mountain", "needle", "orange", "paper", "pear", "piano",
    "pillow", "plate", "pocket", "rabbit", "ribbon", "ring", "road", "rope", "sail", "school",
    "shell", "ship", "shirt", "silver", "spoon", "station", "street", "table", "tiger", "tower",
    "train", "tree", "valley", "violin", "wagon", "wheel", "winter",
];

pub(crate) const NAMES: &[&str] = &[
    "Mia", "Ben", "Anna", "Leo", "Sara", "Tom", "Nina", "Max", "Ella", "Paul", "Lena", "Omar",
    "Ruth", "Ivan", "Zoe", "Karl", "Maya", "Noah", "Rosa", "Hugo", "Lily", "Adam", "Clara",
    "Felix",
];

pub(crate) const CITIES: &[&str] = &[
    "Rome", "Paris", "Berlin", "Madrid", "Oslo", "Vienna", "Lisbon", "Prague", "Athens", "Dublin",
    "Cairo", "Tokyo", "Lima", "Delhi", "Boston", "Geneva",
];

pub(crate) const COLOURS: &[&str] =
    &["red", "blue", "green", "yellow", "black", "white", "brown", "grey", "purple", "pink"];

/// A word of the list, or one in eight times a made-up one, so that copying does not lean on knowing the word.
pub(crate) fn any_word(random: &mut Random) -> String {
    const SYLLABLES: [&str; 20] = [
        "ba", "ko", "ri", "tu", "men", "sol", "ve", "dra", "pi", "lan", "go", "fe", "zu", "ni",
        "quor", "tas", "ly", "hem", "wi", "jo",
    ];
    match random.below(8) {
        0 => (0..random.between(2, 3)).map(|_| random.pick(&SYLLABLES)).collect(),
        1 => random.pick(COLOURS).to_owned(),
        _ => random.pick(NOUNS).to_owned(),
    }
}

/// Lists have 2 to 8 words. With `drill` some are longer: they teach copying, since each word of theirs
/// must be found by what stands before it.
pub(crate) fn task(random: &mut Random, drill: bool) -> Task {
    // How often one word comes is the hardest, and some half of what is practised.
    let kind = if drill && random.chance(40) { 3 } else { random.below(4) };
    let long = drill && kind < 2 && random.chance(50);
    let count = if long { random.between(9, 40) } else { random.between(2, 8) };
    let words: Vec<String> = (0..count).map(|_| any_word(random)).collect();
    if kind == 3 {
        return occurrences(words, random);
    }
    let (verb, answer) = match kind {
        0 => (["Repeat these words", "Copy these words"][random.below(2)], words.join(" ")),
        1 => (
            ["Reverse the order of these words", "Say these words backwards"][random.below(2)],
            words.iter().rev().map(String::as_str).collect::<Vec<_>>().join(" "),
        ),
        _ => (
            ["How many words are these", "Count these words"][random.below(2)],
            counted(&words, |_| true),
        ),
    };
    let text = words.join(" ");
    let task = Task::new(format!("{verb}: {text}"), answer, format!("{kind} {text}"));
    if kind == 2 { Task { reference: count.to_string(), ..task } } else { task }
}

/// How often one word comes in a list; it comes nought to four times.
fn occurrences(mut words: Vec<String>, random: &mut Random) -> Task {
    let wanted = any_word(random);
    words.truncate(6);
    for _ in 0..random.below(4) {
        words.push(wanted.clone());
    }
    random.shuffle(&mut words);
    let text = words.join(" ");
    let count = words.iter().filter(|word| **word == wanted).count();
    let question = format!("How many times does the word {wanted} come here: {text}");
    let answer = counted(&words, |word| word == wanted);
    Task {
        reference: count.to_string(),
        ..Task::new(question, answer, format!("{wanted} in {text}"))
    }
}

/// Counts aloud: "road 1 lamp 1 road 2 = 2". Who is to say a number at once must see all words together.
fn counted(words: &[String], counts: impl Fn(&str) -> bool) -> String {
    let mut count = 0;
    let mut said = String::new();
    for word in words {
        count += usize::from(counts(word));
        said += &format!("{word} {count} ");
    }
    format!("{said}= {count}")
}
