//! Which fields of a [`Cpu`] the VMM may read, and where they lie (`vcpu_sched::taskview`).

use core::mem::offset_of;

use vcpu_sched::directory::{Entry, EntryKind};
use vcpu_sched::taskview::{ABSENT, CpuField, MAX_FIELDS};

use super::{Cpu, physical};
use crate::directory;

/// Offsets by field number.
pub const FIELDS: [u16; MAX_FIELDS] = {
    let mut at = [ABSENT; MAX_FIELDS];
    at[CpuField::Id as usize] = offset_of!(Cpu, id) as u16;
    at[CpuField::ApicId as usize] = offset_of!(Cpu, apic_id) as u16;
    at[CpuField::Current as usize] = offset_of!(Cpu, current) as u16;
    at[CpuField::Idle as usize] = offset_of!(Cpu, idle) as u16;
    at[CpuField::NrRunning as usize] = offset_of!(Cpu, nr_running) as u16;
    at[CpuField::PickedTicks as usize] = offset_of!(Cpu, picked_at) as u16;
    at[CpuField::PickedNanos as usize] = offset_of!(Cpu, picked_time) as u16;
    at[CpuField::Switches as usize] = offset_of!(Cpu, stats.switches) as u16;
    at[CpuField::Syscalls as usize] = offset_of!(Cpu, stats.syscalls) as u16;
    at[CpuField::Faults as usize] = offset_of!(Cpu, stats.faults) as u16;
    at[CpuField::TimerInterrupts as usize] = offset_of!(Cpu, stats.timer_interrupts) as u16;
    at[CpuField::RescheduleIpis as usize] = offset_of!(Cpu, stats.reschedule_ipis) as u16;
    at
};

const _: () = assert!(size_of::<Cpu>() < ABSENT as usize, "offsets are 16 bits wide");

/// Lists all CPUs in the directory. Boot CPU, when all are up and before the directory is published.
pub fn show() {
    for cpu in super::all() {
        directory::add(Entry {
            kind: EntryKind::Cpu as u32,
            index: cpu.id.0,
            address: physical(core::ptr::from_ref(cpu) as u64).0,
            len: size_of::<Cpu>() as u64,
            extra: 0,
        });
    }
}
