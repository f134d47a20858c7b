//! # nightshift: batch offline generation with DeepSeek-V2
//!
//! A **job** (a TOML file) is executed as one or more **runs**. Its input rows walk one road, from a
//! file to a committed Parquet part, and never turn back:
//!
//! | # | stage | takes → gives | room |
//! |---|---|---|---|
//! | 1 | discover | path patterns → objects | [`input`] |
//! | 2 | partition | objects → row ranges, each of which becomes one part | [`input`] |
//! | 3 | resume | all partitions − committed parts → what is left to do | [`pipeline`] |
//! | 4 | read | partition → [`PromptRow`](row::PromptRow) | [`input`] |
//! | 5 | encode | `PromptRow` → [`Prompt`](row::Prompt), or a failure that goes straight to 9 | [`prompt`] |
//! | 6 | group | a window of prompts → order of admission | [`batch`] |
//! | 7 | generate | `Prompt` → [`Generation`](row::Generation), in a batch refilled at each step | [`engine`] over [`model`] |
//! | 8 | detokenize | `Generation` → [`Completion`](row::Completion) | [`prompt`] |
//! | 9 | collect | rows in any order → a finished partition | [`output`] |
//! | 10 | commit | finished partition → one Parquet part, one atomic create-only put | [`output`] |
//!
//! Whoever wants to know how good the completions are goes on: [`pipeline::evaluate`] reads the committed
//! parts and the input again, and [`eval`] turns them into scores, tables and pictures beside the parts.
//!
//! The rooms stand on floors; a room uses lower floors only:
//! `cli` 6 · `pipeline` 5 · `job`, `bench` 4 · `engine`, `sizing` 3 · `input`, `prompt`, `batch`, `output`, `model`, `eval` 2 ·
//! `ops`, `parallel`, `storage` 1 · `row`, `sampling` 0.
//!
//! Stage 7 runs on one rank or many ([`parallel`]); what they take and how fast hardware would be with a model
//! is computed beforehand ([`sizing`]), and measured here ([`bench`](mod@bench)).

pub mod batch;
pub mod bench;
pub mod cli;
pub mod engine;
pub mod eval;
pub mod input;
pub mod job;
pub mod model;
pub mod ops;
pub mod output;
pub mod parallel;
pub mod pipeline;
pub mod prompt;
pub mod row;
pub mod sampling;
pub mod sizing;
pub mod storage;
