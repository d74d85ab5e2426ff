//! Letting the machine go and stopping it: what a [`Target`] does with the client's continue and step, and with what vCPUs report.
//!
//! One thing runs at a time: the guest as the client wants it, or, out of the client's sight, one thread over a
//! breakpoint that wasn't meant for it ([`super::steps`]). A second thread that hits something while the first is reported isn't
//! remembered: it is put before the instruction and hits it again. What a report means is [`super::judge`]'s. Invariants:
//! nothing of the debugger is left in the guest while it stands still, neither `int3` nor trap flag; a vCPU that has stopped by itself goes
//! on only when its report has been heard; a vCPU runs alone, and its thread unpreempted, for a limited time, then all do, since
//! what the thread waits for may be on another: a lock of the guest's kernel, most often. No thread passes a breakpoint that is lifted
//! for another: the guest's kernel tells if another gets the CPU of one that is stepped alone; a step over one that takes too long is put
//! off ([`Target::put_off`]), and the thread meets it again; while all run for a client's step, what the client has lifted for it is guarded
//! ([`super::breakpoints`]).

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use vcpu_sched::taskdebug::{event, flags};

use super::command::{Action, ThreadId};
use super::hub::{Event, Report};
use super::judge::Verdict;
use super::observe::Calls;
use super::settings::Settings;
use super::steps::{How, Step, Steps};
use super::stop::{Stop, Why, signal};
use super::target::{Target, TargetError};

/// How long a vCPU may run alone at first, and after that all for its thread's step: a pause that is hardly seen. What is waited for is one
/// instruction; each time that this isn't enough it is doubled, for a loaded host.
const ALONE: Duration = Duration::from_millis(20);
/// How often it is doubled.
const DOUBLED: u32 = 5;

/// What runs, and since when.
#[derive(Debug)]
pub struct Running {
    pub(super) steps: Steps,
    /// Only what the client steps runs.
    locked: bool,
    /// A vCPU runs alone since then.
    alone: Option<Instant>,
    /// All run since then for a step that could not be made alone.
    together: Option<Instant>,
    /// How often in a row a step could not be made alone.
    put_off: u32,
    /// vCPUs that have stopped by themselves, and whose reports were heard.
    heard: HashSet<usize>,
    pub(super) settings: Settings,
    /// System calls that stop.
    pub calls: Calls,
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
            steps: Steps::default(),
            locked: false,
            alone: None,
            together: None,
            put_off: 0,
            heard: HashSet::new(),
            settings: Settings::default(),
            calls: Calls::None,
            watching: false,
            stop_on_fault: true,
            last: None,
        }
    }
}

impl Target {
    /// For a client that has just come: stops the guest.
    pub fn seize(&mut self) -> Result<(), TargetError> {
        self.halt()?;
        // While all stand still: what vCPUs report from now on is for this client.
        self.machine.hub.attach(true);
        self.tell_session();
        Ok(())
    }

    /// Stops all vCPUs; does nothing if they are.
    pub fn halt(&mut self) -> Result<(), TargetError> {
        match &mut self.paused {
            Some(paused) => (0..paused.vcpus()).try_for_each(|vcpu| paused.hold(vcpu))?,
            None => self.paused = Some(self.machine.control.pause()?),
        }
        self.running.alone = None;
        self.running.together = None;
        self.pass_on()?;
        self.points.lift(&self.machine.ram);
        self.forget();
        self.refresh();
        self.observe_no_more()
    }

    /// Stops for the client, at what runs now. Prefers the thread that it looked at last.
    pub fn interrupt(&mut self, signal: u8) -> Result<Stop, TargetError> {
        self.halt()?;
        self.put_back()?;
        let last = self.running.last.map(|stop| stop.thread);
        let known = last.filter(|id| self.thread(*id).is_ok_and(|thread| thread.vcpu.is_some()));
        let running = self.threads.iter().find(|thread| thread.vcpu.is_some() && thread.user);
        let thread = known.or(running.or_else(|| self.thread_on(0)).map(|thread| thread.id)).unwrap_or(1);
        let stop = Stop { thread, signal, why: Why::Signal };
        self.running.last = Some(stop);
        Ok(stop)
    }

    /// What has been reported happens again, and no step is under way.
    fn put_back(&mut self) -> Result<(), TargetError> {
        for (vcpu, event) in self.reported() {
            if let Verdict::Report(_) = self.judge(vcpu, event)? {
                self.undo(vcpu)?;
            }
        }
        self.cancel()
    }

    /// Does what `vCont` says. `selected`: for steps that name no thread.
    pub fn resume(&mut self, actions: &[(Action, ThreadId)], selected: u32) -> Result<(), TargetError> {
        let stepped = actions.iter().find(|(action, _)| matches!(action, Action::Step | Action::Range(..)));
        self.running.steps.begin(None);
        self.running.put_off = 0;
        if !actions.iter().any(|(action, _)| *action == Action::Deliver) {
            self.keep_signal()?;
        }
        if let Some((action, who)) = stepped {
            let thread = if let ThreadId::One(id) = who { *id } else { selected };
            let range = if let Action::Range(start, end) = action { Some((*start, *end)) } else { None };
            let how = self.arm(thread)?;
            self.running.steps.begin(Some(Step { thread, how, range }));
            self.running.locked = !actions.iter().any(|(action, _)| *action == Action::Continue);
        }
        if !self.running.locked {
            self.points.guard_no_more();
        }
        self.start(false)
    }

    /// The fault that was told isn't the program's any more: it goes on with the registers that it has now.
    fn keep_signal(&mut self) -> Result<(), TargetError> {
        let faulted = self.running.last.filter(|stop| matches!(stop.signal, signal::ILL | signal::FPE | signal::SEGV));
        let vcpu = faulted.and_then(|stop| self.thread(stop.thread).ok()?.vcpu);
        vcpu.map_or(Ok(()), |vcpu| self.undo(vcpu))
    }

    /// Nobody debugs any more: everything runs, as if nobody ever had. An error leaves no vCPU behind either.
    pub fn let_go(&mut self) -> Result<(), TargetError> {
        let halted = self.halt();
        // While all stand still: nothing more is reported, so nobody waits for an answer that doesn't come.
        self.machine.hub.attach(false);
        self.tell_session();
        let done = halted.and_then(|()| self.put_back());
        self.points.lift(&self.machine.ram);
        self.points.clear();
        self.watches.clear();
        self.running.calls = Calls::None;
        self.machine.clerk.end();
        let started = self.start(false);
        if started.is_err() {
            self.release_all();
        }
        done.and(started)
    }

    /// From standing still into what the steps say. `together`: all shall run for a while, though the client wants one step alone.
    fn start(&mut self, together: bool) -> Result<(), TargetError> {
        // It has lost its CPU: it waits for something, and will for as long as only it may run.
        if self.running.steps.over().is_some_and(|step| self.thread(step.thread).map_or(true, |it| it.vcpu.is_none())) {
            self.put_off()?;
        }
        let (step, except) = (self.running.steps.first(), self.running.steps.except());
        self.points.arrive =
            step.and_then(|step| if let How::Arrive(address) = step.how { Some(address) } else { None });
        // Where the step is to be made alone: the vCPU that the thread is on.
        let alone = !except.is_empty() || self.running.locked && !together;
        let on = step.and_then(|step| self.thread(step.thread).ok()?.vcpu).filter(|_| alone);

        self.points.guarding = self.running.locked && on.is_none();
        let roots = self.roots();
        let planted = self.points.plant(&self.machine.ram, &roots, &except);
        self.machine.hub.set_planted(self.points.kernel().filter(|address| !except.contains(address)));
        let faults = if planted.waiting { flags::FAULTS } else { 0 };
        let observed = self.observe(step.is_some())?;
        self.tell(faults | observed | if on.is_some() { flags::KEEP } else { 0 });
        self.tell_stepped();
        for vcpu in 0..self.machine.control.vcpus() {
            self.set_debug(vcpu)?;
        }
        self.forget();
        match (on, self.paused.as_mut()) {
            (Some(vcpu), Some(paused)) => {
                self.running.alone = Some(Instant::now());
                self.rung.remove(&vcpu);
                self.running.heard.remove(&vcpu);
                paused.release_stopped(vcpu)?;
            }
            _ => self.release_all(),
        }
        if together {
            self.running.together = Some(Instant::now());
        }
        Ok(())
    }

    fn release_all(&mut self) {
        self.tell(self.running.settings.told() & !flags::KEEP);
        self.running.alone = None;
        self.rung.clear();
        self.running.heard.drain().for_each(|vcpu| self.machine.control.go(vcpu));
        self.paused = None;
    }

    /// When somebody has to look after a step that isn't made.
    pub fn deadline(&self) -> Option<Instant> {
        let patience = ALONE * 2u32.pow(self.running.put_off.min(DOUBLED));
        self.running.alone.or(self.running.together).map(|since| since + patience)
    }

    /// What vCPUs have reported, or nothing for too long: a stop to be told, if there is one.
    pub fn look(&mut self) -> Result<Option<Stop>, TargetError> {
        let mut reports = self.machine.hub.take();
        let late = reports.is_empty() && self.deadline().is_some_and(|deadline| Instant::now() >= deadline);
        if reports.is_empty() && !late {
            return Ok(None);
        }
        let (alone, going_over) = (self.running.alone.is_some(), self.running.steps.over().is_some());
        // Whatever goes wrong: they are let go by the next start.
        self.running.heard.extend(reports.iter().map(|report| report.vcpu));
        let more = |event: &Event| {
            matches!(event, Event::Published | Event::Rang { event: event::FAULT_RESOLVED, .. })
                || self.is_idle_call(event)
        };
        if !late && !alone && reports.iter().all(|report| more(&report.event)) {
            self.plant_more()?;
            for report in reports {
                self.running.heard.remove(&report.vcpu);
                self.machine.control.go(report.vcpu);
            }
            return Ok(None);
        }
        self.halt()?;
        reports.extend(self.machine.hub.take());
        let events = self.heard(reports);
        let mut report: Option<Stop> = None;
        let mut over = None;
        let first = events.first().and_then(|(vcpu, _)| self.thread_on(*vcpu)).map(|thread| thread.id);
        for (vcpu, event) in events {
            let verdict = self.judge(vcpu, event)?;
            log::debug!("debugger: vCPU {vcpu}: {event:x?}: {verdict:x?}");
            match verdict {
                Verdict::Report(_) if report.is_some() => self.undo(vcpu)?,
                Verdict::Report(stop) => report = Some(stop),
                Verdict::Over(thread, address) => over = Some((thread, address)),
                Verdict::Again => self.running.put_off = 0,
                Verdict::GoOn => {}
            }
        }
        if let Some(stop) = self.with_watches(report, first) {
            self.cancel()?;
            self.running.last = Some(stop);
            return Ok(Some(stop));
        }
        let mut together = false;
        if late && alone {
            self.running.put_off = self.running.put_off.saturating_add(1);
            together = !going_over;
            self.put_off()?;
        } else if going_over && self.running.steps.over().is_none() {
            self.running.put_off = 0;
        }
        // One thread at a time. A second that has met its breakpoint meets it again when the first is done.
        let other = |thread| self.running.steps.over().is_some_and(|step| step.thread != thread);
        if let Some((thread, address)) = over.filter(|(thread, _)| !other(*thread)) {
            let how = self.arm(thread)?;
            self.running.steps.begin_over(thread, how, address);
        }
        self.start(together)?;
        Ok(None)
    }

    /// The step over a breakpoint isn't made now: all run, with all breakpoints in their places, until its thread meets it again.
    fn put_off(&mut self) -> Result<(), TargetError> {
        let overs: Vec<Step> = self.running.steps.put_off().collect();
        // The client's own step of that thread goes on.
        let flagged = self.running.steps.flagged();
        let ours = overs.iter().filter(|over| over.how == How::Flag && !flagged.contains(&over.thread));
        ours.map(|over| over.thread).try_for_each(|thread| self.set_flag(thread, false))
    }

    /// There may be more to plant: nobody is stopped for it longer than that takes.
    fn plant_more(&mut self) -> Result<(), TargetError> {
        let still = self.machine.control.pause_briefly()?;
        self.refresh();
        let roots = self.roots();
        let planted = self.points.plant(&self.machine.ram, &roots, &self.running.steps.except());
        self.tell(self.running.settings.told() & !flags::FAULTS | if planted.waiting { flags::FAULTS } else { 0 });
        still.resume();
        Ok(())
    }

    /// What vCPUs have reported by now, with the guest standing still.
    fn reported(&mut self) -> Vec<(usize, Event)> {
        let reports = self.machine.hub.take();
        self.heard(reports)
    }

    /// Reports bring registers along, so that nobody has to ask for them.
    fn heard(&mut self, reports: VecDeque<Report>) -> Vec<(usize, Event)> {
        let one = |report: Report| {
            self.running.heard.insert(report.vcpu);
            self.told(report.vcpu, *report.registers);
            (report.vcpu, report.event)
        };
        reports.into_iter().map(one).collect()
    }

    /// No step is under way any more.
    fn cancel(&mut self) -> Result<(), TargetError> {
        self.running.locked = false;
        self.points.arrive = None;
        let flagged = self.running.steps.call_off().filter(|step| step.how == How::Flag);
        flagged.map(|step| step.thread).collect::<Vec<_>>().into_iter().try_for_each(|id| self.set_flag(id, false))
    }
}
