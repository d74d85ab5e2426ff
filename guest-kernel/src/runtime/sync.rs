//! What futures of this kernel wait for: `vcpu_sched::runtime::sync` with interrupts off while a list is changed, so that interrupts may give,
//! notify and set.

use super::platform::KernelLock;

pub use vcpu_sched::runtime::sync::Closed;

/// Permits.
pub type Semaphore = vcpu_sched::runtime::sync::Semaphore<KernelLock>;
/// A lock to hold over an `await`.
pub type Mutex<T> = vcpu_sched::runtime::sync::Mutex<T, KernelLock>;
/// Something happened.
pub type Notify = vcpu_sched::runtime::sync::Notify<KernelLock>;
/// Something has happened, and stays so.
pub type Event = vcpu_sched::runtime::sync::Event<KernelLock>;
/// The sending end of a channel.
pub type Sender<T> = vcpu_sched::runtime::sync::Sender<T, KernelLock>;
/// The receiving end of a channel.
pub type Receiver<T> = vcpu_sched::runtime::sync::Receiver<T, KernelLock>;

/// A channel with places for so many values.
pub fn channel<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    vcpu_sched::runtime::sync::channel(capacity)
}
