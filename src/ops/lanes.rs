//! Sixteen `f32` lanes on any processor, with the same bits on each.
//!
//! All instruction sets compute with fused multiply-add and reduce in one fixed tree, so a completion does
//! not depend on which of them ran.

/// Sixteen `f32` values that are computed on together.
///
/// # Safety
/// The methods of an implementation may be called only where its instruction set is available;
/// pointers must be valid for sixteen elements.
pub(crate) trait Lanes: Copy {
    /// Rows of activations in one tile of a matrix product: as many as registers hold.
    const TILE_ROWS: usize;
    /// Lane groups of a weight panel that one pass of a product takes: 1 or 2.
    const PANEL_GROUPS: usize;
    /// Lane groups of a value row that one pass of the attention takes.
    const VALUE_GROUPS: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(source: *const f32) -> Self;
    unsafe fn store(self, target: *mut f32);
    /// The BF16 values in the low halves of sixteen words.
    unsafe fn load_low_halves(source: *const u32) -> Self;
    /// The BF16 values in the high halves of sixteen words.
    unsafe fn load_high_halves(source: *const u32) -> Self;
    /// `self * factor + addend`, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// To the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// 2 to the power of each lane; lanes are integers from -126 to 127.
    unsafe fn power_of_two(self) -> Self;

    /// The sum of all lanes: lane i with i + 8, then i + 4, i + 2, i + 1.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the array has sixteen elements.
        unsafe { self.store(lanes.as_mut_ptr()) };
        tree(lanes, |a, b| a + b)
    }

    /// The largest lane.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the array has sixteen elements.
        unsafe { self.store(lanes.as_mut_ptr()) };
        tree(lanes, f32::max)
    }

    /// Sixteen sums at once: lane i of the result is `sums[i].sum()`.
    #[inline(always)]
    unsafe fn sum_each(sums: [Self; 16]) -> Self {
        let mut out = [0.0f32; 16];
        for (out, lanes) in out.iter_mut().zip(sums) {
            // SAFETY: as the caller promises.
            *out = unsafe { lanes.sum() };
        }
        // SAFETY: the array has sixteen elements.
        unsafe { Self::load(out.as_ptr()) }
    }

    /// e to the power of each lane, within 2 ulp; lanes below -87 give about 1e-38.
    ///
    /// Splits x into n ln 2 + r with |r| <= ln 2 / 2 and sums the Taylor series of r to degree 7.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        const LN_2_HIGH: f32 = 0.693_359_4;
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        const SERIES: [f32; 6] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
        // SAFETY: as the caller promises.
        unsafe {
            let x = self.max(Self::splat(-87.0)).min(Self::splat(88.0));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            let r = n.mul_add(Self::splat(-LN_2_HIGH), x);
            let r = n.mul_add(Self::splat(-LN_2_LOW), r);
            let mut sum = Self::splat(1.0 / 5040.0);
            for term in SERIES {
                sum = sum.mul_add(r, Self::splat(term));
            }
            sum = sum.mul_add(r, Self::splat(1.0));
            sum.mul(n.power_of_two())
        }
    }

    /// `x / (1 + e^-x)`, the activation of every feed-forward layer.
    #[inline(always)]
    unsafe fn silu(self) -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            let negative = Self::splat(0.0).sub(self);
            self.div(Self::splat(1.0).add(negative.exp()))
        }
    }
}

/// Reduces sixteen lanes in the order that every instruction set shares.
#[inline(always)]
pub(crate) fn tree(mut lanes: [f32; 16], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = 8;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}
