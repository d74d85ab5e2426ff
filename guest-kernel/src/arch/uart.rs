//! The two 16550 UARTs: kernel log (COM1), reports (COM2). Source: National Semiconductor PC16550D data sheet, 8.

use super::instr::{inb, outb};

/// COM1: kernel log; stdin and stdout where no virtio console exists.
pub const COM1: u16 = 0x3f8;
/// COM2: reports.
pub const COM2: u16 = 0x2f8;
/// COM1's pin.
pub const COM1_GSI: u8 = 4;

const LINE_STATUS: u16 = 5;
const TRANSMIT_EMPTY: u8 = 1 << 5;
const DATA_READY: u8 = 1;
/// Reads of the line status before a byte is given up: a missing UART must not hang the kernel.
const PATIENCE: u32 = 100_000;

/// Whether a UART answers at all (a missing one reads as all ones).
pub fn present(port: u16) -> bool {
    // SAFETY: reading the line status has no effect on transmission.
    unsafe { inb(port + LINE_STATUS) != 0xff }
}

/// Sends one byte.
pub fn write(port: u16, byte: u8) {
    for _ in 0..PATIENCE {
        // SAFETY: UART registers.
        if unsafe { inb(port + LINE_STATUS) } & TRANSMIT_EMPTY != 0 {
            break;
        }
    }
    // SAFETY: UART registers.
    unsafe { outb(port, byte) };
}

/// Sends bytes without asking for room first: KVM hosts take them as they come, and each question costs as much as a byte.
pub fn write_fast(port: u16, bytes: &[u8]) {
    for &b in bytes {
        // SAFETY: UART registers.
        unsafe { outb(port, b) };
    }
}

/// A received byte, if there is one.
pub fn read(port: u16) -> Option<u8> {
    // SAFETY: UART registers.
    unsafe { (inb(port + LINE_STATUS) & DATA_READY != 0).then(|| inb(port)) }
}

/// Lets the UART interrupt when a byte arrives.
pub fn enable_receive_interrupt(port: u16) {
    // SAFETY: interrupt enable register: received data; modem control: OUT2 connects the interrupt.
    unsafe {
        outb(port + 1, 1);
        outb(port + 4, 0x0b);
    }
}
