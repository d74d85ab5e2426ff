//! Runs on this machine, some at a time, with a bar of progress.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use indicatif::{ProgressBar, ProgressStyle};
use taskvisor_devices::bus::lock;

use super::plan::Plan;
use super::store::Store;
use super::{SweepError, one};

/// Carries out the runs of these numbers. The first error ends it; runs that have begun are finished.
pub fn carry_out(plan: &Plan, open: &[usize], store: &Store, jobs: u16) -> Result<(), SweepError> {
    // Drawn on a terminal only.
    let bar = ProgressBar::new(open.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} runs, {elapsed} gone, {eta} to go, {msg}") {
        bar.set_style(style);
    }
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    thread::scope(|scope| {
        for _ in 0..usize::from(jobs).min(open.len()) {
            scope.spawn(|| {
                // Relaxed: it hands out numbers, and nothing else depends on it.
                while let Some(run) = open.get(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| plan.runs.get(*n)) {
                    if lock(&failure).is_some() {
                        return;
                    }
                    match one::carry_out(run, store) {
                        Ok(outcome) => bar.set_message(format!("last exit code {}", outcome.code)),
                        Err(error) => *lock(&failure) = Some(error),
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let failed = lock(&failure).take();
    failed.map_or(Ok(()), Err)
}
