//! The routed experts of a layer where the model runs.

use candle_core::{Result, Tensor, bail};

use super::accelerator::{self, DeviceExperts, SortedRoutes};
use super::experts::{Expert, RoutesByExpert, expert_outputs};
use super::host::from_host;
use super::routes::Routes;
use super::weight::{FeedForwardWeights, Weight};

/// Experts of one layer that lie together.
#[derive(Debug)]
pub enum Experts {
    /// Packed for the CPU.
    Host(Vec<Expert>),
    /// On a device.
    Device(Box<DeviceExperts>),
}

impl Experts {
    /// Puts experts of one shape together.
    pub fn new(experts: Vec<FeedForwardWeights>) -> Result<Self> {
        let (mut host, mut gate_up, mut down) = (Vec::new(), Vec::new(), Vec::new());
        for expert in experts {
            match (expert.gate_up, expert.down) {
                (Weight::Host(gate_up), Weight::Host(down)) => host.push(Expert { gate_up, down }),
                (Weight::Device(gate_up_weight), Weight::Device(down_weight)) => {
                    gate_up.push(gate_up_weight);
                    down.push(down_weight);
                }
                _ => bail!("an expert's weights are on different devices"),
            }
        }
        let Some(first) = down.first().cloned() else { return Ok(Self::Host(host)) };
        let Some(device) = accelerator::of(&first) else { bail!("experts are on no device") };
        let addresses = |weights: &[Tensor]| device.addresses(&weights.iter().collect::<Vec<_>>());
        Ok(Self::Device(Box::new(DeviceExperts {
            gate_up: addresses(&gate_up)?,
            down: addresses(&down)?,
            intermediate: first.dim(1)?,
            dtype: first.dtype(),
            weights: [gate_up, down],
        })))
    }

    /// How many they are.
    #[expect(clippy::len_without_is_empty, reason = "a layer of none is nothing to ask for")]
    pub fn len(&self) -> usize {
        match self {
            Self::Host(experts) => experts.len(),
            Self::Device(experts) => experts.weights[0].len(),
        }
    }

    /// As [`expert_outputs`].
    pub fn outputs(&self, x: &Tensor, routes: &RoutesByExpert) -> Result<Tensor> {
        match (self, accelerator::of(x)) {
            (Self::Host(experts), None) => expert_outputs(x, experts, routes),
            // Tensors without elements stay on the host.
            (Self::Device(_), _) if routes.rows().is_empty() => from_host(Vec::new(), 0, x.dim(1)?),
            (Self::Device(experts), Some(device)) => {
                let upload = |values: Vec<u32>| {
                    let count = values.len();
                    Tensor::from_vec(values, count, x.device())
                };
                let starts = routes.starts().iter().map(|&start| start as u32).collect();
                let sorted = SortedRoutes {
                    rows: upload(routes.rows().to_vec())?,
                    starts: upload(starts)?,
                    places: upload(routes.places().to_vec())?,
                };
                device.expert_outputs(x, experts, &sorted)
            }
            _ => bail!("tokens and experts are on different devices"),
        }
    }

    /// The weighted sum of each token's experts, `[tokens, hidden]` → the same, where all is on one
    /// device and the host need not know the routes.
    pub fn mix(&self, x: &Tensor, routes: &Routes) -> Result<Option<Tensor>> {
        let (Self::Device(experts), Routes::Device { expert_ids, weights }, Some(device)) =
            (self, routes, accelerator::of(x))
        else {
            return Ok(None);
        };
        let sorted = device.sort_routes(expert_ids, self.len())?;
        let outputs = device.expert_outputs(x, experts, &sorted)?;
        device.combine(&outputs, &sorted.places, weights).map(Some)
    }
}
