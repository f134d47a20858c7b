//! How a model's numbers are held and multiplied.

/// How weights are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// 32 bits each.
    F32,
    /// 16 bits each, rounded to nearest even where the source has more.
    Bf16,
    /// 8 bits each, with a scale for each output and 128 inputs; activations are quantised alike.
    Int8,
}

/// What products with BF16 weights compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// F32 activations: exact products, rounded sums.
    #[default]
    F32,
    /// Activations rounded to BF16, F32 sums: the processor's dot product.
    Bf16,
}

/// How the latent cache holds an element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheFormat {
    /// 32 bits: as it was computed.
    #[default]
    F32,
    /// 16 bits, rounded to nearest even: half the memory, other bits.
    Bf16,
}

impl CacheFormat {
    /// Bytes of an element.
    pub const fn element_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// All of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numerics {
    /// How weights are held.
    pub held: Held,
    /// What products with BF16 weights compute with.
    pub compute: Compute,
    /// How the latent cache holds what it keeps.
    pub cache: CacheFormat,
}

impl From<Held> for Numerics {
    fn from(held: Held) -> Self {
        Self { held, compute: Compute::default(), cache: CacheFormat::default() }
    }
}
