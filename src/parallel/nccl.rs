//! Rows between the GPUs of one stage through NCCL.
//!
//! Ranks are threads of one process, so what a parcel holds is told through the connection they have
//! already; only tensors on devices travel by NCCL, each rank's on its own stream. A rank that fails
//! before it has told its parcels ends the others with its cause; one that fails while rows travel
//! leaves them waiting for the device.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::cuda_backend::cudarc::nccl::result::{NcclError, group_end, group_start};
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id};
use candle_core::cuda_backend::{CudaStorage, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Device, Error, Result, Storage, Tensor, bail};

use super::{Collective, Parcel};

/// A rank's end of a stage's communicator.
pub(super) struct Link {
    comm: Comm,
    device: CudaDevice,
}

/// A tensor of a parcel that is on its way.
enum Arriving {
    /// It is here already.
    Here(Tensor),
    /// Room for rows of a width.
    Rows(CudaSlice<f32>, (usize, usize)),
}

// SAFETY: the pointer inside belongs to this end, and one thread uses it at a time: the rank's own.
unsafe impl Send for Link {}

impl Link {
    /// Joins the communicator of this rank's stage; returns when all its ranks have.
    pub(super) fn join(device: &Device, ranks: &mut dyn Collective) -> Result<Self> {
        let own = ranks.place().rank;
        let world = ranks.ranks();
        let device = device.as_cuda_device()?.clone();
        let words = match own {
            0 => Id::new().map_err(failed)?.internal().map(|byte| byte as u8 as u32).to_vec(),
            _ => Vec::new(),
        };
        let words = Tensor::from_vec(words.clone(), words.len(), &Device::Cpu)?;
        let told = ranks.all_to_all(vec![vec![words]; world]).map_err(Error::wrap)?;
        let words = told[0][0].to_vec1::<u32>()?;
        let mut internal = [0; 128];
        internal.iter_mut().zip(words).for_each(|(byte, word)| *byte = word as u8 as _);
        device.cuda_stream().context().bind_to_thread().w()?;
        let id = Id::uninit(internal);
        let comm = Comm::from_rank(device.cuda_stream(), own, world, id).map_err(failed)?;
        Ok(Self { comm, device })
    }

    /// As [`Collective::all_to_all`].
    pub(super) fn all_to_all(
        &self,
        parcels: Vec<Parcel>,
        ranks: &mut dyn Collective,
    ) -> Result<Vec<Parcel>> {
        let own = ranks.place().rank;
        let told = parcels.iter().map(describe).collect::<Result<Vec<_>>>()?;
        let told = ranks.all_to_all(told).map_err(Error::wrap)?;
        let arriving = told.iter().enumerate().map(|(rank, told)| match rank == own {
            true => Ok(parcels[own].iter().cloned().map(Arriving::Here).collect()),
            false => self.prepare(told),
        });
        let mut arriving = arriving.collect::<Result<Vec<Vec<Arriving>>>>()?;
        self.device.cuda_stream().context().bind_to_thread().w()?;
        group_start().map_err(failed)?;
        for (rank, (leaving, arriving)) in parcels.iter().zip(&mut arriving).enumerate() {
            if rank != own {
                leaving.iter().try_for_each(|tensor| self.send(tensor, rank))?;
                arriving.iter_mut().try_for_each(|rows| self.receive(rows, rank))?;
            }
        }
        group_end().map_err(failed)?;
        let arrived =
            |rows: Vec<Arriving>| rows.into_iter().map(|rows| self.arrived(rows)).collect();
        Ok(arriving.into_iter().map(arrived).collect())
    }

    /// Room for what was told.
    fn prepare(&self, told: &Parcel) -> Result<Vec<Arriving>> {
        let Some((shapes, host)) = told.split_first() else { return Ok(Vec::new()) };
        let mut host = host.iter();
        let room = |shape: Vec<u32>| match shape[0] {
            0 => match host.next() {
                Some(tensor) => Ok(Arriving::Here(tensor.clone())),
                None => bail!("a tensor was told of and not sent"),
            },
            _ => {
                let (rows, width) = (shape[1] as usize, shape[2] as usize);
                // SAFETY: NCCL fills it before anything that is queued behind it reads it.
                let slice = unsafe { self.device.alloc::<f32>(rows * width)? };
                Ok(Arriving::Rows(slice, (rows, width)))
            }
        };
        shapes.to_vec2::<u32>()?.into_iter().map(room).collect()
    }

    fn arrived(&self, rows: Arriving) -> Tensor {
        match rows {
            Arriving::Here(tensor) => tensor,
            Arriving::Rows(slice, shape) => {
                let storage = CudaStorage::wrap_cuda_slice(slice, self.device.clone());
                Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
            }
        }
    }

    fn send(&self, tensor: &Tensor, rank: usize) -> Result<()> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { return Ok(()) };
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("rows with gaps") };
        let rows = storage.as_cuda_slice::<f32>()?.slice(start..end);
        self.comm.send(&rows, rank as i32).map(|_| ()).map_err(failed)
    }

    fn receive(&self, rows: &mut Arriving, rank: usize) -> Result<()> {
        match rows {
            Arriving::Here(_) => Ok(()),
            Arriving::Rows(slice, _) => {
                self.comm.recv(slice, rank as i32).map(|_| ()).map_err(failed)
            }
        }
    }
}

/// What a parcel holds, `[tensors, 3]` u32 (on a device, rows, width), then its tensors on the host.
fn describe(parcel: &Parcel) -> Result<Parcel> {
    if parcel.is_empty() {
        return Ok(Parcel::new());
    }
    let mut shapes = Vec::with_capacity(3 * parcel.len());
    let mut told = vec![];
    for tensor in parcel {
        match tensor.device().is_cpu() {
            true => {
                shapes.extend([0, 0, 0]);
                told.push(tensor.clone());
            }
            false if tensor.dtype() == DType::F32 => {
                let (rows, width) = tensor.dims2()?;
                shapes.extend([1, rows as u32, width as u32]);
            }
            false => bail!("rows of {:?} do not travel", tensor.dtype()),
        }
    }
    told.insert(0, Tensor::from_vec(shapes, (parcel.len(), 3), &Device::Cpu)?);
    Ok(told)
}

fn failed(error: NcclError) -> Error {
    Error::msg(format!("NCCL failed: {error:?}"))
}
