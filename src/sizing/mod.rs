//! What a model takes on its ranks and how fast a node would decode with it, from its config alone.
//!
//! **Memory of a rank** ([`Layout`]) is, in bytes,
//!
//! - *weights*: of each of its layers attention, norms, router and shared experts (or the dense part)
//!   whole, and its own routed experts; the embedding in the first stage, the last norm and the head in
//!   the last. Parameters follow the released modeling file (see [`Config::parameters`]).
//! - *cache*: `kv_lora_rank + qk_rope_head_dim` elements a token and layer (DeepSeek-V2,
//!   arXiv:2405.04434, §2.1.4), for the sequences of its own.
//! - *workspace*: the activations of one full step that live at once ([`Layout::new`]).
//!
//! **Time of a step** ([`Estimate`]) is a roofline: each part of a layer takes the longer of moving its
//! bytes and doing its arithmetic (S. Williams et al., "Roofline", CACM 52(4), 2009), at stated shares of
//! what the device is sold for. The shares are assumptions, not measurements; what comes out is a bound to
//! measure against, not a promise.

mod fit;
mod hardware;
mod layout;
mod time;

pub use fit::{LayoutError, Memory, Shortage, fit, nearest};
pub use hardware::{Card, Hardware};
pub use layout::{Demand, Format, Layout, RankMemory};
pub use time::{Estimate, StepTime};

#[cfg(doc)]
use crate::model::Config;

#[cfg(test)]
mod tests {
    use crate::model::Config;

    /// A released model's config.
    pub(super) fn released(name: &str) -> Config {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
        Config::from_json(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
    }
}
