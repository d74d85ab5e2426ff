//! Boot milestones (docs/abi.md, port 0x80): time stamps of the guest's way through its boot.
//!
//! A vCPU thread writes the port; the first write of each value is stamped and reported through [`crate::event`].
//! Foreign kernels use port 0x80 as an I/O delay and write arbitrary values in loops: a repeated value costs one table
//! look-up and reports nothing.

use std::time::Instant;

use crate::bus::BusDevice;
use crate::event::{EventSender, GuestEvent};

/// The port's number (docs/abi.md).
pub const PORT: u64 = 0x80;

/// Which milestone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// 1: the kernel's entry point ran.
    KernelEntry,
    /// 2: about to enter the first user instruction.
    FirstUser,
    /// 3: the last program ended.
    LastProgramEnded,
    /// Anything else, kept as it is: POST codes of foreign kernels.
    Other(u8),
}

impl From<u8> for Milestone {
    fn from(value: u8) -> Milestone {
        match value {
            1 => Milestone::KernelEntry,
            2 => Milestone::FirstUser,
            3 => Milestone::LastProgramEnded,
            other => Milestone::Other(other),
        }
    }
}

/// A milestone and when the VMM saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MilestoneHit {
    /// Which one.
    pub milestone: Milestone,
    /// When its first write reached the device.
    pub at: Instant,
}

/// The device behind port 0x80.
#[derive(Debug)]
pub struct MilestonePort {
    events: EventSender,
    seen: [bool; 256],
    last: u8,
}

impl MilestonePort {
    /// Reports to `events`.
    pub fn new(events: EventSender) -> MilestonePort {
        MilestonePort { events, seen: [false; 256], last: 0 }
    }
}

impl BusDevice for MilestonePort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.last);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        self.last = value;
        if !std::mem::replace(&mut self.seen[usize::from(value)], true) {
            let hit = MilestoneHit { milestone: Milestone::from(value), at: Instant::now() };
            self.events.send(GuestEvent::Milestone(hit));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::guest_events;

    #[test]
    fn each_value_is_reported_once_in_order_with_rising_times() {
        let (sender, events) = guest_events().unwrap();
        let mut port = MilestonePort::new(sender);
        for value in [1, 1, 2, 0x55, 2, 3, 1] {
            port.write(0, &[value]);
        }
        let hits: Vec<_> = events
            .drain()
            .map(|event| match event {
                GuestEvent::Milestone(hit) => hit,
                other => panic!("{other:?}"),
            })
            .collect();
        let names: Vec<_> = hits.iter().map(|hit| hit.milestone).collect();
        use Milestone::*;
        assert_eq!(names, [KernelEntry, FirstUser, Other(0x55), LastProgramEnded]);
        assert!(hits.is_sorted_by_key(|hit| hit.at));
        let mut data = [0];
        port.read(0, &mut data);
        assert_eq!(data, [1]);
    }
}
