//! The operations on NVIDIA GPUs: own kernels, embedded as machine code, and cuBLAS.
//!
//! Each `.cu` file is one family of kernels and names its CPU form. One stream does all the work of a
//! device, in the order in which it is asked for. Sums are f32; with BF16 weights, activations are
//! rounded to BF16 before each product.

mod attention;
mod experts;
mod gemm;
mod launch;

use candle_core::{DType, Device, Result, Tensor, bail};

use self::attention::Attend;
use self::launch::{NULL, Shape, float, int, launch, pointer, unfilled};
use super::accelerator::{Accelerator, DeviceExperts, DeviceMetadata, SortedRoutes};
use super::shapes::{Choice, Heads};

/// All CUDA devices; a tensor knows which one it lies on.
pub(super) struct Cuda;

/// Opens a device with a stream of its own.
pub(super) fn open(index: usize) -> std::result::Result<Device, String> {
    let device = Device::new_cuda_with_stream(index).map_err(described)?;
    // The pool keeps what is freed: a step frees what the next one asks for again.
    if let Ok(cuda) = device.as_cuda_device() {
        // SAFETY: this program uses no second stream on the device, so that order replaces events.
        unsafe { cuda.disable_event_tracking() };
        launch::keep_freed_memory(cuda).map_err(described)?;
    }
    Ok(device)
}

/// An error in one line: candle appends a backtrace where those are on.
fn described(error: candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Bytes of a device's memory that are free.
pub(super) fn free_bytes(device: &Device) -> Result<u64> {
    launch::free_bytes(device.as_cuda_device()?)
}

/// The kernel of two that takes a tensor's dtype.
fn suffixed([f32, bf16]: [&'static str; 2], tensor: &Tensor) -> Result<&'static str> {
    match tensor.dtype() {
        DType::F32 => Ok(f32),
        DType::BF16 => Ok(bf16),
        other => bail!("no kernel takes {other:?}"),
    }
}

/// `silu(gate) * up` of rows `gate | up`: `[rows, 2 * width]` → `[rows, width]`.
fn gate(products: &Tensor, dtype: DType) -> Result<Tensor> {
    let (rows, double) = products.dims2()?;
    let (width, elements) = (double / 2, rows * double / 2);
    let out = unfilled(&[rows, width], dtype, products)?;
    let name = suffixed(["gate_f32", "gate_bf16"], &out)?;
    let arguments = [pointer(products)?, pointer(&out)?, int(width), int(elements)];
    // SAFETY: the shapes are those of the kernel's comment.
    unsafe { launch(name, Shape::row(elements.div_ceil(256), 256), products, &arguments)? }
    Ok(out)
}

/// Queries with the last elements of every head rotated: `[tokens, heads * (nope + rope)]` → the same.
fn rotated(q: &Tensor, heads: Heads, metadata: &DeviceMetadata) -> Result<Tensor> {
    let (tokens, width) = q.dims2()?;
    let out = unfilled(&[tokens, width], DType::F32, q)?;
    let angles = [pointer(&metadata.cos)?, pointer(&metadata.sin)?];
    let sizes = [width, heads.nope + heads.rope, heads.rope].map(int);
    let arguments = [&[pointer(q)?][..], &angles, &[pointer(&out)?], &sizes].concat();
    // SAFETY: the shapes are those of the kernel's comment, which `super::attend` has checked.
    unsafe { launch("rotate_queries", Shape::row(tokens, 256), q, &arguments)? }
    Ok(out)
}

impl Accelerator for Cuda {
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
        let ((rows, stride), width) = (x.dims2()?, weight.dim(0)?);
        if width > stride {
            bail!("a norm of {width} does not fit rows of {stride}")
        }
        let out = unfilled(&[rows, width], DType::F32, x)?;
        let rows_of = [pointer(x)?, NULL, int(stride), pointer(weight)?, float(epsilon)];
        let arguments = [&rows_of[..], &[NULL, pointer(&out)?, int(width)]].concat();
        // SAFETY: the shapes are those of the kernel's comment.
        unsafe { launch("rms_norm", Shape::row(rows, 256), x, &arguments)? }
        Ok(out)
    }

    fn add_rms_norm(
        &self,
        x: &Tensor,
        y: &Tensor,
        weight: &Tensor,
        epsilon: f32,
    ) -> Result<(Tensor, Tensor)> {
        let (rows, width) = x.dims2()?;
        if y.dims2()? != (rows, width) || weight.dim(0)? != width {
            bail!("a norm of {:?} does not fit {:?} + {:?}", weight.shape(), x.shape(), y.shape())
        }
        let sum = unfilled(&[rows, width], DType::F32, x)?;
        let out = unfilled(&[rows, width], DType::F32, x)?;
        let terms = [pointer(x)?, pointer(y)?, int(width), pointer(weight)?, float(epsilon)];
        let arguments = [&terms[..], &[pointer(&sum)?, pointer(&out)?, int(width)]].concat();
        // SAFETY: the shapes are those of the kernel's comment.
        unsafe { launch("rms_norm", Shape::row(rows, 256), x, &arguments)? }
        Ok((sum, out))
    }

    fn product(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        gemm::product(x, weight)
    }

    fn gated_product(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        gate(&gemm::product(x, weight)?, weight.dtype())
    }

    fn store_latents(
        &self,
        kv: &Tensor,
        norm: &Tensor,
        epsilon: f32,
        metadata: &DeviceMetadata,
        pool: &Tensor,
    ) -> Result<()> {
        let ((tokens, width), latent) = (kv.dims2()?, norm.dim(0)?);
        let (rope, slots) = (2 * metadata.cos.dim(1)?, metadata.slots.dim(0)?);
        if width != latent + rope || slots != tokens {
            bail!("{slots} slots and a latent of {latent} do not fit {tokens} rows of {width}")
        }
        let angles = [pointer(&metadata.cos)?, pointer(&metadata.sin)?];
        let rows = [pointer(kv)?, pointer(norm)?, float(epsilon)];
        let target = [pointer(&metadata.slots)?, pointer(pool)?];
        let sizes = [latent, rope, pool.dim(1)?].map(int);
        let arguments = [&rows[..], &angles, &target, &sizes].concat();
        let name = suffixed(["store_latents_f32", "store_latents_bf16"], pool)?;
        // SAFETY: the shapes are those of the kernel's comment; slots are the step's own.
        unsafe { launch(name, Shape::row(tokens, 128), kv, &arguments) }
    }

    fn attend(
        &self,
        q: &Tensor,
        heads: Heads,
        weight: &Tensor,
        metadata: &DeviceMetadata,
        pool: &Tensor,
    ) -> Result<Tensor> {
        Attend { q: &rotated(q, heads, metadata)?, heads, weight, pool }.step(metadata)
    }

    fn route(&self, logits: &Tensor, choice: Choice) -> Result<(Tensor, Tensor)> {
        experts::route(logits, choice)
    }

    fn sort_routes(&self, ids: &Tensor, experts: usize) -> Result<SortedRoutes> {
        experts::sort_routes(ids, experts)
    }

    fn expert_outputs(
        &self,
        x: &Tensor,
        experts: &DeviceExperts,
        routes: &SortedRoutes,
    ) -> Result<Tensor> {
        experts::expert_outputs(x, experts, routes)
    }

    fn combine(&self, outputs: &Tensor, places: &Tensor, weights: &Tensor) -> Result<Tensor> {
        experts::combine(outputs, places, weights)
    }

    fn addresses(&self, tensors: &[&Tensor]) -> Result<Tensor> {
        experts::addresses(tensors)
    }
}
