//! The enclave's memory: allocated at boot, listed in the directory, never given back.

use core::sync::atomic::{AtomicU64, Ordering};

use vcpu_sched::delegation::enclave::{Config, Enclave};
use vcpu_sched::delegation::layout::{Layout, LayoutError, Region, Sizes};
use vcpu_sched::delegation::txn::Rest;
use vcpu_sched::directory::{Entry, EntryKind};
use vcpu_sched::ids::Nanos;

use super::super::online_mask;
use super::{ALL, SPIN, hosted};
use crate::arch::features::{Features, has};
use crate::boot::cmdline;
use crate::cpu;
use crate::directory;
use crate::mm::frame::{self, OutOfMemory};
use crate::mm::layout::PAGE_SIZE;
use crate::time;

/// Tasks that can be in it at a time; those beyond run as ordinary ones.
const TASKS: u32 = 2048;
/// The default channel, and one that tasks can be moved to.
const CHANNELS: u32 = 2;
/// Messages of each: what may happen while the host runs something else in the agent's place.
const CHANNEL_LEN: u32 = 1024;
/// Tasks that can be left ready for a CPU.
const PICK_LEN: u32 = 16;

/// Looks of an idle CPU before it halts, some 20 us where ring 0 runs at full speed: what a halt and an interrupt cost is less than that.
const SPIN_TURNS: u32 = 500;
/// The same where ring 0 is interpreted, some 100 us: an interrupt costs more there.
const SPIN_SLOW: u32 = 20;

/// Why there is no enclave.
enum Failed {
    Layout(LayoutError),
    Memory,
}

/// Makes an enclave of all CPUs, if one is wanted: `enclave=1`, `enclave_timeout_ms`, `delegate=all`. Boot CPU, when all CPUs are
/// up and before the directory is published.
pub fn init() {
    if !cmdline::flag("enclave") {
        return;
    }
    match make() {
        Ok(()) => {}
        Err(Failed::Layout(e)) => crate::error!("no enclave: {e}"),
        Err(Failed::Memory) => crate::error!("no memory for an enclave: all tasks are ordinary ones"),
    }
}

fn make() -> Result<(), Failed> {
    let sizes =
        Sizes { cpus: cpu::count(), tasks: TASKS, channels: CHANNELS, channel_len: CHANNEL_LEN, pick_len: PICK_LEN };
    let layout = Layout::new(sizes).map_err(Failed::Layout)?;
    let bytes = layout.words() as u64 * 8;
    let order = bytes.div_ceil(PAGE_SIZE).next_power_of_two().trailing_zeros() as usize;
    let base = frame::alloc_block(order, true).map_err(|OutOfMemory| Failed::Memory)?;
    // SAFETY: zeroed memory of ours, so long and so aligned, that is never given back; from here on it is only used as atomics, by
    // us and by whoever else maps it.
    let words: &'static [AtomicU64] = unsafe { core::slice::from_raw_parts(base.as_ptr(), layout.words()) };
    let region = Region::new(words, layout).map_err(Failed::Layout)?;
    let mut config = Config::new(0, online_mask());
    if let Some(ms) = cmdline::get("enclave_timeout_ms").and_then(|text| text.parse().ok()) {
        config.runnable_timeout = Nanos::from_millis(ms);
    }
    let mut enclave = Enclave::new(region, config);
    for cpu in cpu::all() {
        enclave.set_online(cpu.id, true, time::now());
        // Until it says otherwise: it may halt already, and an interrupt too many costs little. There is no transaction yet.
        let _ = enclave.rest(cpu.id, Rest::Halts);
    }
    hosted::set(enclave);
    let turns = cmdline::get("enclave_spin").and_then(|text| text.parse().ok());
    SPIN.store(turns.unwrap_or(if has(Features::SLOW_RING0) { SPIN_SLOW } else { SPIN_TURNS }), Ordering::Relaxed);
    ALL.store(cmdline::get("delegate") == Some("all"), Ordering::Relaxed);
    directory::add(Entry { kind: EntryKind::Enclave as u32, index: 0, address: base.0, len: bytes, extra: 0 });
    Ok(())
}
