//! No frame is left: the process with the most pages ends, so that the others and the kernel go on.

use core::sync::atomic::{AtomicU32, Ordering};

use super::signal::{self, SIGKILL};
use super::table;

/// The process that was chosen last; until it has let go of its memory nobody else is chosen.
static VICTIM: AtomicU32 = AtomicU32::new(0);

/// Ends the largest process. Returns whether waiting may help. In task context, with no lock held.
pub fn make_room() -> bool {
    let last = VICTIM.load(Ordering::Acquire);
    if last != 0 && table::find(last).is_some_and(|p| p.space().is_some()) {
        return true;
    }
    let mut largest = None;
    table::for_each(|p| {
        let Some(space) = p.space().filter(|_| !p.is_exiting()) else { return };
        let pages = space.resident.load(Ordering::Relaxed);
        if largest.as_ref().is_none_or(|(most, _)| pages > *most) {
            largest = Some((pages, p.clone()));
        }
    });
    let Some((pages, process)) = largest else { return false };
    if VICTIM.compare_exchange(last, process.pid, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return true; // another CPU has just chosen
    }
    crate::warn!(
        "out of memory: {} (process {}, {} MiB) is the largest and ends",
        process.name(),
        process.pid,
        pages >> 8
    );
    signal::start_group_exit(&process, SIGKILL);
    true
}
