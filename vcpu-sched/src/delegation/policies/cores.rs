//! Core scheduling: each task has a cookie, and the CPUs that share a core never run tasks of different cookies at the same
//! time, so that nobody is spied upon through the core. A core's CPUs are decided on together, as a sync group.
//!
//! FIFO among cookies: a core that is wholly idle is given to the longest waiting task and to others with its cookie; while any
//! CPU of a core runs, its idle CPUs are only given tasks of the same cookie. A CPU for which there is none is told to idle.

use alloc::vec::Vec;

use super::{Decision, Decisions, Policy, Queue, Ready, Target, View};
use crate::ids::CpuId;

/// Whose task it is. By the task's number, which is never reused.
pub trait Cookies {
    /// Tasks with the same cookie trust each other.
    fn cookie(&self, gtid: u64) -> u64;
}

impl<F: Fn(u64) -> u64> Cookies for F {
    fn cookie(&self, gtid: u64) -> u64 {
        self(gtid)
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Cores<C> {
    cores: Vec<Vec<CpuId>>,
    cookies: C,
    queue: Queue,
}

impl<C: Cookies> Cores<C> {
    /// For cores with these CPUs, which don't overlap.
    pub fn new(cores: Vec<Vec<CpuId>>, cookies: C) -> Self {
        Self { cores, cookies, queue: Queue::default() }
    }

    fn of(cookies: &C, view: &View<'_>, slot: u32) -> Option<u64> {
        view.task(slot).map(|task| cookies.cookie(task.gtid))
    }
}

impl<C: Cookies> Policy for Cores<C> {
    fn enqueue(&mut self, _view: &View<'_>, slot: u32, _why: Ready) {
        self.queue.push(slot);
    }

    fn dequeue(&mut self, _view: &View<'_>, slot: u32) {
        self.queue.remove(slot);
    }

    fn decide(&mut self, view: &View<'_>, decisions: &mut Decisions) {
        let Self { cores, cookies, queue } = self;
        let cookies: &C = cookies;
        for core in cores {
            if queue.is_empty() {
                return;
            }
            let states = || core.iter().filter_map(|&cpu| view.cpu(cpu));
            // A transaction under way: what the core will run isn't known yet.
            if states().any(|state| state.submitted.is_some()) {
                continue;
            }
            let present = states().find_map(|state| state.current).and_then(|slot| Self::of(cookies, view, slot));
            let wanted = |cookie: Option<u64>| move |slot| cookie.is_none() || Self::of(cookies, view, slot) == cookie;
            let mut cookie = present;
            let mut chosen: Vec<(CpuId, u32)> = Vec::new();
            for &cpu in core.iter().filter(|&&cpu| view.idle.test(cpu)) {
                let Some(slot) = queue.take(wanted(cookie)) else { break };
                cookie = Self::of(cookies, view, slot);
                chosen.push((cpu, slot));
            }
            let Some(&(owner, _)) = chosen.first() else { continue };
            for &(cpu, slot) in &chosen {
                decisions.push(Decision { cpu, target: Target::Task(slot), run_flags: 0, group: Some(owner) });
            }
        }
    }
}
