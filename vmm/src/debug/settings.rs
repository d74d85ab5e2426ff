//! What vCPUs and the guest's kernel are told before the guest goes on: KVM's debug settings and the task-debug area.
//!
//! Called by [`super::run`]. Invariant: a vCPU whose settings are right already isn't asked.

use std::collections::HashMap;

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB, KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug,
};
use vcpu_sched::taskdebug::{SESSION_AT, STEPPED_AT};
use vm_memory::{Bytes, GuestAddress};

use super::breakpoints::MAX_HARDWARE;
use super::judge::{BREAKPOINT, DEBUG};
use super::target::{Target, TargetError};

/// What vCPUs and the kernel know.
#[derive(Debug, Default)]
pub struct Settings {
    /// Debug settings that vCPUs have.
    applied: HashMap<usize, (u32, Vec<u64>)>,
    /// `vcpu_sched::taskdebug::flags`.
    told: u32,
    /// vCPUs whose exception, by its vector, is the guest's own.
    inject: HashMap<usize, u32>,
}

impl Settings {
    /// An exception that KVM has told of is the guest's own.
    pub fn inject(&mut self, vcpu: usize, vector: u32) {
        self.inject.insert(vcpu, vector);
    }

    /// What the kernel was told last.
    pub fn told(&self) -> u32 {
        self.told
    }
}

impl Target {
    /// What the guest's kernel shall do differently (`vcpu_sched::taskdebug::flags`).
    pub(super) fn tell(&mut self, value: u32) {
        self.running.settings.told = value;
        self.write_area(0, value);
    }

    /// Whose trap flag is ours.
    pub(super) fn tell_stepped(&self) {
        for (at, thread) in (STEPPED_AT as u64..).step_by(4).zip(self.running.steps.flagged()) {
            self.write_area(at, thread);
        }
    }

    /// A debugger comes or goes. The machine stands still.
    pub(super) fn tell_session(&self) {
        let Some(place) = self.debug_places else { return };
        let at = GuestAddress(place.address.saturating_add(SESSION_AT as u64));
        if let Ok(session) = self.machine.ram.read_obj::<u32>(at) {
            self.write_area(SESSION_AT as u64, session.wrapping_add(1));
        }
    }

    fn write_area(&self, at: u64, value: u32) {
        if let Some(place) = self.debug_places {
            // A guest that names no memory of its own isn't helped.
            let _ = self.machine.ram.write_obj(value, GuestAddress(place.address.saturating_add(at)));
        }
    }

    /// Gives a vCPU the debug settings that it needs, if it has others.
    pub(super) fn set_debug(&mut self, vcpu: usize) -> Result<(), TargetError> {
        let except = self.running.steps.except();
        let hardware: Vec<u64> = self.points.hardware().filter(|address| !except.contains(address)).collect();
        let mut control = 0;
        if self.points.kernel().next().is_some() {
            control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
        }
        if !hardware.is_empty() {
            control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        }
        if self.running.steps.vcpu_is_stepped(vcpu) {
            control |= super::step::CONTROL;
        }
        match self.running.settings.inject.remove(&vcpu) {
            Some(BREAKPOINT) => control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP,
            Some(DEBUG) => control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB,
            _ => {}
        }
        let wanted = (control, hardware);
        let none = (0, Vec::new());
        // An exception is to be injected again, however the last one was.
        let once = control & (KVM_GUESTDBG_INJECT_BP | KVM_GUESTDBG_INJECT_DB) != 0;
        if !once && self.running.settings.applied.get(&vcpu).unwrap_or(&none) == &wanted {
            return Ok(());
        }
        let mut debug = kvm_guest_debug { control, ..Default::default() };
        // Intel SDM vol. 3B, 18.2.4: bit 10 is always set; global enables at 1, 3, 5, 7; condition and length 0: execution.
        debug.arch.debugreg[7] = 1 << 10;
        for (n, address) in wanted.1.iter().enumerate().take(MAX_HARDWARE) {
            debug.arch.debugreg[n] = *address;
            debug.arch.debugreg[7] |= 2 << (2 * n);
        }
        self.with_vcpu(vcpu, move |fd| fd.set_guest_debug(&debug))??;
        self.running.settings.applied.insert(vcpu, wanted);
        Ok(())
    }
}
