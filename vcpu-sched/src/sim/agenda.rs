//! What happens next: the earliest moment among a fixed number of actors (the CPUs, and the world around them).
//!
//! Each actor has one next moment, in a [tournament](super::tournament): none of the stale entries that a heap collects when timers
//! are armed and disarmed at every switch. The invariant: [`first`](Agenda::first) is the earliest moment, and of equal ones the
//! actor with the lowest number, so that a run is the same every time.

use super::tournament::Tournament;
use crate::ids::Nanos;

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) struct Agenda(Tournament<Nanos>);

impl Agenda {
    /// Actors 0 to `actors - 1`, none of which has anything to do.
    pub(super) fn new(actors: usize) -> Self {
        Self(Tournament::new(actors, Nanos::MAX, Nanos::MAX))
    }

    /// The actor's next moment; [`Nanos::MAX`] if it has none.
    pub(super) fn set(&mut self, actor: usize, when: Nanos) {
        self.0.set(actor, when);
    }

    /// The next moment and whose it is; `None` if nobody has anything to do.
    pub(super) fn first(&self) -> Option<(Nanos, usize)> {
        let (when, actor) = self.0.least();
        (when != Nanos::MAX).then_some((when, actor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_is_first_and_of_equals_the_lowest() {
        let mut agenda = Agenda::new(5);
        assert_eq!(agenda.first(), None);
        agenda.set(3, Nanos(7));
        agenda.set(4, Nanos(5));
        agenda.set(1, Nanos(5));
        assert_eq!(agenda.first(), Some((Nanos(5), 1)));
        agenda.set(1, Nanos::MAX);
        agenda.set(4, Nanos::MAX);
        assert_eq!(agenda.first(), Some((Nanos(7), 3)));
    }
}
