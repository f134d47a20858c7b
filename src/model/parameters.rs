//! How many parameters a model has, part by part, from its config alone.

use super::Config;
use crate::parallel::{Place, Topology};

/// Parameters of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerParameters {
    /// Query, latent, keys, values and output, with the latents' norms.
    pub attention: u64,
    /// The two norms before attention and feed-forward part.
    pub norms: u64,
    /// What every token uses: the dense feed-forward part, or the shared experts.
    pub shared: u64,
    /// The router's table.
    pub router: u64,
    /// Each of its routed experts.
    pub expert: u64,
    /// How many routed experts there are.
    pub experts: u64,
}

impl LayerParameters {
    /// All of the layer.
    pub fn total(&self) -> u64 {
        self.attention + self.norms + self.shared + self.router + self.expert * self.experts
    }
}

impl Config {
    /// Parameters of a layer's parts.
    pub fn layer_parameters(&self, layer: usize) -> LayerParameters {
        let hidden = self.hidden_size as u64;
        let (shared, router, expert, experts) = match self.layer_moe(layer) {
            None => (3 * hidden * self.intermediate_size as u64, 0, 0, 0),
            Some(moe) => {
                let expert = 3 * hidden * moe.intermediate_size as u64;
                let experts = moe.routed_experts as u64;
                (moe.shared_experts as u64 * expert, experts * hidden, expert, experts)
            }
        };
        let attention = self.attention_parameters();
        LayerParameters { attention, norms: 2 * hidden, shared, router, expert, experts }
    }

    /// Parameters of the embedding, and of the head unless it is the embedding.
    pub fn table_parameters(&self) -> u64 {
        self.vocab_size as u64 * self.hidden_size as u64
    }

    /// Parameters of the whole model.
    pub fn parameters(&self) -> u64 {
        let layers: u64 = (0..self.layers).map(|layer| self.layer_parameters(layer).total()).sum();
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        layers + self.hidden_size as u64 + tables * self.table_parameters()
    }

    /// Parameters that a rank holds: its layers with its own experts of each, the embedding in the first
    /// stage, the last norm and the head in the last.
    pub fn parameters_of(&self, topology: Topology, place: Place) -> u64 {
        let experts = self.moe.as_ref().map_or(0, |moe| moe.routed_experts);
        let own = topology.experts(place.rank, experts).len() as u64;
        let of_layer = |layer: usize| {
            let layer = self.layer_parameters(layer);
            layer.total() - layer.expert * (layer.experts - own.min(layer.experts))
        };
        let layers: u64 = topology.layers(place.stage, self.layers).map(of_layer).sum();
        let (first, last) = (place.stage == 0, place.stage + 1 == topology.stages);
        let tables = self.table_parameters() * (u64::from(first) + u64::from(last));
        layers + tables + if last { self.hidden_size as u64 } else { 0 }
    }

    /// Parameters that work on one token: of its own experts, and without the embedding's table, of
    /// which it reads a row.
    pub fn active_parameters(&self) -> u64 {
        let per_token = self.moe.as_ref().map_or(0, |moe| moe.experts_per_token as u64);
        let of_layer = |layer: usize| {
            let layer = self.layer_parameters(layer);
            layer.total() - layer.expert * layer.experts.saturating_sub(per_token)
        };
        let layers: u64 = (0..self.layers).map(of_layer).sum();
        layers + self.hidden_size as u64 + self.table_parameters()
    }

    fn attention_parameters(&self) -> u64 {
        let (hidden, heads, latent) =
            (self.hidden_size as u64, self.heads as u64, self.kv_lora_rank as u64);
        let (nope, rope, value) =
            (self.qk_nope_head_dim as u64, self.qk_rope_head_dim as u64, self.v_head_dim as u64);
        let query_width = heads * (nope + rope);
        let query = self.q_lora_rank.map_or(hidden * query_width, |rank| {
            let rank = rank as u64;
            hidden * rank + rank + rank * query_width
        });
        let biases = match self.attention_bias {
            true => self.q_lora_rank.unwrap_or(0) as u64 + latent + rope + hidden,
            false => 0,
        };
        query
            + hidden * (latent + rope)
            + latent
            + latent * heads * (nope + value)
            + heads * value * hidden
            + biases
    }
}
