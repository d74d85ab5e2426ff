//! The debug-exit port (docs/abi.md, "Ports"): how our kernel says that it is done, and how it ended.
//!
//! Written by a vCPU thread, reported once through [`crate::event`]; later writes are ignored, because the first one
//! already decides the VM's exit code.

use crate::bus::BusDevice;
use crate::event::{EventSender, GuestEvent};

/// The port's number (docs/abi.md).
pub const PORT: u64 = 0xf4;
/// The port's width in bytes.
pub const LEN: u64 = 4;

/// The decoded value `kind << 8 | code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestExit {
    /// Kind 0: the first program exited with this code.
    Exited(u8),
    /// Kind 1: the first program died of this signal.
    Signalled(u8),
    /// Kind 2: the guest kernel panicked. The code is not defined by the ABI, and kept for the report.
    Panicked(u8),
    /// Kind 3: the in-guest tests finished, with so many failures.
    TestsFinished {
        /// Number of failed tests, saturated by the kernel at 255.
        failures: u8,
    },
    /// Kind 4: the first program couldn't be started; 126 (can't be run) or 127 (not found).
    NotStarted(u8),
    /// A value the ABI doesn't define.
    Unknown(u32),
}

impl GuestExit {
    /// Decodes a value written to the port. Never fails: what the ABI doesn't define is [`GuestExit::Unknown`].
    pub const fn decode(value: u32) -> GuestExit {
        let code = value as u8;
        match (value >> 8, code) {
            (0, _) => GuestExit::Exited(code),
            (1, 1..=127) => GuestExit::Signalled(code),
            (2, _) => GuestExit::Panicked(code),
            (3, _) => GuestExit::TestsFinished { failures: code },
            (4, 126 | 127) => GuestExit::NotStarted(code),
            _ => GuestExit::Unknown(value),
        }
    }

    /// The process exit code that design.md ("Exit code") gives to this end: the program's own, 128 + signal, 123 for a
    /// kernel panic, 126/127, 1 for failed in-guest tests, and 125 for what the ABI doesn't define.
    pub const fn process_exit_code(self) -> u8 {
        match self {
            GuestExit::Exited(code) | GuestExit::NotStarted(code) => code,
            GuestExit::Signalled(signal) => 128_u8.saturating_add(signal),
            GuestExit::Panicked(_) => 123,
            GuestExit::TestsFinished { failures } => (failures != 0) as u8,
            GuestExit::Unknown(_) => 125,
        }
    }
}

/// The device behind port 0xf4.
#[derive(Debug)]
pub struct DebugExit {
    events: EventSender,
    reported: bool,
}

impl DebugExit {
    /// Reports to `events`.
    pub fn new(events: EventSender) -> DebugExit {
        DebugExit { events, reported: false }
    }
}

impl BusDevice for DebugExit {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // What QEMU's isa-debug-exit reads as.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset != 0 || self.reported {
            return;
        }
        self.reported = true;
        let value = data.iter().take(4).rev().fold(0_u32, |value, byte| value << 8 | u32::from(*byte));
        self.events.send(GuestEvent::Exit(GuestExit::decode(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::guest_events;

    #[test]
    fn every_kind_of_the_abi_decodes() {
        for (value, exit, code) in [
            (0x000, GuestExit::Exited(0), 0),
            (0x02a, GuestExit::Exited(42), 42),
            (0x10b, GuestExit::Signalled(11), 139),
            (0x200, GuestExit::Panicked(0), 123),
            (0x300, GuestExit::TestsFinished { failures: 0 }, 0),
            (0x305, GuestExit::TestsFinished { failures: 5 }, 1),
            (0x47e, GuestExit::NotStarted(126), 126),
            (0x47f, GuestExit::NotStarted(127), 127),
            (0x400, GuestExit::Unknown(0x400), 125),
            (0x100, GuestExit::Unknown(0x100), 125),
            (0x1ff, GuestExit::Unknown(0x1ff), 125),
            (0x500, GuestExit::Unknown(0x500), 125),
            (0xffff_ffff, GuestExit::Unknown(0xffff_ffff), 125),
        ] {
            assert_eq!(GuestExit::decode(value), exit, "{value:#x}");
            assert_eq!(exit.process_exit_code(), code, "{value:#x}");
        }
    }

    #[test]
    fn the_first_write_wins() {
        let (sender, events) = guest_events().unwrap();
        let mut port = DebugExit::new(sender);
        port.write(2, &[9]);
        port.write(0, &0x10b_u32.to_le_bytes());
        port.write(0, &[0]);
        let mut data = [1; 4];
        port.read(0, &mut data);
        assert_eq!(data, [0; 4]);
        assert_eq!(events.evt().read().unwrap(), 1);
        assert_eq!(events.drain().collect::<Vec<_>>(), [GuestEvent::Exit(GuestExit::Signalled(11))]);
    }
}
