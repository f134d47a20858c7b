//! The operations where they do not run on the CPU, and what they are told of a step, as tables on a device.

#![cfg_attr(
    not(feature = "cuda"),
    expect(
        dead_code,
        reason = "nobody reads what is prepared for an accelerator that was not built"
    )
)]

use candle_core::{DType, Result, Tensor};

use super::shapes::{Choice, Heads};

/// Queries of a tile, as the kernels have them.
pub(super) const TILE_QUERIES: usize = 64;

/// The operations of one kind of device. Activations are f32, weights f32 or bf16; all lie on the device.
pub(super) trait Accelerator {
    /// As [`super::rms_norm`].
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor>;

    /// As [`super::add_rms_norm`].
    fn add_rms_norm(
        &self,
        x: &Tensor,
        y: &Tensor,
        weight: &Tensor,
        epsilon: f32,
    ) -> Result<(Tensor, Tensor)>;

    /// `x · weightᵀ`: `[tokens, inputs]` and `[outputs, inputs]` → `[tokens, outputs]`.
    fn product(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor>;

    /// `silu(x · gateᵀ) * (x · upᵀ)`, the weight being gate's rows and then up's: `[tokens, inputs]` →
    /// `[tokens, outputs]` in the weight's dtype.
    fn gated_product(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor>;

    /// As [`super::store_latents`], into one layer's rows.
    fn store_latents(
        &self,
        kv: &Tensor,
        norm: &Tensor,
        epsilon: f32,
        metadata: &DeviceMetadata,
        pool: &Tensor,
    ) -> Result<()>;

    /// As [`super::attend`]; `weight` is `kv_b_proj` as it is: `[heads * (nope + value), latent]`.
    fn attend(
        &self,
        q: &Tensor,
        heads: Heads,
        weight: &Tensor,
        metadata: &DeviceMetadata,
        pool: &Tensor,
    ) -> Result<Tensor>;

    /// As [`super::route`]: ids u32 and weights f32, `[tokens, experts_per_token]` each.
    fn route(&self, logits: &Tensor, choice: Choice) -> Result<(Tensor, Tensor)>;

    /// Sorts the routes of `[tokens, experts_per_token]` ids by expert.
    fn sort_routes(&self, ids: &Tensor, experts: usize) -> Result<SortedRoutes>;

    /// What each sorted route's expert makes of the route's row: `[rows, hidden]` → `[routes, hidden]`.
    fn expert_outputs(
        &self,
        x: &Tensor,
        experts: &DeviceExperts,
        routes: &SortedRoutes,
    ) -> Result<Tensor>;

    /// As [`super::combine`]; weights `[tokens, experts_per_token]`, places as many.
    fn combine(&self, outputs: &Tensor, places: &Tensor, weights: &Tensor) -> Result<Tensor>;

    /// Addresses of tensors, `[tensors, 2]` u32, low half first.
    fn addresses(&self, tensors: &[&Tensor]) -> Result<Tensor>;
}

/// The tables of [`AttentionMetadata`](super::AttentionMetadata) on a device.
pub(super) struct DeviceMetadata {
    /// `[tokens, pairs]`.
    pub(super) cos: Tensor,
    /// `[tokens, pairs]`.
    pub(super) sin: Tensor,
    /// `[tokens]`.
    pub(super) slots: Tensor,
    pub(super) generated: Option<GeneratedTables>,
    pub(super) prompts: Vec<PromptTables>,
    /// Where both forms are in the step: each token's row among prompts' rows, which are the step's, and
    /// generated tokens' behind them.
    pub(super) order: Option<Tensor>,
}

/// The generated tokens of a step.
pub(super) struct GeneratedTables {
    /// Their rows in the step, `[n]`.
    pub(super) rows: Tensor,
    /// Positions that each sees, and where its sequence's blocks begin in `blocks`: `[n, 2]`.
    pub(super) tokens: Tensor,
    /// Block numbers of all their sequences.
    pub(super) blocks: Tensor,
    /// Most positions that one of them sees.
    pub(super) longest: usize,
}

/// Positions whose keys and values are expanded together, and the tiles that attend to them.
pub(super) struct PromptTables {
    /// Their slots in the cache.
    pub(super) slots: Tensor,
    /// `[tiles, 6]`: first query's row, queries, first query's position, the piece's first position,
    /// its positions, its first row among `slots`.
    pub(super) tiles: Tensor,
}

/// Routes sorted by expert, on a device; all u32.
pub(super) struct SortedRoutes {
    /// The row of each sorted route.
    pub(super) rows: Tensor,
    /// Where each expert's routes begin; one more than there are experts.
    pub(super) starts: Tensor,
    /// The sorted place of each route as it was given.
    pub(super) places: Tensor,
}

/// The experts of a layer as a device's products take them; who holds them keeps their weights.
#[derive(Debug)]
pub(super) struct DeviceExperts {
    /// Addresses of `[2 * intermediate, hidden]` weights, gate's rows and then up's.
    pub(super) gate_up: Tensor,
    /// Addresses of `[hidden, intermediate]` weights.
    pub(super) down: Tensor,
    /// Width of an expert.
    pub(super) intermediate: usize,
    /// How their weights are held.
    pub(super) dtype: DType,
}
