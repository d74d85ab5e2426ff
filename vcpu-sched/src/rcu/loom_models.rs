//! A reader and an updater. What is freed is memory that loom watches: a reader that isn't ordered before is reported.

use core::cell::Cell;
use loom::cell::UnsafeCell;
use loom::thread;
use std::boxed::Box;

use super::{Domain, RcuPlatform, RcuPointer};
use crate::ids::{CpuId, Nanos};
use crate::runtime::lock::Spin;

loom::thread_local! {
    static CPU: Cell<u32> = Cell::new(0);
}

struct Machine;

// SAFETY: each thread of a model is one CPU.
unsafe impl RcuPlatform for Machine {
    type Lock = Spin;

    fn pin(&self) -> CpuId {
        CpuId(CPU.with(Cell::get))
    }

    fn unpin(&self) {}

    fn now(&self) -> Nanos {
        Nanos::ZERO
    }

    fn kick(&self, _: CpuId) {}

    fn relax(&self) {
        thread::yield_now();
    }
}

/// Is written when it dies.
struct Watched(UnsafeCell<u32>);

// SAFETY: it is there to be found out if this is not so.
unsafe impl Send for Watched {}
// SAFETY: as above.
unsafe impl Sync for Watched {}

impl Watched {
    fn new() -> Self {
        Self(UnsafeCell::new(7))
    }

    fn read(&self) -> u32 {
        // SAFETY: loom reports a writer.
        self.0.with(|inside| unsafe { *inside })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // SAFETY: loom reports another user.
        self.0.with_mut(|inside| unsafe { *inside = 0 });
    }
}

fn model(f: impl Fn(&'static Domain<Machine>, &'static RcuPointer<Watched, Machine>) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.max_branches = 100_000;
    model.check(move || {
        let domain = &*Box::leak(Box::new(Domain::new(Machine, 2, 8, Nanos(1))));
        let pointer = &*Box::leak(Box::new(RcuPointer::new(domain, Watched::new())));
        f(domain, pointer);
    });
}

fn update(domain: &'static Domain<Machine>, pointer: &'static RcuPointer<Watched, Machine>) {
    assert_eq!(pointer.replace(Watched::new()), super::Backlog::Room);
    domain.synchronize_blocking().unwrap();
    assert_eq!(domain.run_callbacks(8), 1);
}

#[test]
fn loom_nothing_is_freed_under_a_reader_that_reports() {
    model(|domain, pointer| {
        let reader = thread::spawn(move || {
            CPU.with(|cpu| cpu.set(1));
            domain.leave_away();
            for _ in 0..2 {
                let guard = domain.read();
                assert_eq!(pointer.load(&guard).read(), 7);
                drop(guard);
                domain.report();
            }
            assert!(domain.enter_away());
        });
        update(domain, pointer);
        reader.join().unwrap();
    });
}

#[test]
fn loom_nothing_is_freed_under_a_reader_that_comes_back_for_it() {
    model(|domain, pointer| {
        let reader = thread::spawn(move || {
            CPU.with(|cpu| cpu.set(1));
            for _ in 0..2 {
                let guard = domain.read();
                assert_eq!(pointer.load(&guard).read(), 7);
                drop(guard);
            }
        });
        update(domain, pointer);
        reader.join().unwrap();
    });
}
