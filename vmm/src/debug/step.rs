//! One instruction of one thread: how it is made, and how it is called off.
//!
//! In ring 3 it is the trap flag in the program's own registers, wherever they are: it follows the task to another CPU, and the
//! guest's kernel tells when it has trapped (`vcpu_sched::taskdebug`). In ring 0 it is KVM's single-step, with interrupts held
//! back so that the step doesn't end in a handler. A thread that is on no CPU can't execute anything: its step
//! ends when it has been switched to, before its next instruction. Called by [`super::run`].

use kvm_bindings::{KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP};
use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_msr_entry};
use vcpu_sched::taskdebug::{SYSCALL_ENTRY_BYTES, frame};

use super::memory::USER_HALF;
use super::registers::number;
use super::steps::How;
use super::target::{Target, TargetError};

/// RFLAGS.TF.
pub const RFLAGS_TF: u64 = 1 << 8;
/// For `KVM_SET_GUEST_DEBUG`.
pub const CONTROL: u32 = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ;
/// Intel SDM vol. 4: IA32_LSTAR.
const LSTAR: u32 = 0xc000_0082;
/// CR3: the page table's address (Intel SDM vol. 3A, 4.5).
const ROOT: u64 = 0x000f_ffff_ffff_f000;
/// `hlt`, `iretq`, `sysretq`.
const HLT: [u8; 1] = [0xf4];
const IRETQ: [u8; 2] = [0x48, 0xcf];
const SYSRETQ: [u8; 3] = [0x48, 0x0f, 0x07];
/// `swapgs`: where KVM interprets ring 0, it doesn't end a step, nor does what follows it on the way to ring 3.
const SWAPGS: [u8; 3] = [0x0f, 0x01, 0xf8];

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
        // A page table that isn't the task's: the kernel's own code in ring 3, which saves and copies for the program.
        let elsewhere = thread.root != 0 && registers.sregs.cr3 & ROOT != thread.root;
        if ring == 3 && (regs.rip >= USER_HALF || elsewhere) {
            // What is stepped is the program.
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
        let code = self.leads_out(id, regs.rip)?;
        if code.starts_with(&IRETQ)
            && let Some([rip, cs]) = self.space(id)?.words::<2>(regs.rsp)
            && cs & 3 == 3
        {
            // As above.
            if rip < USER_HALF && !elsewhere {
                self.add_flag(id, regs.rsp.wrapping_add(16))?
            } else {
                self.set_flag(id, true)?
            }
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

    /// The code at an address of the kernel, without a `swapgs`.
    fn leads_out(&mut self, id: u32, rip: u64) -> Result<Vec<u8>, TargetError> {
        let code = self.space(id)?.read(rip, SWAPGS.len() + SYSRETQ.len());
        Ok(code.strip_prefix(&SWAPGS).map_or_else(|| code.clone(), <[u8]>::to_vec))
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
        let at = self.debug_places.map(|place| place.extra).filter(|_| thread.user);
        let mut entry = 0;
        if let Some(vcpu) = thread.vcpu {
            let registers = self.vcpu(vcpu)?;
            let (ring, regs) = (registers.sregs.ss.dpl, registers.regs);
            // Ring 3 in the upper half is the kernel's own code, which saves and copies for it, or SYSCALL's way in.
            let elsewhere = thread.root != 0 && registers.sregs.cr3 & ROOT != thread.root;
            if ring == 3 && regs.rip < USER_HALF && !elsewhere {
                if with(regs.rflags) != regs.rflags {
                    self.change_vcpu(vcpu, |vcpu| {
                        vcpu.regs.rflags = with(vcpu.regs.rflags);
                        true
                    })?;
                }
                return Ok(());
            }
            entry = self.syscall_entry(vcpu)?;
            let entering = entry != 0 && (entry..entry.saturating_add(SYSCALL_ENTRY_BYTES)).contains(&regs.rip);
            // Or in the fault that fetching from there is on some hosts, its registers not yet saved.
            let faulting = at.is_some_and(|at| regs.rsp >= at && regs.rsp - at < frame::BYTES as u64)
                && self.frame_word(id, at, frame::RIP)? == Some(entry);
            if entering || faulting || self.leads_out(id, regs.rip)?.starts_with(&SYSRETQ) {
                // On its way in or out.
                self.change_vcpu(vcpu, |vcpu| {
                    vcpu.regs.r11 = with(vcpu.regs.r11);
                    true
                })?;
            }
        }
        let Some(at) = at else { return Ok(()) };
        let Some(words) = self.space(id)?.words::<{ frame::WORDS }>(at) else { return Ok(()) };
        // That fault's frame: its flags aren't in their place yet.
        let faulted = entry != 0 && words[frame::RIP] == entry;
        let places = if faulted { &[frame::RFLAGS, frame::R11][..] } else { &[frame::RFLAGS] };
        for word in places.iter().copied().filter(|word| with(words[*word]) != words[*word]) {
            self.space(id)?.write(at.wrapping_add(8 * word as u64), &with(words[word]).to_le_bytes())?;
        }
        Ok(())
    }

    /// A word of a program's saved registers.
    fn frame_word(&mut self, id: u32, at: Option<u64>, word: usize) -> Result<Option<u64>, TargetError> {
        let Some(at) = at else { return Ok(None) };
        Ok(self.space(id)?.words::<1>(at.wrapping_add(8 * word as u64)).map(|[word]| word))
    }

    /// Where SYSCALL leads on a vCPU; 0: nowhere.
    fn syscall_entry(&self, vcpu: usize) -> Result<u64, TargetError> {
        let read = self.with_vcpu(vcpu, |fd| {
            let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index: LSTAR, ..Default::default() }]).ok()?;
            let count = fd.get_msrs(&mut msrs).ok()?;
            msrs.as_slice().first().filter(|_| count == 1).map(|msr| msr.data)
        })?;
        Ok(read.unwrap_or(0))
    }
}
