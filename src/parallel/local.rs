//! Ranks as threads of one process: tensors change hands, no byte is copied.
//!
//! Each ordered pair of ranks that talk has a channel of its own, so that calls need no round number
//! and no barrier. A rank that ends closes its channels: whoever waits for it wakes up, fails with the
//! cause that is written on the common board, and closes its own.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

use super::{Collective, CollectiveError, Parcel, Place, Topology};

/// The first failure of a group, for all to read.
type Board = Arc<OnceLock<CollectiveError>>;

/// A rank's end of the channels.
struct LocalRank {
    place: Place,
    to: Vec<Sender<Parcel>>,
    from: Vec<Receiver<Parcel>>,
    next: Option<Sender<Parcel>>,
    before: Option<Receiver<Parcel>>,
    board: Board,
}

/// Connects the ranks of a topology; their ends, stage by stage.
pub(super) fn connect(topology: Topology) -> Vec<Box<dyn Collective>> {
    let Topology { stages, ranks_per_stage: ranks } = topology;
    let board = Board::default();
    // For each rank of a stage the ends towards the next stage, and those of the stage before.
    let mut befores: Vec<Option<Receiver<Parcel>>> = (0..ranks).map(|_| None).collect();
    let mut connected: Vec<Box<dyn Collective>> = Vec::with_capacity(topology.ranks());
    for stage in 0..stages {
        let mut to: Vec<Vec<Sender<Parcel>>> = (0..ranks).map(|_| Vec::new()).collect();
        let mut from: Vec<Vec<Receiver<Parcel>>> = (0..ranks).map(|_| Vec::new()).collect();
        for to in &mut to {
            for from in &mut from {
                let (sender, receiver) = channel();
                to.push(sender);
                from.push(receiver);
            }
        }
        for (rank, (to, from)) in to.into_iter().zip(from).enumerate() {
            let before = befores[rank].take();
            let (next, receiver) = match stage + 1 < stages {
                true => Some(channel()).unzip(),
                false => (None, None),
            };
            befores[rank] = receiver;
            let place = Place { stage, rank };
            connected.push(Box::new(LocalRank {
                place,
                to,
                from,
                next,
                before,
                board: board.clone(),
            }));
        }
    }
    connected
}

impl LocalRank {
    /// Why a channel is closed.
    fn closed(&self) -> CollectiveError {
        let lost = CollectiveError::Lost { place: self.place };
        self.board.get_or_init(|| lost).clone()
    }

    fn no_neighbour(&self) -> CollectiveError {
        CollectiveError::NoNeighbour { place: self.place }
    }
}

impl Collective for LocalRank {
    fn place(&self) -> Place {
        self.place
    }

    fn ranks(&self) -> usize {
        self.to.len()
    }

    fn all_to_all(&mut self, parcels: Vec<Parcel>) -> Result<Vec<Parcel>, CollectiveError> {
        for (to, parcel) in self.to.iter().zip(parcels) {
            to.send(parcel).map_err(|_| self.closed())?;
        }
        self.from.iter().map(|from| from.recv().map_err(|_| self.closed())).collect()
    }

    fn send_on(&mut self, parcel: Parcel) -> Result<(), CollectiveError> {
        let next = self.next.as_ref().ok_or_else(|| self.no_neighbour())?;
        next.send(parcel).map_err(|_| self.closed())
    }

    fn receive(&mut self) -> Result<Parcel, CollectiveError> {
        let before = self.before.as_ref().ok_or_else(|| self.no_neighbour())?;
        before.recv().map_err(|_| self.closed())
    }

    fn failure(&self) -> Option<CollectiveError> {
        self.board.get().cloned()
    }

    fn abort(self: Box<Self>, cause: &str) {
        let failed = CollectiveError::Failed { place: self.place, cause: cause.into() };
        // A second failure follows from the first.
        let _ = self.board.set(failed);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    fn number(value: u32) -> Parcel {
        vec![Tensor::new(&[value], &Device::Cpu).unwrap()]
    }

    fn value(parcel: &Parcel) -> u32 {
        parcel[0].to_vec1::<u32>().unwrap()[0]
    }

    /// Runs `body` on a thread for each rank.
    fn on_ranks<T: Send>(
        topology: Topology,
        body: impl Fn(Box<dyn Collective>) -> T + Sync,
    ) -> Vec<T> {
        std::thread::scope(|scope| {
            let ranks: Vec<_> =
                connect(topology).into_iter().map(|rank| scope.spawn(|| body(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn parcels_arrive_in_the_order_of_ranks() {
        let topology = Topology { stages: 2, ranks_per_stage: 3 };
        let arrived = on_ranks(topology, |mut rank| {
            let Place { stage, rank: own } = rank.place();
            let parcels = |round: usize| {
                (0..3)
                    .map(|to| number((1000 * round + 100 * stage + 10 * own + to) as u32))
                    .collect()
            };
            let mut arrived = Vec::new();
            for round in 0..2 {
                arrived.extend(rank.all_to_all(parcels(round)).unwrap().iter().map(value));
            }
            match stage {
                0 => rank.send_on(number(7 + own as u32)).unwrap(),
                _ => arrived.push(value(&rank.receive().unwrap())),
            }
            arrived
        });
        assert_eq!(arrived[1], [1, 11, 21, 1001, 1011, 1021]);
        assert_eq!(arrived[5], [102, 112, 122, 1102, 1112, 1122, 9]);
    }

    #[test]
    fn a_rank_that_fails_ends_all_others_with_its_cause() {
        let topology = Topology { stages: 3, ranks_per_stage: 4 };
        let failing = Place { stage: 1, rank: 2 };
        let ends = on_ranks(topology, |mut rank| {
            for round in 0.. {
                if rank.place() == failing && round == 5 {
                    rank.abort("out of memory");
                    return None;
                }
                let mut step = || {
                    let stage = rank.place().stage;
                    if stage > 0 {
                        rank.receive()?;
                    }
                    rank.all_to_all((0..4).map(number).collect())?;
                    if stage < 2 { rank.send_on(number(0)) } else { Ok(()) }
                };
                if let Err(error) = step() {
                    return Some(error);
                }
            }
            None
        });
        let failed = CollectiveError::Failed { place: failing, cause: "out of memory".into() };
        assert_eq!(ends.iter().filter(|end| end.is_none()).count(), 1);
        assert!(ends.iter().flatten().all(|end| *end == failed), "{ends:?}");
        assert_eq!(failed.to_string(), "rank 2 of stage 1 failed: out of memory");
    }

    #[test]
    fn who_waits_for_something_else_sees_that_a_rank_has_failed() {
        let mut ends = connect(Topology { stages: 1, ranks_per_stage: 2 });
        assert_eq!(ends[0].failure(), None);
        let place = ends[1].place();
        ends.remove(1).abort("no memory");
        let failed = CollectiveError::Failed { place, cause: "no memory".into() };
        assert_eq!(ends[0].failure(), Some(failed));
    }

    #[test]
    fn a_rank_that_goes_without_a_word_hangs_nobody() {
        let topology = Topology { stages: 1, ranks_per_stage: 3 };
        let ends = on_ranks(topology, |mut rank| match rank.place().rank {
            1 => Ok(Vec::new()),
            _ => rank.all_to_all((0..3).map(number).collect()),
        });
        assert!(ends[0].is_err() && ends[2].is_err(), "{ends:?}");
    }
}
