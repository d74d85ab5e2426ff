//! Breakpoints: which there are, and where their `int3` stands in guest memory.
//!
//! A breakpoint is kept by (home, address): the kernel, one process, or, if it was set before there was one, any process. The
//! `int3` bytes are in memory only while the guest runs: [`Points::plant`] puts them there before it goes on and
//! [`Points::lift`] takes them away when it has stopped, so a client never reads one, and none is left when it goes.
//! Invariants: a byte of guest memory is changed by at most one plant, which keeps the original; what is no longer an `int3` when it
//! is lifted was written by the guest and is left alone.
//!
//! A client that steps one thread over its breakpoint takes the breakpoint away for that, and puts it back afterwards. If others have to run
//! meanwhile, it is guarded: an `int3` is there all the same, and whoever meets it waits.

use std::collections::{BTreeMap, HashMap};

use vm_memory::{Bytes, GuestAddress};

use super::command::Kind;
use super::memory::{KERNEL_HALF, Space};
use crate::memory::Ram;

/// `int3`.
const INT3: u8 = 0xcc;
/// Breakpoints at a time.
pub const MAX_POINTS: usize = 4096;
/// Debug registers of a CPU (Intel SDM vol. 3B, 18.2).
pub const MAX_HARDWARE: usize = 4;

/// Whose address it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// The kernel's, which all share.
    Kernel,
    /// This process's.
    Process(u32),
    /// Whatever program is there.
    Anyone,
}

/// A breakpoint.
#[derive(Debug, Clone)]
pub struct Point {
    /// Whose address.
    pub home: Home,
    /// Stop only if one of these bytecodes is true, or there is none.
    pub conditions: Vec<Vec<u8>>,
}

/// How a kernel address is found before paging is on: virtual start, physical start, length of each segment.
pub type Segments = Vec<(u64, u64, u64)>;

/// All breakpoints of a session.
#[derive(Debug, Default)]
pub struct Points {
    points: BTreeMap<(Kind, u64), Point>,
    /// Clients take breakpoints away at every stop and set them again with whatever thread is selected then: the first home
    /// stays.
    homes: HashMap<u64, Home>,
    /// Original bytes by guest-physical address.
    planted: HashMap<u64, u8>,
    /// Of programs, and taken away since all ran the last time as they liked.
    guarded: BTreeMap<u64, Home>,
    /// The guarded addresses are planted too.
    pub guarding: bool,
    segments: Segments,
    /// An address of the kernel where a thread that is stepped will get a CPU.
    pub arrive: Option<u64>,
}

/// What [`Points::plant`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planted {
    /// Some breakpoint of a program may still come to a page that isn't there yet.
    pub waiting: bool,
}

impl Points {
    /// For a guest whose kernel has these segments.
    pub fn new(segments: Segments) -> Self {
        Self { segments, ..Self::default() }
    }

    /// Adds one, or replaces its conditions. `process`: of the selected thread. `false`: there is no room.
    pub fn insert(&mut self, kind: Kind, address: u64, process: Option<u32>, conditions: Vec<Vec<u8>>) -> bool {
        let new = !self.points.contains_key(&(kind, address));
        let hardware = kind == Kind::Hardware && address >= KERNEL_HALF;
        if new && (self.points.len() >= MAX_POINTS || hardware && self.hardware().count() >= MAX_HARDWARE) {
            return false;
        }
        let home = *self.homes.entry(address).or_insert(match process {
            _ if address >= KERNEL_HALF => Home::Kernel,
            Some(process) => Home::Process(process),
            None => Home::Anyone,
        });
        self.points.insert((kind, address), Point { home, conditions });
        self.guarded.remove(&address);
        true
    }

    /// Takes one away.
    pub fn remove(&mut self, kind: Kind, address: u64) {
        let removed = self.points.remove(&(kind, address));
        if let Some(point) = removed.filter(|_| address < KERNEL_HALF && self.at(address).next().is_none()) {
            self.guarded.insert(address, point.home);
        }
    }

    /// All run as they like, and what was taken away is gone.
    pub fn guard_no_more(&mut self) {
        self.guarded.clear();
    }

    /// Forgets all; call it with nothing planted.
    pub fn clear(&mut self) {
        self.points.clear();
        self.homes.clear();
        self.guarded.clear();
    }

    /// The breakpoints at an address.
    pub fn at(&self, address: u64) -> impl Iterator<Item = (Kind, &Point)> {
        [Kind::Software, Kind::Hardware]
            .into_iter()
            .filter_map(move |kind| Some((kind, self.points.get(&(kind, address))?)))
    }

    /// Where debug registers are wanted: in the kernel, where they work on every host. A program's hardware breakpoints are
    /// planted like the others.
    pub fn hardware(&self) -> impl Iterator<Item = u64> {
        self.points.keys().filter(|(kind, address)| *kind == Kind::Hardware && *address >= KERNEL_HALF).map(|key| key.1)
    }

    /// Addresses to be planted.
    fn soft(&self) -> impl Iterator<Item = (u64, Home)> {
        let soft = self.points.iter().filter(|((kind, address), _)| {
            *kind == Kind::Software || *kind == Kind::Hardware && *address < KERNEL_HALF
        });
        soft.map(|((_, address), point)| (*address, point.home))
            .chain(self.arrive.map(|address| (address, Home::Kernel)))
            .chain(self.guarded.iter().filter(|_| self.guarding).map(|(address, home)| (*address, *home)))
    }

    /// Kernel addresses with an `int3`.
    pub fn kernel(&self) -> impl Iterator<Item = u64> {
        self.soft().filter(|(_, home)| *home == Home::Kernel).map(|(address, _)| address)
    }

    /// Addresses of programs where an `int3` is, or would be if there were a page; none while the guest stands still.
    pub fn in_programs(&self) -> impl Iterator<Item = u64> {
        self.soft()
            .filter(|(address, _)| *address < KERNEL_HALF && !self.planted.is_empty())
            .map(|(address, _)| address)
    }

    /// Puts `int3`s where they belong, but not at `except`. `roots`: the address spaces by process, and any for the kernel.
    pub fn plant(&mut self, ram: &Ram, roots: &[(Option<u32>, u64)], except: &[u64]) -> Planted {
        let mut waiting = false;
        let mut places = Vec::new();
        for (address, home) in self.soft().filter(|(address, _)| !except.contains(address)) {
            match home {
                Home::Kernel => places.extend(self.kernel_place(ram, roots, address)),
                Home::Process(process) => {
                    let root = roots.iter().find(|(p, _)| *p == Some(process));
                    let place = root.and_then(|(_, root)| Space::new(ram, *root).translate(address));
                    waiting |= place.is_none();
                    places.extend(place.map(|place| place.physical));
                }
                Home::Anyone => {
                    // Programs may still come.
                    waiting = true;
                    let spaces = roots.iter().filter(|(process, _)| process.is_some());
                    places.extend(
                        spaces.filter_map(|(_, root)| Some(Space::new(ram, *root).translate(address)?.physical)),
                    );
                }
            }
        }
        for physical in places {
            self.put(ram, physical);
        }
        Planted { waiting }
    }

    fn kernel_place(&self, ram: &Ram, roots: &[(Option<u32>, u64)], address: u64) -> Option<u64> {
        let mapped = roots.iter().find_map(|(_, root)| Space::new(ram, *root).translate(address));
        mapped.map(|place| place.physical).or_else(|| {
            self.segments.iter().find_map(|(start, physical, length)| {
                let offset = address.checked_sub(*start).filter(|offset| offset < length)?;
                physical.checked_add(offset)
            })
        })
    }

    fn put(&mut self, ram: &Ram, physical: u64) {
        if self.planted.contains_key(&physical) {
            return;
        }
        let Ok(original) = ram.read_obj::<u8>(GuestAddress(physical)) else { return };
        if ram.write_obj(INT3, GuestAddress(physical)).is_ok() {
            self.planted.insert(physical, original);
        }
    }

    /// Takes all `int3`s out of memory.
    pub fn lift(&mut self, ram: &Ram) {
        for (physical, original) in self.planted.drain() {
            let place = GuestAddress(physical);
            if matches!(ram.read_obj(place), Ok(INT3)) {
                // It was readable a moment ago, and guest memory doesn't go away.
                let _ = ram.write_obj(original, place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u64 = 0x40_1234;
    const KERNEL: u64 = 0xffff_ffff_8010_0010;

    /// Two processes whose text is the same frame, 0x9000; tables at 0x1000 and 0x5000.
    fn ram() -> Ram {
        let ram = Ram::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        for root in [0x1000, 0x5000] {
            let put =
                |table: u64, index: u64, entry: u64| ram.write_obj(entry, GuestAddress(table + 8 * index)).unwrap();
            put(root, 0, (root + 0x1000) | 7);
            put(root + 0x1000, 0, (root + 0x2000) | 7);
            put(root + 0x2000, 2, (root + 0x3000) | 7);
            put(root + 0x3000, 1, 0x9000 | 5);
        }
        ram.write_obj(0x55u8, GuestAddress(0x9234)).unwrap();
        ram
    }

    fn byte(ram: &Ram, place: u64) -> u8 {
        ram.read_obj(GuestAddress(place)).unwrap()
    }

    const ROOTS: [(Option<u32>, u64); 2] = [(Some(7), 0x1000), (Some(8), 0x5000)];

    #[test]
    fn an_int3_is_there_only_while_the_guest_runs() {
        let ram = ram();
        let mut points = Points::new(vec![(0xffff_ffff_8010_0000, 0x10_0000, 0x1000)]);
        assert!(points.insert(Kind::Software, USER, Some(7), vec![]));
        assert!(points.insert(Kind::Software, KERNEL, Some(7), vec![]));
        assert_eq!(points.plant(&ram, &ROOTS, &[]), Planted { waiting: false });
        assert_eq!((byte(&ram, 0x9234), byte(&ram, 0x10_0010)), (INT3, INT3));
        points.plant(&ram, &ROOTS, &[]);
        points.lift(&ram);
        assert_eq!((byte(&ram, 0x9234), byte(&ram, 0x10_0010)), (0x55, 0));
        points.plant(&ram, &ROOTS, &[USER]);
        assert_eq!(byte(&ram, 0x9234), 0x55);
    }

    #[test]
    fn a_breakpoint_waits_for_its_page_and_for_its_program() {
        let ram = ram();
        let mut points = Points::default();
        points.insert(Kind::Software, 0x40_2000, Some(7), vec![]);
        assert_eq!(points.plant(&ram, &ROOTS, &[]), Planted { waiting: true });
        points.remove(Kind::Software, 0x40_2000);
        points.insert(Kind::Software, USER, None, vec![]);
        assert_eq!(points.plant(&ram, &[(None, 0x1000)], &[]), Planted { waiting: true });
        assert_eq!(byte(&ram, 0x9234), 0x55, "there is no program yet");
        points.plant(&ram, &ROOTS, &[]);
        assert_eq!(byte(&ram, 0x9234), INT3);
    }

    #[test]
    fn what_was_taken_away_for_a_step_is_guarded_while_others_run() {
        let ram = ram();
        let mut points = Points::default();
        points.insert(Kind::Software, USER, Some(7), vec![]);
        points.insert(Kind::Software, KERNEL, Some(7), vec![]);
        points.remove(Kind::Software, USER);
        points.remove(Kind::Software, KERNEL);
        points.plant(&ram, &ROOTS, &[]);
        assert_eq!(byte(&ram, 0x9234), 0x55, "the step is made alone");
        points.guarding = true;
        points.plant(&ram, &ROOTS, &[]);
        assert_eq!(byte(&ram, 0x9234), INT3);
        assert_eq!((points.in_programs().collect::<Vec<_>>(), points.at(USER).count()), (vec![USER], 0));
        points.lift(&ram);
        points.guard_no_more();
        points.plant(&ram, &ROOTS, &[]);
        assert_eq!(byte(&ram, 0x9234), 0x55, "taken away for good");
    }

    #[test]
    fn what_the_guest_wrote_meanwhile_stays() {
        let ram = ram();
        let mut points = Points::default();
        points.insert(Kind::Software, USER, Some(7), vec![]);
        points.plant(&ram, &ROOTS, &[]);
        ram.write_obj(0x90u8, GuestAddress(0x9234)).unwrap();
        points.lift(&ram);
        assert_eq!(byte(&ram, 0x9234), 0x90);
    }

    #[test]
    fn the_first_home_stays_and_slots_are_counted() {
        let mut points = Points::default();
        points.insert(Kind::Software, USER, Some(7), vec![]);
        points.remove(Kind::Software, USER);
        points.insert(Kind::Software, USER, Some(8), vec![]);
        assert_eq!(points.at(USER).map(|(_, point)| point.home).collect::<Vec<_>>(), [Home::Process(7)]);
        for n in 0..4 {
            assert!(points.insert(Kind::Hardware, KERNEL + n, None, vec![]));
        }
        assert!(!points.insert(Kind::Hardware, KERNEL + 4, None, vec![]));
        assert!(points.insert(Kind::Hardware, KERNEL, None, vec![]), "the same one again");
    }
}
