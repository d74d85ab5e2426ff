//! TLB shootdown across CPUs.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vcpu_sched::ids::Nanos;

use super::{Test, TestResult, check, join, rounds, spawn_on, tests};
use crate::cpu;
use crate::mm::address_space::AddressSpace;
use crate::mm::layout::PAGE_SIZE;
use crate::mm::user;
use crate::mm::vma::{Backing, Prot};
use crate::sched;
use crate::sync::IrqGuard;
use crate::task::current;
use crate::time;

pub(super) const TESTS: &[Test] = tests![no_cpu_sees_an_unmapped_page, no_cpu_writes_a_protected_page];

const ADDRESS: u64 = 0x10_0000_0000;
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Where the test puts what must not be taken for the page at [`ADDRESS`].
const ELSEWHERE: u64 = ADDRESS + (1 << 30);

struct Shared {
    space: Arc<AddressSpace>,
    /// Value that the page holds from now on: set after the old page is gone.
    phase: AtomicU64,
    stop: AtomicBool,
    stale: AtomicU64,
    /// First looks of all readers.
    looks: AtomicU64,
}

impl Shared {
    /// Waits until a reader has just seen the present page and is about to look again: it has the page in its TLB, and flushes only if it
    /// is waited for. A reader that has done with looking would load CR3 before it looks again.
    fn wait_for_looks(&self) -> TestResult {
        let (looks, end) = (self.looks.load(Ordering::Relaxed), time::now().0 + 10_000_000_000);
        while cpu::count() > 1 && self.looks.load(Ordering::Relaxed) == looks {
            check!(time::now().0 < end, "no reader looks");
            core::hint::spin_loop();
        }
        Ok(())
    }

    /// Looks twice with interrupts off: nothing is brought in, and only a flush that is waited for can come between. So the second
    /// look, after the phase has changed, is through what the first has left in the TLB, if nobody waited. Whether the page is there.
    fn look_twice(&self) -> bool {
        let _irq = IrqGuard::new();
        let before = self.phase.load(Ordering::Acquire);
        let Ok(first) = user::load_u32(ADDRESS) else { return false };
        self.looks.fetch_add(1, Ordering::Relaxed);
        let end = time::now() + Nanos::from_millis(3);
        while self.phase.load(Ordering::Acquire) == before && time::now() < end {
            core::hint::spin_loop();
        }
        let now = self.phase.load(Ordering::Acquire);
        let second = user::load_u32(ADDRESS);
        let stale = |value: u32, phase: u64| value != 0 && u64::from(value) < phase; // 0: the new page, before it is written to
        if stale(first, before) || second.is_ok_and(|value| stale(value, now)) {
            self.stale.fetch_add(1, Ordering::Relaxed);
        }
        true
    }
}

extern "C" fn reader(argument: usize) -> ! {
    // SAFETY: leaked by the test for this task.
    let s = unsafe { Arc::from_raw(argument as *const Shared) };
    current().replace_space(Some(s.space.clone()));
    while !s.stop.load(Ordering::Relaxed) {
        // Its neighbour's turn: another space is loaded in between.
        sched::yield_now();
        if !s.look_twice() {
            let _ = user::load_u32(ADDRESS); // brings it in, if it is there
        }
    }
    current().replace_space(None);
    drop(s);
    sched::exit_current()
}

/// Shares a reader's CPU, in a space of its own.
extern "C" fn neighbour(argument: usize) -> ! {
    // SAFETY: leaked by the test for this task.
    let s = unsafe { Arc::from_raw(argument as *const Shared) };
    if let Ok(space) = AddressSpace::new() {
        current().replace_space(Some(space));
    }
    while !s.stop.load(Ordering::Relaxed) {
        sched::yield_now();
    }
    current().replace_space(None);
    drop(s);
    sched::exit_current()
}

fn with_readers(f: impl FnOnce(&Shared) -> TestResult) -> TestResult {
    let space = AddressSpace::new().map_err(|e| alloc::format!("{e:?}"))?;
    let shared = Arc::new(Shared {
        space: space.clone(),
        phase: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        stale: AtomicU64::new(0),
        looks: AtomicU64::new(0),
    });
    current().replace_space(Some(space));
    let pass = || Arc::into_raw(shared.clone()) as usize;
    let readers: Vec<_> = (1..cpu::count())
        .flat_map(|i| [spawn_on(i, "reader", reader, pass()), spawn_on(i, "neighbour", neighbour, pass())])
        .collect::<Result<_, _>>()?;
    let result = f(&shared);
    shared.stop.store(true, Ordering::Relaxed);
    readers.iter().for_each(join);
    current().replace_space(None);
    result?;
    check!(shared.stale.load(Ordering::Relaxed) == 0, "{} stale looks", shared.stale.load(Ordering::Relaxed));
    Ok(())
}

fn no_cpu_sees_an_unmapped_page() -> TestResult {
    with_readers(|s| {
        for round in rounds(24).map(|round| u64::from(round) + 2) {
            check!(s.space.map(ADDRESS, PAGE_SIZE, RW, Backing::Anonymous, 0, true, "").is_ok());
            let old = user::load_u32(ADDRESS).is_ok_and(|value| value != 0);
            check!(!old, "this CPU still reads the page of before");
            // The frame that has just become free is taken for something else: what is seen through it is older than any round.
            let elsewhere = ELSEWHERE + round * PAGE_SIZE;
            check!(s.space.map(elsewhere, PAGE_SIZE, RW, Backing::Anonymous, 0, true, "").is_ok());
            check!(user::write(elsewhere, &1u32).is_ok());
            check!(user::write(ADDRESS, &(round as u32)).is_ok());
            check!(user::load_u32(elsewhere) == Ok(1), "this CPU still writes to the page of before");
            // From here on an older value could only come from the page that `map` has just replaced.
            s.phase.store(round, Ordering::Release);
            s.wait_for_looks()?;
        }
        Ok(())
    })
}

fn no_cpu_writes_a_protected_page() -> TestResult {
    with_readers(|s| {
        check!(s.space.map(ADDRESS, PAGE_SIZE, RW, Backing::Anonymous, 0, true, "").is_ok());
        check!(user::write(ADDRESS, &1u32).is_ok());
        s.phase.store(1, Ordering::Release);
        for _ in rounds(50) {
            check!(s.space.protect(ADDRESS, PAGE_SIZE, Prot::READ).is_ok());
            check!(user::write(ADDRESS, &2u32).is_err());
            check!(user::load_u32(ADDRESS) == Ok(1));
            check!(s.space.protect(ADDRESS, PAGE_SIZE, RW).is_ok());
            check!(user::write(ADDRESS, &1u32).is_ok());
            s.wait_for_looks()?;
        }
        Ok(())
    })
}
