//! The routed experts of one layer over the ranks of a stage: rows travel to the ranks that hold their
//! experts, and what these make of them travels back.
//!
//! Outputs come back unsummed, one row a route, and are summed at the token's own rank in the order of
//! its routing. The sum is therefore the same to the bit whatever the number of ranks.

use candle_core::{Device, Result as CandleResult, Tensor};

use super::ModelError;
use crate::ops::{self, Experts, Routes, RoutesByExpert, Routing};
use crate::parallel::{Collective, Parcel, Topology};

/// The experts of one layer that this rank holds.
pub(super) struct RoutedExperts {
    pub(super) own: Experts,
    /// Experts of all ranks.
    pub(super) experts: usize,
    pub(super) topology: Topology,
}

/// What this rank's tokens ask of one rank.
#[derive(Clone, Default)]
struct Errand {
    /// Tokens of which that rank needs the row, ascending.
    tokens: Vec<u32>,
    /// (place in `tokens`, expert), in the order of the routing.
    routes: Vec<(u32, u32)>,
}

/// Rows to compute on this rank, its own and others'.
struct Arrived {
    rows: Tensor,
    /// (row, place in `own`), those of each rank together.
    routes: Vec<(u32, u32)>,
    /// Where each rank's routes begin in `routes`; one more than there are ranks.
    starts: Vec<usize>,
}

impl RoutedExperts {
    /// The weighted sum of each token's experts: `[tokens, hidden]` → the same.
    ///
    /// All ranks of the stage call it together. Gives the routes back, on the host if other ranks had to
    /// know them.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        routes: Routes,
        ranks: &mut dyn Collective,
    ) -> Result<(Tensor, Routes), ModelError> {
        if ranks.ranks() == 1 {
            return Ok((ops::routed_experts(x, &self.own, &routes)?, routes));
        }
        let routing = routes.into_routing()?;
        let y = self.among_ranks(x, &routing, ranks)?;
        Ok((y, Routes::Host(routing)))
    }

    /// The same where experts lie on several ranks; also those without tokens take part.
    pub(super) fn among_ranks(
        &self,
        x: &Tensor,
        routing: &Routing,
        ranks: &mut dyn Collective,
    ) -> Result<Tensor, ModelError> {
        let errands = self.errands(routing, ranks.ranks());
        let own = ranks.place().rank;
        let parcels = errands.iter().enumerate().map(|(rank, errand)| match rank == own {
            true => Ok(Parcel::new()),
            false => errand.pack(x),
        });
        let arrived = ranks.all_to_all(parcels.collect::<CandleResult<_>>()?)?;
        let arrived = self.unpack(x, &errands[own], own, &arrived)?;
        let routes = RoutesByExpert::new(self.own.iter().len(), arrived.routes.iter().copied());
        let outputs = ops::expert_outputs(&arrived.rows, &self.own, &routes)?;
        let returned = arrived.starts.windows(2).enumerate().map(|(rank, bounds)| {
            match rank == own || bounds[0] == bounds[1] {
                true => Ok(Parcel::new()),
                false => Ok(vec![select(&outputs, &routes.places()[bounds[0]..bounds[1]])?]),
            }
        });
        let back = ranks.all_to_all(returned.collect::<CandleResult<_>>()?)?;
        let here = &routes.places()[arrived.starts[own]..];
        self.combine(outputs, here, (own, &back), routing)
    }

    fn errands(&self, routing: &Routing, ranks: usize) -> Vec<Errand> {
        let mut errands = vec![Errand::default(); ranks];
        for (route, &expert) in routing.expert_ids.iter().enumerate() {
            let token = (route / routing.experts_per_token) as u32;
            let errand = &mut errands[self.topology.rank_of(expert as usize, self.experts)];
            if errand.tokens.last() != Some(&token) {
                errand.tokens.push(token);
            }
            errand.routes.push((errand.tokens.len() as u32 - 1, expert));
        }
        errands
    }

    /// This rank's own rows, then those of the others, by rank.
    fn unpack(
        &self,
        x: &Tensor,
        errand: &Errand,
        own: usize,
        arrived: &[Parcel],
    ) -> CandleResult<Arrived> {
        let first = self.topology.experts(own, self.experts).start as u32;
        let mut tensors = vec![x.clone()];
        let (mut routes, mut starts, mut rows) = (Vec::new(), vec![0], x.dim(0)? as u32);
        for (rank, parcel) in arrived.iter().enumerate() {
            match &parcel[..] {
                _ if rank == own => routes.extend(
                    errand.routes.iter().map(|&(at, id)| (errand.tokens[at as usize], id - first)),
                ),
                [theirs, pairs] => {
                    let pairs = pairs.to_vec2::<u32>()?;
                    routes.extend(pairs.iter().map(|pair| (rows + pair[0], pair[1] - first)));
                    rows += theirs.dim(0)? as u32;
                    tensors.push(theirs.clone());
                }
                _ => {}
            }
            starts.push(routes.len());
        }
        Ok(Arrived { rows: joined(tensors)?, routes, starts })
    }

    /// Sums each token's outputs, those computed here and those that came back.
    fn combine(
        &self,
        outputs: Tensor,
        here: &[u32],
        (own, back): (usize, &[Parcel]),
        routing: &Routing,
    ) -> Result<Tensor, ModelError> {
        let mut next = Vec::with_capacity(back.len());
        let mut rows = outputs.dim(0)? as u32;
        let mut tensors = vec![outputs];
        for parcel in back {
            next.push(rows);
            for theirs in parcel {
                rows += theirs.dim(0)? as u32;
                tensors.push(theirs.clone());
            }
        }
        let mut here = here.iter();
        let place = |&expert: &u32| {
            let rank = self.topology.rank_of(expert as usize, self.experts);
            if rank == own {
                return *here.next().expect("each route of this rank has a place");
            }
            next[rank] += 1;
            next[rank] - 1
        };
        let places: Vec<u32> = routing.expert_ids.iter().map(place).collect();
        Ok(ops::combine(&joined(tensors)?, &places, routing)?)
    }
}

impl Errand {
    /// The rows that are needed, and for each route its row and its expert.
    fn pack(&self, x: &Tensor) -> CandleResult<Parcel> {
        if self.tokens.is_empty() {
            return Ok(Parcel::new());
        }
        let pairs: Vec<u32> = self.routes.iter().flat_map(|&(at, id)| [at, id]).collect();
        let pairs = Tensor::from_vec(pairs, (self.routes.len(), 2), &Device::Cpu)?;
        Ok(vec![select(x, &self.tokens)?, pairs])
    }
}

fn select(x: &Tensor, rows: &[u32]) -> CandleResult<Tensor> {
    x.index_select(&Tensor::new(rows, x.device())?, 0)
}

/// The rows of all tensors, one after another.
fn joined(mut tensors: Vec<Tensor>) -> CandleResult<Tensor> {
    let none = tensors[0].clone();
    tensors.retain(|tensor| tensor.elem_count() > 0);
    match &tensors[..] {
        [] => Ok(none),
        [one] => Ok(one.clone()),
        _ => Tensor::cat(&tensors, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Choice;

    #[test]
    fn a_row_travels_once_to_each_of_at_most_three_of_eight_ranks() {
        let topology = Topology { stages: 1, ranks_per_stage: 8 };
        let layer =
            RoutedExperts { own: Experts::new(Vec::new()).unwrap(), experts: 160, topology };
        let choice =
            Choice { experts_per_token: 6, groups: Some((8, 3)), normalise: false, scale: 16.0 };
        let tokens = 200;
        let logits: Vec<f32> = (0..tokens * 160).map(|i| (i as f32 * 1.7).sin() * 3.0).collect();
        let routing = ops::route(&logits, 160, choice);
        let errands = layer.errands(&routing, 8);
        let mut visits = vec![0; tokens];
        for (rank, errand) in errands.iter().enumerate() {
            errand.tokens.iter().for_each(|&token| visits[token as usize] += 1);
            assert!(errand.tokens.is_sorted_by(|a, b| a < b));
            assert!(errand.routes.iter().all(|&(_, expert)| expert as usize / 20 == rank));
        }
        assert!(visits.iter().all(|count| (1..=3).contains(count)), "{visits:?}");
        assert_eq!(errands.iter().map(|errand| errand.routes.len()).sum::<usize>(), tokens * 6);
    }
}
