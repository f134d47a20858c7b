//! Stages 6 and 7: the loop around the engine, on the thread that called the run.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::commit::Arrival;
use super::progress::Progress;
use super::stop::Stop;
use crate::engine::{Engine, EngineError};
use crate::row::Work;

/// How often an idle engine looks whether it shall stop.
const IDLE: Duration = Duration::from_millis(50);
/// Steps between two looks at all that waits.
const FORESEE_EVERY: u64 = 32;

/// Generates until no prompt can come any more, or until it shall stop; tells what is in flight every
/// `journal_every`, and when it stops.
pub(super) fn generate(
    engine: &mut Engine,
    work: &Receiver<Vec<Work>>,
    arrivals: &Sender<Arrival>,
    journal_every: Option<Duration>,
    (progress, stop): (&Progress, &Stop),
) -> Result<(), EngineError> {
    let submit = |engine: &mut Engine, work: Vec<Work>| {
        let now = Instant::now();
        work.into_iter().for_each(|work| engine.submit(work, now));
    };
    let mut journalled = Instant::now();
    while !stop.requested() {
        if engine.is_idle() {
            match work.recv_timeout(IDLE) {
                Ok(more) => submit(engine, more),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
        work.try_iter().for_each(|more| submit(engine, more));
        for generation in engine.step()? {
            if arrivals.send(Arrival::Generated(generation)).is_err() {
                return Ok(());
            }
        }
        let stats = engine.stats();
        progress.prompt_tokens.store(stats.prefilled_tokens, Relaxed);
        progress.completion_tokens.store(stats.generated_tokens, Relaxed);
        progress.running.store(engine.running() as u64, Relaxed);
        if stats.steps.is_multiple_of(FORESEE_EVERY) {
            progress.expected_tokens_left.store(engine.expected_tokens_left(), Relaxed);
        }
        if journal_every.is_some_and(|every| journalled.elapsed() >= every) {
            journalled = Instant::now();
            // A closed channel is noticed by the next sample.
            let _ = arrivals.send(Arrival::InFlight(engine.in_flight()));
        }
    }
    if journal_every.is_some() {
        let _ = arrivals.send(Arrival::InFlight(engine.in_flight()));
    }
    Ok(())
}
