//! The trace doorbell (`vcpu_sched::directory`, ring header): a guest whose trace ring is full writes its CPU's number, and goes
//! on when the listener has made room.
//!
//! A vCPU thread writes; the listener runs in that exit. The number is the guest's word and may be any.

use std::fmt;

use vcpu_sched::directory::RingHeader;

use crate::bus::BusDevice;

/// The port's number.
pub const PORT: u64 = RingHeader::DOORBELL as u64;
/// Its width.
pub const LEN: u64 = 4;

/// The device behind the port.
pub struct Doorbell {
    listener: Box<dyn FnMut(u32) + Send>,
}

impl Doorbell {
    /// Calls `listener` with each CPU number that the guest writes.
    pub fn new(listener: impl FnMut(u32) + Send + 'static) -> Self {
        Self { listener: Box::new(listener) }
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbell").finish_non_exhaustive()
    }
}

impl BusDevice for Doorbell {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // Anything but the one access that docs/abi.md defines means nothing.
        if let (0, Ok(bytes)) = (offset, <[u8; 4]>::try_from(data)) {
            (self.listener)(u32::from_le_bytes(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn whole_writes_are_heard_and_no_others() {
        let (sender, heard) = channel();
        let mut bell = Doorbell::new(move |cpu| sender.send(cpu).unwrap());
        bell.write(0, &[1]);
        bell.write(2, &[1, 0, 0, 0]);
        bell.write(0, &[7, 0, 0, 0]);
        let mut data = [0; 4];
        bell.read(0, &mut data);
        drop(bell);
        assert_eq!(heard.iter().collect::<Vec<_>>(), [7]);
        assert_eq!(data, [0xff; 4]);
    }
}
