//! `--chaos`: what the VMM does to a guest of its own kernel that runs on several vCPUs. (With one vCPU the kernel alone makes the
//! chaos, so that the run can be repeated: docs/chaos.md.)
//!
//! A thread of its own kicks vCPUs at seeded moments and sends them interrupts that nobody asked for; a vCPU that was kicked
//! stays out of the guest for a seeded while. Only vectors that the kernel allows at any time (docs/abi.md), and only once it has
//! published its directory. Invariants: the event loop never waits for any of this, and the thread has ended before the vCPUs do.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;

use crate::guestview::Told;
use crate::sandbox::{self, Kind};
use crate::vcpu::kick;

/// What `--chaos` and `--chaos-rate` say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chaos {
    /// Where all random numbers come from.
    pub seed: u64,
    /// About one point in so many acts.
    pub rate: u32,
}

/// One point in so many acts, if nothing is said.
pub const DEFAULT_RATE: u32 = 64;

/// Vectors of our kernel that may come at any time: its timer's and the one that makes a CPU look at its queue (docs/abi.md).
const VECTORS: [u8; 2] = [0x20, 0xf0];
/// Intel SDM vol. 3A 11.11.1: the address of a message to a local APIC, its id from bit 12 on.
const MSI_ADDRESS: u32 = 0xfee0_0000;
/// Ids that fit such an address.
const MAX_APIC_ID: u32 = 0xff;

/// Between two disturbances, in microseconds.
const BETWEEN: std::ops::Range<u64> = 500..20_000;
/// How long a vCPU stays out of the guest, in microseconds.
const PAUSE: std::ops::Range<u64> = 100..5_000;

/// Random numbers: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// Stream `number` of a seed.
    fn new(seed: u64, number: u32) -> Self {
        let mut base = Self(seed ^ u64::from(number) << 32);
        Self(base.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn micros(&mut self, range: &std::ops::Range<u64>) -> Duration {
        Duration::from_micros(range.start + self.next() % (range.end - range.start))
    }
}

/// How long one vCPU stays out of the guest when it is kicked.
#[derive(Debug)]
pub struct Pauses(Random);

impl Pauses {
    /// Of a vCPU.
    pub fn new(chaos: Chaos, vcpu: u32) -> Self {
        Self(Random::new(chaos.seed, vcpu + 1))
    }

    /// The next one; every other kick has none.
    pub fn next_pause(&mut self) -> Option<Duration> {
        (self.0.next() & 1 == 0).then(|| self.0.micros(&PAUSE))
    }
}

/// A vCPU to be disturbed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its host thread.
    pub tid: i32,
    /// Its local APIC.
    pub apic_id: u32,
}

/// The thread that disturbs; ends when dropped.
#[derive(Debug)]
pub struct Disturber {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Disturber {
    /// Starts disturbing vCPUs. Signals to be handled elsewhere must be blocked already.
    pub fn start(chaos: Chaos, vm: Arc<VmFd>, targets: Vec<Target>, told: Arc<Told>) -> io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let mut random = Random::new(chaos.seed, 0);
        let thread = thread::Builder::new().name("chaos".into()).spawn(move || {
            if let Err(error) = sandbox::enter(Kind::Chaos) {
                return log::error!("there is no chaos: {error}");
            }
            while stopped.recv_timeout(random.micros(&BETWEEN)) == Err(RecvTimeoutError::Timeout) {
                let (which, what) = (random.next(), random.next());
                let Some(target) = targets.get(which as usize % targets.len().max(1)) else { return };
                match VECTORS.get(what as usize % (VECTORS.len() + 1)) {
                    None => kick::kick_thread(target.tid),
                    Some(vector) if told.is_there() && target.apic_id <= MAX_APIC_ID => {
                        let address_lo = MSI_ADDRESS | target.apic_id << 12;
                        let message = kvm_msi { address_lo, data: (*vector).into(), ..kvm_msi::default() };
                        if let Err(error) = vm.signal_msi(message) {
                            log::debug!("chaos: KVM_SIGNAL_MSI: {error}");
                        }
                    }
                    Some(_) => {}
                }
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Disturber {
    fn drop(&mut self) {
        // The closed channel tells it.
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic there was told by the hook; the guest goes on without chaos.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_pauses_again_and_another_gives_others() {
        let pauses = |seed, vcpu| {
            let mut pauses = Pauses::new(Chaos { seed, rate: 1 }, vcpu);
            (0..64).map(|_| pauses.next_pause()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(7, 0), pauses(7, 0));
        assert_ne!(pauses(7, 0), pauses(8, 0));
        assert_ne!(pauses(7, 0), pauses(7, 1));
        let some: Vec<_> = pauses(7, 0).into_iter().flatten().collect();
        assert!((16..48).contains(&some.len()), "{some:?}");
        assert!(some.iter().all(|p| PAUSE.contains(&(p.as_micros() as u64))), "{some:?}");
    }
}
