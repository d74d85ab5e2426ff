//! Letting the machine go and stopping it: what a [`Target`] does with the client's continue and step, and with what vCPUs report.
//!
//! One thing runs at a time: the guest as the client wants it ([`Mode`]), or, out of the client's sight, one thread over a
//! breakpoint that wasn't meant for it ([`Over`]). A second thread that hits something while the first is reported isn't
//! remembered: it is put before the instruction and hits it again. How one instruction is stepped is [`super::step`]'s. Invariants:
//! nothing of the debugger is left in the guest while it stands still, neither `int3` nor trap flag; a vCPU runs alone, and its
//! thread unpreempted, for [`ALONE`] at most, then all do, since what the thread waits for may be on another.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug,
};
use vcpu_sched::taskdebug::{AGAIN, HANDLED, event, flags, frame};
use vm_memory::{Bytes, GuestAddress};

use super::agent_expr;
use super::breakpoints::{Home, Point};
use super::command::{Action, Kind, ThreadId};
use super::hub::{Event, Report};
use super::observe::Calls;
use super::registers::number;
use super::step::{How, RFLAGS_TF, Step};
use super::target::{Target, TargetError};
use super::threads::VCPU_BASE;

/// How long a vCPU may run alone.
pub const ALONE: Duration = Duration::from_millis(500);
/// Vectors (Intel SDM vol. 3A, table 6-1).
const DEBUG: u32 = 1;
const BREAKPOINT: u32 = 3;

/// Signals as gdb numbers them (gdb/signals.def).
pub mod signal {
    /// Ctrl-C.
    pub const INT: u8 = 2;
    /// No such instruction.
    pub const ILL: u8 = 4;
    /// Breakpoint, step.
    pub const TRAP: u8 = 5;
    /// The kernel panics.
    pub const ABRT: u8 = 6;
    /// Arithmetic.
    pub const FPE: u8 = 8;
    /// No such memory.
    pub const SEGV: u8 = 11;
}

/// Why the guest stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A software breakpoint.
    Software,
    /// A hardware breakpoint.
    Hardware,
    /// A step, Ctrl-C, a fault: the signal says it.
    Signal,
    /// Watched memory at this address has changed.
    Watch(u64),
    /// A system call.
    Call {
        /// Its number.
        number: u64,
        /// It is over.
        over: bool,
    },
}

/// A stop to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// Who.
    pub thread: u32,
    /// gdb's number.
    pub signal: u8,
    /// Why.
    pub why: Why,
}

impl Stop {
    /// The number of the system call that it is for, else -1.
    pub fn call(&self) -> u64 {
        if let Why::Call { number, .. } = self.why { number } else { u64::MAX }
    }
}

/// How the client wants the guest to run.
#[derive(Debug, Default)]
struct Mode {
    step: Option<Step>,
    /// Only what is stepped runs.
    alone: bool,
}

/// A thread goes over a breakpoint that it isn't stopped at.
#[derive(Debug)]
struct Over {
    step: Step,
    address: u64,
}

/// What runs, and since when.
#[derive(Debug)]
pub struct Running {
    mode: Mode,
    over: Option<Over>,
    /// A vCPU runs alone since then.
    alone: Option<Instant>,
    /// Debug settings that vCPUs have.
    applied: HashMap<usize, (u32, Vec<u64>)>,
    /// What the guest's kernel has been told (`vcpu_sched::taskdebug::flags`).
    told: u32,
    /// vCPUs whose `int3` is the program's own.
    inject: HashSet<usize>,
    /// System calls that stop.
    pub calls: Calls,
    /// Threads whose step was called off when its trap may have happened already: that one is ours, not the program's.
    late: HashSet<u32>,
    /// Programs run with the trap flag set, since something of them is watched.
    pub(super) watching: bool,
    /// Faults of programs stop before they are delivered.
    pub stop_on_fault: bool,
    /// What was told last.
    pub last: Option<Stop>,
}

impl Default for Running {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            over: None,
            alone: None,
            applied: HashMap::new(),
            told: 0,
            inject: HashSet::new(),
            calls: Calls::None,
            late: HashSet::new(),
            watching: false,
            stop_on_fault: true,
            last: None,
        }
    }
}

/// What an event comes to.
#[derive(Debug)]
enum Verdict {
    Report(Stop),
    /// The thread shall go over this address.
    Over(u32, u64),
    /// The step is done, but its range isn't.
    Again,
    /// Nothing.
    GoOn,
}

impl Target {
    /// Stops all vCPUs; does nothing if they are.
    pub fn halt(&mut self) -> Result<(), TargetError> {
        match &mut self.paused {
            Some(paused) => (0..paused.vcpus()).try_for_each(|vcpu| paused.hold(vcpu))?,
            None => self.paused = Some(self.machine.control.pause()?),
        }
        self.running.alone = None;
        self.points.lift(&self.machine.ram);
        self.forget();
        self.refresh();
        self.observe_no_more()
    }

    /// Stops for the client, at what runs now. Prefers the thread that it looked at last.
    pub fn interrupt(&mut self, signal: u8) -> Result<Stop, TargetError> {
        self.halt()?;
        for (vcpu, event) in self.reported() {
            // What happened at the same moment is put before its instruction and happens again.
            if let Verdict::Report(_) = self.judge(vcpu, event)? {
                self.undo(vcpu)?;
            }
        }
        self.cancel()?;
        let last = self.running.last.map(|stop| stop.thread);
        let known = last.filter(|id| self.thread(*id).is_ok_and(|thread| thread.vcpu.is_some()));
        let running = self.threads.iter().find(|thread| thread.vcpu.is_some() && thread.user);
        let thread = known.or(running.or_else(|| self.thread_on(0)).map(|thread| thread.id)).unwrap_or(1);
        let stop = Stop { thread, signal, why: Why::Signal };
        self.running.last = Some(stop);
        Ok(stop)
    }

    /// Does what `vCont` says. `selected`: for steps that name no thread.
    pub fn resume(&mut self, actions: &[(Action, ThreadId)], selected: u32) -> Result<(), TargetError> {
        let stepped = actions.iter().find(|(action, _)| matches!(action, Action::Step | Action::Range(..)));
        self.running.mode = Mode::default();
        if !actions.iter().any(|(action, _)| *action == Action::Deliver) {
            self.keep_signal()?;
        }
        if let Some((action, who)) = stepped {
            let thread = if let ThreadId::One(id) = who { *id } else { selected };
            let range = if let Action::Range(start, end) = action { Some((*start, *end)) } else { None };
            let how = self.arm(thread)?;
            self.running.mode.step = Some(Step { thread, how, range });
            self.running.mode.alone = !actions.iter().any(|(action, _)| *action == Action::Continue);
        }
        self.start()
    }

    /// The fault that was told isn't the program's any more: it goes on with the registers that it has now.
    fn keep_signal(&mut self) -> Result<(), TargetError> {
        let faulted = self.running.last.filter(|stop| matches!(stop.signal, signal::ILL | signal::FPE | signal::SEGV));
        let vcpu = faulted.and_then(|stop| self.thread(stop.thread).ok()?.vcpu);
        vcpu.map_or(Ok(()), |vcpu| self.undo(vcpu))
    }

    /// Nobody debugs any more: everything runs, as if nobody ever had.
    pub fn let_go(&mut self) -> Result<(), TargetError> {
        self.halt()?;
        // While all stand still: nothing more is reported, so nobody waits for an answer that doesn't come.
        self.machine.hub.attach(false);
        for (vcpu, event) in self.reported() {
            if let Verdict::Report(_) = self.judge(vcpu, event)? {
                self.undo(vcpu)?;
            }
        }
        self.cancel()?;
        self.points.clear();
        self.watches.clear();
        self.running.calls = Calls::None;
        self.running.mode = Mode::default();
        self.machine.clerk.end();
        self.start()
    }

    /// From standing still into what `mode` and `over` say.
    fn start(&mut self) -> Result<(), TargetError> {
        let over = self.running.over.as_ref();
        let (step, alone) = match over {
            Some(over) => (Some(&over.step), true),
            None => (self.running.mode.step.as_ref(), self.running.mode.alone),
        };
        let (stepped, except) = (step.is_some(), over.map(|over| over.address));
        let how = step.map(|step| step.how);
        self.points.arrive = if let Some(How::Arrive(address)) = how { Some(address) } else { None };
        let single = if let Some(How::Vcpu(vcpu)) = how { Some(vcpu) } else { None };
        // Where the step is to be made alone: the vCPU that the thread is on.
        let on = step.and_then(|step| self.thread(step.thread).ok()?.vcpu).filter(|_| alone);

        let roots = self.roots();
        let planted = self.points.plant(&self.machine.ram, &roots, except);
        self.machine.hub.set_planted(self.points.kernel().filter(|address| Some(*address) != except));
        let faults = if planted.waiting { flags::FAULTS } else { 0 };
        let observed = self.observe(stepped)?;
        self.tell(faults | observed | if on.is_some() { flags::KEEP } else { 0 });
        for vcpu in 0..self.machine.control.vcpus() {
            self.set_debug(vcpu, single == Some(vcpu), except)?;
        }
        self.forget();
        match (on, self.paused.as_mut()) {
            (Some(vcpu), Some(paused)) => {
                self.running.alone = Some(Instant::now());
                self.rung.remove(&vcpu);
                paused.release(vcpu)?;
                self.machine.control.go(Some(vcpu));
            }
            _ => self.release_all(),
        }
        Ok(())
    }

    fn release_all(&mut self) {
        self.tell(self.running.told & !flags::KEEP);
        self.running.alone = None;
        self.rung.clear();
        self.machine.control.go(None);
        self.paused = None;
    }

    /// When somebody has to look after a vCPU that runs alone.
    pub fn deadline(&self) -> Option<Instant> {
        self.running.alone.map(|since| since + ALONE)
    }

    /// What vCPUs have reported, or nothing for too long: a stop to be told, if there is one.
    pub fn look(&mut self) -> Result<Option<Stop>, TargetError> {
        let mut reports = self.machine.hub.take();
        if reports.is_empty() {
            if self.deadline().is_some_and(|deadline| Instant::now() >= deadline) {
                self.release_all();
            }
            return Ok(None);
        }
        let more = |event: &Event| {
            matches!(event, Event::Published | Event::Rang { event: event::FAULT_RESOLVED, .. })
                || self.is_idle_call(event)
        };
        if reports.iter().all(|report| more(&report.event)) && self.running.alone.is_none() {
            // Only more to plant: nobody else is stopped for it.
            self.refresh();
            let roots = self.roots();
            let except = self.running.over.as_ref().map(|over| over.address);
            let planted = self.points.plant(&self.machine.ram, &roots, except);
            self.tell(self.running.told & !flags::FAULTS | if planted.waiting { flags::FAULTS } else { 0 });
            reports.iter().for_each(|report| self.machine.control.go(Some(report.vcpu)));
            return Ok(None);
        }
        self.halt()?;
        reports.extend(self.machine.hub.take());
        let events = self.heard(reports);
        let mut report: Option<Stop> = None;
        let mut over = None;
        let first = events.first().and_then(|(vcpu, _)| self.thread_on(*vcpu)).map(|thread| thread.id);
        for (vcpu, event) in events {
            match self.judge(vcpu, event)? {
                Verdict::Report(_) if report.is_some() => self.undo(vcpu)?,
                Verdict::Report(stop) => report = Some(stop),
                Verdict::Over(thread, address) => over = Some((thread, address)),
                Verdict::Again | Verdict::GoOn => {}
            }
        }
        if let Some(stop) = self.with_watches(report, first) {
            self.cancel()?;
            self.running.last = Some(stop);
            return Ok(Some(stop));
        }
        if let Some((thread, address)) = over {
            let how = self.arm(thread)?;
            self.running.over = Some(Over { step: Step { thread, how, range: None }, address });
        }
        self.start()?;
        Ok(None)
    }

    /// What vCPUs have reported by now, with the guest standing still.
    fn reported(&mut self) -> Vec<(usize, Event)> {
        let reports = self.machine.hub.take();
        self.heard(reports)
    }

    /// Reports bring registers along, so that nobody has to ask for them.
    fn heard(&mut self, reports: VecDeque<Report>) -> Vec<(usize, Event)> {
        let one = |report: Report| {
            self.told(report.vcpu, *report.registers);
            (report.vcpu, report.event)
        };
        reports.into_iter().map(one).collect()
    }

    /// What an event means, with the guest standing still. Puts the thread where the client expects it.
    fn judge(&mut self, vcpu: usize, event: Event) -> Result<Verdict, TargetError> {
        let thread = self.thread_on(vcpu).map_or(VCPU_BASE + vcpu as u32, |thread| thread.id);
        match event {
            Event::Planted { rip } | Event::Debug { exception: BREAKPOINT, rip } => {
                if self.points.arrive == Some(rip) {
                    return self.arrived(vcpu, thread, rip);
                }
                if self.points.at(rip).next().is_none() {
                    self.running.inject.insert(vcpu);
                    return Ok(Verdict::GoOn);
                }
                self.hit(thread, rip)
            }
            Event::Debug { rip, .. } => {
                let of = |step: &Step| step.how == How::Vcpu(vcpu);
                if self.running.over.as_ref().is_some_and(|over| of(&over.step)) {
                    self.running.over = None;
                    return Ok(Verdict::GoOn);
                }
                if self.running.mode.step.as_ref().is_some_and(of) {
                    return self.stepped(thread, Some(rip));
                }
                if self.points.at(rip).next().is_some() { self.hit(thread, rip) } else { Ok(Verdict::GoOn) }
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
                // Ours are lifted now: if there is still one, the program has it.
                if self.space(thread)?.read(address, 1) == [0xcc] && self.points.at(address).next().is_none() {
                    return Ok(Verdict::GoOn);
                }
                self.set_frame_word(thread, at, frame::RIP, address)?;
                self.answer(vcpu)?;
                self.hit(thread, address)
            }
            DEBUG => {
                let of = |step: &Step| step.thread == thread && step.how == How::Flag;
                let over = self.running.over.as_ref().is_some_and(|over| of(&over.step));
                let process = self.thread(thread)?.process;
                if self.running.watching && self.watches.of(process) {
                    // Who has stopped all looks what has changed.
                    self.answer(vcpu)?;
                    return Ok(Verdict::GoOn);
                }
                if !over && !self.running.mode.step.as_ref().is_some_and(of) {
                    // The flag was taken out of the frame then; a program that steps itself has it there.
                    if words[frame::RFLAGS] & RFLAGS_TF == 0 && self.running.late.remove(&thread) {
                        self.answer(vcpu)?;
                    }
                    return Ok(Verdict::GoOn);
                }
                self.set_frame_word(thread, at, frame::RFLAGS, words[frame::RFLAGS] & !RFLAGS_TF)?;
                self.answer(vcpu)?;
                if over {
                    self.running.over = None;
                    return Ok(Verdict::GoOn);
                }
                self.stepped(thread, Some(words[frame::RIP]))
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
        let inside = self.running.mode.step.as_ref().and_then(|step| step.range).zip(pc);
        if inside.is_some_and(|((start, end), pc)| (start..end).contains(&pc)) {
            let how = self.arm(thread)?;
            if let Some(step) = &mut self.running.mode.step {
                step.how = how;
            }
            return Ok(Verdict::Again);
        }
        self.running.mode.step = None;
        Ok(Verdict::Report(Stop { thread, signal: signal::TRAP, why: Why::Signal }))
    }

    /// Some thread has come to where a thread that was on no CPU shall go on.
    fn arrived(&mut self, vcpu: usize, thread: u32, rip: u64) -> Result<Verdict, TargetError> {
        if self.running.mode.step.as_ref().is_some_and(|step| step.thread == thread) {
            return self.stepped(thread, None);
        }
        if self.running.over.as_ref().is_some_and(|over| over.step.thread == thread) {
            self.running.over = None;
            return Ok(Verdict::GoOn);
        }
        if self.points.at(rip).next().is_some() {
            return self.hit(thread, rip);
        }
        let known = self.thread_on(vcpu).is_some();
        Ok(if known { Verdict::Over(thread, rip) } else { Verdict::GoOn })
    }

    /// What a vCPU has reported isn't told now: its program's instruction runs again, and meets the same.
    fn undo(&mut self, vcpu: usize) -> Result<(), TargetError> {
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
        let answer = |registers: &mut super::registers::VcpuRegisters| {
            registers.regs.rax = answer.into();
            true
        };
        self.change_vcpu(vcpu, answer).map(drop)
    }

    fn set_frame_word(&mut self, thread: u32, at: u64, word: usize, value: u64) -> Result<(), TargetError> {
        Ok(self.space(thread)?.write(at.wrapping_add(8 * word as u64), &value.to_le_bytes())?)
    }

    /// No step is under way any more.
    fn cancel(&mut self) -> Result<(), TargetError> {
        let steps = [self.running.over.take().map(|over| over.step), self.running.mode.step.take()];
        for step in steps.into_iter().flatten() {
            if step.how == How::Flag {
                self.set_flag(step.thread, false)?;
                self.running.late.insert(step.thread);
            }
        }
        self.points.arrive = None;
        Ok(())
    }

    /// What the guest's kernel shall do differently (`vcpu_sched::taskdebug::flags`).
    fn tell(&mut self, value: u32) {
        self.running.told = value;
        if let Some(place) = self.debug_places {
            // A guest that names no memory of its own isn't helped.
            let _ = self.machine.ram.write_obj(value, GuestAddress(place.address));
        }
    }

    /// Gives a vCPU the debug settings that it needs, if it has others.
    fn set_debug(&mut self, vcpu: usize, single_step: bool, except: Option<u64>) -> Result<(), TargetError> {
        let hardware: Vec<u64> = self.points.hardware().filter(|address| Some(*address) != except).collect();
        let mut control = 0;
        if self.points.kernel().next().is_some() {
            control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
        }
        if !hardware.is_empty() {
            control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        }
        if single_step {
            control |= super::step::CONTROL;
        }
        if self.running.inject.remove(&vcpu) && control != 0 {
            control |= KVM_GUESTDBG_INJECT_BP;
        }
        let wanted = (control, hardware);
        let none = (0, Vec::new());
        if self.running.applied.get(&vcpu).unwrap_or(&none) == &wanted {
            return Ok(());
        }
        let mut debug = kvm_guest_debug { control, ..Default::default() };
        // Intel SDM vol. 3B, 18.2.4: bit 10 is always set; global enables at 1, 3, 5, 7; condition and length 0: execution.
        debug.arch.debugreg[7] = 1 << 10;
        for (n, address) in wanted.1.iter().enumerate().take(super::breakpoints::MAX_HARDWARE) {
            debug.arch.debugreg[n] = *address;
            debug.arch.debugreg[7] |= 2 << (2 * n);
        }
        self.with_vcpu(vcpu, move |fd| fd.set_guest_debug(&debug))??;
        self.running.applied.insert(vcpu, wanted);
        Ok(())
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

/// The registers that a stop reply carries along, so that the client needn't ask.
pub const EXPEDITED: [usize; 3] = [number::RBP, number::RSP, number::RIP];
