//! Routing and routed experts: the router's choice, the sort by expert, grouped products, the sum.

use candle_core::{DType, Result, Tensor, bail};

use super::gate;
use super::launch::{NULL, Shape, float, int, launch, pointer, unfilled};
use crate::ops::accelerator::{DeviceExperts, SortedRoutes};
use crate::ops::shapes::Choice;

/// Rows of an expert, on average, from which large tiles pay.
const MANY_ROWS: usize = 48;
/// Most tiles of one expert's rows that are computed side by side.
const MAX_SIDE_BY_SIDE: usize = 16;

pub(super) fn route(logits: &Tensor, choice: Choice) -> Result<(Tensor, Tensor)> {
    let (tokens, experts) = logits.dims2()?;
    let k = choice.experts_per_token;
    let (groups, kept) = choice.groups.unwrap_or((0, 0));
    let ids = unfilled(&[tokens, k], DType::U32, logits)?;
    let weights = unfilled(&[tokens, k], DType::F32, logits)?;
    let tensors = [pointer(logits)?, pointer(&ids)?, pointer(&weights)?];
    let sizes = [tokens, experts, k, groups, kept, usize::from(choice.normalise)].map(int);
    let arguments = [&tensors[..], &sizes, &[float(choice.scale)]].concat();
    let shared = 4 * 4 * (2 * experts + groups + 2 * k);
    let shape = Shape { grid: [tokens.div_ceil(4), 1, 1], threads: 128, shared };
    // SAFETY: the shapes are those of the kernel's comment.
    unsafe { launch("route", shape, logits, &arguments)? }
    Ok((ids, weights))
}

pub(super) fn sort_routes(ids: &Tensor, experts: usize) -> Result<SortedRoutes> {
    let (tokens, per_token) = ids.dims2()?;
    let routes = tokens * per_token;
    let rows = unfilled(&[routes], DType::U32, ids)?;
    let starts = unfilled(&[experts + 1], DType::U32, ids)?;
    let places = unfilled(&[routes], DType::U32, ids)?;
    let tensors = [pointer(&rows)?, pointer(&starts)?, pointer(&places)?];
    let arguments = [&[pointer(ids)?, int(routes), int(per_token)][..], &tensors].concat();
    // SAFETY: the shapes are those of the kernel's comment.
    unsafe { launch("sort_routes", Shape::row(experts, 256), ids, &arguments)? }
    Ok(SortedRoutes { rows, starts, places })
}

pub(super) fn combine(outputs: &Tensor, places: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let ((tokens, k), width) = (weights.dims2()?, outputs.dim(1)?);
    let out = unfilled(&[tokens, width], DType::F32, outputs)?;
    let tensors = [pointer(outputs)?, pointer(places)?, pointer(weights)?, pointer(&out)?];
    let arguments = [&tensors[..], &[int(k), int(width)]].concat();
    // SAFETY: the shapes are those of the kernel's comment.
    unsafe { launch("combine", Shape::row(tokens, 256), outputs, &arguments)? }
    Ok(out)
}

pub(super) fn expert_outputs(
    x: &Tensor,
    experts: &DeviceExperts,
    routes: &SortedRoutes,
) -> Result<Tensor> {
    let hidden = x.dim(1)?;
    let x = x.to_dtype(experts.dtype)?;
    let inner = Grouped { addresses: &experts.gate_up, outputs: 2 * experts.intermediate };
    let inner = inner.product(&x, Some(&routes.rows), routes)?;
    let inner = gate(&inner, experts.dtype)?;
    Grouped { addresses: &experts.down, outputs: hidden }.product(&inner, None, routes)
}

/// One weight of each expert.
struct Grouped<'a> {
    addresses: &'a Tensor,
    outputs: usize,
}

impl Grouped<'_> {
    /// Each sorted route's row times its expert's weight: → `[routes, outputs]` f32. The row is that of
    /// `rows`, or the route's own.
    fn product(&self, x: &Tensor, rows: Option<&Tensor>, routes: &SortedRoutes) -> Result<Tensor> {
        let (inputs, outputs) = (x.dim(1)?, self.outputs);
        let (experts, count) = (self.addresses.dim(0)?, routes.rows.dim(0)?);
        let out = unfilled(&[count, outputs], DType::F32, x)?;
        let tall = count >= MANY_ROWS * experts;
        // Rows and columns of a tile; three stages of 72 bf16 for each of both.
        let (name, threads, tile): (_, _, [usize; 2]) = match (x.dtype(), tall) {
            (DType::F32, _) => ("grouped_product_f32", 256, [32, 64]),
            (DType::BF16, false) => ("grouped_product_16", 128, [16, 64]),
            (DType::BF16, true) => ("grouped_product_128", 256, [128, 128]),
            (other, _) => bail!("no expert takes {other:?}"),
        };
        let shared = if x.dtype() == DType::BF16 { 3 * (tile[0] + tile[1]) * 72 * 2 } else { 0 };
        let side_by_side = count.div_ceil(experts * tile[0]).clamp(1, MAX_SIDE_BY_SIDE);
        let grid = [outputs.div_ceil(tile[1]), experts, side_by_side];
        let rows = rows.map_or(Ok(NULL), pointer)?;
        let tensors = [pointer(x)?, rows, pointer(&routes.starts)?, pointer(self.addresses)?];
        let arguments = [&tensors[..], &[pointer(&out)?, int(outputs), int(inputs)]].concat();
        // SAFETY: the shapes are those of the kernels' comments.
        unsafe { launch(name, Shape { grid, threads, shared }, x, &arguments)? }
        Ok(out)
    }
}

/// Addresses of tensors that stay where they are, as `[tensors, 2]` u32.
pub(super) fn addresses(tensors: &[&Tensor]) -> Result<Tensor> {
    let mut halves = Vec::with_capacity(2 * tensors.len());
    for tensor in tensors {
        let address = super::launch::address(tensor)?;
        halves.extend([address as u32, (address >> 32) as u32]);
    }
    let Some(first) = tensors.first() else { bail!("a layer without experts") };
    Tensor::from_vec(halves, (tensors.len(), 2), first.device())
}
