//! What steps have to compute and read at least: the two sides of the roofline.
//!
//! A multiply-add is two operations. Counted are the products of weights with activations, of queries
//! with keys and of weights with values; norms, rotations, softmax and sampling are left out.

use crate::model::{Config, Footprint};
use crate::ops::Peaks;

/// Tokens of one form and what they attend to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Attended {
    pub(super) tokens: f64,
    /// Token and attended position, all of them.
    pub(super) pairs: f64,
    /// Attended positions of each sequence, each once a step.
    pub(super) positions: f64,
}

/// What some steps computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Shape {
    pub(super) steps: f64,
    /// Steps that gave logits.
    pub(super) sampled_steps: f64,
    /// Tokens whose logits were computed.
    pub(super) sampled: f64,
    /// Experts that a step and layer routed to, summed over steps and layers.
    pub(super) experts: f64,
    pub(super) prompt: Attended,
    pub(super) generated: Attended,
}

/// Operations and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Work {
    pub(super) flops: f64,
    pub(super) bytes: f64,
}

impl Work {
    /// Seconds that it takes at least, and whether arithmetic or memory decides that.
    pub(super) fn roofline(self, peaks: Peaks) -> (f64, Bound) {
        let (compute, memory) = (self.flops / peaks.flops, self.bytes / peaks.read_bytes);
        if compute >= memory { (compute, Bound::Compute) } else { (memory, Bound::Memory) }
    }
}

/// What a roofline is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Operations.
    Compute,
    /// Bytes read.
    Memory,
}

/// What a model's tokens cost.
pub(super) struct Cost {
    config: Config,
    footprint: Footprint,
    /// Bytes of the latent cache for each token, all layers.
    row_bytes: u64,
}

impl Cost {
    pub(super) fn new(config: &Config, footprint: Footprint, row_bytes: u64) -> Self {
        Self { config: config.clone(), footprint, row_bytes }
    }

    pub(super) fn of(&self, shape: &Shape) -> Work {
        let Shape { prompt, generated, .. } = shape;
        let Footprint { layers, routed_expert, head } = self.footprint;
        let products = self.token() * (prompt.tokens + generated.tokens)
            + self.head() * shape.sampled
            + self.prompt_attention(prompt)
            + self.generated_attention(generated);
        Work {
            flops: 2.0 * products,
            bytes: layers as f64 * shape.steps
                + head as f64 * shape.sampled_steps
                + routed_expert as f64 * shape.experts
                + self.row_bytes as f64 * (prompt.positions + generated.positions),
        }
    }

    /// Experts that a step routed to in one layer, mean.
    pub(super) fn mean_experts(&self, shape: &Shape) -> f64 {
        let mixtures = (0..self.config.layers).filter(|&l| self.config.layer_moe(l).is_some());
        shape.experts / (shape.steps * mixtures.count().max(1) as f64)
    }

    /// Multiply-adds of a token with the weights of all layers, without keys and values of heads.
    fn token(&self) -> f64 {
        let c = &self.config;
        let query_width = c.heads * (c.qk_nope_head_dim + c.qk_rope_head_dim);
        let query = c
            .q_lora_rank
            .map_or(c.hidden_size * query_width, |rank| rank * (c.hidden_size + query_width));
        let output = c.heads * c.v_head_dim * c.hidden_size;
        let attention = query + c.hidden_size * c.latent_width() + output;
        let feed_forward = |layer: usize| {
            c.layer_moe(layer).map_or(3 * c.hidden_size * c.intermediate_size, |moe| {
                let experts = moe.experts_per_token + moe.shared_experts;
                c.hidden_size * (moe.routed_experts + 3 * moe.intermediate_size * experts)
            })
        };
        (0..c.layers).map(|layer| (attention + feed_forward(layer)) as f64).sum()
    }

    /// Multiply-adds of one token's logits.
    fn head(&self) -> f64 {
        (self.config.hidden_size * self.config.vocab_size) as f64
    }

    /// Keys and values of each position are expanded, then scored and summed.
    fn prompt_attention(&self, attended: &Attended) -> f64 {
        let c = &self.config;
        let pair = c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim;
        let heads = (c.layers * c.heads) as f64;
        heads * (self.head_weight() * attended.positions + pair as f64 * attended.pairs)
    }

    /// Queries go to the latents, sums of latents come back.
    fn generated_attention(&self, attended: &Attended) -> f64 {
        let pair = 2 * self.config.kv_lora_rank + self.config.qk_rope_head_dim;
        let heads = (self.config.layers * self.config.heads) as f64;
        heads * (self.head_weight() * attended.tokens + pair as f64 * attended.pairs)
    }

    /// Key and value weights of one head.
    fn head_weight(&self) -> f64 {
        let c = &self.config;
        (c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
        let text = std::fs::read_to_string(folder.join("DeepSeek-V2-Lite.json")).unwrap();
        Config::from_json(&text).unwrap()
    }

    #[test]
    fn a_tokens_products_are_its_active_parameters() {
        let config = config();
        let moe = config.moe.unwrap();
        let cost = Cost::new(&config, Footprint::default(), 0);
        let products =
            cost.token() + cost.head() + (config.layers * config.heads) as f64 * cost.head_weight();
        let idle = moe.routed_experts - moe.experts_per_token;
        let idle = (config.layers - moe.first_layer)
            * idle
            * 3
            * config.hidden_size
            * moe.intermediate_size;
        let vectors =
            (2 * config.layers + 1) * config.hidden_size + config.layers * config.kv_lora_rank;
        let embedding = config.vocab_size * config.hidden_size;
        let active = config.parameters() - (idle + vectors + embedding) as u64;
        assert_eq!(products, active as f64);
    }

    #[test]
    fn the_slower_side_is_the_roofline() {
        let peaks = Peaks { flops: 100.0, read_bytes: 10.0 };
        let roofline = |flops, bytes| Work { flops, bytes }.roofline(peaks);
        assert_eq!(roofline(200.0, 10.0), (2.0, Bound::Compute));
        assert_eq!(roofline(200.0, 30.0), (3.0, Bound::Memory));
    }

    #[test]
    fn bytes_follow_steps_experts_and_positions() {
        let footprint = Footprint { layers: 100, routed_expert: 10, head: 1 };
        let cost = Cost::new(&config(), footprint, 5);
        let attended = Attended { tokens: 2.0, pairs: 8.0, positions: 8.0 };
        let shape = Shape {
            steps: 3.0,
            sampled_steps: 2.0,
            experts: 4.0,
            generated: attended,
            ..Shape::default()
        };
        assert_eq!(cost.of(&shape).bytes, 300.0 + 2.0 + 40.0 + 40.0);
    }
}
