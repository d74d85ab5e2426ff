//! The registers with which the first vCPU enters the guest.
//!
//! [`crate::vcpu::setup`] applies them. Invariant: these are values only; what KVM put into the special registers at
//! reset is kept wherever a boot protocol is silent.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::kernel::Entry;
use super::{bzimage, layout};

/// RFLAGS: bit 1 is always set (Intel SDM vol. 1, 3.4.3).
const RFLAGS: u64 = 2;
/// CR0: protected mode, and ET, which is fixed to 1 (Intel SDM vol. 3A, 2.5).
const CR0_PE_ET: u64 = 0x11;
/// CR0.PG.
const CR0_PG: u64 = 1 << 31;
/// CR4.PAE.
const CR4_PAE: u64 = 1 << 5;
/// EFER.LME and LMA.
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;

/// Segment types (Intel SDM vol. 3A, tables 3-1 and 3-2).
const TYPE_DATA: u8 = 0x3;
const TYPE_CODE: u8 = 0xb;
const TYPE_BUSY_TSS: u8 = 0xb;

/// How to enter a loaded kernel, whose boot data lies at `boot_data`.
pub fn entry(entry: &Entry, boot_data: u64, mut sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
    let mut regs = kvm_regs { rflags: RFLAGS, ..Default::default() };
    let data = segment(0x18, TYPE_DATA, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    match entry {
        // Xen, docs/misc/pvh.pandoc: cr0 PE only, cr4 0, flat 32-bit segments, EBX = start info, TSS of limit 0x67.
        Entry::Pvh { rip } => {
            sregs.cs = segment(0x10, TYPE_CODE, false);
            sregs.tr = kvm_segment { limit: 0x67, type_: TYPE_BUSY_TSS, s: 0, db: 0, g: 0, ..segment(0, 0, false) };
            sregs.cr0 = CR0_PE_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            regs.rip = *rip;
            regs.rbx = boot_data;
        }
        // Linux, boot.rst, "64-bit boot protocol": long mode, identity map, __BOOT_CS/__BOOT_DS, RSI = zero page.
        Entry::Linux64 { rip, .. } => {
            sregs.cs = segment(0x10, TYPE_CODE, true);
            sregs.gdt.base = layout::GDT;
            sregs.gdt.limit = bzimage::GDT_LIMIT;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.cr0 = CR0_PE_ET | CR0_PG;
            sregs.efer = EFER_LONG_MODE;
            regs.rip = *rip;
            regs.rsi = boot_data;
        }
    }
    (regs, sregs)
}

/// A flat 4 GiB segment.
fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pvh_enters_flat_32_bit_code_without_paging() {
        let (regs, sregs) = entry(&Entry::Pvh { rip: 0x10_0000 }, 0x6000, kvm_sregs::default());
        assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x10_0000, 0x6000, 2));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
        assert_eq!((sregs.cs.db, sregs.cs.l, sregs.cs.limit, sregs.tr.s), (1, 0, 0xffff_ffff, 0));
    }

    #[test]
    fn linux_enters_long_mode_with_its_own_gdt() {
        let linux = Entry::Linux64 { rip: 0x10_0200, header: Box::default() };
        let (regs, sregs) = entry(&linux, 0x7000, kvm_sregs::default());
        assert_eq!((regs.rip, regs.rsi), (0x10_0200, 0x7000));
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.ds.selector), (0x10, 1, 0x18));
        assert_ne!(sregs.cr0 & CR0_PG, 0);
    }
}
