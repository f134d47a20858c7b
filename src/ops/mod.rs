//! The fused operations that the model is made of, one file each.
//!
//! All activations are `[tokens, width]` f32 tensors of one flat step. On the CPU every operation is
//! *batch-invariant*: the arithmetic behind one token's output has one order, whatever other tokens
//! are in the step and however work is divided over threads. Operations know shapes and numbers,
//! not layers or sequences. Where activations lie on a device, its accelerator computes instead; tensors
//! without elements stay on the host.

mod accelerator;
mod attention;
#[cfg(feature = "cuda")]
mod cuda;
mod devices;
mod experts;
mod host;
mod isa;
mod lanes;
mod largest;
mod latent;
mod matmul;
mod metadata;
#[cfg(target_arch = "aarch64")]
mod neon;
mod norm;
mod numerics;
mod online_softmax;
mod peaks;
mod portable;
mod residual;
mod rotation;
mod router;
mod routes;
mod shapes;
mod softmax;
mod store;
mod weight;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use attention::{HeadWeights, KeyValueWeights, attend};
pub use devices::{DeviceError, DeviceKind, free_bytes};
pub use experts::{Expert, Experts, RoutesByExpert, combine, expert_outputs, routed_experts};
pub(crate) use host::{from_host as rows_tensor, host as tensor_values};
pub use isa::Isa;
pub use largest::{Largest, largest};
pub use latent::{BLOCK_TOKENS, LatentPool};
pub use matmul::Matrix;
pub use metadata::AttentionMetadata;
pub use norm::{add_bias, add_rms_norm, rms_norm};
pub use numerics::{CacheFormat, Compute, Held, Numerics};
pub use peaks::Peaks;
pub use residual::add;
pub use rotation::Rotation;
pub use router::{Routing, route};
pub use routes::Routes;
pub use shapes::{Choice, Form, Heads, Span};
pub use softmax::exponentials;
pub use store::store_latents;
pub use weight::Weight;
pub(crate) use weight::{bytes as tensor_bytes, upload as device_rows};
