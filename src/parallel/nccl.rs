//! Rows between the devices of one stage through NCCL.
//!
//! Ranks are threads of one process, so what a parcel holds is told through the connection they have
//! already; only tensors on devices travel by NCCL, each rank's on its own stream.
//!
//! No rank waits inside of NCCL or for its device: the communicator does not block, and whoever waits for it
//! to connect or for rows to arrive looks meanwhile whether another rank has failed. If so, it ends with
//! that one's cause and aborts its own communicator, and with it what waits on its device.

use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use candle_core::cuda_backend::cudarc::nccl::{result, sys};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Device, Result as CandleResult, Storage, Tensor, bail};

use self::result::{NcclError, NcclStatus};
use super::collective::as_failure;
use super::{Collective, CollectiveError, Parcel, Place};

/// What marks a configuration, and that a value of it is left to NCCL (nccl.h).
const CONFIG_MAGIC: u32 = 0xcafe_beef;
const UNDEFINED: i32 = i32::MIN;
/// The version whose configuration is filled in, as nccl.h counts versions.
const CONFIG_VERSION: u32 = 23000;

/// A rank's end of a stage's communicator.
pub(super) struct Link {
    /// Null until it has begun.
    comm: sys::ncclComm_t,
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
    pub(super) fn join(
        device: &Device,
        ranks: &mut dyn Collective,
    ) -> Result<Self, CollectiveError> {
        let (place, world) = (ranks.place(), ranks.ranks());
        let device = as_failure(place, device.as_cuda_device())?.clone();
        let id = shared_id(ranks)?;
        as_failure(place, device.cuda_stream().context().bind_to_thread())?;
        let mut link = Self { comm: std::ptr::null_mut(), device };
        let (comm, mut config) = (&raw mut link.comm, not_blocking());
        // SAFETY: both pointers are to live values; NCCL copies the configuration.
        let asked = unsafe {
            result::comm_init_rank_config(comm, world as i32, id, place.rank as i32, &mut config)
        };
        link.settle(asked, ranks)?;
        Ok(link)
    }

    /// As [`Collective::all_to_all`]; a link that fails is at its end.
    pub(super) fn all_to_all(
        self,
        parcels: &[Parcel],
        ranks: &mut dyn Collective,
    ) -> Result<(Self, Vec<Parcel>), CollectiveError> {
        let place = ranks.place();
        let told = parcels.iter().map(describe).collect::<CandleResult<_>>();
        let told = ranks.all_to_all(as_failure(place, told)?)?;
        let arriving = told.iter().enumerate().map(|(rank, told)| match rank == place.rank {
            true => Ok(parcels[rank].iter().cloned().map(Arriving::Here).collect()),
            false => self.prepare(told),
        });
        let mut arriving = as_failure(place, arriving.collect::<CandleResult<Vec<Vec<_>>>>())?;
        if let Err(failure) = self.travel(parcels, &mut arriving, ranks) {
            // Aborts what NCCL still has under way, before the room that it would write to is freed.
            drop(self);
            return Err(failure);
        }
        let arrived =
            |rows: Vec<Arriving>| rows.into_iter().map(|rows| self.arrived(rows)).collect();
        let arrived = arriving.into_iter().map(arrived).collect();
        Ok((self, arrived))
    }

    /// Sends and receives all rows, and returns when they are there.
    fn travel(
        &self,
        parcels: &[Parcel],
        arriving: &mut [Vec<Arriving>],
        ranks: &dyn Collective,
    ) -> Result<(), CollectiveError> {
        let (place, stream) = (ranks.place(), self.device.cuda_stream());
        as_failure(place, stream.context().bind_to_thread())?;
        as_failure(place, result::group_start().map_err(described))?;
        let queued = self.queue(place, parcels, arriving);
        // A group that was begun is ended whatever came of it.
        let asked = result::group_end();
        as_failure(place, queued)?;
        self.settle(asked, ranks)?;
        let arrived = as_failure(place, stream.record_event(None))?;
        while !as_failure(place, arrived.try_is_complete())? {
            look(ranks)?;
        }
        Ok(())
    }

    fn queue(
        &self,
        place: Place,
        parcels: &[Parcel],
        arriving: &mut [Vec<Arriving>],
    ) -> CandleResult<()> {
        for (rank, (leaving, arriving)) in parcels.iter().zip(arriving).enumerate() {
            if rank != place.rank {
                leaving.iter().try_for_each(|tensor| self.send(tensor, rank))?;
                arriving.iter_mut().try_for_each(|rows| self.receive(rows, rank))?;
            }
        }
        Ok(())
    }

    /// Waits until NCCL has done what it was asked for; the device may still be at it.
    fn settle(
        &self,
        asked: Result<NcclStatus, NcclError>,
        ranks: &dyn Collective,
    ) -> Result<(), CollectiveError> {
        let mut state = asked;
        while as_failure(ranks.place(), state.map_err(described))? == NcclStatus::InProgress {
            look(ranks)?;
            let mut now = sys::ncclResult_t::ncclSuccess;
            // SAFETY: a communicator that is in progress has begun.
            let found = unsafe { sys::ncclCommGetAsyncError(self.comm, &mut now) }.result();
            state = found.and_then(|_| now.result());
        }
        Ok(())
    }

    /// Room for what was told.
    fn prepare(&self, told: &Parcel) -> CandleResult<Vec<Arriving>> {
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

    fn send(&self, tensor: &Tensor, rank: usize) -> CandleResult<()> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { return Ok(()) };
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("rows with gaps") };
        let rows = storage.as_cuda_slice::<f32>()?.slice(start..end);
        let stream = self.device.cuda_stream();
        let (from, _used) = rows.device_ptr(&stream);
        let (dtype, cu_stream) = (sys::ncclDataType_t::ncclFloat32, stream.cu_stream() as _);
        // SAFETY: the rows live until they have travelled or the communicator is aborted.
        let sent = unsafe {
            result::send(from as _, end - start, dtype, rank as i32, self.comm, cu_stream)
        };
        queued(sent)
    }

    fn receive(&self, rows: &mut Arriving, rank: usize) -> CandleResult<()> {
        let Arriving::Rows(slice, shape) = rows else { return Ok(()) };
        let (stream, count) = (self.device.cuda_stream(), shape.0 * shape.1);
        let (to, _used) = slice.device_ptr_mut(&stream);
        let (dtype, cu_stream) = (sys::ncclDataType_t::ncclFloat32, stream.cu_stream() as _);
        // SAFETY: as above; there is room for `count` elements.
        let received =
            unsafe { result::recv(to as _, count, dtype, rank as i32, self.comm, cu_stream) };
        queued(received)
    }
}

impl Drop for Link {
    /// Ends what is still under way.
    fn drop(&mut self) {
        if !self.comm.is_null() && self.device.cuda_stream().context().bind_to_thread().is_ok() {
            // SAFETY: nobody else has the communicator, and it is not used again.
            let _ = unsafe { result::comm_abort(self.comm) };
        }
    }
}

/// Ends with the cause of a rank that has failed, or lets others compute for a moment.
fn look(ranks: &dyn Collective) -> Result<(), CollectiveError> {
    match ranks.failure() {
        Some(failure) => Err(failure),
        None => {
            std::thread::yield_now();
            Ok(())
        }
    }
}

/// The name of a new communicator, which the first rank makes up.
fn shared_id(ranks: &mut dyn Collective) -> Result<sys::ncclUniqueId, CollectiveError> {
    let (place, world) = (ranks.place(), ranks.ranks());
    let bytes = match place.rank {
        0 => {
            let id = as_failure(place, result::get_uniqueid().map_err(described))?;
            id.internal.map(|byte| byte as u8).to_vec()
        }
        _ => Vec::new(),
    };
    let bytes = Tensor::from_slice(&bytes, bytes.len(), &Device::Cpu);
    let told = ranks.all_to_all(vec![vec![as_failure(place, bytes)?]; world])?;
    let bytes = as_failure(place, told[0][0].to_vec1::<u8>())?;
    let mut id = sys::ncclUniqueId { internal: [0; 128] };
    id.internal.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte as _);
    Ok(id)
}

/// The configuration of a communicator whose calls return before they are done; all else is NCCL's choice.
fn not_blocking() -> sys::ncclConfig_t {
    sys::ncclConfig_t {
        size: size_of::<sys::ncclConfig_t>(),
        magic: CONFIG_MAGIC,
        version: CONFIG_VERSION,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: std::ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: std::ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
        graphUsageMode: UNDEFINED,
        numRmaCtx: UNDEFINED,
        maxP2pPeers: UNDEFINED,
    }
}

/// What a parcel holds, `[tensors, 3]` u32 (on a device, rows, width), then its tensors on the host.
fn describe(parcel: &Parcel) -> CandleResult<Parcel> {
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

/// A call of a group: it is done when the group is.
fn queued(asked: Result<NcclStatus, NcclError>) -> CandleResult<()> {
    asked.map(|_| ()).map_err(|error| candle_core::Error::msg(described(error)))
}

fn described(NcclError(code): NcclError) -> String {
    format!("NCCL failed: {code:?}")
}
