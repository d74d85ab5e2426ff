//! The enclave's memory: given by the VMM (`enclave_at`) or allocated at boot, listed in the directory, never given back.

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
use crate::mm::PhysAddr;
use crate::mm::frame::{self, OutOfMemory};
use crate::mm::layout::PAGE_SIZE;
use crate::time;

/// Looks of an idle CPU before it halts, some 20 us where ring 0 runs at full speed: what a halt and an interrupt cost is less than that.
const SPIN_TURNS: u32 = 500;
/// The same where ring 0 is interpreted, some 100 us: an interrupt costs more there.
const SPIN_SLOW: u32 = 20;

/// No RAM lies here (docs/abi.md, "Boot").
const HOLE: u64 = 0xc000_0000;
/// The hole ends, and so does what is mapped from the beginning.
const HOLE_END: u64 = 1 << 32;

/// Why there is no enclave.
enum Failed {
    Layout(LayoutError),
    Memory,
    /// `enclave_at` is no place for one.
    Place(&'static str),
}

/// Makes an enclave of all CPUs, if one is wanted: `enclave=1`, `enclave_at`, `enclave_timeout_ms`, `delegate=all`. Boot CPU, when all
/// CPUs are up and before the directory is published.
pub fn init() {
    if !cmdline::flag("enclave") {
        return;
    }
    match make() {
        Ok(()) => {}
        Err(Failed::Layout(e)) => crate::error!("no enclave: {e}"),
        Err(Failed::Place(text)) => crate::error!("no enclave: enclave_at={text} is no address of memory below 4 GiB"),
        Err(Failed::Memory) => crate::error!("no memory for an enclave: all tasks are ordinary ones"),
    }
}

fn make() -> Result<(), Failed> {
    let layout = Layout::new(Sizes::of_kernel(cpu::count())).map_err(Failed::Layout)?;
    let bytes = layout.words() as u64 * 8;
    let base = match cmdline::get("enclave_at") {
        Some(text) => given(text, bytes).ok_or(Failed::Place(text))?,
        None => {
            let order = bytes.div_ceil(PAGE_SIZE).next_power_of_two().trailing_zeros() as usize;
            frame::alloc_block(order, true).map_err(|OutOfMemory| Failed::Memory)?
        }
    };
    // SAFETY: zeroed memory, so long and so aligned, that nobody else gets: allocated and never given back, or the VMM's gift, which is no
    // RAM of its memory map; the direct map has it. From here on it is only used as atomics, by us and by whoever else maps it.
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

/// What the VMM gives for the enclave: the beginning of memory that holds nothing else, so that it can be handed to an agent's process.
/// Below 4 GiB, all of which the direct map has from the beginning, and outside of RAM.
fn given(text: &str, bytes: u64) -> Option<PhysAddr> {
    let base = u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()?;
    let fits = base % PAGE_SIZE == 0 && base >= HOLE && base.checked_add(bytes)? <= HOLE_END;
    fits.then_some(PhysAddr(base))
}
