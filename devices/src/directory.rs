//! The directory port (`vcpu_sched::directory`): the guest writes the number of the page that says what it shows.
//!
//! A vCPU thread writes; the listener runs in that very exit, so that what it notes of the host's clock goes with what the guest noted
//! of its own. It must be short and must not trust the number.

use std::fmt;

use vcpu_sched::directory::PORT as NUMBER;

use crate::bus::BusDevice;

/// The port's number.
pub const PORT: u64 = NUMBER as u64;
/// Its width.
pub const LEN: u64 = 4;

/// The device behind the port.
pub struct DirectoryPort {
    listener: Box<dyn FnMut(u32) + Send>,
}

impl DirectoryPort {
    /// Calls `listener` with each page number that the guest writes.
    pub fn new(listener: impl FnMut(u32) + Send + 'static) -> Self {
        Self { listener: Box::new(listener) }
    }
}

impl fmt::Debug for DirectoryPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectoryPort").finish_non_exhaustive()
    }
}

impl BusDevice for DirectoryPort {
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
        let mut port = DirectoryPort::new(move |page| sender.send(page).unwrap());
        port.write(0, &[1, 2, 3]);
        port.write(1, &[1, 2, 3, 4]);
        port.write(0, &[]);
        port.write(0, &[0x78, 0x56, 0x34, 0x12]);
        let mut data = [0; 4];
        port.read(0, &mut data);
        drop(port);
        assert_eq!(heard.iter().collect::<Vec<_>>(), [0x1234_5678]);
        assert_eq!(data, [0xff; 4]);
    }
}
