//! What happens next: the earliest moment among a fixed number of actors (the CPUs, and the world around them).
//!
//! A tournament tree: each actor has one next moment, and changing it costs one walk to the root, without the stale entries
//! that a heap collects when timers are armed and disarmed at every switch. The invariant: [`first`](Agenda::first) is the
//! earliest moment, and of equal ones the actor with the lowest number, so that a run is the same every time.

use alloc::vec;
use alloc::vec::Vec;

use crate::ids::Nanos;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Agenda {
    /// By actor; padded to a power of two with [`Nanos::MAX`].
    when: Vec<Nanos>,
    /// `winner[i]` is the actor that wins among the leaves under node `i`; the root is 1.
    winner: Vec<u32>,
}

impl Agenda {
    /// Actors 0 to `actors - 1`, none of which has anything to do.
    pub fn new(actors: usize) -> Self {
        let leaves = actors.next_power_of_two().max(2);
        let mut winner = vec![0; leaves];
        for node in (1..leaves).rev() {
            winner[node] = if node >= leaves / 2 { (2 * node - leaves) as u32 } else { winner[2 * node] };
        }
        Self { when: vec![Nanos::MAX; leaves], winner }
    }

    /// The actor's next moment; [`Nanos::MAX`] if it has none.
    pub fn set(&mut self, actor: usize, when: Nanos) {
        if core::mem::replace(&mut self.when[actor], when) == when {
            return;
        }
        let leaves = self.when.len();
        let mut node = (actor + leaves) / 2;
        let pair = actor & !1;
        let mut best = self.better(pair as u32, pair as u32 + 1);
        loop {
            self.winner[node] = best;
            if node == 1 {
                return;
            }
            let sibling = self.winner[node ^ 1];
            best = if node & 1 == 0 { self.better(best, sibling) } else { self.better(sibling, best) };
            node /= 2;
        }
    }

    /// The earlier of two actors; `left`, the lower number, if they are equal.
    fn better(&self, left: u32, right: u32) -> u32 {
        if self.when[right as usize] < self.when[left as usize] { right } else { left }
    }

    /// The next moment and whose it is; `None` if nobody has anything to do.
    pub fn first(&self) -> Option<(Nanos, usize)> {
        let actor = self.winner[1] as usize;
        let when = self.when[actor];
        (when != Nanos::MAX).then_some((when, actor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_first_is_the_least(
            actors in 1_usize..70,
            steps in prop::collection::vec((any::<prop::sample::Index>(), 0_u64..20), 0..200),
        ) {
            let mut agenda = Agenda::new(actors);
            let mut model = vec![Nanos::MAX; actors];
            prop_assert_eq!(agenda.first(), None);
            for (actor, when) in steps {
                let when = if when == 0 { Nanos::MAX } else { Nanos(when) };
                let actor = actor.index(actors);
                agenda.set(actor, when);
                model[actor] = when;
                let least = model.iter().copied().enumerate().min_by_key(|&(i, w)| (w, i));
                let expected = least.filter(|&(_, w)| w != Nanos::MAX).map(|(i, w)| (w, i));
                prop_assert_eq!(agenda.first(), expected);
            }
        }
    }
}
