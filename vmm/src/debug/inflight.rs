//! An `int3` that a vCPU has met and its guest doesn't know of yet.
//!
//! Where KVM passes a program's exceptions on by itself, it keeps the trap until it enters the guest the next time, with RIP behind the
//! `int3` already. KVM_GET_VCPU_EVENTS doesn't tell of it (no soft exception is told), and KVM_SET_REGS forgets it: the program would
//! go on in the middle of an instruction. So, before the machine counts as stopped, a vCPU that may have one is let go until it has passed it
//! on; where `int3` traps in the guest itself, that is never. Called by [`super::run`] with the `int3`s still there.

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use super::target::{Target, TargetError};

/// How long a vCPU is let go at first; twice as long each time.
const FIRST: Duration = Duration::from_micros(50);
/// How often: seconds in all. It takes one KVM_RUN, but on a loaded host the thread gets a CPU late, and the kick comes before it.
const TRIES: u32 = 16;
/// A breakpoint's vector.
const BREAKPOINT: u8 = 3;

impl Target {
    /// Has vCPUs pass on what they have met. All stand still, before and after.
    pub(super) fn pass_on(&mut self) -> Result<(), TargetError> {
        let behind: HashSet<u64> = self.points.in_programs().map(|address| address.wrapping_add(1)).collect();
        if behind.is_empty() {
            return Ok(());
        }
        for vcpu in 0..self.machine.control.vcpus() {
            for n in 0..TRIES {
                if !self.may_hold_trap(vcpu, &behind)? {
                    break;
                }
                let Some(paused) = &mut self.paused else { return Ok(()) };
                paused.release(vcpu)?;
                thread::sleep(FIRST * 2u32.pow(n));
                paused.hold(vcpu)?;
            }
        }
        Ok(())
    }

    /// Its last exception was a breakpoint, and it stands behind one of ours.
    fn may_hold_trap(&self, vcpu: usize, behind: &HashSet<u64>) -> Result<bool, TargetError> {
        let rip = self.with_vcpu(vcpu, |fd| fd.get_regs())??.rip;
        if !behind.contains(&rip) {
            return Ok(false);
        }
        Ok(self.with_vcpu(vcpu, |fd| fd.get_vcpu_events())??.exception.nr == BREAKPOINT)
    }
}
