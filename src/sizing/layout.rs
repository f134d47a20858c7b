//! Which bytes each rank holds.

use std::ops::Range;

use serde::Serialize;

use crate::model::Config;
use crate::ops::{BLOCK_TOKENS, CacheFormat, LatentPool};
use crate::parallel::{Place, Topology};

/// Bytes of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Of a weight.
    pub weight_bytes: u64,
    /// Of an activation.
    pub activation_bytes: u64,
    /// How the latent cache holds an element.
    pub cache: CacheFormat,
    /// Whether the key weights of attention are held a second time, transposed.
    pub transposed_keys: bool,
}

impl Format {
    /// BF16 throughout, as on a GPU.
    pub const BF16: Self = Self {
        weight_bytes: 2,
        activation_bytes: 2,
        cache: CacheFormat::Bf16,
        transposed_keys: false,
    };

    /// As the CPU holds a model: activations in f32.
    pub const fn cpu(weight_bytes: u64, cache: CacheFormat) -> Self {
        Self { weight_bytes, activation_bytes: 4, cache, transposed_keys: true }
    }

    /// Bytes that a layer's latent takes for each token.
    fn latent_bytes(self, config: &Config) -> u64 {
        LatentPool::block_bytes(1, config.latent_width(), self.cache) / BLOCK_TOKENS as u64
    }
}

/// What a job asks of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Most running sequences, over all ranks.
    pub max_sequences: usize,
    /// Most tokens of a step, over all ranks.
    pub max_step_tokens: usize,
    /// Bytes of the latent cache over all ranks; none: what is left.
    pub cache_bytes: Option<u64>,
}

/// What one rank holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RankMemory {
    /// Its stage.
    pub stage: usize,
    /// Which rank of the stage it is.
    pub rank: usize,
    /// Its layers.
    pub layers: Range<usize>,
    /// Its routed experts of each mixture layer.
    pub experts: Range<usize>,
    /// Its weights.
    pub weight_bytes: u64,
    /// Activations of a full step.
    pub workspace_bytes: u64,
    /// Cache that each token of its sequences takes.
    pub cache_bytes_per_token: u64,
    /// Cache that it is given; none: it depends on what is left.
    pub cache_bytes: Option<u64>,
}

/// A model laid out over ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Over which.
    pub topology: Topology,
    /// Each rank, stage by stage.
    pub ranks: Vec<RankMemory>,
    /// Most running sequences.
    pub(super) max_sequences: usize,
}

impl Layout {
    /// Lays a model out.
    ///
    /// A step's workspace on a rank of T tokens, S of them of generating sequences, in elements: the
    /// residual stream and its normalised copy `2 T hidden`, and the larger of attention's
    /// `T (heads (nope + rope + value) + hidden) + S heads (2 latent + rope)` (queries, heads' outputs and
    /// their projection; queries and outputs in the latent space) and the experts'
    /// `T min(k, ranks) hidden + T k (width + 2 hidden)` (rows that arrive; inner rows, outputs here and
    /// outputs that came back); then the logits, `4 S vocabulary` bytes.
    pub fn new(config: &Config, topology: Topology, format: Format, demand: Demand) -> Self {
        let workspace_bytes = workspace_bytes(config, topology, format, demand);
        let latent_bytes = format.latent_bytes(config);
        let rank = |Place { stage, rank }: Place| {
            let layers = topology.layers(stage, config.layers);
            let experts = config.moe.as_ref().map_or(0, |moe| moe.routed_experts);
            let cache = demand.cache_bytes.map(|bytes| {
                bytes * layers.len() as u64 / (config.layers * topology.ranks_per_stage) as u64
            });
            RankMemory {
                stage,
                rank,
                experts: topology.experts(rank, experts),
                weight_bytes: weight_bytes(config, topology, Place { stage, rank }, format),
                workspace_bytes,
                cache_bytes_per_token: latent_bytes * layers.len() as u64,
                cache_bytes: cache,
                layers,
            }
        };
        let ranks = topology.places().map(rank).collect();
        Self { topology, ranks, max_sequences: demand.max_sequences }
    }

    /// The rank with the most weights.
    pub fn heaviest(&self) -> &RankMemory {
        self.ranks.iter().max_by_key(|rank| rank.weight_bytes).expect("a topology has ranks")
    }
}

fn weight_bytes(config: &Config, topology: Topology, place: Place, format: Format) -> u64 {
    let keys = match format.transposed_keys {
        true => config.heads * config.qk_nope_head_dim * config.kv_lora_rank,
        false => 0,
    };
    let keys = (keys * topology.layers(place.stage, config.layers).len()) as u64;
    (config.parameters_of(topology, place) + keys) * format.weight_bytes
}

fn workspace_bytes(config: &Config, topology: Topology, format: Format, demand: Demand) -> u64 {
    let ranks = topology.ranks_per_stage;
    let sequences = demand.max_sequences.div_ceil(ranks);
    let tokens = demand.max_step_tokens.div_ceil(ranks).max(sequences);
    let (hidden, heads) = (config.hidden_size, config.heads);
    let queries = config.qk_nope_head_dim + config.qk_rope_head_dim;
    let attention = tokens * (heads * (queries + config.v_head_dim) + hidden)
        + sequences * heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim);
    let experts = config.moe.as_ref().map_or(tokens * config.intermediate_size, |moe| {
        let visited = moe.experts_per_token.min(ranks);
        let per_route = moe.intermediate_size + 2 * hidden;
        tokens * (visited * hidden + moe.experts_per_token * per_route)
    });
    let elements = 2 * tokens * hidden + attention.max(experts);
    elements as u64 * format.activation_bytes + (4 * sequences * config.vocab_size) as u64
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::released;
    use super::*;

    pub(in super::super) const DEMAND: Demand =
        Demand { max_sequences: 256, max_step_tokens: 2048, cache_bytes: None };

    pub(in super::super) fn layout(stages: usize, ranks_per_stage: usize) -> Layout {
        let topology = Topology { stages, ranks_per_stage };
        Layout::new(&released("DeepSeek-V2.json"), topology, Format::BF16, DEMAND)
    }

    fn gigabytes(bytes: u64) -> f64 {
        bytes as f64 / 1e9
    }

    /// By hand, V2 in BF16. Of a layer: attention 149,227,520, an expert 23,592,960, a router 819,200, norms
    /// 10,240; the dense layer 188,743,680, a table 524,288,000.
    #[test]
    fn ranks_hold_what_was_computed_by_hand() {
        let table = 524_288_000;
        let mixture = |experts: u64| 149_227_520 + 10_240 + 819_200 + (experts + 2) * 23_592_960;
        let dense = 149_227_520 + 10_240 + 188_743_680;
        let eight = layout(1, 8);
        let expected = 2 * (dense + 59 * mixture(20) + 2 * table + 5120);
        assert!(eight.ranks.iter().all(|rank| rank.weight_bytes == expected));
        assert!((gigabytes(expected) - 81.73).abs() < 0.01);
        let two = layout(2, 4);
        assert_eq!(two.ranks[0].weight_bytes, 2 * (dense + 29 * mixture(40) + table));
        assert_eq!(two.ranks[7].weight_bytes, 2 * (30 * mixture(40) + table + 5120));
        assert!((gigabytes(two.heaviest().weight_bytes) - 69.51).abs() < 0.01);
        let mean = two.ranks.iter().map(|rank| rank.weight_bytes).sum::<u64>() / 8;
        assert!((gigabytes(mean) - 68.70).abs() < 0.01);
        let pipeline = layout(8, 1);
        let all: u64 = pipeline.ranks.iter().map(|rank| rank.weight_bytes).sum();
        assert_eq!(all, 2 * 235_741_434_880, "stages alone hold nothing twice");
    }

    #[test]
    fn a_token_takes_its_latents_once() {
        let per_token = |layout: Layout| {
            let stages = layout.ranks.iter().step_by(layout.topology.ranks_per_stage);
            stages.map(|rank| rank.cache_bytes_per_token).sum::<u64>()
        };
        assert_eq!(per_token(layout(1, 1)), 69_120);
        assert_eq!(per_token(layout(4, 2)), 69_120);
        let lite = released("DeepSeek-V2-Lite.json");
        let one = Layout::new(&lite, Topology::SINGLE, Format::BF16, DEMAND);
        assert_eq!(one.ranks[0].cache_bytes_per_token, 31_104);
    }
}
