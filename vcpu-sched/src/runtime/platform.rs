//! What an executor needs of the kernel, or of the host's threads, that runs it.

use super::lock::RawLock;
use crate::ids::CpuId;

/// The mechanism under a [`Runtime`](super::Runtime). Implemented once by whoever runs it.
///
/// # Safety
/// [`executor_cpu`](Platform::executor_cpu) may return `Some(cpu)` only where the [`Worker`](super::Worker) of that CPU
/// is held, on the thread that holds it, and not in an interrupt that came upon that thread: a CPU's own queue has one
/// writer.
pub unsafe trait Platform: Send + Sync + 'static {
    /// The lock around lists. Where wakers are used in interrupts it must keep interrupts off.
    type Lock: RawLock;

    /// The CPU whose executor calls; `None` in an interrupt, and anywhere else. Always correct, and slower.
    fn executor_cpu(&self) -> Option<CpuId>;

    /// Makes the CPU's [`park`](Platform::park) return, the one under way or, if there is none, the next.
    fn kick(&self, cpu: CpuId);

    /// The executor of the CPU has nothing to do: sleeps until somebody kicks it. May also return without a reason.
    fn park(&self, cpu: CpuId);
}
