//! What one rank sees of the others: parcels of tensors that it gives and gets.

use std::fmt::Display;

use candle_core::Tensor;

use super::Place;

/// Tensors that travel together.
pub type Parcel = Vec<Tensor>;

/// A rank's connection to the others.
///
/// Every rank of a stage makes the same calls in the same order, also one that has nothing to give.
/// Parcels come in the order of ranks, and nothing is summed on the way: what arrives depends on what
/// was sent, never on who was faster. When a rank fails, the calls of all others end with its cause.
pub trait Collective: Send {
    /// Where this rank is.
    fn place(&self) -> Place;

    /// Ranks of this stage.
    fn ranks(&self) -> usize;

    /// Gives parcel r to rank r of this stage, and gets what each rank gave to this one, in their order.
    fn all_to_all(&mut self, parcels: Vec<Parcel>) -> Result<Vec<Parcel>, CollectiveError>;

    /// Gives a parcel to the same rank of the next stage.
    fn send_on(&mut self, parcel: Parcel) -> Result<(), CollectiveError>;

    /// Gets the parcel that the same rank of the stage before sent on.
    fn receive(&mut self) -> Result<Parcel, CollectiveError>;

    /// Why no call can succeed any more, if a rank has failed: for who waits for something else than a call.
    fn failure(&self) -> Option<CollectiveError>;

    /// Leaves because this rank failed: calls of the others end with this cause, unless an earlier
    /// failure is known already.
    fn abort(self: Box<Self>, cause: &str);
}

/// Why a rank cannot go on with the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// A rank failed, and with it all that depend on it.
    #[error("{place} failed: {cause}")]
    Failed { place: Place, cause: String },
    /// A rank went away without a word.
    #[error("{place} has lost another rank")]
    Lost { place: Place },
    /// There is no such stage.
    #[error("{place} has no neighbour to exchange layers' outputs with")]
    NoNeighbour { place: Place },
}

/// What failed at a place, as the other ranks are to hear of it.
pub(super) fn as_failure<T, E: Display>(
    place: Place,
    result: Result<T, E>,
) -> Result<T, CollectiveError> {
    result.map_err(|cause| CollectiveError::Failed { place, cause: cause.to_string() })
}

/// The only rank there is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn place(&self) -> Place {
        Place { stage: 0, rank: 0 }
    }

    fn ranks(&self) -> usize {
        1
    }

    fn all_to_all(&mut self, parcels: Vec<Parcel>) -> Result<Vec<Parcel>, CollectiveError> {
        Ok(parcels)
    }

    fn send_on(&mut self, _: Parcel) -> Result<(), CollectiveError> {
        Err(CollectiveError::NoNeighbour { place: self.place() })
    }

    fn receive(&mut self) -> Result<Parcel, CollectiveError> {
        Err(CollectiveError::NoNeighbour { place: self.place() })
    }

    fn failure(&self) -> Option<CollectiveError> {
        None
    }

    fn abort(self: Box<Self>, _: &str) {}
}
