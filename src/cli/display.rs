//! A run as it is seen: bars on a terminal, a log line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::pipeline::progress::{Phase, Progress};

/// How often bars move.
const FRAME: Duration = Duration::from_millis(100);
/// How often a line is logged where there is no terminal.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Shows a run until it is told to end.
pub(super) struct Display<'scope> {
    ended: Arc<AtomicBool>,
    thread: Option<ScopedJoinHandle<'scope, ()>>,
}

impl<'scope> Display<'scope> {
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        progress: &'env Progress,
        quiet: bool,
    ) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let seen = ended.clone();
        let bars = std::io::stderr().is_terminal();
        let thread = (!quiet).then(|| {
            scope.spawn(
                move || if bars { show_bars(progress, &seen) } else { log_lines(progress, &seen) },
            )
        });
        Self { ended, thread }
    }

    pub(super) fn end(self) {
        self.ended.store(true, Relaxed);
        if let Some(thread) = self.thread {
            // A display that failed must not fail the run.
            let _ = thread.join();
        }
    }
}

/// Counters at one moment, with the time that generation took so far.
struct View {
    rows_done: u64,
    rows_total: u64,
    failed: u64,
    running: u64,
    prompt_rate: f64,
    completion_rate: f64,
    /// Tokens that are still to be prefilled or generated, as expected now.
    tokens_left: f64,
    eta: Option<Duration>,
}

impl View {
    fn of(progress: &Progress, generating: Duration) -> Self {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let seconds = generating.max(FRAME).as_secs_f64();
        let (prompt, completion) = (get(&progress.prompt_tokens), get(&progress.completion_tokens));
        let rate = (prompt + completion) as f64 / seconds;
        // Rows that were not read yet are taken to be like those that were.
        let read = get(&progress.rows_read).max(1) as f64;
        let rows = get(&progress.rows_total) - get(&progress.rows_before);
        let left = get(&progress.expected_tokens_left) as f64;
        let unread = (rows as f64 - read).max(0.0) * ((prompt + completion) as f64 + left) / read;
        Self {
            rows_done: get(&progress.rows_before) + get(&progress.rows_done),
            rows_total: get(&progress.rows_total),
            failed: get(&progress.rows_failed),
            running: get(&progress.running),
            prompt_rate: prompt as f64 / seconds,
            completion_rate: completion as f64 / seconds,
            tokens_left: left + unread,
            eta: (rate > 0.0).then(|| Duration::from_secs_f64(((left + unread) / rate).min(1e9))),
        }
    }

    fn tokens(&self) -> String {
        let left = |eta| {
            format!(
                ", about {:.0} tokens left: {}",
                self.tokens_left,
                indicatif::HumanDuration(eta)
            )
        };
        let eta = self.eta.map_or_else(String::new, left);
        let View { prompt_rate, completion_rate, running, .. } = self;
        format!(
            "{prompt_rate:.0} tokens/s in, {completion_rate:.0} tokens/s out, {running} running{eta}"
        )
    }
}

fn show_bars(progress: &Progress, ended: &AtomicBool) {
    let bars = MultiProgress::new();
    let style = |template: &str| {
        ProgressStyle::with_template(template).expect("the templates below are valid")
    };
    let loading = bars
        .add(ProgressBar::no_length().with_style(style("loading  {bar:32} {bytes}/{total_bytes}")));
    let rows =
        bars.add(ProgressBar::no_length().with_style(style("rows     {bar:32} {pos}/{len} {msg}")));
    let tokens = bars.add(ProgressBar::no_length().with_style(style("tokens   {msg}")));
    let mut begin = None;
    while !ended.load(Relaxed) {
        loading.set_length(progress.load_bytes_total.load(Relaxed));
        loading.set_position(progress.load_bytes.load(Relaxed));
        if progress.phase() == Phase::Generating {
            let view = View::of(progress, begin.get_or_insert_with(Instant::now).elapsed());
            rows.set_length(view.rows_total);
            rows.set_position(view.rows_done);
            if view.failed > 0 {
                rows.set_message(format!("({} failed)", view.failed));
            }
            tokens.set_message(view.tokens());
        }
        std::thread::sleep(FRAME);
    }
    let _ = bars.clear();
}

fn log_lines(progress: &Progress, ended: &AtomicBool) {
    let (mut begin, mut last) = (None, Instant::now());
    while !ended.load(Relaxed) {
        std::thread::sleep(FRAME);
        if progress.phase() == Phase::Generating {
            begin.get_or_insert_with(Instant::now);
        }
        if last.elapsed() < LOG_EVERY {
            continue;
        }
        last = Instant::now();
        match begin {
            Some(begin) => {
                let view = View::of(progress, begin.elapsed());
                tracing::info!(
                    "{} of {} rows, {} failed; {}",
                    view.rows_done,
                    view.rows_total,
                    view.failed,
                    view.tokens()
                );
            }
            None => tracing::info!(
                "{:?}: {} of {} bytes",
                progress.phase(),
                progress.load_bytes.load(Relaxed),
                progress.load_bytes_total.load(Relaxed)
            ),
        }
    }
}
