//! A simulated guest for agents to decide for: CPUs and tasks in virtual time, over the real enclave and the real memory. The
//! same seed, the same run. The invariant is checked at every step: each task is in one place, and what runs was latched or,
//! without an agent, may run.

use std::sync::atomic::AtomicU64;

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::delegation::agent::{Agent, Options};
use vcpu_sched::delegation::enclave::{Arrival, Config, Enclave, NewTask, Occasion, Pick};
use vcpu_sched::delegation::layout::{Layout, Region, Sizes};
use vcpu_sched::delegation::life::Life;
use vcpu_sched::delegation::policies::Policy;
use vcpu_sched::delegation::task::{Leave, Place};
use vcpu_sched::delegation::txn::Rest;
use vcpu_sched::ids::{CpuId, Nanos};

pub const STEP: Nanos = Nanos::from_micros(10);
const TICK: u64 = 100;

/// What a task does: runs for so many steps, then waits for so many, so often; then it ends.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    pub run: u64,
    pub wait: u64,
    pub rounds: u64,
    pub nice: i16,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doing {
    /// Steps left of this run.
    Runs(u64),
    /// The step at which it wakes.
    Waits(u64),
    Ended,
}

#[derive(Clone, Debug)]
pub struct Task {
    pub slot: u32,
    pub gtid: u64,
    pub script: Script,
    pub doing: Doing,
    pub rounds: u64,
    pub ran: u64,
    /// The step at which it ended.
    pub ended: u64,
    /// Of the last wake-up, until it ran; and the longest.
    pub waiting_since: Option<u64>,
    pub longest_wait: u64,
}

pub fn memory(sizes: Sizes) -> (&'static [AtomicU64], Layout) {
    let layout = Layout::new(sizes).expect("sizes");
    let words: Vec<AtomicU64> = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
    (words.leak(), layout)
}

pub struct Guest {
    pub enclave: Enclave<'static>,
    pub region: Region<'static>,
    pub words: &'static [AtomicU64],
    pub tasks: Vec<Task>,
    pub current: Vec<Option<usize>>,
    since: Vec<u64>,
    kicked: Vec<bool>,
    pub step: u64,
    pub kicks: u64,
    pub fell_back: Option<Life>,
    /// What each CPU ran at each step, if wanted.
    pub history: Option<Vec<Vec<Option<u64>>>>,
    next_gtid: u64,
}

impl Guest {
    pub fn new(cpus: u32) -> Self {
        Self::with(Config::new(1, CpuMask::full(cpus)), cpus, 64)
    }

    pub fn with(config: Config, cpus: u32, channel_len: u32) -> Self {
        let (words, layout) = memory(Sizes { cpus, tasks: 256, channels: 2, channel_len, pick_len: 4 });
        Self::over(words, layout, config)
    }

    /// Over zeroed memory that may be shared with another process.
    pub fn over(words: &'static [AtomicU64], layout: Layout, config: Config) -> Self {
        let cpus = layout.sizes().cpus;
        let region = Region::new(words, layout).expect("long enough");
        let mut enclave = Enclave::new(region, config);
        for cpu in (0..cpus).map(CpuId) {
            enclave.set_online(cpu, true, Nanos::ZERO);
            assert!(!enclave.rest(cpu, Rest::Halts), "nobody can have asked for anything");
        }
        let none = vec![None; cpus as usize];
        Self {
            enclave,
            region: Region::open(words).expect("published"),
            words,
            tasks: Vec::new(),
            current: none,
            since: vec![0; cpus as usize],
            kicked: vec![false; cpus as usize],
            step: 0,
            kicks: 0,
            fell_back: None,
            history: None,
            next_gtid: 100,
        }
    }

    pub fn now(&self) -> Nanos {
        STEP.saturating_mul(self.step)
    }

    pub fn spawn(&mut self, script: Script) -> usize {
        self.next_gtid += 1;
        let count = self.current.len();
        let new = NewTask {
            gtid: self.next_gtid,
            parent: 0,
            nice: script.nice,
            allowed: CpuMask::full(count as u32),
            runtime: Nanos::ZERO,
            cpu: CpuId((self.tasks.len() % count) as u32),
            arrival: Arrival::Queued,
        };
        let slot = self.enclave.join(&new, self.now()).expect("room");
        self.tasks.push(Task {
            slot,
            gtid: new.gtid,
            script,
            doing: Doing::Runs(script.run),
            rounds: script.rounds,
            ran: 0,
            ended: 0,
            waiting_since: Some(self.step),
            longest_wait: 0,
        });
        self.tasks.len() - 1
    }

    fn by_slot(&self, slot: u32) -> Option<usize> {
        self.tasks.iter().position(|task| task.slot == slot && task.doing != Doing::Ended)
    }

    pub fn kick(&mut self, cpu: CpuId) {
        self.kicks += 1;
        self.kicked[cpu.index()] = true;
    }

    fn effects(&mut self) {
        let effects = self.enclave.take_effects();
        effects.reschedule.iter().for_each(|cpu| self.kicked[cpu.index()] = true);
        self.fell_back = effects.fall_back.or(self.fell_back);
        if effects.delegate {
            self.fell_back = None;
        }
    }

    /// The schedule() of a CPU: who leaves has told so before; `prev` may go on.
    fn schedule(&mut self, cpu: usize, prev: Option<usize>) {
        let now = self.now();
        let id = CpuId(cpu as u32);
        let prev_slot = prev.map(|task| self.tasks[task].slot);
        let pick = self.enclave.pick(id, prev_slot, now);
        let next = match pick {
            Pick::Keep(slot) => {
                assert_eq!(Some(slot), prev_slot);
                return;
            }
            Pick::Task(slot) => {
                assert_eq!(self.enclave.place(slot), Some(Place::Latched(id)), "it runs without having been latched");
                self.by_slot(slot)
            }
            // Without an agent they run as fair ones; here: the first that waits.
            Pick::Idle if !self.enclave.delegates() => {
                let waits =
                    |task: &Task| self.enclave.place(task.slot) == Some(Place::Queued) && task.doing != Doing::Ended;
                match prev {
                    Some(_) => return,
                    None => self.tasks.iter().position(waits),
                }
            }
            Pick::Agent | Pick::Idle => None,
        };
        if let Some(prev) = prev {
            let ran = STEP.saturating_mul(self.step - self.since[cpu]);
            self.enclave.leave(self.tasks[prev].slot, Leave::Preempt, ran, now).expect("it ran");
        }
        self.current[cpu] = next;
        match next {
            Some(task) => {
                self.since[cpu] = self.step;
                self.enclave.switched_in(self.tasks[task].slot, id, now).expect("it was picked");
                if let Some(since) = self.tasks[task].waiting_since.take() {
                    let waited = self.step - since;
                    self.tasks[task].longest_wait = self.tasks[task].longest_wait.max(waited);
                }
            }
            None => {
                if self.enclave.rest(id, Rest::Halts) {
                    self.kicked[cpu] = true;
                }
            }
        }
        self.effects();
    }

    /// One step of time on all CPUs.
    pub fn advance(&mut self) {
        let now = self.now();
        for task in 0..self.tasks.len() {
            if self.tasks[task].doing == Doing::Waits(self.step) {
                self.tasks[task].doing = Doing::Runs(self.tasks[task].script.run);
                self.tasks[task].waiting_since = Some(self.step);
                let waker = CpuId((self.step % self.current.len() as u64) as u32);
                let target = self.enclave.wake(self.tasks[task].slot, waker, false, now).expect("it is in the enclave");
                assert!(target.is_some(), "it waited");
            }
        }
        for cpu in 0..self.current.len() {
            let id = CpuId(cpu as u32);
            let mut resched = self.step % TICK == cpu as u64 % TICK && self.enclave.tick(id, now);
            self.effects();
            if std::mem::take(&mut self.kicked[cpu]) {
                self.enclave.poll_agent(now);
                let _ = self.enclave.poll(id, Occasion::Kick, now);
                resched = true;
            }
            let mut prev = self.current[cpu];
            if let Some(task) = prev
                && let Doing::Runs(left) = &mut self.tasks[task].doing
            {
                *left -= 1;
                let over = *left == 0;
                self.tasks[task].ran += 1;
                if over {
                    self.stop(cpu, task);
                    (prev, resched) = (None, true);
                }
            }
            if resched || prev.is_none() && !self.enclave.delegates() {
                self.schedule(cpu, prev);
            }
            self.effects();
        }
        if let Some(history) = &mut self.history {
            history.push(self.current.iter().map(|task| task.map(|task| self.tasks[task].gtid)).collect());
        }
        self.step += 1;
    }

    fn stop(&mut self, cpu: usize, task: usize) {
        let now = self.now();
        let ran = STEP.saturating_mul(self.step - self.since[cpu]);
        self.current[cpu] = None;
        let at = &mut self.tasks[task];
        at.rounds -= 1;
        if at.rounds == 0 {
            (at.doing, at.ended) = (Doing::Ended, self.step);
            self.enclave.die(at.slot, now).expect("it ran");
        } else if at.script.wait == 0 {
            at.doing = Doing::Runs(at.script.run);
            self.enclave.leave(at.slot, Leave::Yield, ran, now).expect("it ran");
        } else {
            at.doing = Doing::Waits(self.step + at.script.wait);
            self.enclave.leave(at.slot, Leave::Blocked, ran, now).expect("it ran");
        }
    }

    /// Each task is in exactly one place, which agrees with what it does.
    pub fn check(&self) {
        assert!(self.enclave.is_consistent());
        for (n, task) in self.tasks.iter().enumerate() {
            let runs: Vec<usize> = (0..self.current.len()).filter(|&cpu| self.current[cpu] == Some(n)).collect();
            assert!(runs.len() <= 1, "on two CPUs: {task:?}");
            let place = self.enclave.place(task.slot).expect("it was in the enclave");
            match task.doing {
                Doing::Ended => assert!(runs.is_empty()),
                Doing::Waits(_) => assert_eq!((place, runs.len()), (Place::Blocked, 0), "{task:?}"),
                Doing::Runs(_) => match place {
                    Place::OnCpu(cpu) => assert_eq!(runs, [cpu.index()], "{task:?}"),
                    Place::Queued | Place::Latched(_) => assert!(runs.is_empty(), "{task:?}"),
                    Place::Blocked | Place::Gone => panic!("lost: {task:?} is {place:?}"),
                },
            }
        }
    }

    pub fn all_ended(&self) -> bool {
        self.tasks.iter().all(|task| task.doing == Doing::Ended)
    }

    /// Guest and agent by turns, until all tasks have ended, for at most so many steps.
    pub fn run_with<P: Policy>(&mut self, agent: &mut Agent<'_, P>, steps: u64) {
        for _ in 0..steps {
            if self.all_ended() {
                return;
            }
            self.advance();
            self.turn(agent);
            self.check();
        }
        panic!(
            "not done after {steps} steps: {:?}",
            self.tasks.iter().filter(|task| task.doing != Doing::Ended).collect::<Vec<_>>()
        );
    }

    /// Turns of the agent until it has nothing to do.
    pub fn turn<P: Policy>(&mut self, agent: &mut Agent<'_, P>) {
        let now = self.now();
        for _ in 0..100 {
            let mut kicks = Vec::new();
            let busy = agent.step(now, &mut |cpu| kicks.push(cpu)).unwrap_or_else(|error| panic!("{error} at {now:?}"));
            kicks.into_iter().for_each(|cpu| self.kick(cpu));
            if !busy {
                return;
            }
        }
    }
}

pub fn options(nonce: u32) -> Options {
    Options { nonce, sleeps: false, tunables: 0, runnable_timeout: 0 }
}

/// An agent that is there before the first step.
pub fn agent<P: Policy>(guest: &mut Guest, policy: P) -> Agent<'static, P> {
    let region = Region::open(guest.words).expect("published");
    let agent = Agent::attach(region, options(7), policy).expect("nobody else");
    guest.enclave.poll_agent(Nanos::ZERO);
    guest.effects();
    agent
}
