//! Many ranks as one machine: who holds what, and how rows travel between them.
//!
//! A *rank* is one thread with one device's worth of weights and cache. A [`Topology`] has stages of
//! ranks: layers are split over the stages, routed experts over the ranks of a stage; attention is
//! data-parallel inside a stage, so that each of its ranks has sequences and cache of its own. A
//! [`Collective`] is what one rank sees of the others; [`connect`] connects the threads of one process,
//! whether they compute on the CPU or on devices. Knows tensors; not layers, tokens or sequences.

mod collective;
mod devices;
mod local;
#[cfg(feature = "nccl")]
mod nccl;
mod placement;
mod topology;

pub use collective::{Alone, Collective, CollectiveError, Parcel};
pub use devices::connect;
pub use placement::Placement;
pub use topology::{Place, Topology};
