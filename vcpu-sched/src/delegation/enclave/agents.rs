//! How agents come and go, what they may set, and what they ask for.
//!
//! All of it is read from the agent's page, each word once. The invariant: the agent can lower the owner's limits, and
//! choose channels and tunables; nothing else of the guest's depends on that page.

use super::super::abi::{answer, request, tunables};
use super::super::layout::{halves, pair};
use super::super::life::{Action, Event as LifeEvent};
use super::super::task::{Event, Place};
use super::{Enclave, NO_SLOT, REQUEST, REQUEST_COOKIE, REQUEST_TASK, REQUEST_VALUE, SlotId, TUNABLES, WISH};
use crate::ids::{CpuId, Nanos};
use crate::sync::Ordering;

impl Enclave<'_> {
    /// Looks at the agent's page: whether it comes or goes, its tunables, its request. At every tick, and when it kicked.
    pub fn poll_agent(&mut self, now: Nanos) {
        let page = self.region.agent_page();
        // Acquire: what it prepared before.
        let (nonce, flags) = halves(page[WISH].load(Ordering::Acquire));
        let hand_off_limit = self.config.hand_off_limit;
        self.life_event(LifeEvent::Wish { nonce, flags, now, hand_off_limit }, now);
        if !self.life.is_online() {
            return;
        }
        let (tunable, timeout_ms) = halves(page[TUNABLES].load(Ordering::Relaxed));
        self.tunables = tunable & tunables::ALL;
        let limit = self.config.runnable_timeout;
        self.timeout = if timeout_ms == 0 { limit } else { limit.min(Nanos::from_millis(timeout_ms.into())) };
        self.poll_request(now);
        self.discover(now);
    }

    fn poll_request(&mut self, now: Nanos) {
        let page = self.region.agent_page();
        // Acquire: its arguments.
        let (number, op) = halves(page[REQUEST].load(Ordering::Acquire));
        if number == self.answered {
            return;
        }
        let (slot, barrier) = halves(page[REQUEST_TASK].load(Ordering::Relaxed));
        let value = page[REQUEST_VALUE].load(Ordering::Relaxed);
        let cookie = page[REQUEST_COOKIE].load(Ordering::Relaxed);
        let result = match op {
            request::ASSOCIATE => self.associate(slot, barrier, value),
            request::DISCOVER => {
                self.discovering = 0;
                answer::OK
            }
            request::ARM_TIMER => match self.cpu_mut(CpuId(slot)) {
                Some(record) => {
                    record.timer = Some((Nanos(value), cookie));
                    answer::OK
                }
                None => answer::INVALID,
            },
            // The guest frees by itself; kept apart from INVALID so that an agent may always say it.
            request::FREE if self.place(slot) == Some(Place::Gone) => answer::OK,
            request::FREE => answer::NO_TASK,
            _ => answer::INVALID,
        };
        self.answered = number;
        // Release: the agent that sees the answer sees what was done.
        self.region.guest_page()[1].store(pair(number, result), Ordering::Release);
        if result == answer::INVALID {
            self.count_refusal(now);
        }
        self.wake_agent_outside();
    }

    fn associate(&mut self, slot: SlotId, barrier: u32, channel: u64) -> u32 {
        if channel >= self.channels.len() as u64 {
            return answer::INVALID;
        }
        match self.task_mut(slot) {
            None => answer::NO_TASK,
            Some(task) if task.record.place == Place::Gone => answer::NO_TASK,
            Some(task) if task.barrier != barrier => answer::STALE,
            Some(task) if u64::from(task.channel) == channel => answer::ALREADY,
            Some(task) => {
                task.channel = channel as u32;
                answer::OK
            }
        }
    }

    /// NEW for each task, as far as there is room in its channel now; the rest at the next look, so that any number of tasks can be
    /// told of. Those that run are told when they are off; they are made to leave soon.
    fn discover(&mut self, now: Nanos) {
        while let Some(task) = self.task(self.discovering) {
            let slot = self.discovering;
            let (place, cpu) = (task.record.place, task.cpu);
            let channel = self.region.channel(task.channel);
            let room = channel.zip(self.channels.get(task.channel as usize)).map_or(0, |(memory, it)| it.room(&memory));
            if place != Place::Gone && room == 0 {
                return;
            }
            self.discovering += 1;
            match place {
                Place::Gone => continue,
                Place::Latched(on) => {
                    if let Some(record) = self.cpu_mut(on) {
                        record.latched = None;
                    }
                    self.publish_cpu(on);
                }
                Place::OnCpu(on) => {
                    if let Some(record) = self.cpu_mut(on) {
                        (record.must_resched, record.elide_preempt) = (true, false);
                    }
                    self.effects.reschedule.set(on);
                }
                Place::Blocked | Place::Queued => {}
            }
            if let Some(task) = self.task_mut(slot) {
                task.run_flags = 0;
            }
            if let Ok(tells) = self.apply(slot, Event::Discover, now) {
                self.tell_task(slot, tells, cpu, now, |_| {});
            }
        }
        self.discovering = NO_SLOT;
    }

    pub(super) fn life_event(&mut self, event: LifeEvent, now: Nanos) {
        let (life, action) = self.life.on(event);
        if matches!(action, Action::Nothing) {
            return;
        }
        let before = self.life.delegates();
        self.life = life;
        match action {
            Action::Nothing | Action::Await => {}
            Action::Start { discover } => {
                (self.refused, self.refused_since) = (0, now);
                if !before {
                    // Waiting counts from now.
                    self.restart_waiting(now);
                    self.effects.delegate = true;
                    self.effects.fall_back = None;
                }
                // A request of the last agent's isn't this one's.
                self.answered = halves(self.region.agent_page()[REQUEST].load(Ordering::Relaxed)).0;
                self.discovering = if discover { 0 } else { NO_SLOT };
            }
            Action::FallBack => self.fall_back(now),
        }
        self.publish_life();
    }

    fn restart_waiting(&mut self, now: Nanos) {
        let mut at = self.oldest;
        while let Some(task) = self.task_mut(at) {
            task.queued = now;
            at = task.newer;
        }
    }

    /// Nobody waits for an agent any more: what is latched is queued, and every CPU looks at its fair tasks.
    fn fall_back(&mut self, now: Nanos) {
        self.effects.fall_back = Some(self.life);
        self.effects.delegate = false;
        self.tunables = 0;
        self.timeout = self.config.runnable_timeout;
        for cpu in (0..self.cpus.len() as u32).map(CpuId) {
            self.displace(cpu, now);
            if let Some(record) = self.cpu_mut(cpu) {
                (record.must_resched, record.elide_preempt) = (false, false);
                record.told_to_idle = None;
                record.timer = None;
                if record.member {
                    self.effects.reschedule.set(cpu);
                }
            }
        }
        for task in &mut self.tasks {
            task.run_flags = 0;
        }
    }
}
