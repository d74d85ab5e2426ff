//! From what was asked for to a seat for each vCPU, checked against the host.
//!
//! [`Plan::new`] is pure but for what the host tells of itself in a [`Host`]; [`Plan::rehearse`] then tries everything on a
//! thread that ends. [`crate::vm`] calls both before it makes the machine.

use std::collections::BTreeMap;
use std::io;
use std::thread;

use super::{AffinityError, Class, CoreScheduling, Entry, Request, Who, sys};
use crate::config::text::IdSet;

/// What the host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// CPUs that run.
    pub online: IdSet,
    /// CPUs that this process has now.
    pub current: IdSet,
}

impl Host {
    /// Asks the host.
    pub fn ask() -> io::Result<Self> {
        Ok(Self { online: sys::online(), current: sys::affinity(0)? })
    }
}

/// Where and how one vCPU's thread runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seat {
    vcpu: u32,
    /// `None`: wherever the process may.
    cpus: Option<IdSet>,
    class: Class,
    own_core: bool,
}

/// All threads of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    seats: Vec<Seat>,
    io: Option<IdSet>,
    core_scheduling: CoreScheduling,
    online: IdSet,
    current: IdSet,
}

/// What each vCPU gets from a flag's entries.
pub(super) fn spread<T: Clone>(
    flag: &'static str,
    entries: &[Entry<T>],
    vcpus: u32,
) -> Result<Vec<Option<T>>, AffinityError> {
    let mut values: Vec<Option<T>> = vec![None; vcpus as usize];
    let have = IdSet::below(vcpus);
    for entry in entries {
        for vcpu in entry.vcpus.as_ref().unwrap_or(&have).iter() {
            let Some(value) = values.get_mut(vcpu as usize) else {
                return Err(AffinityError::NoSuchVcpu { flag, vcpu, have: have.clone() });
            };
            if value.replace(entry.value.clone()).is_some() {
                return Err(AffinityError::Twice { flag, vcpu });
            }
        }
    }
    Ok(values)
}

impl Plan {
    /// Makes a seat for each vCPU.
    pub fn new(request: &Request, vcpus: u32, host: Host) -> Result<Self, AffinityError> {
        let Host { online, current } = host;
        let mut pins = spread("--affinity", &request.affinity, vcpus)?;
        let classes = spread("--vcpu-sched", &request.classes, vcpus)?;
        for (vcpu, pin) in (0u32..).zip(&pins) {
            if let Some(wanted) = pin {
                check_online(Who::Vcpu(vcpu), wanted, &online)?;
            }
        }
        if let Some(wanted) = &request.io {
            check_online(Who::Io, wanted, &online)?;
        }
        if request.exclusive {
            let candidates = candidates(&pins, &current, request.io.as_ref())?;
            for (pin, cpu) in pins.iter_mut().zip(assign(&candidates)?) {
                *pin = Some([cpu].into_iter().collect());
            }
        }
        // Threads inherit the mask of the one that starts them, which may be pinned apart.
        if request.io.is_some() {
            pins.iter_mut().for_each(|pin| *pin = pin.take().or_else(|| Some(current.clone())));
        }
        let own_core = request.core_scheduling == CoreScheduling::Vcpu;
        let seat = |((vcpu, cpus), class): ((u32, Option<IdSet>), Option<Class>)| Seat {
            vcpu,
            cpus,
            class: class.unwrap_or_default(),
            own_core,
        };
        Ok(Self {
            seats: (0u32..).zip(pins).zip(classes).map(seat).collect(),
            io: request.io.clone(),
            core_scheduling: request.core_scheduling,
            online,
            current,
        })
    }

    /// The CPUs that a vCPU is pinned to, if it is.
    pub fn cpus_of(&self, vcpu: u32) -> Option<&IdSet> {
        self.seats.get(vcpu as usize)?.cpus.as_ref()
    }

    /// Tries every seat on a thread that ends, so that the machine needn't be made for nothing.
    pub fn rehearse(&self) -> Result<(), AffinityError> {
        let unusual = |seat: &&Seat| seat.cpus.is_some() || seat.class != Class::Other || seat.own_core;
        let seats: Vec<&Seat> = self.seats.iter().filter(unusual).collect();
        if seats.is_empty() && self.io.is_none() && self.core_scheduling == CoreScheduling::Off {
            return Ok(());
        }
        thread::scope(|scope| {
            let rehearsal = thread::Builder::new().name("rehearsal".into()).spawn_scoped(scope, || {
                self.take_io_seat()?;
                seats.iter().try_for_each(|seat| self.take(seat))
            });
            let end = rehearsal.map_err(AffinityError::Thread)?.join();
            end.unwrap_or_else(|_| Err(AffinityError::Thread(io::Error::other("it ended early"))))
        })
    }

    /// Puts the calling thread, from which all others are started, where the I/O threads belong.
    pub fn take_io_seat(&self) -> Result<(), AffinityError> {
        if self.core_scheduling == CoreScheduling::Vm {
            sys::create_core_cookie().map_err(|source| AffinityError::Core { who: Who::Io, source })?;
        }
        self.io.as_ref().map_or(Ok(()), |cpus| self.pin(Who::Io, cpus))
    }

    /// Puts the calling thread where this vCPU's belongs, and reads back that it is so.
    pub fn take_seat(&self, vcpu: u32) -> Result<(), AffinityError> {
        self.seats.get(vcpu as usize).map_or(Ok(()), |seat| self.take(seat))
    }

    fn take(&self, seat: &Seat) -> Result<(), AffinityError> {
        let who = Who::Vcpu(seat.vcpu);
        if seat.own_core {
            sys::create_core_cookie().map_err(|source| AffinityError::Core { who, source })?;
        }
        if let Some(cpus) = &seat.cpus {
            self.pin(who, cpus)?;
        }
        if seat.class == Class::Other {
            return Ok(());
        }
        let cpus = seat.cpus.clone().unwrap_or_else(|| self.current.clone());
        urge(0, who, seat.class, &cpus)
    }

    fn pin(&self, who: Who, wanted: &IdSet) -> Result<(), AffinityError> {
        pin(0, who, wanted, &self.online)
    }
}

/// Gives a thread its class and reads it back. `cpus`, on which it runs, is for the error.
pub(super) fn urge(tid: i32, who: Who, class: Class, cpus: &IdSet) -> Result<(), AffinityError> {
    let failed = |source| AffinityError::Class { who, cpus: cpus.clone(), class, source };
    sys::set_class(tid, class).map_err(failed)?;
    let got = sys::class(tid).map_err(failed)?;
    let same = got == class || (got, class) == (Class::Other, Class::Nice(0));
    if same { Ok(()) } else { Err(AffinityError::ClassNotInForce { who, class, got }) }
}

/// Pins a thread and reads it back. What the kernel left out is outside the cpuset, or has gone offline meanwhile.
pub(super) fn pin(tid: i32, who: Who, wanted: &IdSet, online: &IdSet) -> Result<(), AffinityError> {
    let refused = |source| AffinityError::Refused { who, wanted: wanted.clone(), source };
    match sys::set_affinity(tid, wanted) {
        Ok(()) => {}
        // None of them is usable (sched_setaffinity(2)).
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            check_online(who, wanted, online)?;
            return Err(outside(who, wanted, wanted));
        }
        Err(error) => return Err(refused(error)),
    }
    let got = sys::affinity(tid).map_err(refused)?;
    let left_out = wanted.difference(&got);
    if got == *wanted {
        return Ok(());
    }
    if left_out.is_empty() {
        return Err(AffinityError::NotInForce { who, wanted: wanted.clone(), got });
    }
    check_online(who, wanted, online)?;
    Err(outside(who, wanted, &left_out))
}

/// The error for CPUs that exist, but not for this process. What it has is found by asking for everything, on a thread of
/// its own.
fn outside(who: Who, wanted: &IdSet, cpus: &IdSet) -> AffinityError {
    let everything = || {
        sys::set_affinity(0, &sys::online())?;
        sys::affinity(0)
    };
    let asked = thread::scope(|scope| scope.spawn(everything).join());
    let allowed = asked.ok().and_then(Result::ok).unwrap_or_default();
    AffinityError::OutsideCpuset { who, wanted: wanted.clone(), cpus: cpus.clone(), allowed }
}

pub(super) fn check_online(who: Who, wanted: &IdSet, online: &IdSet) -> Result<(), AffinityError> {
    let cpus = wanted.difference(online);
    if cpus.is_empty() {
        return Ok(());
    }
    Err(AffinityError::Offline { who, wanted: wanted.clone(), cpus, online: online.clone() })
}

/// Of which CPUs each vCPU may get one for itself: its own, or the process's, without the I/O threads'.
fn candidates(pins: &[Option<IdSet>], current: &IdSet, io: Option<&IdSet>) -> Result<Vec<IdSet>, AffinityError> {
    let left = |(vcpu, pin): (u32, &Option<IdSet>)| {
        let cpus = pin.as_ref().unwrap_or(current);
        let Some(io) = io else { return Ok(cpus.clone()) };
        let left = cpus.difference(io);
        match left.is_empty() {
            true => Err(AffinityError::NoneLeft { vcpu, cpus: cpus.clone(), io: io.clone() }),
            false => Ok(left),
        }
    };
    (0u32..).zip(pins).map(left).collect()
}

/// A CPU of its own for each vCPU: a matching by augmenting paths (Kuhn's algorithm).
fn assign(candidates: &[IdSet]) -> Result<Vec<u32>, AffinityError> {
    let mut holder: BTreeMap<u32, usize> = BTreeMap::new();
    for vcpu in 0..candidates.len() {
        let mut seen = IdSet::default();
        if !augment(vcpu, candidates, &mut holder, &mut seen) {
            let others = holder.iter().filter(|(cpu, _)| seen.contains(**cpu)).map(|(_, vcpu)| *vcpu as u32).collect();
            let cpus = candidates.get(vcpu).cloned().unwrap_or_default();
            return Err(AffinityError::TooFew { vcpu: vcpu as u32, cpus, others });
        }
    }
    let mut found: Vec<(usize, u32)> = holder.into_iter().map(|(cpu, vcpu)| (vcpu, cpu)).collect();
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, cpu)| cpu).collect())
}

/// Finds a CPU for `vcpu`, moving others on if need be. The depth is at most the number of vCPUs that hold a CPU.
fn augment(vcpu: usize, candidates: &[IdSet], holder: &mut BTreeMap<u32, usize>, seen: &mut IdSet) -> bool {
    let Some(own) = candidates.get(vcpu) else { return false };
    for cpu in own.iter() {
        if !seen.insert(cpu) {
            continue;
        }
        let free = match holder.get(&cpu).copied() {
            None => true,
            Some(other) => augment(other, candidates, holder, seen),
        };
        if free {
            holder.insert(cpu, vcpu);
            return true;
        }
    }
    false
}
