//! The fused operations that the model is made of, one file each.
//!
//! All activations are `[tokens, width]` f32 tensors of one flat step. On the CPU every operation is
//! *batch-invariant*: the arithmetic behind one token's output has one order, whatever other tokens
//! are in the step and however work is divided over threads. Operations know shapes and numbers,
//! not layers or sequences. Tensors without elements stay on the host. Where activations lie on a device, its [`accelerator`] computes instead.

mod accelerator;
mod attention;
#[cfg(feature = "cuda")]
mod cuda;
mod experts;
mod frame;
mod host;
mod lanes;
mod latent;
mod matmul;
mod mixture;
#[cfg(target_arch = "aarch64")]
mod neon;
mod norm;
mod online_softmax;
mod portable;
mod rope;
mod router;
mod routes;
mod softmax;
mod weight;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use accelerator::{DeviceError, DeviceKind, free_bytes};
pub use attention::{Form, HeadWeights, Heads, KeyValueWeights, Span, attend};
pub use experts::{Expert, RoutesByExpert, combine, expert_outputs, routed_experts};
pub use frame::Frame;
pub(crate) use host::from_host as rows_tensor;
pub use lanes::Isa;
pub use latent::{BLOCK_TOKENS, LatentPool};
pub use matmul::{Held, Matrix};
pub use mixture::Experts;
pub use norm::{add_bias, rms_norm};
pub use rope::{Rotation, rotate_queries, store_latents};
pub use router::{Choice, Routing, route};
pub use routes::Routes;
pub use softmax::exponentials;
pub use weight::{FeedForwardWeights, Weight};
