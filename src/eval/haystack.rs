//! Needle in a Haystack: prompts of given lengths that hide a fact at a given depth and ask for it at their
//! end (G. Kamradt, 2023). Lengths are counted in the model's own tokens, by whoever can count them.

/// The prompts of a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Lengths of whole prompts, tokens: each prompt is the longest that is no longer.
    pub lengths: Vec<usize>,
    /// Percent of the haystack that comes before the needle.
    pub depths: Vec<f64>,
    /// Prompts of each cell, each with its own needle and its own beginning of the haystack.
    pub repeats: usize,
    /// Seed of needles and beginnings.
    pub seed: u64,
}

/// What is hidden and asked. `{key}` and `{value}` stand for the key and the number of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct NeedleText {
    /// The fact, a whole sentence.
    pub needle: String,
    /// The question.
    pub question: String,
    /// The answer that is looked for.
    pub reference: String,
    /// What `{key}` may be.
    pub keys: Vec<String>,
    /// The whole prompt: `{context}` and `{question}`.
    pub prompt: String,
}

/// A prompt of the grid.
#[derive(Clone, Debug, PartialEq)]
pub struct NiahRow {
    /// The length it was made for, tokens.
    pub context_tokens: usize,
    /// Percent of the haystack before the needle.
    pub depth_percent: f64,
    /// 0-based index among the prompts of its cell.
    pub repeat: usize,
    /// Its text.
    pub prompt: String,
    /// Its tokens.
    pub prompt_tokens: usize,
    /// The answer that is looked for.
    pub reference: String,
}

/// A text in sentences, repeated where it is too short.
pub struct Haystack {
    sentences: Vec<String>,
    /// Tokens of each sentence, about.
    tokens: Vec<usize>,
    text: String,
}

/// Tokens of a text, or why they cannot be counted.
pub type CountTokens<'a> = &'a dyn Fn(&str) -> Result<usize, String>;

impl Haystack {
    /// Cuts a text into sentences.
    pub fn new(text: &str, count: CountTokens) -> Result<Self, String> {
        let sentences = sentences(text);
        if sentences.is_empty() {
            return Err("the haystack has no text".into());
        }
        let empty = count("")?;
        let tokens =
            |sentence: &String| Ok(count(&format!("{sentence} "))?.saturating_sub(empty).max(1));
        let tokens = sentences.iter().map(tokens).collect::<Result<_, String>>()?;
        Ok(Self { text: sentences.join(" "), sentences, tokens })
    }

    /// The prompts of a grid, in the order of lengths and depths.
    pub fn rows<'a>(
        &'a self,
        grid: &'a Grid,
        needle: &'a NeedleText,
        count: CountTokens<'a>,
    ) -> impl Iterator<Item = Result<NiahRow, String>> + 'a {
        let cells = grid
            .lengths
            .iter()
            .flat_map(move |length| grid.depths.iter().map(move |depth| (*length, *depth)));
        let cells = cells.flat_map(|cell| (0..grid.repeats).map(move |repeat| (cell, repeat)));
        cells.zip(0u64..).map(move |(((length, depth), repeat), index)| {
            self.row((length, depth, repeat), needle, Draws(grid.seed ^ (index << 20)), count)
        })
    }

    fn row(
        &self,
        (length, depth, repeat): (usize, f64, usize),
        needle: &NeedleText,
        mut draws: Draws,
        count: CountTokens,
    ) -> Result<NiahRow, String> {
        let (key, value) = self.hidden(needle, &mut draws);
        let fill = |text: &str| text.replace("{key}", &key).replace("{value}", &value);
        let first = draws.below(self.sentences.len());
        let (fact, question) = (fill(&needle.needle), fill(&needle.question));
        let prompt = |sentences: usize| {
            let context = self.context(first, sentences, depth, &fact);
            needle.prompt.replace("{context}", &context).replace("{question}", &question)
        };
        let mut sentences = 0;
        let mut left = length.saturating_sub(count(&prompt(0))?);
        while let Some(rest) = left.checked_sub(self.tokens_at(first + sentences)) {
            (left, sentences) = (rest, sentences + 1);
        }
        // Sentences side by side may have a few tokens more or fewer than each alone.
        while sentences > 0 && count(&prompt(sentences))? > length {
            sentences -= 1;
        }
        while count(&prompt(sentences + 1))? <= length {
            sentences += 1;
        }
        let prompt = prompt(sentences);
        let prompt_tokens = count(&prompt)?;
        if prompt_tokens > length {
            return Err(format!(
                "needle and question alone have {prompt_tokens} tokens, more than {length}"
            ));
        }
        Ok(NiahRow {
            context_tokens: length,
            depth_percent: depth,
            repeat,
            prompt,
            prompt_tokens,
            reference: fill(&needle.reference),
        })
    }

    /// A key, and a number that the haystack does not have.
    fn hidden(&self, needle: &NeedleText, draws: &mut Draws) -> (String, String) {
        let key = needle.keys.get(draws.below(needle.keys.len())).cloned().unwrap_or_default();
        loop {
            let value = (1000 + draws.below(9000)).to_string();
            if !self.text.contains(&value) {
                return (key, value);
            }
        }
    }

    fn tokens_at(&self, sentence: usize) -> usize {
        self.tokens[sentence % self.tokens.len()]
    }

    /// So many sentences from `first` on, with the fact between two of them.
    fn context(&self, first: usize, sentences: usize, depth: f64, fact: &str) -> String {
        let total: usize = (0..sentences).map(|i| self.tokens_at(first + i)).sum();
        let target = total as f64 * depth / 100.0;
        let (mut before, mut place) = (0.0, 0);
        while place < sentences {
            let next = before + self.tokens_at(first + place) as f64;
            if (next - target).abs() > (before - target).abs() {
                break;
            }
            (before, place) = (next, place + 1);
        }
        let sentence = |i: usize| self.sentences[(first + i) % self.sentences.len()].as_str();
        let mut words: Vec<&str> = (0..sentences).map(sentence).collect();
        words.insert(place, fact);
        words.join(" ")
    }
}

/// The sentences of a text, white space between them taken away.
fn sentences(text: &str) -> Vec<String> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut sentences = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let ends = |(at, found): (usize, &str)| {
            let end = at + found.len();
            let wide = found.starts_with(['。', '！', '？']);
            (wide || rest[end..].starts_with(' ') || end == rest.len()).then_some(end)
        };
        let end = rest.match_indices(['.', '!', '?', '。', '！', '？']).find_map(ends);
        let (sentence, more) = rest.split_at(end.unwrap_or(rest.len()));
        sentences.push(sentence.trim().to_owned());
        rest = more.trim_start();
    }
    sentences
}

/// Seeded random numbers that are the same on every machine (SplitMix64).
struct Draws(u64);

impl Draws {
    /// A number from 0 to `end - 1`; 0 if there is none.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(x ^ (x >> 31)) * end as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<usize, String> {
        Ok(text.split_whitespace().count())
    }

    fn needle() -> NeedleText {
        NeedleText {
            needle: "The code for {key} is {value}.".into(),
            question: "What is the code for {key}?".into(),
            reference: "{value}".into(),
            keys: vec!["apple".into(), "river".into()],
            prompt: "{context} {question}".into(),
        }
    }

    #[test]
    fn a_text_is_cut_at_the_ends_of_sentences() {
        let found = sentences("One 1.5 two.\nThree!  Four? 五。六。Seven");
        assert_eq!(found, ["One 1.5 two.", "Three!", "Four?", "五。", "六。", "Seven"]);
    }

    #[test]
    fn each_prompt_has_its_length_and_its_needle_at_its_depth() {
        let text: String = (0..40).map(|i| format!("This is sentence {i} of it. ")).collect();
        let haystack = Haystack::new(&text, &words).unwrap();
        let grid = Grid {
            lengths: vec![60, 600],
            depths: vec![0.0, 25.0, 50.0, 100.0],
            repeats: 2,
            seed: 7,
        };
        let needle = needle();
        let rows: Vec<NiahRow> =
            haystack.rows(&grid, &needle, &words).collect::<Result<_, _>>().unwrap();
        assert_eq!(rows.len(), 16);
        for row in &rows {
            let length = row.context_tokens;
            assert!((length - 6..=length).contains(&row.prompt_tokens), "{row:?}");
            assert_eq!(row.prompt_tokens, words(&row.prompt).unwrap());
            let context = row.prompt.split(" What is").next().unwrap();
            assert_eq!(context.matches(&row.reference).count(), 1, "{row:?}");
            let before = words(context.split("The code").next().unwrap()).unwrap() as f64;
            let share = before / (words(context).unwrap() as f64 - 6.0) * 100.0;
            assert!((share - row.depth_percent).abs() < 600.0 / length as f64, "{share} {row:?}");
        }
        let differ =
            rows.iter().map(|row| &row.reference).collect::<std::collections::HashSet<_>>();
        assert!(differ.len() > 12, "{differ:?}");
        let again: Vec<NiahRow> =
            haystack.rows(&grid, &needle, &words).collect::<Result<_, _>>().unwrap();
        assert_eq!(again, rows);
    }

    #[test]
    fn what_cannot_be_is_said() {
        assert!(Haystack::new(" \n", &words).is_err());
        let haystack = Haystack::new("One two.", &words).unwrap();
        let grid = Grid { lengths: vec![5], depths: vec![0.0], repeats: 1, seed: 0 };
        let needle = needle();
        let error = haystack.rows(&grid, &needle, &words).next().unwrap().unwrap_err();
        assert!(error.contains("12 tokens, more than 5"), "{error}");
    }
}
