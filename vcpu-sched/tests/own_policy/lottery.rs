//! Lottery scheduling (Waldspurger and Weihl, 1994): each task holds as many tickets as its weight; a drawn one runs next.
//! The invariant: the chance to be picked is the part of all tickets that a task holds.

use vcpu_sched::ids::Nanos;
use vcpu_sched::policy::{EnqueueReason, Entity, Policy};

const SLICE: Nanos = Nanos::from_millis(5);

pub struct Lottery<E> {
    tasks: Vec<E>,
    random: u64,
}

impl<E> Lottery<E> {
    /// The same seed (not 0), the same draws.
    pub fn new(seed: u64) -> Self {
        Self { tasks: Vec::new(), random: seed }
    }

    /// Marsaglia's xorshift64: this crate's policies have no source of randomness but their own.
    fn draw(&mut self, tickets: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % tickets
    }
}

impl<E: Entity> Policy<E> for Lottery<E> {
    fn enqueue(&mut self, e: E, _why: EnqueueReason, _now: Nanos) {
        self.tasks.push(e);
    }

    fn dequeue(&mut self, e: &E) -> Option<E> {
        self.steal(|there| there.id() == e.id())
    }

    fn pick_next(&mut self, _now: Nanos) -> Option<E> {
        let tickets = |e: &E| u64::from(e.sched().weight());
        let all: u64 = self.tasks.iter().map(tickets).sum();
        let mut drawn = if all == 0 { return None } else { self.draw(all) };
        self.steal(|e| {
            let wins = drawn < tickets(e);
            drawn = drawn.saturating_sub(tickets(e));
            wins
        })
    }

    fn len(&self) -> usize {
        self.tasks.len()
    }

    fn tick(&mut self, _current: &E, ran: Nanos) -> bool {
        ran >= SLICE && !self.tasks.is_empty()
    }

    fn wakeup_preempts(&self, _current: &E, _woken: &E) -> bool {
        false // the next draw comes soon enough
    }

    fn slice(&self, _current: &E) -> Option<Nanos> {
        (!self.tasks.is_empty()).then_some(SLICE)
    }

    fn steal(&mut self, wanted: impl FnMut(&E) -> bool) -> Option<E> {
        let at = self.tasks.iter().position(wanted)?;
        Some(self.tasks.swap_remove(at))
    }
}
