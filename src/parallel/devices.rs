//! A connection between ranks that compute on different devices: what arrives is brought to the own one.

use candle_core::{Device, Result, Tensor};

use super::{Collective, CollectiveError, Parcel, Place};

/// Brings tensors from other devices to this rank's. Tensors on the host stay there.
pub struct OnDevice {
    device: Device,
    inner: Box<dyn Collective>,
    #[cfg(feature = "nccl")]
    link: Option<super::nccl::Link>,
}

impl OnDevice {
    /// Wraps a connection of a rank that computes on `device`.
    pub fn new(device: Device, inner: Box<dyn Collective>) -> Self {
        Self {
            device,
            inner,
            #[cfg(feature = "nccl")]
            link: None,
        }
    }

    /// Makes sure that what is given is complete: the other rank reads it in an order of its own.
    fn finish(&self) -> std::result::Result<(), CollectiveError> {
        self.device.synchronize().map_err(|error| self.failed(&error))
    }

    fn bring(&self, parcel: Parcel) -> std::result::Result<Parcel, CollectiveError> {
        let bring = |tensor: Tensor| match tensor.device().is_cpu() {
            true => Ok(tensor),
            false => tensor.contiguous()?.to_device(&self.device),
        };
        let brought: Result<Parcel> = parcel.into_iter().map(bring).collect();
        brought.map_err(|error| self.failed(&error))
    }

    /// Rows of a stage's GPUs go from one to the other without the host's waiting.
    #[cfg(feature = "nccl")]
    fn all_to_all_by_nccl(&mut self, parcels: Vec<Parcel>) -> Result<Vec<Parcel>> {
        let ranks = self.inner.as_mut();
        let link = match self.link.take() {
            Some(link) => link,
            None => super::nccl::Link::join(&self.device, ranks)?,
        };
        let arrived = link.all_to_all(parcels, ranks)?;
        self.link = Some(link);
        Ok(arrived)
    }

    fn failed(&self, error: &candle_core::Error) -> CollectiveError {
        CollectiveError::Failed { place: self.inner.place(), cause: error.to_string() }
    }
}

impl Collective for OnDevice {
    fn place(&self) -> Place {
        self.inner.place()
    }

    fn ranks(&self) -> usize {
        self.inner.ranks()
    }

    fn all_to_all(
        &mut self,
        parcels: Vec<Parcel>,
    ) -> std::result::Result<Vec<Parcel>, CollectiveError> {
        #[cfg(feature = "nccl")]
        if self.device.is_cuda() && self.ranks() > 1 {
            return self.all_to_all_by_nccl(parcels).map_err(|error| self.failed(&error));
        }
        self.finish()?;
        let arrived = self.inner.all_to_all(parcels)?;
        arrived.into_iter().map(|parcel| self.bring(parcel)).collect()
    }

    fn send_on(&mut self, parcel: Parcel) -> std::result::Result<(), CollectiveError> {
        self.finish()?;
        self.inner.send_on(parcel)
    }

    fn receive(&mut self) -> std::result::Result<Parcel, CollectiveError> {
        let parcel = self.inner.receive()?;
        self.bring(parcel)
    }

    fn abort(self: Box<Self>, cause: &str) {
        self.inner.abort(cause);
    }
}
