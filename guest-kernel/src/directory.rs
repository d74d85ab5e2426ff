//! The directory page (`vcpu_sched::directory`): where the VMM finds what this kernel shows it.
//!
//! At boot, whoever has something to show calls [`add`]; [`publish`] then tells the VMM, before the first program starts. What is
//! listed stays where it is for ever. Without such a VMM the port write goes nowhere.

use alloc::vec::Vec;

use vcpu_sched::directory::{ENTRY_BYTES, Entry, EntryKind, Header, MAGIC, MAX_ENTRIES, PORT, VERSION};

use crate::arch::instr;
use crate::mm::PhysAddr;
use crate::mm::frame::{self, OutOfMemory};
use crate::mm::layout::{DIRECT_MAP, PAGE_SIZE};
use crate::sync::SpinLock;

/// Guards the list only.
static ENTRIES: SpinLock<Vec<Entry>> = SpinLock::new(Vec::new());

/// Lists something in the next directory that is published.
pub fn add(entry: Entry) {
    ENTRIES.lock().push(entry);
}

/// Tells the VMM what there is. Boot CPU, before programs run; the page stays.
pub fn publish() {
    let entries = core::mem::take(&mut *ENTRIES.lock());
    if entries.is_empty() {
        return;
    }
    match write(&entries, crate::time::tsc()) {
        // SAFETY: the directory port; without such a device the write goes nowhere. Page numbers fit, since RAM ends below
        // 2^44.
        Ok(page) => unsafe { instr::outl(PORT, (page.0 / PAGE_SIZE) as u32) },
        Err(OutOfMemory) => crate::error!("no memory for the directory: the VMM sees no tasks and no trace"),
    }
}

/// Lays the entries out: on the page, and if they are too many, the rest in a table that the page's last entry names.
fn write(entries: &[Entry], tsc: u64) -> Result<PhysAddr, OutOfMemory> {
    let page = frame::alloc()?;
    let on_page = if entries.len() > MAX_ENTRIES { MAX_ENTRIES - 1 } else { entries.len() };
    let (first, rest) = entries.split_at(on_page);
    let count = on_page + usize::from(!rest.is_empty());
    let header = Header { magic: MAGIC, version: VERSION, count: count as u32, direct_map: DIRECT_MAP, tsc };
    put(page, 0, &header.to_bytes());
    for (i, entry) in first.iter().enumerate() {
        put(page, 1 + i, &entry.to_bytes());
    }
    if !rest.is_empty() {
        let len = rest.len() * ENTRY_BYTES;
        let order = (len as u64).div_ceil(PAGE_SIZE).next_power_of_two().trailing_zeros() as usize;
        let table = frame::alloc_block(order, false)?;
        for (i, entry) in rest.iter().enumerate() {
            put(table, i, &entry.to_bytes());
        }
        let more = Entry { kind: EntryKind::More as u32, index: 0, address: table.0, len: len as u64, extra: 0 };
        put(page, count, &more.to_bytes());
    }
    Ok(page)
}

/// Writes the `index`th piece of a table.
fn put(table: PhysAddr, index: usize, bytes: &[u8; ENTRY_BYTES]) {
    let (words, _) = bytes.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        // SAFETY: the caller has allocated the table with room for this index.
        unsafe { table.as_ptr::<u64>().add(index * ENTRY_BYTES / 8 + i).write(u64::from_le_bytes(*word)) };
    }
}
