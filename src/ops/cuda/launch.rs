//! Kernels by name, and tensors by address.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{LazyLock, Mutex};

use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, DevicePtr, result, sys};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::{CudaDevice, DType, DeviceLocation, Result, Storage, Tensor, bail};

/// Dynamic shared memory that every kernel may have without asking.
const PLAIN_SHARED_BYTES: usize = 48 << 10;

macro_rules! fatbin {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin"))
    };
}

/// One module a file of kernels, and the kernels of each.
const MODULES: [(&[u8], &[&str]); 7] = [
    (fatbin!("norm"), &["rms_norm", "gate_f32", "gate_bf16"]),
    (
        fatbin!("rope"),
        &[
            "rotate_queries",
            "store_latents_f32",
            "store_latents_bf16",
            "split_queries_f32",
            "split_queries_bf16",
        ],
    ),
    (fatbin!("router"), &["route", "sort_routes", "combine"]),
    (fatbin!("experts"), &["grouped_product_16", "grouped_product_128", "grouped_product_f32"]),
    (
        fatbin!("attend"),
        &[
            "attend_latents_f32",
            "attend_latents_bf16",
            "attend_expanded_f32",
            "attend_expanded_bf16",
        ],
    ),
    (fatbin!("mla_decode"), &["mla_decode_16", "mla_decode_64", "merge_splits"]),
    (fatbin!("mla_prefill"), &["mla_prefill"]),
];

/// The kernels of each device that was used, by its number.
static LOADED: LazyLock<Mutex<HashMap<usize, HashMap<&str, CudaFunction>>>> =
    LazyLock::new(Mutex::default);

/// Blocks, threads of a block and bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) grid: [usize; 3],
    pub(super) threads: u32,
    pub(super) shared: usize,
}

impl Shape {
    /// A row of blocks without shared memory.
    pub(super) fn row(blocks: usize, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], threads, shared: 0 }
    }
}

/// A kernel's argument, in the low bytes of a word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Argument(u64);

pub(super) fn int(value: usize) -> Argument {
    Argument(value as u64)
}

pub(super) fn float(value: f32) -> Argument {
    Argument(u64::from(value.to_bits()))
}

/// No tensor.
pub(super) const NULL: Argument = Argument(0);

pub(super) fn pointer(tensor: &Tensor) -> Result<Argument> {
    Ok(Argument(address(tensor)?))
}

/// Where a contiguous tensor begins in its device's memory.
pub(super) fn address(tensor: &Tensor) -> Result<u64> {
    if !tensor.is_contiguous() {
        bail!("expected a contiguous tensor, found {:?}", tensor.layout())
    }
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("expected a tensor on a CUDA device") };
    let stream = storage.device.cuda_stream();
    // One stream does all the work of a device, so that no address outlives what it points to.
    let start = match tensor.dtype() {
        DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0,
        DType::BF16 => storage.as_cuda_slice::<half::bf16>()?.device_ptr(&stream).0,
        DType::U32 => storage.as_cuda_slice::<u32>()?.device_ptr(&stream).0,
        other => bail!("no kernel takes {other:?}"),
    };
    Ok(start + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64)
}

/// A tensor that a kernel will fill.
pub(super) fn unfilled(shape: &[usize], dtype: DType, like: &Tensor) -> Result<Tensor> {
    // SAFETY: every caller has each element written before it is read.
    unsafe { Tensor::empty(shape, dtype, like.device()) }
}

/// Runs a kernel on the stream of the device where `like` lies.
///
/// # Safety
/// The arguments are those of the kernel, in number, type and order; what they point to has the shapes
/// that the kernel's comment names.
pub(super) unsafe fn launch(
    name: &'static str,
    shape: Shape,
    like: &Tensor,
    arguments: &[Argument],
) -> Result<()> {
    if shape.grid.contains(&0) {
        return Ok(());
    }
    let device = like.device().as_cuda_device()?;
    let function = function(device, name)?;
    if shape.shared > PLAIN_SHARED_BYTES {
        let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(most, shape.shared as i32).w()?;
    }
    let mut words: Vec<u64> = arguments.iter().map(|argument| argument.0).collect();
    let mut pointers: Vec<*mut c_void> =
        words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
    let stream = device.cuda_stream();
    let [x, y, z] = shape.grid.map(|blocks| blocks as u32);
    // SAFETY: the caller's promise; words are little-endian, so their low bytes come first.
    unsafe {
        result::launch_kernel(
            function.cu_function(),
            (x, y, z),
            (shape.threads, 1, 1),
            shape.shared as u32,
            stream.cu_stream(),
            &mut pointers,
        )
    }
    .w()
}

fn function(device: &CudaDevice, name: &'static str) -> Result<CudaFunction> {
    let DeviceLocation::Cuda { gpu_id } = device.location() else {
        bail!("a CUDA device has a number")
    };
    let context = device.cuda_stream().context().clone();
    context.bind_to_thread().w()?;
    let mut loaded = LOADED.lock().expect("no holder of the lock panics");
    let kernels = match loaded.entry(gpu_id) {
        std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
        std::collections::hash_map::Entry::Vacant(entry) => {
            let mut kernels = HashMap::new();
            for (binary, names) in MODULES {
                let module = context.load_module(Ptx::from_binary(binary.to_vec())).w()?;
                for name in names {
                    kernels.insert(*name, module.load_function(name).w()?);
                }
            }
            entry.insert(kernels)
        }
    };
    match kernels.get(name) {
        Some(function) => Ok(function.clone()),
        None => bail!("there is no kernel `{name}`"),
    }
}

/// Lets the device's memory pool keep what is freed, so that synchronising does not give it back.
pub(super) fn keep_freed_memory(device: &CudaDevice) -> Result<()> {
    let context = device.cuda_stream().context().clone();
    context.bind_to_thread().w()?;
    let pools = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
    if context.attribute(pools).w()? == 0 {
        return Ok(());
    }
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    let name = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the context is current, and the attribute is a 64-bit number.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, context.cu_device()).result().w()?;
        sys::cuMemPoolSetAttribute(pool, name, std::ptr::from_mut(&mut threshold).cast())
            .result()
            .w()
    }
}

/// Bytes of a device's memory that are free.
pub(super) fn free_bytes(device: &CudaDevice) -> Result<u64> {
    device.cuda_stream().context().bind_to_thread().w()?;
    Ok(result::mem_get_info().w()?.0 as u64)
}
