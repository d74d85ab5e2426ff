//! What a vCPU's report means to the client, the guest standing still.
//!
//! Called by [`super::run`]. Invariants: a thread that is told of stands where the client expects it, before the instruction of a
//! breakpoint; whoever isn't told of meets again what it has met ([`Target::undo`]), or goes on without; everything that the guest has
//! said is looked up through checks.

use vcpu_sched::taskdebug::{AGAIN, HANDLED, event, frame};

use super::agent_expr;
use super::breakpoints::{Home, Point};
use super::command::Kind;
use super::hub::Event;
use super::memory::USER_HALF;
use super::registers::VcpuRegisters;
use super::step::RFLAGS_TF;
use super::steps::{Ended, Step, Trap};
use super::stop::{Stop, Why, signal};
use super::target::{Target, TargetError};
use super::threads::VCPU_BASE;

/// Vectors (Intel SDM vol. 3A, table 6-1).
pub const DEBUG: u32 = 1;
/// `int3`.
pub const BREAKPOINT: u32 = 3;
const INT3: u8 = 0xcc;
/// Raises a debug exception by itself.
const ICEBP: u8 = 0xf1;

/// What an event comes to.
#[derive(Debug)]
pub(super) enum Verdict {
    Report(Stop),
    /// The thread shall go over this address.
    Over(u32, u64),
    /// The step is done, but its range isn't.
    Again,
    /// Nothing.
    GoOn,
}

impl Target {
    /// What an event means, with the guest standing still. Puts the thread where the client expects it.
    pub(super) fn judge(&mut self, vcpu: usize, event: Event) -> Result<Verdict, TargetError> {
        let thread = self.thread_on(vcpu).map_or(VCPU_BASE + vcpu as u32, |thread| thread.id);
        match event {
            Event::Planted { rip } | Event::Debug { exception: BREAKPOINT, rip } => {
                if self.points.arrive == Some(rip) {
                    return self.arrived(vcpu, thread, rip);
                }
                if self.points.at(rip).next().is_some() {
                    return self.hit(thread, rip);
                }
                // Ours are lifted now: one that was taken away meanwhile is no more, and what is there runs.
                if self.space(thread)?.read(rip, 1) == [INT3] {
                    self.running.settings.inject(vcpu, BREAKPOINT);
                }
                Ok(Verdict::GoOn)
            }
            Event::Debug { rip, .. } => {
                let user = rip < USER_HALF;
                match self.running.steps.ended(Trap::Vcpu(vcpu)) {
                    Ended::Nothing if user => self.trapped(vcpu, thread, rip),
                    Ended::Nothing if self.points.at(rip).next().is_some() => self.hit(thread, rip),
                    Ended::Nothing | Ended::Over => Ok(Verdict::GoOn),
                    Ended::Client => self.stepped(thread, Some(rip)),
                }
            }
            Event::Published => Ok(Verdict::GoOn),
            Event::Rang { event, frame, about } => match event & 0xff {
                event::EXCEPTION => {
                    self.rung.insert(vcpu, frame);
                    self.exception(vcpu, thread, event >> 8 & 0xff)
                }
                event::SYSCALL | event::SYSCALL_RETURN if self.running.calls.stop_at(about) => {
                    self.rung.insert(vcpu, frame);
                    let why = Why::Call { number: about, over: event == event::SYSCALL_RETURN };
                    Ok(Verdict::Report(Stop { thread, signal: signal::TRAP, why }))
                }
                event::PANIC => Ok(Verdict::Report(Stop { thread, signal: signal::ABRT, why: Why::Signal })),
                _ => Ok(Verdict::GoOn),
            },
        }
    }

    /// An exception of a program, told by the guest's kernel before it acts on it.
    fn exception(&mut self, vcpu: usize, thread: u32, vector: u32) -> Result<Verdict, TargetError> {
        let at = self.rung.get(&vcpu).copied().unwrap_or(0);
        let Some(words) = self.space(thread)?.words::<{ frame::WORDS }>(at) else { return Ok(Verdict::GoOn) };
        match vector {
            BREAKPOINT => {
                let address = words[frame::RIP].wrapping_sub(1);
                let ours = self.points.at(address).next().is_some();
                // Ours are lifted now: if there is still one, the program has it.
                if !ours && self.space(thread)?.read(address, 1) == [INT3] {
                    return Ok(Verdict::GoOn);
                }
                self.set_frame_word(thread, at, frame::RIP, address)?;
                self.answer(vcpu)?;
                if ours { self.hit(thread, address) } else { Ok(Verdict::GoOn) }
            }
            DEBUG => {
                let process = self.thread(thread)?.process;
                if self.running.watching && self.watches.of(process) {
                    // Who has stopped all looks what has changed.
                    self.answer(vcpu)?;
                    return Ok(Verdict::GoOn);
                }
                let ended = self.running.steps.ended(Trap::Flag(thread));
                if ended == Ended::Nothing {
                    // The program steps itself, or the step was called off. The kernel would see that in the frame; but by the time that it
                    // looks, the flag there may be a new step's.
                    let stepped = words[frame::RFLAGS] & RFLAGS_TF != 0;
                    if !stepped && self.space(thread)?.read(words[frame::RIP].wrapping_sub(1), 1) != [ICEBP] {
                        self.answer(vcpu)?;
                    }
                    return Ok(Verdict::GoOn);
                }
                self.set_frame_word(thread, at, frame::RFLAGS, words[frame::RFLAGS] & !RFLAGS_TF)?;
                self.answer(vcpu)?;
                if ended == Ended::Over { Ok(Verdict::GoOn) } else { self.stepped(thread, Some(words[frame::RIP])) }
            }
            _ if !self.running.stop_on_fault => Ok(Verdict::GoOn),
            _ => {
                let signal = match vector {
                    0 | 16 | 19 => signal::FPE,
                    6 => signal::ILL,
                    _ => signal::SEGV,
                };
                Ok(Verdict::Report(Stop { thread, signal, why: Why::Signal }))
            }
        }
    }

    /// KVM has told of a program's trap itself, since it looks at debug exceptions for the kernel's breakpoints.
    fn trapped(&mut self, vcpu: usize, thread: u32, rip: u64) -> Result<Verdict, TargetError> {
        match self.running.steps.ended(Trap::Flag(thread)) {
            Ended::Nothing => self.running.settings.inject(vcpu, DEBUG),
            Ended::Over => self.set_flag(thread, false)?,
            Ended::Client => {
                self.set_flag(thread, false)?;
                return self.stepped(thread, Some(rip));
            }
        }
        Ok(Verdict::GoOn)
    }

    /// A thread stands at a breakpoint: is it meant?
    fn hit(&mut self, thread: u32, address: u64) -> Result<Verdict, TargetError> {
        let process = self.thread(thread).ok().and_then(|thread| thread.process);
        let here = |point: &Point| match point.home {
            Home::Process(home) => process == Some(home),
            Home::Kernel | Home::Anyone => true,
        };
        let meant: Vec<(Kind, Vec<Vec<u8>>)> =
            self.points.at(address).filter(|(_, p)| here(p)).map(|(kind, p)| (kind, p.conditions.clone())).collect();
        for (kind, conditions) in meant {
            let mut wanted = conditions.is_empty();
            for condition in conditions {
                // What can't be evaluated stops, as gdb does it.
                wanted |= agent_expr::holds(&condition, &mut Scene { target: self, thread }).unwrap_or(true);
            }
            if wanted {
                let why = if kind == Kind::Hardware { Why::Hardware } else { Why::Software };
                return Ok(Verdict::Report(Stop { thread, signal: signal::TRAP, why }));
            }
        }
        Ok(Verdict::Over(thread, address))
    }

    /// The client's step is done.
    fn stepped(&mut self, thread: u32, pc: Option<u64>) -> Result<Verdict, TargetError> {
        let step = self.running.steps.client();
        if let Some((step, pc)) = step.zip(pc)
            && step.range.is_some_and(|(start, end)| (start..end).contains(&pc))
        {
            let how = self.arm(thread)?;
            self.running.steps.begin(Some(Step { how, ..step }));
            return Ok(Verdict::Again);
        }
        self.running.steps.begin(None);
        Ok(Verdict::Report(Stop { thread, signal: signal::TRAP, why: Why::Signal }))
    }

    /// Some thread has come to where a thread that was on no CPU shall go on.
    fn arrived(&mut self, vcpu: usize, thread: u32, rip: u64) -> Result<Verdict, TargetError> {
        match self.running.steps.ended(Trap::Arrived(thread)) {
            Ended::Client => return self.stepped(thread, None),
            Ended::Over => return Ok(Verdict::GoOn),
            Ended::Nothing => {}
        }
        if self.points.at(rip).next().is_some() {
            return self.hit(thread, rip);
        }
        let known = self.thread_on(vcpu).is_some();
        Ok(if known { Verdict::Over(thread, rip) } else { Verdict::GoOn })
    }

    /// What a vCPU has reported isn't told now: its program's instruction runs again, and meets the same.
    pub(super) fn undo(&mut self, vcpu: usize) -> Result<(), TargetError> {
        if !self.rung.contains_key(&vcpu) {
            return Ok(());
        }
        if matches!(self.vcpu(vcpu)?.regs.rax as u32, event::SYSCALL | event::SYSCALL_RETURN) {
            return self.answer_with(vcpu, AGAIN);
        }
        self.answer(vcpu)
    }

    /// The kernel shall go on with what is in the frame, and not act on the exception.
    fn answer(&mut self, vcpu: usize) -> Result<(), TargetError> {
        self.answer_with(vcpu, HANDLED)
    }

    fn answer_with(&mut self, vcpu: usize, answer: u32) -> Result<(), TargetError> {
        let answer = |registers: &mut VcpuRegisters| {
            registers.regs.rax = answer.into();
            true
        };
        self.change_vcpu(vcpu, answer).map(drop)
    }

    fn set_frame_word(&mut self, thread: u32, at: u64, word: usize, value: u64) -> Result<(), TargetError> {
        Ok(self.space(thread)?.write(at.wrapping_add(8 * word as u64), &value.to_le_bytes())?)
    }
}

/// What a condition sees: one stopped thread.
struct Scene<'a> {
    target: &'a mut Target,
    thread: u32,
}

impl agent_expr::Scene for Scene<'_> {
    fn register(&mut self, number: usize) -> Option<u64> {
        self.target.registers(self.thread).ok()?.word(number)
    }

    fn memory(&mut self, address: u64, bytes: &mut [u8]) -> Option<()> {
        let read = self.target.space(self.thread).ok()?.read(address, bytes.len());
        (read.len() == bytes.len()).then(|| bytes.copy_from_slice(&read))
    }
}
