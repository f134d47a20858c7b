//! The routed experts of a layer: every expert's tokens as one product, combined in one order.

use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::accelerator::{DeviceExperts, SortedRoutes};
use super::devices;
use super::host::{from_host, host};
use super::isa::{Isa, per_isa};
use super::lanes::Lanes;
use super::matmul::{Finish, Matrix, Rows, Target, Task, run};
use super::router::Routing;
use super::routes::Routes;
use super::weight::Weight;

/// One feed-forward expert: `down(silu(gate x) * up x)`.
#[derive(Debug)]
pub struct Expert {
    /// Gate and up, held together: `[intermediate, hidden]` each.
    pub gate_up: Weight,
    /// `[hidden, intermediate]`.
    pub down: Weight,
}

impl Expert {
    /// `[tokens, hidden]` → the same.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.product(&self.gate_up.gated_product(x)?)
    }

    /// Its weights as the CPU takes them.
    fn host(&self) -> Result<(&Matrix, &Matrix)> {
        Ok((self.gate_up.host()?, self.down.host()?))
    }

    /// Bytes of its weights.
    pub fn bytes(&self) -> usize {
        self.gate_up.bytes() + self.down.bytes()
    }
}

/// Routed experts of one layer, all of one shape, that lie together.
#[derive(Debug)]
pub struct Experts {
    all: Vec<Expert>,
    /// None: they are on the CPU.
    on_device: Option<Box<DeviceExperts>>,
}

impl Experts {
    /// Puts experts together.
    pub fn new(all: Vec<Expert>) -> Result<Self> {
        let on_device = match all.first() {
            Some(Expert { down: Weight::Device(down), .. }) => {
                Some(Box::new(DeviceExperts::new(&all, down)?))
            }
            _ => None,
        };
        Ok(Self { all, on_device })
    }

    /// One by one.
    pub fn iter(&self) -> std::slice::Iter<'_, Expert> {
        self.all.iter()
    }
}

/// Routes sorted by expert; those of one expert stay in the order in which they were given.
#[derive(Debug)]
pub struct RoutesByExpert {
    /// The row of each sorted route.
    rows: Vec<u32>,
    /// Where each expert's routes begin; one more than there are experts.
    starts: Vec<usize>,
    /// The sorted place of each route as it was given.
    places: Vec<u32>,
}

impl SortedRoutes {
    fn upload(routes: &RoutesByExpert, device: &Device) -> Result<Self> {
        let vector = |values: &[u32]| Tensor::from_slice(values, values.len(), device);
        let starts: Vec<u32> = routes.starts.iter().map(|&start| start as u32).collect();
        let (rows, places) = (vector(&routes.rows)?, vector(&routes.places)?);
        Ok(Self { rows, starts: vector(&starts)?, places })
    }
}

impl DeviceExperts {
    fn new(all: &[Expert], first: &Tensor) -> Result<Self> {
        let Some(device) = devices::of(first) else { bail!("experts are on no device") };
        let weights = |of: fn(&Expert) -> &Weight| {
            let weights: Vec<&Tensor> =
                all.iter().map(|expert| of(expert).on_device()).collect::<Result<_>>()?;
            device.addresses(&weights)
        };
        let (hidden, intermediate) = first.dims2()?;
        if first.dtype() == DType::BF16 && !(hidden % 8 == 0 && intermediate % 8 == 0) {
            bail!(
                "on a device experts in BF16 have widths in multiples of 8, not {hidden} and {intermediate}"
            )
        }
        let (gate_up, down) = (weights(|e| &e.gate_up)?, weights(|e| &e.down)?);
        Ok(Self { gate_up, down, intermediate, dtype: first.dtype() })
    }
}

impl RoutesByExpert {
    /// Sorts routes `(row of the activations, expert id below `experts`)`, by counting.
    pub fn new(experts: usize, routes: impl Iterator<Item = (u32, u32)> + Clone) -> Self {
        let mut starts = vec![0usize; experts + 1];
        for (_, expert) in routes.clone() {
            starts[expert as usize + 1] += 1;
        }
        for expert in 0..experts {
            starts[expert + 1] += starts[expert];
        }
        let mut next = starts.clone();
        let mut rows = vec![0u32; starts[experts]];
        let place = |(row, expert): (u32, u32)| {
            let place = next[expert as usize];
            next[expert as usize] += 1;
            rows[place] = row;
            place as u32
        };
        let places = routes.map(place).collect();
        Self { rows, starts, places }
    }

    /// The sorted place of each route as it was given: its row of [`expert_outputs`].
    pub fn places(&self) -> &[u32] {
        &self.places
    }
}

/// The weighted sum of each token's experts: `[tokens, hidden]` → the same.
///
/// Routes that are on a device stay there.
pub fn routed_experts(x: &Tensor, experts: &Experts, routes: &Routes) -> Result<Tensor> {
    match routes {
        Routes::Host(routing) => {
            let per_token = routing.experts_per_token;
            let ids = routing.expert_ids.iter().enumerate();
            let routes = ids.map(|(route, &expert)| ((route / per_token) as u32, expert));
            let routes = RoutesByExpert::new(experts.all.len(), routes);
            combine(&expert_outputs(x, experts, &routes)?, routes.places(), routing)
        }
        Routes::Device { expert_ids, weights } => {
            let (Some(device), Some(own)) = (devices::of(x), &experts.on_device) else {
                bail!("routes, tokens and experts are on different devices")
            };
            let sorted = device.sort_routes(expert_ids, experts.all.len())?;
            let outputs = device.expert_outputs(x, own, &sorted)?;
            device.combine(&outputs, &sorted.places, weights)
        }
    }
}

/// What each route's expert makes of the route's row: `[rows, hidden]` → `[routes, hidden]`, sorted
/// by expert and not weighted.
///
/// Two rounds of products, each of all experts together and divided evenly over the threads.
pub fn expert_outputs(x: &Tensor, experts: &Experts, routes: &RoutesByExpert) -> Result<Tensor> {
    let (_, hidden) = x.dims2()?;
    if routes.rows.is_empty() {
        return from_host(Vec::new(), 0, hidden);
    }
    if let (Some(device), Some(own)) = (devices::of(x), &experts.on_device) {
        return device.expert_outputs(x, own, &SortedRoutes::upload(routes, x.device())?);
    }
    let packed = experts.iter().map(Expert::host).collect::<Result<Vec<_>>>()?;
    let width = packed[0].0.outputs();
    let x = host(x)?;
    let count = routes.rows.len();
    let (mut inner, mut outputs) = (Vec::new(), Vec::new());
    let groups = || packed.iter().zip(routes.starts.windows(2).map(|w| w[0]..w[1]));
    let target = Target::within(&mut inner, count, width);
    let gated = groups().map(|(&(gate_up, _), range)| Task {
        matrix: gate_up,
        rows: Rows::gathered(&x, hidden, &routes.rows[range.clone()]),
        count: range.len(),
        target: target.from(range.start),
    });
    // SAFETY: experts have different routes, each with a row of its own, of which a product writes every element.
    unsafe {
        run(&gated.collect::<Vec<_>>(), Finish::Gate);
        inner.set_len(count * width);
    }
    let target = Target::within(&mut outputs, count, hidden);
    let down = groups().map(|(&(_, down), range)| Task {
        matrix: down,
        rows: Rows::dense(&inner[range.start * width..], width),
        count: range.len(),
        target: target.from(range.start),
    });
    // SAFETY: as above.
    unsafe {
        run(&down.collect::<Vec<_>>(), Finish::Store);
        outputs.set_len(count * hidden);
    }
    from_host(outputs, count, hidden)
}

/// The weighted sum of each token's routes: `[routes, hidden]` → `[tokens, hidden]`.
///
/// Route r of the routing lies in row `places[r]` of `outputs`. A token's routes are summed in the
/// routing's order, whatever else is in the step and wherever they were computed.
pub fn combine(outputs: &Tensor, places: &[u32], routing: &Routing) -> Result<Tensor> {
    let (_, hidden) = outputs.dims2()?;
    if places.is_empty() {
        return from_host(Vec::new(), 0, hidden);
    }
    let per_token = routing.experts_per_token;
    let tokens = routing.weights.len() / per_token;
    if let Some(device) = devices::of(outputs) {
        let places = Tensor::from_slice(places, places.len(), outputs.device())?;
        let shape = (tokens, per_token);
        let weights = Tensor::from_slice(&routing.weights, shape, outputs.device())?;
        return device.combine(outputs, &places, &weights);
    }
    let values = host(outputs)?;
    let outputs: &[f32] = &values;
    let mut out = vec![0.0f32; tokens * hidden];
    let routes = places.par_chunks(per_token).zip(routing.weights.par_chunks(per_token));
    out.par_chunks_mut(hidden).zip(routes).with_min_len(4).for_each(|(sum, (places, weights))| {
        for (&place, &weight) in places.iter().zip(weights) {
            let output = &outputs[place as usize * hidden..(place as usize + 1) * hidden];
            // SAFETY: both have `hidden` elements.
            unsafe { add_weighted(Isa::best(), sum.as_mut_ptr(), output.as_ptr(), weight, hidden) }
        }
    });
    from_host(out, tokens, hidden)
}

/// Adds `weight` times a row of `width` elements to a sum.
#[inline(always)]
unsafe fn add_weighted_on<L: Lanes>(sum: *mut f32, row: *const f32, weight: f32, width: usize) {
    let whole = width / 16 * 16;
    // SAFETY: both have `width` elements; the remainder is read and written one by one.
    unsafe {
        for i in (0..whole).step_by(16) {
            L::load(row.add(i)).mul_add(L::splat(weight), L::load(sum.add(i))).store(sum.add(i));
        }
        for i in whole..width {
            *sum.add(i) = (*row.add(i)).mul_add(weight, *sum.add(i));
        }
    }
}

per_isa! { fn add_weighted = add_weighted_on(sum: *mut f32, row: *const f32, weight: f32, width: usize) }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Held;

    fn expert(seed: usize, hidden: usize, width: usize) -> Expert {
        let value = move |s: usize| {
            move |o: usize, row: &mut [f32]| {
                for (i, x) in row.iter_mut().enumerate() {
                    *x = ((o * 31 + i * 17 + s * 7 + seed * 13) % 23) as f32 / 23.0 - 0.5;
                }
            }
        };
        let (cpu, gated) = (Device::Cpu, [width, hidden]);
        Expert {
            gate_up: Weight::gated(&cpu, gated, Held::F32, value(1), value(2)).unwrap(),
            down: Weight::new(&cpu, [hidden, width], Held::F32, value(3)).unwrap(),
        }
    }

    #[test]
    fn a_token_has_the_same_bits_alone_and_among_others() {
        let (hidden, width) = (24, 40);
        let experts = (0..6).map(|e| expert(e, hidden, width)).collect();
        let experts = Experts::new(experts).unwrap();
        let tokens = 300;
        let x: Vec<f32> = (0..tokens * hidden).map(|i| (i as f32 * 0.37).sin()).collect();
        let routing = Routing {
            experts_per_token: 2,
            expert_ids: (0..tokens).flat_map(|t| [(t % 3) as u32, (3 + t % 2) as u32]).collect(),
            weights: (0..tokens * 2).map(|i| 0.1 + (i % 5) as f32).collect(),
        };
        let rows = from_host(x.clone(), tokens, hidden).unwrap();
        let all = routed_experts(&rows, &experts, &Routes::Host(routing.clone())).unwrap();
        let all = all.to_vec2::<f32>().unwrap();
        for t in [0, 1, 150, 299] {
            let one = Routing {
                experts_per_token: 2,
                expert_ids: routing.expert_ids[2 * t..2 * t + 2].to_vec(),
                weights: routing.weights[2 * t..2 * t + 2].to_vec(),
            };
            let row = from_host(x[t * hidden..(t + 1) * hidden].to_vec(), 1, hidden).unwrap();
            let alone = routed_experts(&row, &experts, &Routes::Host(one)).unwrap();
            assert_eq!(alone.to_vec2::<f32>().unwrap()[0], all[t]);
        }
    }
}
