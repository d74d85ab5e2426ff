//! The last records of a CPU, for crash reports.
//!
//! Called by `crash` on the crashing CPU, or for one that was told to stop. Takes no lock and allocates nothing.

use vcpu_sched::events::{Event, Kind, RECORD_BYTES, Record};

use crate::cpu::Cpu;
use crate::log;
use crate::time;

/// How many records a report shows.
const LAST: u64 = 16;

/// Prints a CPU's last records, oldest first; nothing if it isn't traced.
pub fn print_last(cpu: &Cpu) {
    let Some(ring) = cpu.trace.ring() else { return };
    let head = ring.head();
    let count = LAST.min(head).min(ring.capacity());
    log::emergency(format_args!("  last {count} of {head} trace records of CPU {}:", cpu.id.0));
    for number in head - count..head {
        let mut bytes = [0; RECORD_BYTES];
        for (out, word) in bytes.chunks_exact_mut(8).zip(ring.get(number)) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        line(&Record::from_bytes(&bytes));
    }
}

fn line(r: &Record) {
    let at = time::around(r.tsc).0;
    let (seconds, micros) = (at / 1_000_000_000, at / 1000 % 1_000_000);
    let task = r.task;
    match (Event::decode(r), Kind::from_u8(r.kind)) {
        (Some(Event::Queued { new, waker, target, queued, kicked, .. }), _) => log::emergency(format_args!(
            "  {seconds:>5}.{micros:06} {} task {task} by {} on CPU {}, {queued} queued{}",
            if new { "new" } else { "wake" },
            waker.0,
            target.0,
            if kicked { ", kicked" } else { "" },
        )),
        (Some(Event::Switch { prev_state, preempted, next, queued, .. }), _) => log::emergency(format_args!(
            "  {seconds:>5}.{micros:06} switch task {task} (state {prev_state}{}) to {}, {queued} queued",
            if preempted { ", preempted" } else { "" },
            next.task.0,
        )),
        (Some(Event::Migrate { from, to, why, .. }), _) => log::emergency(format_args!(
            "  {seconds:>5}.{micros:06} migrate task {task} from CPU {} to {}, reason {why}",
            from.0, to.0
        )),
        (Some(Event::Name(name)), _) => log::emergency(format_args!(
            "  {seconds:>5}.{micros:06} name task {task} \"{}\"",
            name.utf8_chunks().next().map_or("", |c| c.valid()).trim_end_matches('\0')
        )),
        (_, Some(kind)) => log::emergency(format_args!(
            "  {seconds:>5}.{micros:06} {kind:?} task {task} flags {:#x} {:#x} {:#x}",
            r.flags, r.a, r.b
        )),
        (_, None) => log::emergency(format_args!("  {seconds:>5}.{micros:06} unknown kind {}", r.kind)),
    }
}
