//! Tensors on the host as plain slices.

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};

/// A contiguous f32 tensor's values, for as long as it is borrowed.
pub(crate) struct HostSlice<'a> {
    // Boxed because candle does not name its guard's type.
    storage: Box<dyn Deref<Target = Storage> + 'a>,
    start: usize,
    len: usize,
}

/// The values of a contiguous f32 tensor that lies on the host.
pub(crate) fn host(tensor: &Tensor) -> Result<HostSlice<'_>> {
    if tensor.dtype() != DType::F32 || !tensor.is_contiguous() {
        bail!("expected a contiguous f32 tensor, found {:?} {:?}", tensor.dtype(), tensor.layout())
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (start, len) = (layout.start_offset(), layout.shape().elem_count());
    let on_host = matches!(&*storage, Storage::Cpu(CpuStorage::F32(_)));
    match on_host {
        true => Ok(HostSlice { storage: Box::new(storage), start, len }),
        false => bail!("expected a tensor on the CPU"),
    }
}

impl Deref for HostSlice<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &**self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.start + self.len],
            _ => unreachable!("`host` has checked the storage"),
        }
    }
}

/// A new tensor `[rows, width]` on the host.
pub(crate) fn from_host(values: Vec<f32>, rows: usize, width: usize) -> Result<Tensor> {
    Tensor::from_vec(values, (rows, width), &Device::Cpu)
}

/// A pointer that threads may share because each writes its own elements behind it.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

// SAFETY: every user writes disjoint elements, which each task's `SAFETY` comment shows.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Shares a buffer whose elements are written by different tasks.
    pub(crate) fn new(buffer: &mut [T]) -> Self {
        Self(buffer.as_mut_ptr())
    }

    /// Shares what begins at a pointer.
    pub(crate) fn from_pointer(first: *mut T) -> Self {
        Self(first)
    }

    /// The element at `index`.
    ///
    /// # Safety
    /// `index` lies in the buffer, which outlives the use of the pointer.
    pub(crate) unsafe fn at(self, index: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(index) }
    }
}
