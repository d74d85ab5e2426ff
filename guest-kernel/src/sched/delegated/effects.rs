//! What has to be done when the enclave's lock is let go: interrupts, the doorbell, tasks to be moved.

use vcpu_sched::delegation::DOORBELL;
use vcpu_sched::delegation::enclave::Effects;

use super::super::place;
use super::{moves, want};
use crate::arch::instr;
use crate::cpu::{self, Cpu};

/// Where no run queue is locked. Interrupts are off.
pub fn carry_out(me: &Cpu, effects: Effects) {
    if effects.is_empty() {
        return;
    }
    let moves = effects.fall_back.is_some() || effects.delegate;
    tell(me, effects);
    if moves {
        moves::house(me);
    }
}

/// Where this CPU's run queue is locked: what needs others is put off to an interrupt.
pub fn carry_out_locked(me: &Cpu, effects: Effects) {
    if effects.is_empty() {
        return;
    }
    let moves = effects.fall_back.is_some() || effects.delegate;
    tell(me, effects);
    if moves {
        place::send(me);
    }
}

fn tell(me: &Cpu, effects: Effects) {
    if let Some(life) = effects.fall_back {
        moves::report(life);
    }
    if effects.delegate {
        moves::announce();
    }
    for id in effects.reschedule.iter() {
        if id == me.id {
            want(me);
        } else if let Some(cpu) = cpu::get(id) {
            // It looks into the enclave itself; nothing of its run queue is touched.
            place::send(cpu);
        }
    }
    if effects.ring_bell {
        // SAFETY: the doorbell port (docs/abi.md); without such a device the write goes nowhere.
        unsafe { instr::outl(DOORBELL, 0) };
    }
}
