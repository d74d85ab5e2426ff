//! The two ways an x86 kernel asks for a reset: the keyboard controller's port 0x64 and the reset control register
//! 0xcf9. One guest's reset ends its VM, so a device reports once through [`crate::event`] and ignores the rest.

use crate::bus::BusDevice;
use crate::event::{EventSender, GuestEvent};

/// i8042 command port (docs/abi.md, "Ports").
pub const I8042_PORT: u64 = 0x64;
/// Reset control register (docs/abi.md; Intel ICH/PCH datasheets, "RST_CNT").
pub const CF9_PORT: u64 = 0xcf9;

/// i8042 command 0xf0..0xff pulses output lines; a zero in bit 0 pulls the CPU's reset line.
const I8042_PULSE_RESET: u8 = 0xfe;
/// RST_CNT bit 2: a 0 to 1 transition resets the CPU (with bit 1: the platform too).
const CF9_RST_CPU: u8 = 1 << 2;

/// Who asked for the reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetSource {
    /// 0xfe written to port 0x64.
    I8042,
    /// 0x06 or 0x0e written to port 0xcf9.
    Cf9,
}

/// Port 0x64 reduced to what kernels use it for when there is no keyboard.
#[derive(Debug)]
pub struct I8042Reset {
    events: EventSender,
    reported: bool,
}

impl I8042Reset {
    /// Reports to `events`.
    pub fn new(events: EventSender) -> I8042Reset {
        I8042Reset { events, reported: false }
    }
}

impl BusDevice for I8042Reset {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Status: no output, input buffer empty. Kernels poll for the latter before they write the reset command.
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&I8042_PULSE_RESET) && !self.reported {
            self.reported = true;
            self.events.send(GuestEvent::Reset(ResetSource::I8042));
        }
    }
}

/// Port 0xcf9.
#[derive(Debug)]
pub struct Cf9Reset {
    events: EventSender,
    value: u8,
    reported: bool,
}

impl Cf9Reset {
    /// Reports to `events`.
    pub fn new(events: EventSender) -> Cf9Reset {
        Cf9Reset { events, value: 0, reported: false }
    }
}

impl BusDevice for Cf9Reset {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.value);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let Some(value) = data.first() else { return };
        // Linux writes 0x02 or 0x0a first, then the same with bit 2 set.
        self.value = value & !CF9_RST_CPU;
        if value & CF9_RST_CPU != 0 && !self.reported {
            self.reported = true;
            self.events.send(GuestEvent::Reset(ResetSource::Cf9));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::guest_events;

    #[test]
    fn only_the_reset_command_resets_and_only_once() {
        let (sender, events) = guest_events().unwrap();
        let mut port = I8042Reset::new(sender.try_clone().unwrap());
        let mut status = [0xff];
        port.read(0, &mut status);
        assert_eq!(status, [0]);
        port.write(0, &[0x20]);
        assert_eq!(events.drain().count(), 0);
        port.write(0, &[0xfe]);
        port.write(0, &[0xfe]);
        assert_eq!(events.drain().collect::<Vec<_>>(), [GuestEvent::Reset(ResetSource::I8042)]);
    }

    #[test]
    fn cf9_resets_on_bit_two() {
        for value in [0x06, 0x0e] {
            let (sender, events) = guest_events().unwrap();
            let mut port = Cf9Reset::new(sender);
            port.write(0, &[0x02]);
            let mut data = [0];
            port.read(0, &mut data);
            assert_eq!((data, events.drain().count()), ([0x02], 0));
            port.write(0, &[value]);
            assert_eq!(events.drain().collect::<Vec<_>>(), [GuestEvent::Reset(ResetSource::Cf9)]);
        }
    }
}
