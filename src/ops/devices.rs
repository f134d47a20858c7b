//! The devices that a program can open, and whose operations are at home on them.
//!
//! Each operation looks where its activations lie and hands them over if there is an [`Accelerator`] for
//! that. Nothing else knows which features were compiled in.

use candle_core::{Device, Tensor};

use super::accelerator::Accelerator;

/// The operations of the device on which a tensor lies; none: the CPU's.
pub(super) fn of(tensor: &Tensor) -> Option<&'static dyn Accelerator> {
    #[cfg(feature = "cuda")]
    if tensor.device().is_cuda() {
        return Some(&super::cuda::Cuda);
    }
    let _ = tensor;
    None
}

/// A kind of device that models run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// This machine's processor.
    #[default]
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program was built without the feature.
    #[error("this build of nightshift computes on the CPU only")]
    NotBuilt,
    /// There is no driver, no device, or not this many of them.
    #[error("CUDA device {index} cannot be used: {cause}")]
    Unusable { index: usize, cause: String },
}

impl DeviceError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotBuilt => {
                "build with `cargo build --release --features cuda` (README says what it needs), or use \"cpu\""
            }
            Self::Unusable { .. } => {
                "`nvidia-smi` lists the devices that this machine's driver knows; CUDA_VISIBLE_DEVICES may hide some"
            }
        }
    }
}

impl DeviceKind {
    /// Whether this program was built for it.
    pub fn is_built(self) -> bool {
        self == Self::Cpu || cfg!(feature = "cuda")
    }

    /// Opens a device of this kind, the first being 0; the CPU has but one.
    pub fn open(self, index: usize) -> std::result::Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => open_cuda(index),
        }
    }
}

/// Bytes of a device's own memory that are free; none on the CPU.
pub fn free_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return super::cuda::free_bytes(device).ok();
    }
    let _ = device;
    None
}

#[cfg(feature = "cuda")]
fn open_cuda(index: usize) -> std::result::Result<Device, DeviceError> {
    super::cuda::open(index).map_err(|cause| DeviceError::Unusable { index, cause })
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize) -> std::result::Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt)
}
