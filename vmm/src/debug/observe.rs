//! Programs under observation while they run: watched memory and caught system calls.
//!
//! The guest's kernel does the comparing and the telling (`vcpu_sched::taskdebug`); here it is told what is wanted, the trap flags of
//! the programs concerned are set before the guest goes on and cleared when it stands still, and what it tells is judged. Called by
//! [`super::run`]. Invariant: while a client steps a thread nothing is watched but by looking afterwards, so that every trap then is the
//! step's.

use vcpu_sched::taskdebug::{event, flags};

use super::hub::Event;
use super::memory::Space;
use super::stop::{Stop, Why, signal};
use super::target::{Target, TargetError};
use super::watch::WatchError;

/// System calls by number that stop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Calls {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// These.
    These(Vec<u64>),
}

impl Calls {
    /// Whether this one does.
    pub fn stop_at(&self, number: u64) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::These(numbers) => numbers.contains(&number),
        }
    }
}

impl Target {
    /// Watches memory of a thread's program.
    pub fn watch(&mut self, id: u32, address: u64, length: u64) -> Result<(), WatchError> {
        let room = self.debug_places.map_or(0, |place| place.len);
        let thread = self.thread(id).map_err(|_| WatchError::NoProgram)?;
        let program = thread.process.map(|process| (process, Space::new(&self.machine.ram, thread.root)));
        self.watches.insert((address, length), program, room)
    }

    /// What the guest's kernel shall tell from now on, the machine standing still. `stepped`: some thread is stepped.
    pub(super) fn observe(&mut self, stepped: bool) -> Result<u32, TargetError> {
        let calls = if matches!(self.running.calls, Calls::None) { 0 } else { flags::SYSCALLS };
        self.running.watching = !stepped && !self.watches.is_empty();
        let Some(place) = self.debug_places.filter(|_| self.running.watching) else { return Ok(calls) };
        self.watches.write(&self.machine.ram, place.address);
        self.flag_watched(true)?;
        Ok(calls | flags::WATCH)
    }

    /// The machine has been stopped: no trap flag is left in it.
    pub(super) fn observe_no_more(&mut self) -> Result<(), TargetError> {
        if self.running.watching { self.flag_watched(false) } else { Ok(()) }
    }

    fn flag_watched(&mut self, on: bool) -> Result<(), TargetError> {
        let watched = self.threads.iter().filter(|thread| thread.user && self.watches.of(thread.process));
        let ids: Vec<u32> = watched.map(|thread| thread.id).collect();
        ids.into_iter().try_for_each(|id| self.set_flag(id, on))
    }

    /// What a stop is when watched memory has changed. `thread`: whose trap it was, if anybody's.
    pub(super) fn with_watches(&mut self, report: Option<Stop>, thread: Option<u32>) -> Option<Stop> {
        let (roots, ram) = (self.roots(), &self.machine.ram);
        let space = |process| {
            let root = roots.iter().find(|(known, _)| *known == Some(process))?.1;
            Some(Space::new(ram, root))
        };
        let Some(address) = self.watches.changed(space) else { return report };
        let why = Why::Watch(address);
        match report {
            // A fault, Ctrl-C or a panic is more important; the client compares by itself.
            Some(stop) if stop.signal != signal::TRAP => Some(stop),
            Some(stop) => Some(Stop { why, ..stop }),
            None => thread.map(|thread| Stop { thread, signal: signal::TRAP, why }),
        }
    }

    /// Whether an event is a system call that nobody wants to hear of.
    pub(super) fn is_idle_call(&self, event: &Event) -> bool {
        matches!(event, Event::Rang { event: event::SYSCALL | event::SYSCALL_RETURN, about, .. }
            if !self.running.calls.stop_at(*about))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_chosen_by_number() {
        assert!(!Calls::None.stop_at(1) && Calls::All.stop_at(1));
        let these = Calls::These(vec![1, 59]);
        assert!(these.stop_at(59) && !these.stop_at(60));
    }
}
