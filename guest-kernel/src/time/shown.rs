//! The clocks as programs on this CPU see them: the kernel's, ahead or behind by what the VMM set for this CPU (`--tsc-offset`).
//!
//! System calls use these where a time comes from a program or goes to one; the vDSO shows the same. The kernel's own time has no
//! such offset, so nothing in it breaks when they differ. A span is the same everywhere and needs none of this.

use vcpu_sched::ids::Nanos;

use super::{PAGE, wall};
use crate::cpu;
use crate::sync::IrqGuard;

/// Adds a signed span, at most down to 0.
fn plus(time: Nanos, nanos: i64) -> Nanos {
    Nanos(time.0.saturating_add_signed(nanos))
}

/// This CPU's offset.
fn skew() -> i64 {
    PAGE.skew(cpu::this().id.index())
}

/// The monotonic clock.
pub fn now() -> Nanos {
    // Both on one CPU.
    let _irq = IrqGuard::new();
    plus(super::now(), skew())
}

/// The wall clock.
pub fn wall_now() -> Nanos {
    now() + wall::offset()
}

/// A time that a program on this CPU has named on its monotonic clock, on the kernel's.
pub fn monotonic(time: Nanos) -> Nanos {
    plus(time, skew().saturating_neg())
}

/// The same on its wall clock.
pub fn wall(time: Nanos) -> Nanos {
    monotonic(time - wall::offset())
}
