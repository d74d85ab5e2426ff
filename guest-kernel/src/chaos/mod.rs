//! Chaos: at seeded points the scheduler is made to do what it may do at any time but seldom does (docs/chaos.md).
//!
//! `chaos=SEED` on the command line turns it on, `chaos_rate=N` says how often: about one point in N acts. Everything that is done
//! here is legal at its point: a preemption where an interrupt could have come, a wake-up of whoever waits (every waiter looks at
//! its condition again), an interrupt that takes its time, a ready task that changes its queue. So a program that fails under
//! chaos, or a trace that breaks an invariant, shows a bug of the kernel.
//!
//! Callers are the places that a [`Point`] names. While chaos is off a point is one test of a flag. Invariants: random words are
//! drawn with interrupts off, each CPU from a stream of its own; nothing happens inside of what a point does itself.
//!
//! | file | what |
//! | --- | --- |
//! | `act` | what a point may do |
//! | `clock` | one CPU: virtual time, which makes a run repeatable |
//! | `rng` | the generator |

mod act;
pub mod clock;
mod rng;

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::boot::cmdline;
use crate::cpu::set::AtomicCpuSet;
use crate::cpu::{self, MAX_CPUS};
use crate::task::observers::{self, Observer};

pub use act::{holds_back, send_held};

/// Where chaos can happen. The numbers are those of trace records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Point {
    /// A system call has begun.
    SyscallEnter = 1,
    /// A system call is done.
    SyscallExit = 2,
    /// A page fault of a program.
    Fault = 3,
    /// Interrupts, and with them preemption, have just been turned on again: a lock was released.
    InterruptsOn = 4,
    /// A wake-up has made a task ready and hasn't queued it yet.
    WakeBefore = 5,
    /// A wake-up is done.
    WakeAfter = 6,
    /// The current task has announced that it will block, and hasn't left its CPU.
    Block = 7,
    /// A switch is done.
    Switch = 8,
    /// A timer is being armed.
    TimerArm = 9,
    /// An interrupt is about to be sent to another CPU.
    Ipi = 10,
}

/// Set once at boot, when all CPUs are up.
static ON: AtomicBool = AtomicBool::new(false);
/// About one point in so many acts.
static RATE: AtomicU32 = AtomicU32::new(DEFAULT_RATE);
static SEED: AtomicU64 = AtomicU64::new(0);

const DEFAULT_RATE: u32 = 64;

/// What a CPU keeps between its points. Own CPU, interrupts off.
struct PerCpu {
    random: rng::Stream,
    /// A point is being carried out.
    busy: AtomicBool,
    /// CPUs whose reschedule interrupt is held back.
    held: AtomicCpuSet,
}

static CPUS: [PerCpu; MAX_CPUS] = [const { PerCpu::new() }; MAX_CPUS];

impl PerCpu {
    const fn new() -> Self {
        Self { random: rng::Stream::new(), busy: AtomicBool::new(false), held: AtomicCpuSet::new() }
    }
}

/// Something may happen here. From any context but NMI and machine check, with no run queue of another CPU locked.
#[inline(always)]
pub fn point(point: Point) {
    // Relaxed: set once, and a point that misses it does nothing wrong.
    if ON.load(Ordering::Relaxed) {
        act::at(point);
    }
}

/// The seed, if chaos was asked for. As [`init`] took it.
pub fn seed() -> u64 {
    SEED.load(Ordering::Relaxed)
}

/// Reads the command line. With one CPU, time is virtual from here on. Boot CPU, before the clock is set up.
pub fn init(alone: bool) {
    let Some(text) = cmdline::get("chaos") else { return };
    let Some(seed) = parse(text) else {
        crate::warn!("chaos={text}: a number, decimal or with 0x; no chaos");
        return;
    };
    SEED.store(seed, Ordering::Relaxed);
    if let Some(text) = cmdline::get("chaos_rate") {
        match text.parse::<u32>() {
            Ok(rate) if rate > 0 => RATE.store(rate, Ordering::Relaxed),
            _ => crate::warn!("chaos_rate={text}: a number from 1 on; using {DEFAULT_RATE}"),
        }
    }
    for (id, cpu) in (0..).zip(&CPUS) {
        cpu.random.seed(seed, id);
    }
    if alone {
        clock::start();
    }
    WANTED.store(true, Ordering::Relaxed);
}

/// [`init`] has found a seed.
static WANTED: AtomicBool = AtomicBool::new(false);

/// Lets points act. Boot CPU, when all CPUs are up and before programs run.
pub fn start() {
    if WANTED.load(Ordering::Relaxed) {
        clock::start_watch();
        ON.store(true, Ordering::Relaxed);
        observers::set(Observer::Chaos, true);
        let time = if clock::on() { "virtual" } else { "real" };
        crate::info!("chaos {:#x}, one point in {}, {time} time", seed(), RATE.load(Ordering::Relaxed));
    }
}

fn parse(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// This CPU's part. Interrupts are off.
fn this() -> &'static PerCpu {
    // Numbers are below MAX_CPUS; the mask only tells the compiler.
    &CPUS[cpu::this().id.index() & (MAX_CPUS - 1)]
}

const _: () = assert!(MAX_CPUS.is_power_of_two());
