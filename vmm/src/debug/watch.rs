//! Watched memory of programs: what is watched, and whether it has changed.
//!
//! Where the host's debug registers don't watch, the guest's kernel steps the program and compares (`vcpu_sched::taskdebug`);
//! [`super::run`] sets the trap flags and asks [`Watches::changed`] when something has stopped. Invariants: a watch is one process's; no
//! more is accepted than the guest has room for; what was told once isn't told again.

use vcpu_sched::taskdebug::{WATCH_BYTES, WATCHES, WATCHES_AT, Watch};
use vm_memory::{Bytes, GuestAddress};

use super::memory::{Space, USER_HALF};
use crate::memory::Ram;

/// The longest value that is watched: one that a slot each of whose bytes fits.
const MAX_LENGTH: u64 = 64;

/// Why something can't be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// No program.
    #[error("only a program's memory can be watched: select one of its threads")]
    NoProgram,
    /// The guest's kernel knows nothing of it.
    #[error("this guest's kernel can't watch memory")]
    Unsupported,
    /// Too many.
    #[error("no more memory can be watched: there is room for {WATCHES} words")]
    NoRoom,
}

/// One of a client's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Watched {
    address: u64,
    length: u64,
    process: u32,
    /// What was there.
    bytes: Vec<u8>,
}

impl Watched {
    /// In pieces that the guest's kernel can read at once.
    fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let (mut at, mut rest) = (self.address, self.bytes.as_slice());
        std::iter::from_fn(move || {
            let length = [8, 4, 2, 1].into_iter().find(|length| *length <= rest.len())?;
            let (piece, left) = rest.split_at(length);
            let found = (at, piece);
            (at, rest) = (at.wrapping_add(length as u64), left);
            Some(found)
        })
    }
}

/// All of a session.
#[derive(Debug, Default)]
pub struct Watches(Vec<Watched>);

impl Watches {
    /// Adds one. `process`: of the selected thread, with its memory. `room`: bytes of the guest's area.
    pub fn insert(
        &mut self,
        (address, length): (u64, u64),
        process: Option<(u32, Space<'_>)>,
        room: u64,
    ) -> Result<(), WatchError> {
        let (process, space) = process.filter(|_| address < USER_HALF).ok_or(WatchError::NoProgram)?;
        if room < (WATCHES_AT + WATCHES * WATCH_BYTES) as u64 {
            return Err(WatchError::Unsupported);
        }
        if length == 0 || length > MAX_LENGTH {
            return Err(WatchError::NoRoom);
        }
        if self.0.iter().any(|known| (known.address, known.length, known.process) == (address, length, process)) {
            return Ok(());
        }
        let mut bytes = space.read(address, length as usize);
        // What isn't there yet is zero when it comes, if it isn't a file's.
        bytes.resize(length as usize, 0);
        let new = Watched { address, length, process, bytes };
        if self.slots() + new.pieces().count() > WATCHES {
            return Err(WatchError::NoRoom);
        }
        self.0.push(new);
        Ok(())
    }

    /// Takes one away.
    pub fn remove(&mut self, address: u64, length: u64) {
        self.0.retain(|known| (known.address, known.length) != (address, length));
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether nothing is watched.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether something of this process is.
    pub fn of(&self, process: Option<u32>) -> bool {
        self.0.iter().any(|known| Some(known.process) == process)
    }

    fn slots(&self) -> usize {
        self.0.iter().map(|known| known.pieces().count()).sum()
    }

    /// The address of a watch whose memory has changed since this was asked last. `space`: a process's memory.
    pub fn changed<'a>(&mut self, space: impl Fn(u32) -> Option<Space<'a>>) -> Option<u64> {
        let mut found = None;
        for known in &mut self.0 {
            let now = space(known.process).map(|space| space.read(known.address, known.bytes.len()));
            // What isn't mapped (any more) has no value.
            if let Some(now) = now.filter(|now| now.len() == known.bytes.len() && *now != known.bytes) {
                known.bytes = now;
                found = found.or(Some(known.address));
            }
        }
        found
    }

    /// Tells the guest's kernel what to compare. `area`: guest-physical address.
    pub fn write(&self, ram: &Ram, area: u64) {
        let used = self.0.iter().flat_map(|known| known.pieces().map(|piece| (known.process, piece)));
        let mut slots: Vec<[u8; WATCH_BYTES]> = used
            .map(|(process, (address, piece))| {
                let mut value = [0; 8];
                value[..piece.len()].copy_from_slice(piece);
                Watch::bytes(address, u64::from_le_bytes(value), piece.len() as u32, process)
            })
            .collect();
        slots.resize(WATCHES, [0; WATCH_BYTES]);
        // A guest that names no memory of its own isn't helped.
        let _ = ram.write_slice(slots.as_flattened(), GuestAddress(area.saturating_add(WATCHES_AT as u64)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: u64 = (WATCHES_AT + WATCHES * WATCH_BYTES) as u64;

    fn ram() -> Ram {
        Ram::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    #[test]
    fn a_change_is_told_once() {
        let ram = ram();
        let mut watches = Watches::default();
        let space = || Space::physical(&ram);
        watches.insert((0x1003, 13), Some((7, space())), ROOM).unwrap();
        assert_eq!(watches.slots(), 3, "8, 4 and 1");
        assert!(watches.of(Some(7)) && !watches.of(Some(8)) && !watches.of(None));
        assert_eq!(watches.changed(|_| Some(space())), None);
        ram.write_obj(1u8, GuestAddress(0x100f)).unwrap();
        assert_eq!(watches.changed(|process| (process == 8).then(space)), None, "not that process's");
        assert_eq!(watches.changed(|_| Some(space())), Some(0x1003));
        assert_eq!(watches.changed(|_| Some(space())), None);
        watches.remove(0x1003, 13);
        assert!(watches.is_empty());
    }

    #[test]
    fn the_guest_is_told_what_fits_and_no_more() {
        let ram = ram();
        let mut watches = Watches::default();
        let space = || Space::physical(&ram);
        ram.write_obj(0x1122_3344_5566_7788u64, GuestAddress(0x1000)).unwrap();
        for n in 0..WATCHES as u64 {
            watches.insert((0x1000 + 8 * n, 8), Some((7, space())), ROOM).unwrap();
        }
        assert_eq!(watches.insert((0x2000, 1), Some((7, space())), ROOM), Err(WatchError::NoRoom));
        assert_eq!(watches.insert((0x1000, 8), Some((7, space())), ROOM), Ok(()), "it is there already");
        watches.write(&ram, 0x8000);
        let first: [u8; WATCH_BYTES] = ram.read_obj(GuestAddress(0x8000 + WATCHES_AT as u64)).unwrap();
        assert_eq!(first, Watch::bytes(0x1000, 0x1122_3344_5566_7788, 8, 7));
        watches.clear();
        watches.write(&ram, 0x8000);
        let first: [u8; WATCH_BYTES] = ram.read_obj(GuestAddress(0x8000 + WATCHES_AT as u64)).unwrap();
        assert_eq!(first, [0; WATCH_BYTES]);
        watches.write(&ram, u64::MAX);
    }

    #[test]
    fn what_is_no_program_s_is_refused() {
        let ram = ram();
        let mut watches = Watches::default();
        let program = || Some((7, Space::physical(&ram)));
        assert_eq!(watches.insert((0x1000, 8), None, ROOM), Err(WatchError::NoProgram));
        assert_eq!(watches.insert((!0xfff, 8), program(), ROOM), Err(WatchError::NoProgram));
        assert_eq!(watches.insert((0x1000, 8), program(), 4), Err(WatchError::Unsupported));
        assert_eq!(watches.insert((0x1000, 65), program(), ROOM), Err(WatchError::NoRoom));
    }
}
