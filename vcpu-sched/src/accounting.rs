//! What a task did with its time: run, wait, sleep, switches, migrations, wake-up latency.
//!
//! Written by [`RunQueue`](crate::runqueue::RunQueue) under its lock, a few plain stores for each event; read by anyone at
//! any time, each number whole but not all of one moment. The invariant: a task is always running, waiting in a queue or
//! asleep, and each nanosecond since its start is counted as one of them, once, when that state ends.

use crate::cell::{U32Cell, U64Cell};
use crate::ids::Nanos;

/// Buckets of the latency histogram: bucket 0 counts 0 and 1 ns, bucket `n` counts `2^n..2^(n+1)` ns, the last one (2.1 s) all above too.
pub const LATENCY_BUCKETS: usize = 32;

/// A task's counters. See the module's text.
#[derive(Debug)]
pub struct Accounting {
    run: U64Cell,
    wait: U64Cell,
    sleep: U64Cell,
    /// When the present wait or sleep began.
    since: U64Cell,
    voluntary: U64Cell,
    involuntary: U64Cell,
    wakeups: U64Cell,
    migrations: U64Cell,
    max_latency: U64Cell,
    latency: [U32Cell; LATENCY_BUCKETS],
}

/// Copies of a task's counters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Time on a CPU.
    pub run: Nanos,
    /// Time in a queue.
    pub wait: Nanos,
    /// Time blocked.
    pub sleep: Nanos,
    /// How often it left a CPU because it blocked or yielded.
    pub voluntary: u64,
    /// How often it was made to leave.
    pub involuntary: u64,
    /// How often it was woken.
    pub wakeups: u64,
    /// How often it ran on another CPU than before.
    pub migrations: u64,
    /// The longest time from a wake-up to the CPU.
    pub max_latency: Nanos,
    /// Wake-ups by the time until they ran, see [`LATENCY_BUCKETS`].
    pub latency: [u32; LATENCY_BUCKETS],
}

impl Snapshot {
    /// How often it left a CPU.
    pub const fn switches(&self) -> u64 {
        self.voluntary + self.involuntary
    }
}

/// The bucket of the histogram that counts a latency.
#[inline]
pub const fn latency_bucket(latency: Nanos) -> usize {
    let log2 = (latency.0 | 1).ilog2() as usize;
    if log2 < LATENCY_BUCKETS { log2 } else { LATENCY_BUCKETS - 1 }
}

#[inline(always)]
fn add(cell: &U64Cell, n: u64) {
    cell.set(cell.get().wrapping_add(n));
}

/// Where [`Accounting`] keeps the time on a CPU, for [`entity::offsets`](crate::entity::offsets).
pub(crate) const RUN_AT: usize = core::mem::offset_of!(Accounting, run);
/// Where it keeps the switches that the task wanted.
pub(crate) const VOLUNTARY_AT: usize = core::mem::offset_of!(Accounting, voluntary);
/// Where it keeps those that it was made to do.
pub(crate) const INVOLUNTARY_AT: usize = core::mem::offset_of!(Accounting, involuntary);
/// Where it keeps the time in a queue.
pub(crate) const WAIT_AT: usize = core::mem::offset_of!(Accounting, wait);
/// Where it keeps the time asleep.
pub(crate) const SLEEP_AT: usize = core::mem::offset_of!(Accounting, sleep);
/// Where it keeps the beginning of the present wait or sleep.
pub(crate) const SINCE_AT: usize = core::mem::offset_of!(Accounting, since);

impl Accounting {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            run: U64Cell::new(0),
            wait: U64Cell::new(0),
            sleep: U64Cell::new(0),
            since: U64Cell::new(0),
            voluntary: U64Cell::new(0),
            involuntary: U64Cell::new(0),
            wakeups: U64Cell::new(0),
            migrations: U64Cell::new(0),
            max_latency: U64Cell::new(0),
            latency: [const { U32Cell::new(0) }; LATENCY_BUCKETS],
        }
    }

    /// The counters as they are now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            run: Nanos(self.run.get()),
            wait: Nanos(self.wait.get()),
            sleep: Nanos(self.sleep.get()),
            voluntary: self.voluntary.get(),
            involuntary: self.involuntary.get(),
            wakeups: self.wakeups.get(),
            migrations: self.migrations.get(),
            max_latency: Nanos(self.max_latency.get()),
            latency: core::array::from_fn(|i| self.latency[i].get()),
        }
    }

    /// Time on a CPU up to the last time that it was charged.
    #[inline]
    pub fn run(&self) -> Nanos {
        Nanos(self.run.get())
    }

    /// How often it left a CPU of its own will, and how often it was made to.
    #[inline]
    pub fn switches(&self) -> [u64; 2] {
        [self.voluntary.get(), self.involuntary.get()]
    }

    /// An idle task, which is in no queue and so in nobody's books, has run.
    #[inline]
    pub fn idled(&self, ran: Nanos) {
        add(&self.run, ran.0);
    }

    /// It enters a queue for the first time.
    #[inline]
    pub(crate) fn started(&self, now: Nanos) {
        self.since.set(now.0);
    }

    /// It enters a queue after a sleep.
    #[inline]
    pub(crate) fn woken(&self, now: Nanos) {
        add(&self.sleep, now.0.saturating_sub(self.since.get()));
        add(&self.wakeups, 1);
        self.since.set(now.0);
    }

    /// It was taken from the queue to run; `after_wake`: for the first time since it was woken.
    #[inline]
    pub(crate) fn picked(&self, now: Nanos, after_wake: bool) {
        let waited = now.0.saturating_sub(self.since.get());
        add(&self.wait, waited);
        if after_wake {
            if waited > self.max_latency.get() {
                self.max_latency.set(waited);
            }
            let bucket = &self.latency[latency_bucket(Nanos(waited))];
            bucket.set(bucket.get().wrapping_add(1));
        }
    }

    /// It ran on another CPU before.
    #[inline]
    pub(crate) fn migrated(&self) {
        add(&self.migrations, 1);
    }

    /// It leaves the CPU after it ran for `ran`, of its own will or not.
    #[inline]
    pub(crate) fn left(&self, now: Nanos, ran: Nanos, voluntary: bool) {
        add(&self.run, ran.0);
        add(if voluntary { &self.voluntary } else { &self.involuntary }, 1);
        self.since.set(now.0);
    }

    /// A pick was taken back: it goes on waiting, elsewhere.
    #[inline]
    pub(crate) fn put_back(&self, now: Nanos, ran: Nanos) {
        add(&self.run, ran.0);
        self.since.set(now.0);
    }
}

impl Default for Accounting {
    fn default() -> Self {
        Self::new()
    }
}
