//! A step's allocations do not grow with its tokens: only with its layers, and with the threads that share it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use nightshift::model::{Model, Step};
use nightshift::ops::{BLOCK_TOKENS, CacheFormat, Compute, Form, Held, LatentPool, Numerics, Span};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system's own allocator; only a count is added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise; so below.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Positions that each sequence has in the cache.
const CONTEXT: usize = 20;

/// One generated token of each of so many sequences.
fn decode(sequences: usize) -> Step {
    let blocks_each = CONTEXT.div_ceil(BLOCK_TOKENS);
    let blocks = |sequence: usize| {
        (sequence * blocks_each..(sequence + 1) * blocks_each).map(|block| block as u32).collect()
    };
    let slot = |sequence: usize| (sequence * blocks_each * BLOCK_TOKENS + CONTEXT - 1) as u32;
    let span = |sequence: usize| Span {
        first_row: sequence,
        count: 1,
        first_position: CONTEXT - 1,
        form: Form::Generated,
        blocks: blocks(sequence),
    };
    Step {
        tokens: (0..sequences).map(|sequence| 5 + sequence as u32 % 90).collect(),
        positions: vec![CONTEXT as u32 - 1; sequences],
        slots: (0..sequences).map(slot).collect(),
        spans: (0..sequences).map(span).collect(),
        outputs: (0..sequences as u32).collect(),
    }
}

/// Of one step, after some that leave every buffer as large as it has to be.
fn allocations(model: &Model, pool: &mut LatentPool, sequences: usize) -> usize {
    let step = decode(sequences);
    let mut forward = || drop(model.forward(&step, pool).expect("the step can be computed"));
    (0..20).for_each(|_| forward());
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    forward();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn a_token_of_a_step_costs_no_allocation() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/a_v2like");
    let exact = Numerics { held: Held::Bf16, compute: Compute::F32, cache: CacheFormat::F32 };
    for numerics in [
        exact,
        Numerics { held: Held::Int8, ..exact },
        Numerics { cache: CacheFormat::Bf16, ..exact },
    ] {
        let model = Model::load(&folder, numerics, &|_, _| {}).unwrap();
        let mut pool = model.cache(256 * CONTEXT.div_ceil(BLOCK_TOKENS)).unwrap();
        let (few, many) = (allocations(&model, &mut pool, 16), allocations(&model, &mut pool, 256));
        // Lists double while they grow, and more work is cut into more pieces; one allocation of each token
        // anywhere in the model would be 240 more.
        assert!(many < few + 240, "{numerics:?}: {few} for 16 tokens, {many} for 256");
    }
}
