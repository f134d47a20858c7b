//! How long a decode step takes, part by part.

use serde::Serialize;

use super::hardware::Hardware;
use crate::model::Config;
use crate::parallel::{Place, Topology};

/// Share of the memory's bandwidth that kernels reach.
const MEMORY_SHARE: f64 = 0.80;
/// Share of the tensor cores' rate that they reach.
const COMPUTE_SHARE: f64 = 0.60;
/// Share of the link's bandwidth that an exchange reaches.
const LINK_SHARE: f64 = 0.75;
/// Work of the busiest rank's experts ÷ the mean.
const IMBALANCE: f64 = 1.25;
/// Seconds that an exchange takes beside its bytes.
const EXCHANGE_SECONDS: f64 = 15e-6;
/// Seconds between the kernels of a layer.
const GAP_SECONDS: f64 = 40e-6;
/// Bytes of a weight, of an activation and of a cached element.
const ELEMENT: f64 = 2.0;

/// A model in BF16 on the devices of a node.
#[derive(Clone, Copy, Debug)]
pub struct Estimate<'a> {
    /// The model's shape.
    pub config: &'a Config,
    /// How it is laid out: one device a rank.
    pub topology: Topology,
    /// On what.
    pub hardware: Hardware,
    /// Mean tokens that a sequence has in the cache.
    pub context: usize,
}

/// One decode step: each running sequence gets a token. Seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StepTime {
    /// Sequences that run, over all ranks.
    pub sequences: usize,
    /// Query, latent, value and output products.
    pub projections: f64,
    /// Attention over the cache.
    pub attention: f64,
    /// Routed experts.
    pub experts: f64,
    /// Dense layers, shared experts, routers and the head.
    pub shared: f64,
    /// Rows between ranks and between stages.
    pub communication: f64,
    /// Between kernels.
    pub gaps: f64,
    /// All of it.
    pub total: f64,
    /// Tokens of all sequences a second.
    pub tokens_per_second: f64,
}

impl Estimate<'_> {
    /// The time of a step in which `sequences` sequences decode.
    ///
    /// With B sequences, b = B ÷ ranks of each, and for each part the longer of bytes ÷ bandwidth and
    /// operations ÷ rate, of each layer of a stage:
    ///
    /// - projections: its weights; 2 operations a weight and token of b
    /// - attention: b × context × (latent + rope) elements; b × context × 2 heads (2 latent + rope)
    ///   operations, the latents being scored and summed as they lie (DeepSeek-V2, appendix C)
    /// - experts: of E on the rank `E (1 − (1 − k/experts)^B)` are read, the expected number that any of B
    ///   tokens is routed to; 2 operations a weight of each of the B k ÷ ranks routes
    /// - communication, with more than one rank: each token's row goes once to each other rank that it
    ///   visits, k outputs less those of its own rank come back; two exchanges. Between stages: a row.
    ///
    /// Stages work one after another, so that their times add up.
    pub fn decode(&self, sequences: usize) -> StepTime {
        let mut step = StepTime { sequences, ..StepTime::default() };
        for stage in 0..self.topology.stages {
            self.add_stage(Place { stage, rank: 0 }, &mut step);
        }
        step.total = step.projections
            + step.attention
            + step.experts
            + step.shared
            + step.communication
            + step.gaps;
        step.tokens_per_second = sequences as f64 / step.total;
        step
    }

    fn add_stage(&self, place: Place, step: &mut StepTime) {
        let Self { config, topology, .. } = *self;
        let ranks = topology.ranks_per_stage as f64;
        let tokens = step.sequences as f64 / ranks;
        let cached = tokens * self.context as f64;
        let (heads, latent) = (config.heads as f64, config.kv_lora_rank as f64);
        let scored = 2.0 * heads * (2.0 * latent + config.qk_rope_head_dim as f64);
        for layer in topology.layers(place.stage, config.layers) {
            let parameters = config.layer_parameters(layer);
            step.projections += self.product(parameters.attention as f64, tokens);
            let bytes = cached * config.latent_width() as f64 * ELEMENT;
            step.attention += self.longer(bytes, cached * scored);
            step.shared += self.product((parameters.shared + parameters.router) as f64, tokens);
            if config.layer_moe(layer).is_some() {
                step.experts += self.experts(parameters.expert as f64, step.sequences as f64);
                step.communication += self.exchange(tokens);
            }
            step.gaps += GAP_SECONDS;
        }
        if place.stage + 1 == topology.stages {
            step.shared += self.product(config.table_parameters() as f64, tokens);
        } else {
            step.communication += self.travel(tokens);
        }
    }

    /// The time of a product with so many weights.
    fn product(&self, weights: f64, tokens: f64) -> f64 {
        self.longer(weights * ELEMENT, 2.0 * weights * tokens)
    }

    fn experts(&self, weights: f64, sequences: f64) -> f64 {
        let Some(moe) = &self.config.moe else { return 0.0 };
        let ranks = self.topology.ranks_per_stage as f64;
        let (experts, k) = (moe.routed_experts as f64, moe.experts_per_token as f64);
        let read = experts / ranks * (1.0 - (1.0 - k / experts).powf(sequences));
        let operations = 2.0 * weights * k * sequences / ranks;
        self.longer(read * weights * ELEMENT, operations * IMBALANCE)
    }

    /// The time in which `tokens` rows of each rank travel to experts and their outputs back.
    fn exchange(&self, tokens: f64) -> f64 {
        let Some(moe) = &self.config.moe else { return 0.0 };
        if self.topology.ranks_per_stage == 1 {
            return 0.0;
        }
        let elsewhere = 1.0 - 1.0 / self.topology.ranks_per_stage as f64;
        let rows = self.ranks_visited() + moe.experts_per_token as f64;
        self.travel(tokens * rows * elsewhere) + EXCHANGE_SECONDS
    }

    /// Ranks that hold an expert of a token, in the mean over even routing.
    ///
    /// Of R ranks one is missed with the chance that all choices fall on the others:
    /// `C(n − n/R, m) / C(n, m)`, the choices being m of n groups where routing is limited to groups that
    /// lie on one rank each, else k of n experts.
    fn ranks_visited(&self) -> f64 {
        let Some(moe) = &self.config.moe else { return 0.0 };
        let ranks = self.topology.ranks_per_stage;
        let (items, chosen) = match moe.groups {
            Some((groups, kept)) if groups.is_multiple_of(ranks) => (groups, kept),
            _ => (moe.routed_experts, moe.experts_per_token),
        };
        let own = items as f64 / ranks as f64;
        let missed: f64 = (0..chosen)
            .map(|i| ((items as f64 - own - i as f64) / (items - i) as f64).max(0.0))
            .product();
        ranks as f64 * (1.0 - missed)
    }

    /// The time in which rows travel to another rank.
    fn travel(&self, rows: f64) -> f64 {
        let bytes = rows * self.config.hidden_size as f64 * ELEMENT;
        bytes / (self.hardware.card.link_bandwidth * LINK_SHARE) + EXCHANGE_SECONDS
    }

    fn longer(&self, bytes: f64, operations: f64) -> f64 {
        let card = &self.hardware.card;
        let moving = bytes / (card.memory_bandwidth * MEMORY_SHARE);
        moving.max(operations / (card.bf16_flops * COMPUTE_SHARE))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::released;
    use super::*;

    fn estimate(config: &Config, stages: usize, ranks_per_stage: usize) -> Estimate<'_> {
        Estimate {
            config,
            topology: Topology { stages, ranks_per_stage },
            hardware: "8xH200".parse().unwrap(),
            context: 1024,
        }
    }

    /// V2 with 1024 sequences of 1024 tokens on eight H200, 128 of them on each rank: 3.84e12 B/s,
    /// 593.4e12 operations/s, 337.5e9 B/s between devices.
    #[test]
    fn a_step_takes_what_was_computed_by_hand() {
        let config = released("DeepSeek-V2.json");
        let step = estimate(&config, 1, 8).decode(1024);
        let near = |found: f64, milliseconds: f64| {
            assert!((found * 1e3 / milliseconds - 1.0).abs() < 0.005, "{found} {milliseconds}");
        };
        // 60 × 149.23 M weights of 2 bytes are read.
        near(step.projections, 17.907e9 / 3.84e12 * 1e3);
        // 131,072 cached tokens × 60 × 278,528 operations outlast reading 69,120 B of each.
        near(step.attention, 131_072.0 * 60.0 * 278_528.0 / 593.4e12 * 1e3);
        // All 20 experts of 59 layers: 55.68 GB.
        near(step.experts, 55.68e9 / 3.84e12 * 1e3);
        // Shared experts 5.568 GB, routers 0.097, the dense layer 0.377, the head 1.049.
        near(step.shared, 7.091e9 / 3.84e12 * 1e3);
        // (3 visited + 6 back) × 7/8 rows of 10,240 B for 128 tokens, and two exchanges, in 59 layers.
        near(step.communication, 59.0 * (128.0 * 7.875 * 10_240.0 / 337.5e9 + 30e-6) * 1e3);
        near(step.gaps, 2.4);
        assert!((step.tokens_per_second * step.total - 1024.0).abs() < 1e-6);
    }

    #[test]
    fn few_sequences_read_few_experts() {
        let config = released("DeepSeek-V2.json");
        let estimate = estimate(&config, 1, 1);
        // One token: 6 of 160 experts of 59 layers.
        let one = 59.0 * 6.0 * 23_592_960.0 * 2.0 / 3.84e12;
        assert!((estimate.decode(1).experts / one - 1.0).abs() < 1e-9);
        // 64 tokens: 146 of 160.
        let many = estimate.decode(64).experts / one * 6.0;
        assert!((many - 146.0).abs() < 0.5, "{many}");
    }

    #[test]
    fn a_token_visits_as_many_ranks_as_groups_allow() {
        let (v2, lite) = (released("DeepSeek-V2.json"), released("DeepSeek-V2-Lite.json"));
        let visited = |config: &Config, ranks| estimate(config, 1, ranks).ranks_visited();
        assert!((visited(&v2, 8) - 3.0).abs() < 1e-12);
        // Two groups a rank: 4 (1 − C(6,3)/C(8,3)).
        assert!((visited(&v2, 4) - 4.0 * (1.0 - 20.0 / 56.0)).abs() < 1e-12);
        assert!((visited(&v2, 1) - 1.0).abs() < 1e-12);
        // Six of 64 experts: 2 (1 − C(32,6)/C(64,6)).
        assert!((visited(&lite, 2) - 2.0 * (1.0 - 906_192.0 / 74_974_368.0)).abs() < 1e-9);
    }

    #[test]
    fn a_larger_batch_gives_more_tokens_a_second() {
        let config = released("DeepSeek-V2.json");
        for (stages, ranks) in [(1, 8), (2, 4), (8, 1)] {
            let rate =
                |sequences| estimate(&config, stages, ranks).decode(sequences).tokens_per_second;
            assert!(rate(64) < rate(256) && rate(256) < rate(1024) && rate(1024) < rate(4096));
        }
    }
}
