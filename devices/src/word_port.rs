//! A port that takes one 32-bit word: the directory (`vcpu_sched::directory`), the trace's doorbell and that of the requests.
//!
//! A vCPU thread writes; the listener runs in that very exit, so that what it notes of the host's clock goes with what the guest noted
//! of its own. It must be short. The word is the guest's and may be any.

use std::fmt;

use crate::bus::BusDevice;

/// The port's width in bytes.
pub const LEN: u64 = 4;

/// The device behind the port.
pub struct WordPort {
    listener: Box<dyn FnMut(u32) + Send>,
}

impl WordPort {
    /// Calls `listener` with each word that the guest writes.
    pub fn new(listener: impl FnMut(u32) + Send + 'static) -> Self {
        Self { listener: Box::new(listener) }
    }
}

impl fmt::Debug for WordPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WordPort").finish_non_exhaustive()
    }
}

impl BusDevice for WordPort {
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
        let mut port = WordPort::new(move |word| sender.send(word).unwrap());
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
