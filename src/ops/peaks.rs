//! What this machine can do at most: fused multiply-adds out of registers, and reading memory.
//!
//! Both are measured with the instruction set that the operations use, on all threads at once: the two
//! sides of the roofline that a step is held against.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

use super::host::Shared;
use super::isa::{Isa, per_isa};
use super::lanes::Lanes;

/// Rounds of each measurement, whose median counts.
const ROUNDS: usize = 7;
/// Shortest time of a round.
const ROUND: Duration = Duration::from_millis(60);
/// Bytes that all threads read together, beyond what caches hold.
const READ_BYTES: usize = 512 << 20;
/// Least bytes for each thread.
const THREAD_READ_BYTES: usize = 32 << 20;
/// Values that one pass of the reading loop takes.
const READ_STEP: usize = 8 * 16;

/// A machine's limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// f32 operations a second, a fused multiply-add counted as two.
    pub flops: f64,
    /// Bytes read from memory a second.
    pub read_bytes: f64,
}

impl Peaks {
    /// Measures both limits with so many threads; takes about a second and half a gigabyte.
    pub fn measure(threads: usize) -> std::io::Result<Self> {
        Ok(Self { flops: flops(threads), read_bytes: read_bytes(threads)? })
    }
}

fn flops(threads: usize) -> f64 {
    // SAFETY: the kernel touches registers only.
    let chains = |rounds: usize| unsafe { multiply_add(Isa::best(), rounds) };
    let mut rounds = 1 << 14;
    while timed(|| chains(rounds)).0 < ROUND {
        rounds *= 2;
    }
    let work = (2 * 16 * CHAINS * rounds * threads) as f64;
    work / median_seconds(threads, |_| (), |()| chains(rounds))
}

fn read_bytes(threads: usize) -> std::io::Result<f64> {
    let bytes = (READ_BYTES / threads).max(THREAD_READ_BYTES);
    let values = bytes / size_of::<f32>() / READ_STEP * READ_STEP;
    let mut map = MmapMut::map_anon(values * size_of::<f32>() * threads)?;
    #[cfg(target_os = "linux")]
    // Without huge pages the page tables would be measured too; a kernel that has none is measured so.
    let _ = map.advise(memmap2::Advice::HugePage);
    let memory = Shared::new(&mut map[..]);
    // Each thread writes what it will read, so that it lies near the thread.
    let prepare = |thread: usize| {
        // SAFETY: each thread has its own part of the map, which begins on a page.
        unsafe {
            let own = memory.at(thread * values * size_of::<f32>()).cast::<f32>();
            own.write_bytes(1, values);
            own
        }
    };
    let read = |own: *mut f32| {
        let mut sum = 0.0;
        // SAFETY: the thread's part has `values` elements, whole steps of them.
        unsafe { add_up(Isa::best(), own, values, &mut sum) };
        std::hint::black_box(sum);
    };
    let work = (values * size_of::<f32>() * threads) as f64;
    Ok(work / median_seconds(threads, prepare, read))
}

fn timed(work: impl Fn()) -> (Duration, Instant) {
    let begin = Instant::now();
    work();
    (begin.elapsed(), begin)
}

/// The median round's time, from the first thread's beginning to the last one's end. The threads live
/// through all rounds, so that each finds a processor of its own.
fn median_seconds<T: Copy>(
    threads: usize,
    prepare: impl Fn(usize) -> T + Sync,
    work: impl Fn(T) + Sync,
) -> f64 {
    let (prepare, work, barrier) = (&prepare, &work, &Barrier::new(threads));
    let run = |thread: usize| {
        move || {
            let own = prepare(thread);
            [(); ROUNDS].map(|()| {
                barrier.wait();
                timed(|| work(own))
            })
        }
    };
    let times: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(run(thread))).collect();
        running.into_iter().map(|thread| thread.join().expect("nothing here panics")).collect()
    });
    let mut rounds: [Duration; ROUNDS] = std::array::from_fn(|round| {
        let rounds = times.iter().map(|times| times[round]);
        let first = rounds.clone().map(|(_, begin)| begin).min();
        let last = rounds.map(|(time, begin)| begin + time).max();
        last.zip(first).map_or(ROUND, |(last, first)| last - first)
    });
    rounds.sort();
    rounds[ROUNDS / 2].as_secs_f64()
}

/// Chains of multiply-adds that one round goes through.
const CHAINS: usize = 12;

/// Independent chains, as many at a time as registers hold: enough to hide their latency.
#[inline(always)]
unsafe fn multiply_add_on<L: Lanes>(rounds: usize) {
    // SAFETY: the caller has the instruction set.
    unsafe {
        match L::TILE_ROWS {
            CHAINS => chains::<L, CHAINS>(rounds),
            6 => (0..CHAINS / 6).for_each(|_| chains::<L, 6>(rounds)),
            _ => (0..CHAINS / 4).for_each(|_| chains::<L, 4>(rounds)),
        }
    }
}

#[inline(always)]
unsafe fn chains<L: Lanes, const N: usize>(rounds: usize) {
    let factors = std::hint::black_box([1.0001f32, 0.9999]);
    let mut out = [[0.0f32; 16]; N];
    // SAFETY: the caller has the instruction set; each row of `out` has sixteen elements.
    unsafe {
        let (factor, addend) = (L::splat(factors[0]), L::splat(factors[1]));
        let mut sums: [L; N] = std::array::from_fn(|i| L::splat(i as f32));
        for _ in 0..rounds {
            // A loop and no `map`: its closure need not be compiled for the instruction set and into this loop.
            for sum in &mut sums {
                *sum = sum.mul_add(factor, addend);
            }
        }
        for (sum, out) in sums.into_iter().zip(&mut out) {
            sum.store(out.as_mut_ptr());
        }
    }
    std::hint::black_box(out);
}

per_isa! { fn multiply_add = multiply_add_on(rounds: usize) }

#[inline(always)]
unsafe fn add_up_on<L: Lanes>(values: *const f32, count: usize, total: &mut f32) {
    // SAFETY: the caller promises `count` elements, whole steps of them.
    unsafe {
        let mut sums = [L::splat(0.0); READ_STEP / 16];
        for first in (0..count).step_by(READ_STEP) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(L::load(values.add(first + 16 * i)));
            }
        }
        *total = sums.into_iter().map(|sum| sum.sum()).sum();
    }
}

per_isa! { fn add_up = add_up_on(values: *const f32, count: usize, total: &mut f32) }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_read_once() {
        let values: Vec<f32> = (0..3 * READ_STEP).map(|i| i as f32).collect();
        for isa in Isa::available() {
            let mut sum = 0.0;
            // SAFETY: three whole steps.
            unsafe { add_up(isa, values.as_ptr(), values.len(), &mut sum) };
            assert_eq!(sum, values.iter().sum::<f32>(), "{isa:?}");
        }
    }
}
