//! The ACPI tables that the kernel needs: MADT for the CPUs and the I/O APIC; others by signature ([`find`]).
//!
//! Hostile or broken tables give fewer CPUs, never a fault: every length is checked against what was read.
//! Source: ACPI 6.5, 5.2.5 (RSDP), 5.2.8 (XSDT), 5.2.12 (MADT).

use alloc::vec::Vec;

use super::{bytes_at, read};
use crate::cpu::MAX_CPUS;

/// Largest table that is read.
const MAX_TABLE: u32 = 64 << 10;
/// MADT local APIC flags: enabled.
const ENABLED: u32 = 1;

/// What the MADT tells.
#[derive(Default)]
pub struct Madt {
    /// APIC ids of usable CPUs, in table order.
    pub apic_ids: Vec<u32>,
    /// Address of the first I/O APIC.
    pub io_apic: Option<u64>,
}

/// A little-endian word of a table.
pub fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?))
}

fn table(at: u64) -> Option<Vec<u8>> {
    // Tables lie below 4 GiB, where the boot direct map reaches.
    if at == 0 || at > (4 << 30) - u64::from(MAX_TABLE) {
        return None;
    }
    let len: u32 = read(at + 4);
    (36..=MAX_TABLE).contains(&len).then(|| bytes_at(at, len as usize))
}

/// The RSDP, by the loader's word or, where it gives none, at the places that the specification names.
fn find_rsdp(hint: u64) -> Option<Vec<u8>> {
    let valid = |at: u64| read::<[u8; 8]>(at) == *b"RSD PTR ";
    if hint != 0 && hint < (4 << 30) - 64 && valid(hint) {
        return Some(bytes_at(hint, 36));
    }
    (0xe_0000..0x10_0000u64).step_by(16).find(|at| valid(*at)).map(|at| bytes_at(at, 36))
}

/// Reads the MADT.
pub fn madt(rsdp: u64) -> Option<Madt> {
    parse(&find(rsdp, b"APIC")?)
}

/// The first table with this signature. Only while the boot CPU is the only one.
pub fn find(rsdp: u64, signature: &[u8; 4]) -> Option<Vec<u8>> {
    let rsdp = find_rsdp(rsdp)?;
    let (root, width) = match rsdp[15] {
        0 | 1 => (u64::from(u32_at(&rsdp, 16)?), 4),
        _ => (u64_at(&rsdp, 24)?, 8),
    };
    let root = table(root)?;
    let tables = root[36..]
        .chunks_exact(width)
        .map(|e| if width == 4 { u32_at(e, 0).map_or(0, u64::from) } else { u64_at(e, 0).unwrap_or(0) });
    for at in tables {
        if at == 0 || at >= 4 << 30 || read::<[u8; 4]>(at) != *signature {
            continue;
        }
        return table(at);
    }
    None
}

fn parse(t: &[u8]) -> Option<Madt> {
    let mut out = Madt::default();
    let mut at = 44;
    while let Some(&[kind, len]) = t.get(at..at + 2) {
        let Some(entry) = t.get(at..at + usize::from(len)).filter(|e| e.len() >= 2) else { break };
        let cpu = match kind {
            0 if entry.len() >= 8 => Some((u32::from(entry[3]), u32_at(entry, 4)?)),
            9 if entry.len() >= 16 => Some((u32_at(entry, 4)?, u32_at(entry, 8)?)),
            1 if entry.len() >= 12 => {
                out.io_apic = out.io_apic.or(u32_at(entry, 4).map(u64::from));
                None
            }
            _ => None,
        };
        if let Some((id, flags)) = cpu
            && flags & ENABLED != 0
        {
            if out.apic_ids.len() == MAX_CPUS {
                crate::error!("more than {MAX_CPUS} CPUs in the MADT: APIC id {id} is not used");
            } else {
                out.apic_ids.push(id);
            }
        }
        at += usize::from(len);
    }
    Some(out)
}
