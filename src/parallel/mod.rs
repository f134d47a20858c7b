//! Many ranks as one machine: who holds what, and how rows travel between them.
//!
//! A *rank* is one thread with one device's worth of weights and cache. A [`Topology`] has stages of
//! ranks: layers are split over the stages, routed experts over the ranks of a stage; attention is
//! data-parallel inside a stage, so that each of its ranks has sequences and cache of its own. A
//! [`Collective`] is what one rank sees of the others; [`local`] connects the threads of one process.
//! Knows tensors; not layers, tokens or sequences.

mod collective;
mod devices;
pub mod local;
#[cfg(feature = "nccl")]
mod nccl;
mod placement;
mod topology;

pub use collective::{Alone, Collective, CollectiveError, Parcel};
pub use devices::OnDevice;
pub use placement::Placement;
pub use topology::{Place, Topology};
