//! From PVH entry to the first task: what the boot CPU does, in order.
//!
//! Sources: Xen `public/arch-x86/hvm/start_info.h` (start info, module list, memory map).

pub mod acpi;
pub mod cmdline;
pub mod entry;

use alloc::vec::Vec;

use crate::mm::layout::PAGE_SIZE;
use crate::mm::{PhysAddr, frame, heap, kernel_map, page_down, page_up};

/// `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336e_c578;
/// Memory map type "usable RAM" (`XEN_HVM_MEMMAP_TYPE_RAM`, as in E820).
const TYPE_RAM: u32 = 1;
/// Memory map entries and modules that we look at; more are ignored with a warning.
const MAX_ENTRIES: usize = 64;

#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modlist_paddr: u64,
    cmdline_paddr: u64,
    rsdp_paddr: u64,
    memmap_paddr: u64,
    memmap_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Module {
    paddr: u64,
    size: u64,
    cmdline_paddr: u64,
    reserved: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MemoryRange {
    addr: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// What the loader handed over, copied out of its memory.
pub struct BootInfo {
    /// Archive with the programs, empty if there is none.
    pub archive: (PhysAddr, u64),
    /// ACPI root pointer, 0 if there is none.
    pub rsdp: u64,
}

/// Reads a value at a physical address. Only before the frame allocator owns that memory.
fn read<T: Copy>(at: u64) -> T {
    // SAFETY: below 4 GiB, where the boot direct map reaches; T is plain data here.
    unsafe { PhysAddr(at).as_ptr::<T>().read_unaligned() }
}

/// Copies the command line, finds RAM, and gives it to the frame allocator.
///
/// # Panics
/// If the loader's information is unusable: there is nothing to go on with.
pub fn init_memory(start_info: u64) -> BootInfo {
    let info: StartInfo = read(start_info);
    assert!(info.magic == START_MAGIC, "no PVH start info at {start_info:#x}: boot by PVH");
    cmdline::init(info.cmdline_paddr);
    assert!(info.version >= 1 && info.memmap_entries > 0, "PVH start info version 1 with a memory map is needed");

    let mut archive = (PhysAddr(0), 0);
    if info.nr_modules > 0 {
        let m: Module = read(info.modlist_paddr);
        archive = (PhysAddr(m.paddr), m.size);
    }
    let count = (info.memmap_entries as usize).min(MAX_ENTRIES);
    let mut map = [MemoryRange::default(); MAX_ENTRIES];
    for (i, slot) in map.iter_mut().enumerate().take(count) {
        *slot = read(info.memmap_paddr + (i * size_of::<MemoryRange>()) as u64);
    }
    let ram = || {
        map[..count]
            .iter()
            .filter(|r| r.kind == TYPE_RAM)
            .map(|r| (page_up(r.addr).unwrap_or(u64::MAX), page_down(r.addr + r.size)))
    };
    let ram_end = ram().map(|(_, end)| end).max().unwrap_or(0);

    // Nothing below 1 MiB, nothing of the image or the archive.
    let (image_start, image_end) = kernel_map::image_range();
    let low = (0, image_start.0);
    let image = (image_start.0, page_up(image_end.0).unwrap_or(u64::MAX));
    let module = (page_down(archive.0.0), page_up(archive.0.0 + archive.1).unwrap_or(u64::MAX));
    let mut reserved = [low, image, module];
    reserved.sort_unstable();

    let free_parts = |start: u64, end: u64, f: &mut dyn FnMut(u64, u64)| {
        let mut at = start;
        for (r_start, r_end) in reserved {
            if r_start < end && r_end > at {
                if r_start > at {
                    f(at, r_start);
                }
                at = r_end;
            }
        }
        if at < end {
            f(at, end);
        }
    };
    // The metadata goes to the first free place below 4 GiB that holds it.
    let frames = (ram_end / PAGE_SIZE) as u32;
    let frame_bytes = frame::metadata_pages(frames) * PAGE_SIZE;
    let meta_bytes = frame_bytes + heap::metadata_pages(frames) * PAGE_SIZE;
    let mut meta = None;
    for (start, end) in ram() {
        free_parts(start, end.min(4 << 30), &mut |s, e| {
            if meta.is_none() && e - s >= meta_bytes {
                meta = Some(s);
            }
        });
    }
    let Some(meta) = meta else { panic!("not enough memory: {} KiB for frame metadata don't fit", meta_bytes / 1024) };
    // SAFETY: parts of a free range of RAM, fresh and so zero, below 4 GiB.
    unsafe {
        frame::init(PhysAddr(meta).as_ptr(), frames);
        heap::init(PhysAddr(meta + frame_bytes).as_ptr(), frames);
    }
    for (start, end) in ram() {
        free_parts(start, end, &mut |s, e| {
            // RAM above 4 GiB waits until the direct map reaches it.
            if s <= meta && meta < e {
                frame::add_fresh(PhysAddr(s), PhysAddr(meta));
                frame::add_fresh(PhysAddr(meta + meta_bytes), PhysAddr(e));
            } else if s < 4 << 30 {
                frame::add_fresh(PhysAddr(s), PhysAddr(e.min(4 << 30)));
            }
        });
    }
    if let Err(e) = kernel_map::extend_direct_map(ram_end) {
        panic!("no memory for the direct map of {} MiB: {e:?}", ram_end >> 20);
    }
    for (start, end) in ram() {
        if end > 4 << 30 {
            free_parts(start.max(4 << 30), end, &mut |s, e| frame::add_fresh(PhysAddr(s), PhysAddr(e)));
        }
    }
    // Programs map pages of both.
    frame::reserve(PhysAddr(image.0), PhysAddr(image.1));
    frame::reserve(PhysAddr(module.0), PhysAddr(module.1));
    BootInfo { archive, rsdp: info.rsdp_paddr }
}

/// A table of physical memory, as bytes; for ACPI.
fn bytes_at(at: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| read::<u8>(at + i)).collect()
}
