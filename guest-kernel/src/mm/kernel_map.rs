//! The kernel half, made once at boot: the image W^X, the direct map of all RAM, the user-accessible identity map that only
//! the ring-3 engine's root contains.
//!
//! Boot CPU only, before the others start; afterwards the kernel half of every table is a copy of these top-level entries
//! and never changes.

use core::sync::atomic::{AtomicU64, Ordering};

use super::PhysAddr;
use super::frame::{self, OutOfMemory};
use super::layout::{DIRECT_MAP_SIZE, DIRECT_SLOT, KERNEL_BASE, KERNEL_SLOT, PAGE_SIZE};
use super::page_table::{Entry, Flags, Table, index};
use crate::arch::features::{Features, has};
use crate::arch::instr;

unsafe extern "C" {
    static boot_pml4: u8;
    static __kernel_end: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
}

/// First address behind RAM, rounded up to a GiB.
static RAM_END: AtomicU64 = AtomicU64::new(0);

const GIB: u64 = 1 << 30;
const MIB2: u64 = 2 << 20;

fn image(symbol: *const u8) -> PhysAddr {
    PhysAddr::from_image(symbol as u64)
}

/// Physical range of the kernel image, boot segment included.
pub fn image_range() -> (PhysAddr, PhysAddr) {
    (PhysAddr(1 << 20), image(&raw const __kernel_end))
}

/// The boot page table's frame.
pub fn boot_root() -> PhysAddr {
    image(&raw const boot_pml4)
}

fn boot_top() -> &'static Table {
    // SAFETY: static boot table.
    unsafe { Table::at(boot_root()) }
}

/// Maps RAM above the static 4 GiB.
///
/// # Errors
/// [`OutOfMemory`] when no frame is left for tables.
pub fn extend_direct_map(ram_end: u64) -> Result<(), OutOfMemory> {
    let ram_end = ram_end.next_multiple_of(GIB).min(DIRECT_MAP_SIZE);
    RAM_END.store(ram_end, Ordering::Relaxed);
    let mut at = 4 * GIB;
    while at < ram_end {
        let slot = DIRECT_SLOT + index(at, 4);
        if !boot_top().get(slot).is_present() {
            boot_top().set(slot, Entry::new(frame::alloc_zeroed()?, Flags::PRESENT | Flags::WRITE));
        }
        // SAFETY: present top-level entries of the direct map point to tables.
        let pdpt = unsafe { Table::at(boot_top().get(slot).frame()) };
        pdpt.set(index(at, 3), gib_entry(at, Flags::NO_EXECUTE)?);
        at += GIB;
    }
    Ok(())
}

/// A directory entry for one GiB starting at `at`: a large page where the CPU has them, else a table of 2 MiB pages.
fn gib_entry(at: u64, extra: Flags) -> Result<Entry, OutOfMemory> {
    let flags = Flags::PRESENT | Flags::WRITE | extra;
    if has(Features::GIB_PAGES) {
        return Ok(Entry::new(PhysAddr(at), flags | Flags::LARGE));
    }
    let pd = frame::alloc_zeroed()?;
    // SAFETY: a fresh zero frame is an empty table.
    let table = unsafe { Table::at(pd) };
    for i in 0..512u64 {
        table.set(i as usize, Entry::new(PhysAddr(at + i * MIB2), flags | Flags::LARGE));
    }
    Ok(Entry::new(pd, flags - Flags::NO_EXECUTE))
}

/// Gives the image its final rights: text read and execute, read-only data read, the rest read and write, nothing else of the
/// -2 GiB window mapped. Also takes the low identity map away from the boot table's successors.
///
/// # Errors
/// [`OutOfMemory`].
pub fn protect_image() -> Result<(), OutOfMemory> {
    let (_, end) = image_range();
    let (text, text_end) = (image(&raw const __text_start).0, image(&raw const __text_end).0);
    let (ro, ro_end) = (image(&raw const __rodata_start).0, image(&raw const __rodata_end).0);
    let pd_frame = frame::alloc_zeroed()?;
    // SAFETY: fresh zero frame.
    let pd = unsafe { Table::at(pd_frame) };
    let mut at = text.min(ro);
    while at < end.0 {
        let i = index(at, 2);
        if !pd.get(i).is_present() {
            pd.set(i, Entry::new(frame::alloc_zeroed()?, Flags::PRESENT | Flags::WRITE));
        }
        // SAFETY: just made.
        let pt = unsafe { Table::at(pd.get(i).frame()) };
        let rights = if (text..text_end).contains(&at) {
            Flags::PRESENT
        } else if (ro..ro_end).contains(&at) {
            Flags::PRESENT | Flags::NO_EXECUTE
        } else {
            Flags::PRESENT | Flags::WRITE | Flags::NO_EXECUTE
        };
        pt.set(index(at, 1), Entry::new(PhysAddr(at), rights));
        at += PAGE_SIZE;
    }
    // SAFETY: static boot tables; the new directory maps every page of the image, this code and its stack included.
    unsafe {
        let pdpt = Table::at(boot_top().get(KERNEL_SLOT).frame());
        pdpt.set(index(KERNEL_BASE, 3), Entry::new(pd_frame, Flags::PRESENT | Flags::WRITE));
        instr::write_cr3(instr::read_cr3());
    }
    Ok(())
}

/// Copies the shared kernel half into a new top-level table.
pub fn install_kernel_half(top: &Table) {
    let ram_slots = ((RAM_END.load(Ordering::Relaxed).max(1) - 1) >> 39) as usize + 1;
    for slot in (DIRECT_SLOT..DIRECT_SLOT + ram_slots).chain([KERNEL_SLOT]) {
        top.set(slot, boot_top().get(slot));
    }
}

/// Maps all RAM at its physical address for ring 3 into a root that runs nothing but the ring-3 engine.
///
/// # Errors
/// [`OutOfMemory`].
pub fn install_identity_for_ring3(top: &Table) -> Result<(), OutOfMemory> {
    static SHARED_PDPT: AtomicU64 = AtomicU64::new(0);
    // Relaxed: CPUs are brought up one after the other.
    let mut pdpt_frame = SHARED_PDPT.load(Ordering::Relaxed);
    if pdpt_frame == 0 {
        pdpt_frame = frame::alloc_zeroed()?.0;
        // SAFETY: fresh zero frame.
        let pdpt = unsafe { Table::at(PhysAddr(pdpt_frame)) };
        let end = RAM_END.load(Ordering::Relaxed).clamp(4 * GIB, 512 * GIB);
        for i in 0..end / GIB {
            pdpt.set(i as usize, gib_entry(i * GIB, Flags::USER)?);
        }
        SHARED_PDPT.store(pdpt_frame, Ordering::Relaxed);
    }
    top.set(0, Entry::new(PhysAddr(pdpt_frame), Flags::PRESENT | Flags::WRITE | Flags::USER));
    Ok(())
}

/// Whether an address lies in the kernel's text; for backtraces.
pub fn is_text(addr: u64) -> bool {
    (&raw const __text_start as u64..&raw const __text_end as u64).contains(&addr)
}
