//! A model's `config.json` as this engine needs it: plain numbers, checked, every spelling accepted.

use std::path::Path;

use serde_json::{Map, Value};

use super::ModelError;
use crate::parallel::Topology;

/// The shape of a DeepSeek-V2 model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the dense feed-forward layers.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the compressed query; none: the query is one product.
    pub q_lora_rank: Option<usize>,
    /// Width of the latent.
    pub kv_lora_rank: usize,
    /// Width of a head's query and key without position.
    pub qk_nope_head_dim: usize,
    /// Width of the rotated part.
    pub qk_rope_head_dim: usize,
    /// Width of a head's value.
    pub v_head_dim: usize,
    /// Epsilon of the layers' norms; the two latent norms always use 1e-6.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// YaRN's stretching of the frequencies.
    pub yarn: Option<Yarn>,
    /// Longest context in tokens.
    pub max_position_embeddings: usize,
    /// Whether `q_a_proj`, `kv_a_proj_with_mqa` and `o_proj` have biases.
    pub attention_bias: bool,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// The mixture of experts; none: every layer is dense.
    pub moe: Option<MoeConfig>,
    /// Beginning of sequence.
    pub bos_token_id: Option<u32>,
    /// Any of these ends a sequence.
    pub eos_token_ids: Vec<u32>,
}

/// YaRN (arXiv:2309.00071) as DeepSeek's code applies it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// How much longer the context became.
    pub factor: f64,
    /// Context before, tokens.
    pub original_context: f64,
    /// Rotations above which a frequency stays.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided by `factor`.
    pub beta_slow: f64,
    /// Scales cosine and sine, over `mscale_all_dim`.
    pub mscale: f64,
    /// Scales the softmax; 0: not.
    pub mscale_all_dim: f64,
}

/// The mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MoeConfig {
    /// Width of an expert.
    pub intermediate_size: usize,
    /// Experts that the router chooses from.
    pub routed_experts: usize,
    /// Routed experts of each token.
    pub experts_per_token: usize,
    /// Experts that every token uses; 0: none.
    pub shared_experts: usize,
    /// Device-limited routing: (groups, groups kept); none: the best of all.
    pub groups: Option<(usize, usize)>,
    /// Divides the weights by their sum instead of scaling them.
    pub norm_topk_prob: bool,
    /// Factor of the weights.
    pub routed_scaling_factor: f64,
    /// First layer that may be a mixture.
    pub first_layer: usize,
    /// Every so many-th layer is one.
    pub layer_freq: usize,
}

impl Config {
    /// Reads `config.json` of a Hugging Face folder, and the end tokens of `generation_config.json`.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ModelError::Read { path: path.clone(), source })?;
        let mut config =
            Self::from_json(&text).map_err(|message| ModelError::Config { path, message })?;
        let path = folder.join("generation_config.json");
        if let Ok(text) = std::fs::read_to_string(&path) {
            let fields: Map<String, Value> = serde_json::from_str(&text).map_err(|error| {
                ModelError::Config { path: path.clone(), message: error.to_string() }
            })?;
            let more = Fields(&fields)
                .ids("eos_token_id")
                .map_err(|message| ModelError::Config { path, message })?;
            config.eos_token_ids.extend(more);
            config.eos_token_ids.sort_unstable();
            config.eos_token_ids.dedup();
        }
        Ok(config)
    }

    /// Reads the text of a `config.json`; the error names the key.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let mut fields: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        // transformers 5 saves `rope_parameters` instead of `rope_theta` and `rope_scaling`.
        if let Some(Value::Object(rope)) = fields.remove("rope_parameters") {
            if let Some(theta) = rope.get("rope_theta") {
                fields.insert("rope_theta".into(), theta.clone());
            }
            fields.insert("rope_scaling".into(), Value::Object(rope));
        }
        let fields = Fields(&fields);
        fields.only("model_type", &["deepseek_v2"])?;
        fields.only("hidden_act", &["silu"])?;
        let config = Self {
            hidden_size: fields.size("hidden_size")?,
            intermediate_size: fields.size("intermediate_size")?,
            layers: fields.size("num_hidden_layers")?,
            heads: fields.size("num_attention_heads")?,
            vocab_size: fields.size("vocab_size")?,
            q_lora_rank: fields.optional_size("q_lora_rank")?,
            kv_lora_rank: fields.size("kv_lora_rank")?,
            qk_nope_head_dim: fields.size("qk_nope_head_dim")?,
            qk_rope_head_dim: fields.size("qk_rope_head_dim")?,
            v_head_dim: fields.size("v_head_dim")?,
            rms_norm_eps: fields.number("rms_norm_eps", 1e-6)?,
            rope_theta: fields.number("rope_theta", 10_000.0)?,
            yarn: yarn(&fields)?,
            max_position_embeddings: fields
                .optional_size("max_position_embeddings")?
                .unwrap_or(2048),
            attention_bias: fields.flag("attention_bias")?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            moe: moe(&fields)?,
            bos_token_id: fields.ids("bos_token_id")?.first().copied(),
            eos_token_ids: fields.ids("eos_token_id")?,
        };
        match config.qk_rope_head_dim % 2 {
            0 => Ok(config),
            _ => Err(format!(
                "`qk_rope_head_dim` is {}, expected an even number",
                config.qk_rope_head_dim
            )),
        }
    }

    /// Whether every rank of a topology gets a layer and, of a mixture, an expert.
    pub fn accept(&self, topology: Topology) -> Result<(), ModelError> {
        let experts = self.moe.as_ref().map_or(0, |moe| moe.routed_experts);
        let enough = experts == 0 || topology.ranks_per_stage <= experts;
        match enough && topology.stages <= self.layers {
            true => Ok(()),
            false => Err(ModelError::Topology { topology, layers: self.layers, experts }),
        }
    }

    /// The mixture of a layer; none: the layer is dense.
    pub fn layer_moe(&self, layer: usize) -> Option<&MoeConfig> {
        self.moe
            .as_ref()
            .filter(|moe| layer >= moe.first_layer && layer.is_multiple_of(moe.layer_freq))
    }

    /// Elements of the latent cache for each token and layer.
    pub fn latent_width(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }

    /// Factor of attention scores: `(nope + rope)^-1/2`, times the square of YaRN's magnitude.
    pub fn softmax_scale(&self) -> f64 {
        let scale = ((self.qk_nope_head_dim + self.qk_rope_head_dim) as f64).powf(-0.5);
        match &self.yarn {
            Some(yarn) if yarn.mscale_all_dim != 0.0 => {
                scale * yarn.magnitude(yarn.mscale_all_dim).powi(2)
            }
            _ => scale,
        }
    }

    /// Factor of cosine and sine.
    pub fn rope_multiplier(&self) -> f64 {
        self.yarn
            .as_ref()
            .map_or(1.0, |yarn| yarn.magnitude(yarn.mscale) / yarn.magnitude(yarn.mscale_all_dim))
    }

    /// The rotary frequencies, `qk_rope_head_dim / 2` of them, in f32 as the released code has them.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let width = self.qk_rope_head_dim;
        let frequency = |i: usize| 1.0 / self.rope_theta.powf(2.0 * i as f64 / width as f64);
        let Some(yarn) = &self.yarn else {
            return (0..width / 2).map(|i| frequency(i) as f32).collect();
        };
        let dimension = |rotations: f64| {
            width as f64 * (yarn.original_context / (rotations * 2.0 * std::f64::consts::PI)).ln()
                / (2.0 * self.rope_theta.ln())
        };
        let low = dimension(yarn.beta_fast).floor().max(0.0);
        let high = dimension(yarn.beta_slow).ceil().min(width as f64 - 1.0);
        let high = if low == high { high + 0.001 } else { high };
        let stretched = |i: usize| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            (frequency(i) * (1.0 - ramp) + frequency(i) / yarn.factor * ramp) as f32
        };
        (0..width / 2).map(stretched).collect()
    }
}

impl Yarn {
    /// YaRN's attention magnitude: `0.1 m ln(factor) + 1`.
    fn magnitude(&self, mscale: f64) -> f64 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * mscale * self.factor.ln() + 1.0 }
    }
}

fn yarn(fields: &Fields) -> Result<Option<Yarn>, String> {
    let Some(Value::Object(scaling)) = fields.0.get("rope_scaling") else { return Ok(None) };
    let scaling = Fields(scaling);
    match scaling.text("type").or(scaling.text("rope_type")) {
        Some("yarn") => {}
        Some("default") | None => return Ok(None),
        Some(other) => return Err(format!("`rope_scaling.type` is `{other}`, expected `yarn`")),
    }
    let yarn = Yarn {
        factor: scaling.number("factor", 1.0)?,
        original_context: scaling.number("original_max_position_embeddings", 4096.0)?,
        beta_fast: scaling.number("beta_fast", 32.0)?,
        beta_slow: scaling.number("beta_slow", 1.0)?,
        mscale: scaling.number("mscale", 1.0)?,
        mscale_all_dim: scaling.number("mscale_all_dim", 0.0)?,
    };
    let positive = yarn.factor > 0.0
        && yarn.original_context > 0.0
        && yarn.beta_fast > 0.0
        && yarn.beta_slow > 0.0;
    if positive {
        Ok(Some(yarn))
    } else {
        Err("`rope_scaling` has a number that is not above 0".into())
    }
}

fn moe(fields: &Fields) -> Result<Option<MoeConfig>, String> {
    let Some(routed_experts) = fields.optional_size("n_routed_experts")? else { return Ok(None) };
    fields.only("scoring_func", &["softmax"])?;
    // "gready" is the released configuration class's own spelling of its default.
    fields.only("topk_method", &["greedy", "gready", "group_limited_greedy"])?;
    let groups = match fields.text("topk_method") {
        Some("group_limited_greedy") => Some((fields.size("n_group")?, fields.size("topk_group")?)),
        _ => None,
    };
    let moe = MoeConfig {
        intermediate_size: fields.size("moe_intermediate_size")?,
        routed_experts,
        experts_per_token: fields.size("num_experts_per_tok")?,
        shared_experts: fields.count("n_shared_experts")?.unwrap_or(0),
        groups,
        norm_topk_prob: fields.flag("norm_topk_prob")?,
        routed_scaling_factor: fields.number("routed_scaling_factor", 1.0)?,
        first_layer: fields.count("first_k_dense_replace")?.unwrap_or(0),
        layer_freq: fields.optional_size("moe_layer_freq")?.unwrap_or(1),
    };
    if moe.experts_per_token > routed_experts {
        return Err(format!(
            "`num_experts_per_tok` is {}, more than `n_routed_experts`",
            moe.experts_per_token
        ));
    }
    match groups {
        Some((groups, kept)) if routed_experts % groups != 0 || kept > groups || groups > 128 => {
            Err(format!(
                "`n_group` {groups} and `topk_group` {kept} do not divide {routed_experts} experts"
            ))
        }
        _ => Ok(Some(moe)),
    }
}

/// Largest size that a config may name: far above any real one, far below what overflows.
const MAX_SIZE: usize = 1 << 24;

/// Keys of a JSON object with typed access.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.value(key).and_then(Value::as_str)
    }

    fn only(&self, key: &str, allowed: &[&str]) -> Result<(), String> {
        match self.value(key) {
            Some(value) if !value.as_str().is_some_and(|text| allowed.contains(&text)) => {
                Err(format!("`{key}` is {value}, expected `{}`", allowed.join("` or `")))
            }
            _ => Ok(()),
        }
    }

    /// A whole number; some writers spell integers as 64.0.
    fn count(&self, key: &str) -> Result<Option<usize>, String> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number =
            value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..=MAX_SIZE as f64).contains(n));
        number
            .map(|n| Some(n as usize))
            .ok_or_else(|| format!("`{key}` is {value}, expected 0 to {MAX_SIZE}"))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, String> {
        match self.count(key)? {
            Some(0) => Err(format!("`{key}` is 0, expected 1 to {MAX_SIZE}")),
            count => Ok(count),
        }
    }

    fn size(&self, key: &str) -> Result<usize, String> {
        self.optional_size(key)?.ok_or_else(|| format!("`{key}` is missing"))
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, String> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_f64().ok_or_else(|| format!("`{key}` is {value}, expected a number"))
    }

    fn flag(&self, key: &str) -> Result<bool, String> {
        let Some(value) = self.value(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| format!("`{key}` is {value}, expected true or false"))
    }

    /// One token id or a list of them.
    fn ids(&self, key: &str) -> Result<Vec<u32>, String> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match self.value(key) {
            None => Some(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| format!("`{key}` is not a token id or a list of them"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
    }

    fn released(name: &str) -> Config {
        Config::from_json(&std::fs::read_to_string(folder("configs").join(name)).unwrap()).unwrap()
    }

    #[test]
    fn released_models_have_their_published_sizes() {
        assert_eq!(released("DeepSeek-V2.json").parameters(), 235_741_434_880);
        assert_eq!(released("DeepSeek-V2-Lite.json").parameters(), 15_706_484_224);
        assert!((released("DeepSeek-V2-Chat.json").softmax_scale() - 0.114721).abs() < 1e-6);
        assert!(
            (released("DeepSeek-V2.5.reconstructed.json").softmax_scale() - 0.135234).abs() < 1e-6
        );
    }

    #[test]
    fn derived_numbers_agree_with_the_reference() {
        for name in ["a_v2like", "b_litelike", "c_plain_tied", "d_freq2_bias"] {
            let folder = folder("goldens").join(name);
            let config = Config::load(&folder).unwrap();
            let goldens: Value = serde_json::from_str(
                &std::fs::read_to_string(folder.join("goldens.json")).unwrap(),
            )
            .unwrap();
            let derived = &goldens["derived"];
            let close = |a: f64, b: &Value| (a - b.as_f64().unwrap()).abs() <= 1e-7 * a.abs();
            assert!(close(config.softmax_scale(), &derived["softmax_scale"]), "{name}");
            assert!(close(config.rope_multiplier(), &derived["rope_cos_sin_multiplier"]), "{name}");
            let expected = derived["inv_freq"].as_array().unwrap();
            let found = config.rope_frequencies();
            assert_eq!(found.len(), expected.len());
            assert!(
                found.iter().zip(expected).all(|(a, b)| close(f64::from(*a), b)),
                "{name} {found:?}"
            );
            assert_eq!(config.parameters(), derived["params_total"].as_u64().unwrap(), "{name}");
            let layers: Vec<usize> =
                (0..config.layers).filter(|&l| config.layer_moe(l).is_some()).collect();
            assert_eq!(serde_json::json!(layers), derived["moe_layers"], "{name}");
        }
    }

    #[test]
    fn other_spellings_mean_the_same() {
        let path = folder("configs").join("DeepSeek-V2.json");
        let mut value: Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut rope = value["rope_scaling"].take();
        rope["rope_type"] = rope["type"].take();
        rope["rope_theta"] = value["rope_theta"].take();
        value["rope_parameters"] = rope;
        value["hidden_size"] = 5120.0.into();
        assert_eq!(Config::from_json(&value.to_string()).unwrap(), released("DeepSeek-V2.json"));
    }

    #[test]
    fn a_wrong_key_is_named() {
        let path = folder("configs").join("DeepSeek-V2.json");
        let text = std::fs::read_to_string(path).unwrap();
        for (key, bad, expected) in [
            ("hidden_size", serde_json::json!(null), "`hidden_size` is missing"),
            ("n_routed_experts", serde_json::json!(1e12), "`n_routed_experts` is 1000000000000.0"),
            ("n_group", serde_json::json!(7), "`n_group` 7"),
            ("model_type", serde_json::json!("llama"), "`model_type` is \"llama\""),
            ("topk_method", serde_json::json!("noaux_tc"), "`topk_method` is \"noaux_tc\""),
            ("num_experts_per_tok", serde_json::json!(161), "`num_experts_per_tok` is 161"),
            (
                "rope_scaling",
                serde_json::json!({"type": "linear"}),
                "`rope_scaling.type` is `linear`",
            ),
        ] {
            let mut value: Value = serde_json::from_str(&text).unwrap();
            value[key] = bad;
            let message = Config::from_json(&value.to_string()).unwrap_err();
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
