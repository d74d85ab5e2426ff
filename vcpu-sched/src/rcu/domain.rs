//! Readers, updaters and the periods between them. The kernel has one [`Domain`]; each of its CPUs reports from its
//! scheduler. The invariant: what was unlinked before a cookie was taken is read by nobody when it is over.
//!
//! # Why it holds
//! A reader does nothing but count its nesting in its CPU's own word: no read-modify-write, no barrier. What orders it
//! is the *report*: an updater unlinks, takes a cookie and so begins period n, by a release store of n. A CPU that
//! reports reads n (acquire), so its later readers see the unlinking; and it writes n to its own word (release), so
//! whoever finds it there (acquire) comes after its earlier readers. A CPU reports only where it has no reader.
//!
//! A CPU that sleeps can't report. Its word `away` counts its goings and comings, and is odd while it is away (idle,
//! offline, or in a program). Both sides change that word by one read-modify-write, so one is first: the CPU comes back
//! before, and has to report; or after, and then it sees all that was unlinked before.

use alloc::boxed::Box;
use core::marker::PhantomData;
use core::sync::atomic::{Ordering as FenceOrdering, compiler_fence};

use super::callbacks::{Callback, Callbacks};
use super::grace::{Cookie, Periods, Stall, Step};
use crate::cell::{U8Cell, U32Cell};
use crate::cpumask::CpuMask;
use crate::ids::{CpuId, Nanos};
use crate::runtime::lock::{Lock, RawLock};
use crate::runtime::sync::waiters::{Batch, Waiters};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// What a domain needs of its kernel.
///
/// # Safety
/// [`pin`](RcuPlatform::pin) returns a number below that of the domain's CPUs; between it and the matching
/// [`unpin`](RcuPlatform::unpin), which nest, the caller stays on the CPU that was returned, and no other thread runs
/// there but interrupts that return before it goes on.
pub unsafe trait RcuPlatform: Send + Sync + 'static {
    /// The lock of the periods. Must keep interrupts off if any of this is used in interrupts.
    type Lock: RawLock;

    /// Keeps the caller on its CPU, and tells which that is.
    fn pin(&self) -> CpuId;

    /// Undoes one [`pin`](RcuPlatform::pin).
    fn unpin(&self);

    /// The time, for stalls.
    fn now(&self) -> Nanos;

    /// Has the CPU call [`Domain::report`] soon, by an interrupt. For expedited periods.
    fn kick(&self, cpu: CpuId);

    /// A blocking wait goes on: lets somebody else run.
    fn relax(&self);

    /// A number that the CPU changes where it has no reader, with a full barrier before its next one; a constant if it
    /// counts no such places. A scheduler that counts its switches tells by this what would else cost it a
    /// [`report`](Domain::report) at each.
    fn passages(&self, cpu: CpuId) -> u64 {
        _ = cpu;
        0
    }
}

/// One CPU's words, on cache lines of their own.
#[repr(align(128))]
struct PerCpu<L: RawLock> {
    /// How many readers there are on the CPU, one inside the other. Its own.
    nesting: U32Cell,
    /// The last period that it has reported for.
    reported: AtomicU64,
    /// Odd while it is away.
    away: AtomicU32,
    /// The last reader shall report as it goes. The CPU's own: only its interrupts and its readers touch it.
    urgent: U8Cell,
    /// The CPU came back for a reader alone, and goes again with the last one. Its own, too.
    visiting: U8Cell,
    callbacks: Lock<Callbacks, L>,
}

/// What the lock guards.
pub(super) struct Inner {
    pub periods: Periods,
    pub waiters: Waiters,
    /// Each CPU's [`passages`](RcuPlatform::passages) when the running period began.
    before: Box<[u64]>,
}

/// See the module's text.
pub struct Domain<P: RcuPlatform> {
    platform: P,
    cpus: Box<[PerCpu<P::Lock>]>,
    /// Every CPU that could have a reader. Those that are offline are away, and hold nothing up.
    all: CpuMask,
    /// The running period's number, or the last one's. Written under the lock.
    period: AtomicU64,
    pub(super) inner: Lock<Inner, P::Lock>,
    /// How many callbacks there are.
    pending: AtomicU32,
    limit: u32,
}

/// Whether an updater may go on making garbage.
#[must_use = "an updater that goes on although the domain is full takes memory without bound"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backlog {
    /// It may.
    Room,
    /// More callbacks wait than the domain was made for: wait for a period ([`Domain::synchronize`]) before the next.
    Full,
}

/// A reader on this CPU would wait for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InReader;

impl core::fmt::Display for InReader {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a reader can't wait for readers to go")
    }
}

impl core::error::Error for InReader {}

/// What one look at the periods brought.
#[derive(Debug)]
pub struct Progress {
    /// The running period takes too long.
    pub stall: Option<Stall>,
}

/// Who has this may read. Stays on its CPU, and can't be kept over an `await`.
#[must_use = "what is read may be freed when this is gone"]
pub struct Guard<'a, P: RcuPlatform> {
    domain: &'a Domain<P>,
    cpu: usize,
    /// Not `Send`: the count is that of this CPU.
    _stays: PhantomData<*mut ()>,
}

/// Each of these is called by the CPU itself, with or without an interrupt in between that calls the same: a look
/// first, so that none goes or comes twice.
impl<L: RawLock> PerCpu<L> {
    /// The CPU is there, for a reader.
    #[cold]
    fn visit(&self) {
        self.visiting.set(1);
        compiler_fence(FenceOrdering::SeqCst);
        self.come_back();
    }

    fn come_back(&self) {
        // Relaxed: the CPU's own word.
        if self.away.load(Ordering::Relaxed) & 1 != 0 {
            // Acquire: whoever counted us as away unlinked before, and we see it. Release: what we did before we went.
            self.away.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn go_away(&self) {
        // Relaxed: the CPU's own word.
        if self.away.load(Ordering::Relaxed) & 1 == 0 {
            // Release: our readers come before whoever finds us away. Acquire, to keep the word's order whole.
            self.away.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl<P: RcuPlatform> Domain<P> {
    /// For CPUs 0 to `cpus - 1`, all of them away. `limit`: how many callbacks may wait; `stall_after`: see [`Stall`].
    pub fn new(platform: P, cpus: u32, limit: u32, stall_after: Nanos) -> Self {
        let cpu = |_| PerCpu {
            nesting: U32Cell::new(0),
            reported: AtomicU64::new(0),
            away: AtomicU32::new(1),
            urgent: U8Cell::new(0),
            visiting: U8Cell::new(0),
            callbacks: Lock::new(Callbacks::new()),
        };
        let before = (0..cpus).map(|_| 0).collect();
        let inner = Inner { periods: Periods::new(stall_after), waiters: Waiters::default(), before };
        Self {
            platform,
            cpus: (0..cpus).map(cpu).collect(),
            period: AtomicU64::new(0),
            all: CpuMask::full(cpus),
            inner: Lock::new(inner),
            pending: AtomicU32::new(0),
            limit,
        }
    }

    /// What was given to [`new`](Domain::new).
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// Does `f` on one CPU, without readers by itself.
    fn pinned<T>(&self, f: impl FnOnce(usize, &PerCpu<P::Lock>) -> T) -> T {
        let cpu = self.platform.pin().index();
        let result = f(cpu, &self.cpus[cpu]);
        self.platform.unpin();
        result
    }

    /// Begins to read. Costs a load and a store of the CPU's own memory. Guards nest.
    #[inline]
    pub fn read(&self) -> Guard<'_, P> {
        let cpu = self.platform.pin().index();
        let mine = &self.cpus[cpu];
        let nesting = mine.nesting.get();
        mine.nesting.set(nesting + 1);
        // An interrupt that comes between here and the first read must find the count: a matter of the compiler's order
        // only, since it is the same CPU.
        compiler_fence(FenceOrdering::SeqCst);
        // Relaxed: the CPU's own word.
        // Whatever the nesting: an outer reader may have been interrupted before it came to look.
        if mine.away.load(Ordering::Relaxed) & 1 != 0 {
            mine.visit();
        }
        Guard { domain: self, cpu, _stays: PhantomData }
    }

    /// The CPU has no reader at this moment: called by the scheduler at a switch, at a tick, or for a
    /// [`kick`](RcuPlatform::kick). Where there is one, that one reports when it goes. Costs two loads if no period is
    /// running.
    pub fn report(&self) {
        self.pinned(|_, mine| {
            if mine.nesting.get() == 0 {
                self.report_for(mine);
            } else {
                mine.urgent.set(1);
            }
        });
    }

    /// The last reader has gone, and something was left for it to do.
    #[cold]
    fn leave(&self, mine: &PerCpu<P::Lock>) {
        if mine.urgent.get() != 0 {
            mine.urgent.set(0);
            self.report_for(mine);
        }
        if mine.visiting.get() != 0 {
            // In this order: an interrupt between the two has readers that see the CPU here, and leave it here.
            mine.visiting.set(0);
            compiler_fence(FenceOrdering::SeqCst);
            mine.go_away();
        }
    }

    fn report_for(&self, mine: &PerCpu<P::Lock>) {
        // Acquire: later readers see what was unlinked before the period.
        let period = self.period.load(Ordering::Acquire);
        // Relaxed: our own.
        if mine.reported.load(Ordering::Relaxed) != period {
            // Release: whoever sees the report comes after our earlier readers.
            mine.reported.store(period, Ordering::Release);
        }
    }

    /// The CPU has nothing to do, goes to a program, or offline: it has no readers until it comes back. False, and it
    /// is not away, if there is a reader.
    pub fn enter_away(&self) -> bool {
        self.pinned(|_, mine| {
            let free = mine.nesting.get() == 0;
            if free {
                mine.go_away();
            }
            free
        })
    }

    /// The CPU works again. A reader that comes without it does this for itself, which costs it an atomic.
    pub fn leave_away(&self) {
        self.pinned(|_, mine| {
            mine.visiting.set(0); // for good, should it be here for a reader
            compiler_fence(FenceOrdering::SeqCst);
            mine.come_back();
        });
    }

    /// Names the end of the first period that begins from now on.
    pub fn cookie(&self) -> Cookie {
        self.inner.with(|inner| inner.periods.cookie())
    }

    /// Does anybody wait for the end of a period?
    pub fn is_wanted(&self) -> bool {
        self.inner.with(|inner| inner.periods.is_wanted())
    }

    /// Have all readers from before the cookie gone?
    pub fn is_over(&self, cookie: Cookie) -> bool {
        self.inner.with(|inner| inner.periods.is_over(cookie))
    }

    /// Looks who has reported, ends the period if all have, and begins the next if somebody waits for it. Called by
    /// whoever has the time: a tick, an idle CPU, a worker. Those who wait are woken.
    pub fn advance(&self) -> Progress {
        let now = self.platform.now();
        let (ended, stall) = self.inner.with(|Inner { periods, before, .. }| {
            let running = periods.running();
            periods.quiescent(|cpu| running.is_some_and(|period| self.has_passed(cpu, period, before)));
            let step = periods.step(now, &self.all);
            if let Step::Began(_) | Step::EndedAndBegan(_) = &step
                && let Some(period) = periods.running()
            {
                // Release: who reads the number sees what was unlinked before the cookie was taken, under this lock. SeqCst, and an
                // exchange: the full barrier before the looks at the passages.
                self.period.swap(period, Ordering::SeqCst);
                for (number, passages) in (0..).zip(before.iter_mut()) {
                    *passages = self.platform.passages(CpuId(number));
                }
                periods.quiescent(|cpu| self.has_passed(cpu, period, before));
            }
            (matches!(step, Step::Ended | Step::EndedAndBegan(_)), periods.stall(now))
        });
        if ended {
            self.wake_waiters();
        }
        Progress { stall }
    }

    /// Has the CPU been without readers since this period began?
    fn has_passed(&self, cpu: CpuId, period: u64, before: &[u64]) -> bool {
        let Some(theirs) = self.cpus.get(cpu.index()) else { return true };
        if before.get(cpu.index()).is_some_and(|before| self.platform.passages(cpu) != *before) {
            return true;
        }
        // Acquire: after their readers. The second is a change of nothing, so that it and the CPU's own changes have
        // one order; acquire and release, see the module's text.
        theirs.reported.load(Ordering::Acquire) == period || theirs.away.fetch_add(0, Ordering::AcqRel) & 1 != 0
    }

    /// All who wait look whether it was their period.
    fn wake_waiters(&self) {
        let mut batch = Batch::new();
        let mut more = true;
        while more {
            more = self.inner.with(|inner| {
                while batch.has_room() {
                    // They wait for one number each, in order: the first whose period is not over ends it.
                    let over =
                        inner.waiters.wanted().is_some_and(|cookie| inner.periods.is_over(Cookie(cookie as u64)));
                    if !over {
                        return false;
                    }
                    batch.push(inner.waiters.grant());
                }
                true
            });
            core::mem::replace(&mut batch, Batch::new()).wake();
        }
    }

    /// Asks all CPUs that hold up the running period to report, by an interrupt each.
    pub fn expedite(&self) {
        _ = self.advance();
        let holdouts = self.inner.with(|inner| inner.periods.holdouts().cloned());
        let Some(holdouts) = holdouts else { return };
        let mut at = holdouts.first();
        while let Some(cpu) = at {
            at = holdouts.next(cpu);
            self.platform.kick(cpu);
        }
    }

    /// Has `f` called when all readers of now have gone: by [`run_callbacks`](Domain::run_callbacks), on any CPU, from
    /// no interrupt.
    pub fn call(&self, f: impl FnOnce() + Send + 'static) -> Backlog {
        self.defer(Callback::of(f))
    }

    pub(super) fn defer(&self, callback: Callback) -> Backlog {
        // Relaxed: a count.
        let before = self.pending.fetch_add(1, Ordering::Relaxed);
        self.pinned(|_, mine| {
            // The lists' lock is the outer one, so that the cookie is still the newest when it gets there.
            mine.callbacks.with(|callbacks| {
                self.inner.with(|inner| {
                    let cookie = inner.periods.cookie();
                    callbacks.push(callback, cookie, &inner.periods);
                });
            });
        });
        if before < self.limit {
            return Backlog::Room;
        }
        self.expedite();
        Backlog::Full
    }

    /// How many callbacks wait or may run.
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Runs up to `limit` callbacks whose time has come, those of this CPU first; returns how many it were. With no
    /// lock held: they may defer others.
    pub fn run_callbacks(&self, limit: usize) -> usize {
        let here = self.pinned(|cpu, _| cpu);
        let mut left = limit;
        let (before, after) = self.cpus.split_at(here);
        for cpu in after.iter().chain(before) {
            let ripe = cpu.callbacks.with(|callbacks| self.inner.with(|inner| callbacks.take(left, &inner.periods)));
            for callback in ripe {
                callback.run();
                self.pending.fetch_sub(1, Ordering::Relaxed);
                left -= 1;
            }
            if left == 0 {
                break;
            }
        }
        limit - left
    }

    /// Waits, on this thread, until all readers of now have gone.
    ///
    /// # Errors
    /// [`InReader`] if there is one on this CPU: it would wait for itself.
    pub fn synchronize_blocking(&self) -> Result<(), InReader> {
        if self.pinned(|_, mine| mine.nesting.get() != 0) {
            return Err(InReader);
        }
        let cookie = self.cookie();
        loop {
            self.report();
            _ = self.advance();
            if self.is_over(cookie) {
                return Ok(());
            }
            self.platform.relax();
        }
    }

    /// The same, with an interrupt to each CPU that holds it up.
    ///
    /// # Errors
    /// [`InReader`] as above.
    pub fn synchronize_expedited(&self) -> Result<(), InReader> {
        if self.pinned(|_, mine| mine.nesting.get() != 0) {
            return Err(InReader);
        }
        let cookie = self.cookie();
        loop {
            self.report();
            self.expedite();
            if self.is_over(cookie) {
                return Ok(());
            }
            self.platform.relax();
        }
    }
}

impl<P: RcuPlatform> Guard<'_, P> {
    pub(super) fn domain(&self) -> *const Domain<P> {
        self.domain
    }
}

impl<P: RcuPlatform> Drop for Guard<'_, P> {
    #[inline]
    fn drop(&mut self) {
        let mine = &self.domain.cpus[self.cpu];
        // As in `read`: our reads come before, for an interrupt that reports.
        compiler_fence(FenceOrdering::SeqCst);
        let nesting = mine.nesting.get() - 1;
        mine.nesting.set(nesting);
        if nesting == 0 && mine.urgent.get() | mine.visiting.get() != 0 {
            self.domain.leave(mine);
        }
        self.domain.platform.unpin();
    }
}
