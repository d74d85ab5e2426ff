//! One instruction of one thread: how it is made, and how it is called off.
//!
//! In ring 3 it is the trap flag in the program's own registers, wherever they are: it follows the task to another CPU, and the
//! guest's kernel tells when it has trapped (`vcpu_sched::taskdebug`). In ring 0 it is KVM's single-step, with interrupts held
//! back so that the step doesn't end in a handler. A thread that is on no CPU can't execute anything: its step
//! ends when it has been switched to, before its next instruction. Called by [`super::run`].

use kvm_bindings::{KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP};
use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use vcpu_sched::taskdebug::frame;

use super::memory::USER_HALF;
use super::registers::number;
use super::target::{Target, TargetError};

/// RFLAGS.TF.
pub const RFLAGS_TF: u64 = 1 << 8;
/// For `KVM_SET_GUEST_DEBUG`.
pub const CONTROL: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ;
/// `hlt`, `iretq`, `sysretq`.
const HLT: [u8; 1] = [0xf4];
const IRETQ: [u8; 2] = [0x48, 0xcf];
const SYSRETQ: [u8; 3] = [0x48, 0x0f, 0x07];

/// How a step is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// KVM steps this vCPU.
    Vcpu(usize),
    /// The trap flag is set in the program's registers.
    Flag,
    /// The thread goes on at this address when it gets a CPU; that ends the step.
    Arrive(u64),
}

/// A step under way.
#[derive(Debug)]
pub struct Step {
    /// Whose.
    pub thread: u32,
    /// How.
    pub how: How,
    /// It goes on in this range.
    pub range: Option<(u64, u64)>,
}

impl Target {
    /// Prepares a thread's step; it is made when the guest goes on.
    pub(super) fn arm(&mut self, id: u32) -> Result<How, TargetError> {
        let thread = self.thread(id)?.clone();
        let Some(vcpu) = thread.vcpu else {
            let pc = self.registers(id)?.word(number::RIP).ok_or(TargetError::NoThread(id))?;
            return Ok(How::Arrive(pc));
        };
        if let Some(at) = self.rung.get(&vcpu).copied() {
            self.add_flag(id, at.wrapping_add(8 * frame::RFLAGS as u64))?;
            return Ok(How::Flag);
        }
        let registers = self.vcpu(vcpu)?;
        let (ring, regs) = (registers.sregs.ss.dpl, registers.regs);
        if ring == 3 && regs.rip >= USER_HALF {
            // The kernel's own code, which saves and copies for the program: what is stepped is the program.
            self.set_flag(id, true)?;
            return Ok(How::Flag);
        }
        if ring == 3 {
            self.change_vcpu(vcpu, |vcpu| {
                vcpu.regs.rflags |= RFLAGS_TF;
                true
            })?;
            return Ok(How::Flag);
        }
        let code = self.space(id)?.read(regs.rip, SYSRETQ.len());
        if code.starts_with(&IRETQ) && self.space(id)?.words::<2>(regs.rsp).is_some_and(|[_, cs]| cs & 3 == 3) {
            self.add_flag(id, regs.rsp.wrapping_add(16))?;
            return Ok(How::Flag);
        }
        if code.starts_with(&SYSRETQ) {
            self.change_vcpu(vcpu, |vcpu| {
                vcpu.regs.r11 |= RFLAGS_TF;
                true
            })?;
            return Ok(How::Flag);
        }
        if code.starts_with(&HLT) {
            // With interrupts held back it would wait for ever. To the kernel it is a wake-up for nothing.
            self.change_vcpu(vcpu, |vcpu| {
                vcpu.regs.rip = vcpu.regs.rip.wrapping_add(1);
                true
            })?;
        }
        self.with_vcpu(vcpu, |fd| match fd.get_mp_state() {
            Ok(state) if state.mp_state == KVM_MP_STATE_HALTED => {
                fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
            }
            other => other.map(drop),
        })??;
        Ok(How::Vcpu(vcpu))
    }

    fn add_flag(&mut self, id: u32, at: u64) -> Result<(), TargetError> {
        let space = self.space(id)?;
        let Some([flags]) = space.words::<1>(at) else { return Err(TargetError::NoThread(id)) };
        Ok(space.write(at, &(flags | RFLAGS_TF).to_le_bytes())?)
    }

    /// Sets or clears the trap flag in a program's registers, wherever they are now.
    pub(super) fn set_flag(&mut self, id: u32, on: bool) -> Result<(), TargetError> {
        let with = move |flags: u64| if on { flags | RFLAGS_TF } else { flags & !RFLAGS_TF };
        let Ok(thread) = self.thread(id).cloned() else { return Ok(()) };
        if let Some(vcpu) = thread.vcpu {
            let registers = self.vcpu(vcpu)?;
            let (ring, regs) = (registers.sregs.ss.dpl, registers.regs);
            // Ring 3 in the upper half is the kernel's own code, which saves and copies for it.
            if ring == 3 && regs.rip < USER_HALF {
                if with(regs.rflags) != regs.rflags {
                    self.change_vcpu(vcpu, |vcpu| {
                        vcpu.regs.rflags = with(vcpu.regs.rflags);
                        true
                    })?;
                }
                return Ok(());
            }
            if self.space(id)?.read(regs.rip, SYSRETQ.len()).starts_with(&SYSRETQ) {
                // On its way out.
                self.change_vcpu(vcpu, |vcpu| {
                    vcpu.regs.r11 = with(vcpu.regs.r11);
                    true
                })?;
            }
        }
        let frame = self.debug_places.map(|place| place.extra).filter(|_| thread.user);
        let Some(at) = frame.map(|frame| frame.wrapping_add(8 * frame::RFLAGS as u64)) else { return Ok(()) };
        let space = self.space(id)?;
        match space.words::<1>(at) {
            Some([flags]) if with(flags) != flags => Ok(space.write(at, &with(flags).to_le_bytes())?),
            _ => Ok(()),
        }
    }
}
