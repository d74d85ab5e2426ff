//! A 16550 UART: vm-superio's register model, with interrupts through an `EventFd` (the VMM registers it as an irqfd).
//!
//! vCPU threads drive the registers through [`BusDevice`]; the event loop calls [`Uart::enqueue`] with input,
//! [`Uart::flush`] and, at the end, [`Uart::drain`].
//! Invariant: no input byte is ever lost. What the 64-byte FIFO can't take waits in a backlog, which is fed on as the
//! guest reads; the loop stops reading its source while [`Uart::wants_input`] is false, and polls [`Uart::room_evt`] to
//! learn when to start again.
//!
//! A write to the output may block; it then blocks the vCPU that wrote the register, never the event loop, unless the
//! loop itself calls `flush` or `drain`.

use std::collections::VecDeque;
use std::io::{self, Write};

use vm_superio::Trigger;
use vm_superio::serial::{Error as SerialError, NoEvents, Serial};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;

/// COM1 (docs/abi.md, "Ports").
pub const COM1_PORT: u64 = 0x3f8;
/// COM2.
pub const COM2_PORT: u64 = 0x2f8;
/// Eight registers.
pub const LEN: u64 = 8;
/// COM1's interrupt line.
pub const COM1_IRQ: u32 = 4;
/// COM2's interrupt line.
pub const COM2_IRQ: u32 = 3;

/// A line's worth: how much [`Buffering::Line`] keeps back at most.
const LINE_MAX: usize = 1024;

/// When written bytes reach the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffering {
    /// Each byte at once: interactive use, prompts without a newline.
    None,
    /// At a newline, when 1 KiB has gathered, or at [`Uart::flush`]: logs. One write(2) a line instead of one a byte.
    Line,
}

/// Interrupt line of the UART.
#[derive(Debug)]
struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        match self.0.write(1) {
            // The counter is full: an interrupt is pending anyway.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }
}

/// The output stage. vm-superio flushes after each byte, so its `flush` is where the policy sits.
struct Out {
    sink: Box<dyn Write + Send>,
    line: Vec<u8>,
    buffering: Buffering,
    lost: u64,
}

impl Out {
    fn push_out(&mut self) -> io::Result<()> {
        let result = if self.line.is_empty() { Ok(()) } else { self.sink.write_all(&self.line) };
        if result.is_err() {
            self.lost += self.line.len() as u64;
        }
        self.line.clear();
        result.and_then(|()| self.sink.flush())
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let full = self.line.len() >= LINE_MAX || self.line.last() == Some(&b'\n');
        if self.buffering == Buffering::None || full { self.push_out() } else { Ok(()) }
    }
}

/// A serial port.
pub struct Uart {
    serial: Serial<Irq, NoEvents, Out>,
    backlog: VecDeque<u8>,
    room: EventFd,
    output_failed: bool,
}

impl Uart {
    /// A port whose output goes to `sink`.
    pub fn new(sink: Box<dyn Write + Send>, buffering: Buffering) -> io::Result<Uart> {
        let irq = Irq(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let out = Out { sink, line: Vec::with_capacity(LINE_MAX), buffering, lost: 0 };
        Ok(Uart {
            serial: Serial::new(irq, out),
            backlog: VecDeque::new(),
            room: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            output_failed: false,
        })
    }

    /// Register this as the irqfd of the port's line (edge).
    pub fn interrupt_evt(&self) -> &EventFd {
        &self.serial.interrupt_evt().0
    }

    /// Becomes readable when the backlog has run empty after [`Uart::wants_input`] was false. Read it to reset it.
    pub fn room_evt(&self) -> &EventFd {
        &self.room
    }

    /// False while the guest is behind: don't read more input for it. (`enqueue` would still keep every byte.)
    pub fn wants_input(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Hands input to the guest. Never drops a byte: what the FIFO can't take now is kept.
    pub fn enqueue(&mut self, bytes: &[u8]) {
        self.backlog.extend(bytes);
        self.feed();
    }

    /// Moves backlog into the FIFO. In loop-back mode the FIFO takes nothing, and everything waits.
    fn feed(&mut self) {
        while !self.backlog.is_empty() && self.serial.fifo_capacity() > 0 {
            match self.serial.enqueue_raw_bytes(self.backlog.as_slices().0) {
                Ok(0) => return,
                Ok(taken) => drop(self.backlog.drain(..taken)),
                // The bytes are in the FIFO before the interrupt is raised, so how many went is not known from the
                // error; the trigger fails only on a broken eventfd, after which the port is dead anyway.
                Err(error) => return log::error!("serial port input: {error}"),
            }
        }
    }

    /// Writes a partial line out ([`Buffering::Line`]).
    pub fn flush(&mut self) {
        let result = self.serial.writer_mut().push_out();
        self.note(result);
    }

    /// As `flush`; docs/abi.md: all UARTs are drained before the VMM ends.
    pub fn drain(&mut self) {
        self.flush();
    }

    /// Bytes the output refused (closed pipe, full disk).
    pub fn lost(&self) -> u64 {
        self.serial.writer().lost
    }

    /// Logs an output error once.
    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && !std::mem::replace(&mut self.output_failed, true)
        {
            log::warn!("serial port output: {error}; further output that fails is counted, not reported");
        }
    }
}

impl BusDevice for Uart {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // A wider access is what the ISA bus makes of it: one byte access per register.
        for (register, byte) in (offset..).zip(data) {
            *byte = self.serial.read(register as u8);
        }
        if !self.backlog.is_empty() {
            self.feed();
            if self.backlog.is_empty() {
                // Failure means that the counter is full, which wakes the loop as well.
                let _ = self.room.write(1);
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, byte) in (offset..).zip(data) {
            match self.serial.write(register as u8, *byte) {
                Ok(()) => {}
                Err(SerialError::IOError(error)) => self.note(Err(error)),
                Err(error) => log::error!("serial port: {error}"),
            }
        }
        // Leaving loop-back mode lets the backlog move.
        self.feed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Register offsets and bits: 16550 data sheet.
    const DATA: u64 = 0;
    const IER: u64 = 1;
    const MCR: u64 = 4;
    const LSR: u64 = 5;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut sink = self.0.lock().unwrap();
            sink.0.extend_from_slice(bytes);
            sink.1 += 1;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn read(uart: &mut Uart, register: u64) -> u8 {
        let mut byte = [0];
        uart.read(register, &mut byte);
        byte[0]
    }

    #[test]
    fn no_input_byte_is_lost_and_the_loop_is_told_when_there_is_room() {
        let mut uart = Uart::new(Box::new(io::sink()), Buffering::None).unwrap();
        uart.write(IER, &[1]);
        let input: Vec<u8> = (0..1000_u32).map(|i| i as u8).collect();
        uart.enqueue(&input);
        assert!(!uart.wants_input());
        assert_eq!(uart.interrupt_evt().read().unwrap(), 1);
        let mut got = Vec::new();
        while read(&mut uart, LSR) & 1 != 0 {
            got.push(read(&mut uart, DATA));
        }
        assert_eq!(got, input);
        assert!(uart.wants_input());
        assert_eq!(uart.room_evt().read().unwrap(), 1);
    }

    #[test]
    fn every_refill_of_the_fifo_interrupts_a_guest_that_reads_until_empty() {
        let mut uart = Uart::new(Box::new(io::sink()), Buffering::None).unwrap();
        uart.write(IER, &[1]);
        uart.enqueue(&[7; 200]);
        let mut got = 0;
        while uart.interrupt_evt().read().is_ok() {
            for _ in 0..64 {
                if read(&mut uart, LSR) & 1 == 0 {
                    break;
                }
                read(&mut uart, DATA);
                got += 1;
            }
        }
        assert_eq!(got, 200);
    }

    #[test]
    fn loop_back_keeps_input_waiting() {
        let mut uart = Uart::new(Box::new(io::sink()), Buffering::None).unwrap();
        uart.write(MCR, &[0x10]);
        uart.enqueue(b"x");
        assert!(!uart.wants_input());
        assert_eq!(read(&mut uart, LSR) & 1, 0);
        uart.write(MCR, &[0]);
        assert_eq!(read(&mut uart, DATA), b'x');
    }

    #[test]
    fn line_buffering_writes_once_a_line() {
        let sink = Sink::default();
        let mut uart = Uart::new(Box::new(sink.clone()), Buffering::Line).unwrap();
        for byte in b"one\ntwo" {
            uart.write(DATA, &[*byte]);
        }
        assert_eq!(*sink.0.lock().unwrap(), (b"one\n".to_vec(), 1));
        uart.drain();
        uart.drain();
        assert_eq!(*sink.0.lock().unwrap(), (b"one\ntwo".to_vec(), 2));
        for _ in 0..LINE_MAX {
            uart.write(DATA, b"y");
        }
        assert_eq!(sink.0.lock().unwrap().1, 3);
    }

    #[test]
    fn unbuffered_bytes_go_out_at_once_and_wide_writes_hit_each_register() {
        let sink = Sink::default();
        let mut uart = Uart::new(Box::new(sink.clone()), Buffering::None).unwrap();
        uart.write(DATA, &[b'a', 0x01]);
        assert_eq!(sink.0.lock().unwrap().0, b"a");
        assert_eq!(read(&mut uart, IER), 1);
    }

    #[test]
    fn a_closed_output_is_counted_and_the_guest_goes_on() {
        let mut uart = Uart::new(Box::new(Broken), Buffering::None).unwrap();
        for _ in 0..3 {
            uart.write(DATA, b"x");
        }
        assert_eq!(uart.lost(), 3);
        assert_eq!(read(&mut uart, LSR) & 0x60, 0x60);
    }
}
