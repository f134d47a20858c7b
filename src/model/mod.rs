//! DeepSeek-V2: from a Hugging Face folder to logits, one flat step of tokens at a time.
//!
//! Knows layers and weights; does not know sequences, sampling or text.

mod attention;
mod config;
mod error;
mod feed_forward;
mod footprint;
mod header;
mod loader;
mod parameters;
mod parts;
mod quality;
mod routed;
mod step;
mod transformer;
mod weights;

pub use config::{Config, MoeConfig, Yarn};
pub use error::ModelError;
pub use footprint::Footprint;
pub use header::Header;
pub use parameters::LayerParameters;
pub use parts::ModelParts;
pub use quality::{Quality, compare};
pub use step::Step;
pub use transformer::{Model, StepOutput};
pub(crate) use weights::shard_names;
