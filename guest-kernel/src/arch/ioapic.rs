//! The I/O APIC: routes device pins to vectors. Source: Intel 82093AA data sheet, 3.1 and 3.2.

use core::sync::atomic::{AtomicU64, Ordering};

use super::descriptors::vector;
use crate::mm::PhysAddr;
use crate::sync::SpinLock;

/// Where the chip is when the MADT doesn't say.
pub const DEFAULT_BASE: u64 = 0xfec0_0000;
/// Guards the index and data register pair.
static CHIP: SpinLock<()> = SpinLock::new(());
static BASE: AtomicU64 = AtomicU64::new(DEFAULT_BASE);

/// Notes the chip's address from the MADT. It lies below 4 GiB, so the boot direct map reaches it (KVM and QEMU ignore
/// the memory type there).
pub fn set_base(base: u64) {
    BASE.store(base, Ordering::Relaxed);
}

fn write(index: u32, value: u32) {
    let p: *mut u32 = PhysAddr(BASE.load(Ordering::Relaxed)).as_ptr();
    // SAFETY: the chip's two registers: select at 0, data at 0x10.
    unsafe {
        p.write_volatile(index);
        p.add(4).write_volatile(value);
    }
}

/// Routes pin `gsi` to its vector on one CPU, edge triggered, active high, unmasked.
pub fn enable(gsi: u8, apic_id: u32) {
    let _chip = CHIP.lock();
    let index = 0x10 + 2 * u32::from(gsi);
    write(index + 1, apic_id << 24);
    write(index, u32::from(vector::GSI_BASE + gsi));
}
