//! Connections between ranks that compute on devices: what arrives is brought to the own one.

use candle_core::{Device, Tensor};

use super::collective::as_failure;
use super::{Collective, CollectiveError, Parcel, Place, Topology, local};

/// Connects the ranks of a topology, which compute on these devices; their ends, stage by stage.
pub fn connect(topology: Topology, devices: &[Device]) -> Vec<Box<dyn Collective>> {
    let ends = local::connect(topology).into_iter().zip(devices);
    ends.map(|(end, device)| match device.is_cpu() {
        true => end,
        false => Box::new(OnDevice::new(device.clone(), end)) as Box<dyn Collective>,
    })
    .collect()
}

/// Brings tensors from other devices to this rank's. Tensors on the host stay there.
struct OnDevice {
    device: Device,
    inner: Box<dyn Collective>,
    /// Between the devices of this stage, once it was needed.
    #[cfg(feature = "nccl")]
    link: Option<super::nccl::Link>,
}

impl OnDevice {
    fn new(device: Device, inner: Box<dyn Collective>) -> Self {
        Self {
            device,
            inner,
            #[cfg(feature = "nccl")]
            link: None,
        }
    }

    /// Makes sure that what is given is complete: the other rank reads it in an order of its own.
    fn finish(&self) -> Result<(), CollectiveError> {
        as_failure(self.place(), self.device.synchronize())
    }

    fn bring(&self, parcel: &Parcel) -> Result<Parcel, CollectiveError> {
        let bring = |tensor: &Tensor| match tensor.device().is_cpu() {
            true => Ok(tensor.clone()),
            false => tensor.to_device(&self.device),
        };
        let brought = parcel.iter().map(bring).collect::<candle_core::Result<_>>();
        let brought = as_failure(self.place(), brought)?;
        // What it came from may be freed after this, in the other device's order.
        self.finish()?;
        Ok(brought)
    }

    /// Rows of a stage's ranks go from device to device.
    #[cfg(feature = "nccl")]
    fn exchange(&mut self, parcels: &[Parcel]) -> Result<Vec<Parcel>, CollectiveError> {
        let ranks = self.inner.as_mut();
        // A link that fails is not put back, and ends by that what it has under way.
        let link = match self.link.take() {
            Some(link) => link,
            None => super::nccl::Link::join(&self.device, ranks)?,
        };
        let (link, arrived) = link.all_to_all(parcels, ranks)?;
        self.link = Some(link);
        Ok(arrived)
    }

    /// Rows of a stage's ranks are copied once they are complete.
    #[cfg(not(feature = "nccl"))]
    fn exchange(&mut self, parcels: &[Parcel]) -> Result<Vec<Parcel>, CollectiveError> {
        self.finish()?;
        let arrived = self.inner.all_to_all(parcels.to_vec())?;
        arrived.iter().map(|parcel| self.bring(parcel)).collect()
    }
}

impl Collective for OnDevice {
    fn place(&self) -> Place {
        self.inner.place()
    }

    fn ranks(&self) -> usize {
        self.inner.ranks()
    }

    fn failure(&self) -> Option<CollectiveError> {
        self.inner.failure()
    }

    fn all_to_all(&mut self, parcels: Vec<Parcel>) -> Result<Vec<Parcel>, CollectiveError> {
        self.exchange(&parcels)
    }

    fn send_on(&mut self, parcel: Parcel) -> Result<(), CollectiveError> {
        self.finish()?;
        self.inner.send_on(parcel)
    }

    fn receive(&mut self) -> Result<Parcel, CollectiveError> {
        let parcel = self.inner.receive()?;
        self.bring(&parcel)
    }

    fn abort(self: Box<Self>, cause: &str) {
        self.inner.abort(cause);
    }
}
