//! The virtio console: two ports, as docs/abi.md says. Source: VIRTIO 1.2, 5.3.
//!
//! Output: large writes hand the user's own pages to the device and wait until it is done with them; small ones are copied to a
//! frame of the driver and don't wait. Input: the device is given frames only once somebody has asked for input, so that a
//! program that never reads doesn't swallow the host's stdin.
//!
//! Invariant: a frame that the device may touch has a reference in `Request::frames` or is one of the driver's own.

mod input;
mod mmio;
mod output;
mod queue;

use core::sync::atomic::{AtomicU32, Ordering};

use self::mmio::{DeviceError, F_EVENT_IDX, F_VERSION_1, Registers};
use self::queue::{Piece, Queue};
use super::{ConsoleError, Stream};
use crate::arch::ioapic;
use crate::boot::cmdline;
use crate::cpu;
use crate::mm::PhysAddr;
use crate::mm::frame::{self, OutOfMemory};
use crate::mm::layout::PAGE_SIZE;
use crate::sync::{BootCell, SpinLock, WaitQueue};

const DEVICE_CONSOLE: u32 = 3;
const F_SIZE: u64 = 1 << 0;
const F_MULTIPORT: u64 = 1 << 1;

/// Queue numbers with two ports (5.3.2).
const QUEUE_STDIN: u16 = 0;
const QUEUE_STDOUT: u16 = 1;
const QUEUE_CONTROL_IN: u16 = 2;
const QUEUE_CONTROL_OUT: u16 = 3;
const QUEUE_STDERR: u16 = 5;

/// Control events (5.3.6.2).
const EVENT_DEVICE_READY: u16 = 0;
const EVENT_DEVICE_ADD: u16 = 1;
const EVENT_PORT_READY: u16 = 3;
const EVENT_RESIZE: u16 = 5;
const EVENT_PORT_OPEN: u16 = 6;
/// Bytes of a control message; RESIZE has four more.
const CONTROL_SIZE: u32 = 8;
const CONTROL_SLOT: u32 = 64;
const CONTROL_SLOTS: u32 = 16;

struct Control {
    input: Queue,
    output: Queue,
    /// Slots for messages in, then for messages out.
    buffers: PhysAddr,
    sent: u32,
}

/// The device.
pub struct Console {
    registers: Registers,
    gsi: u8,
    /// Guards the control queues.
    control: SpinLock<Control>,
    stdin: input::Input,
    outputs: [output::Output; 2],
    /// columns << 16 | rows, 0: not told yet.
    size: AtomicU32,
}

static CONSOLE: BootCell<Console> = BootCell::new();

/// The console, if there is one.
pub fn get() -> Option<&'static Console> {
    CONSOLE.get()
}

/// Looks for the device where the command line says (`virtio_mmio.device=SIZE@BASE:GSI`). Boot CPU.
pub fn init() {
    for value in cmdline::values("virtio_mmio.device") {
        let Some((base, gsi)) = parse_device(value) else {
            crate::error!("virtio_mmio.device={value}: expected SIZE@BASE:GSI, ignored");
            continue;
        };
        let Some((registers, DEVICE_CONSOLE)) = Registers::probe(base) else { continue };
        match Console::new(registers, gsi) {
            Ok(c) => {
                CONSOLE.set(c);
                ioapic::enable(gsi, cpu::this().apic_id());
                if let Some(c) = get() {
                    c.start();
                }
                return;
            }
            Err(e) => crate::error!("virtio console at {:#x}: {e:?}", base.0),
        }
    }
}

fn parse_device(value: &str) -> Option<(PhysAddr, u8)> {
    let (_, rest) = value.split_once('@')?;
    let mut parts = rest.split(':');
    let base = parts.next()?;
    let base = match base.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => base.parse().ok()?,
    };
    let gsi = parts.next()?.parse().ok().filter(|g| *g < crate::arch::descriptors::vector::GSI_COUNT)?;
    // Where the direct map reaches without RAM.
    (base < (4 << 30) - PAGE_SIZE && base % 8 == 0).then_some((PhysAddr(base), gsi))
}

/// Why the console can't be used.
#[derive(Debug)]
enum InitError {
    #[expect(dead_code, reason = "shown by Debug")]
    Device(DeviceError),
    Memory,
}

impl From<DeviceError> for InitError {
    fn from(e: DeviceError) -> Self {
        Self::Device(e)
    }
}

impl From<OutOfMemory> for InitError {
    fn from(_: OutOfMemory) -> Self {
        Self::Memory
    }
}

impl Console {
    fn new(registers: Registers, gsi: u8) -> Result<Self, InitError> {
        let features =
            registers.negotiate(F_VERSION_1 | F_EVENT_IDX | F_MULTIPORT | F_SIZE, F_VERSION_1 | F_MULTIPORT)?;
        let event_idx = features & F_EVENT_IDX != 0;
        let console = Self {
            registers,
            gsi,
            control: SpinLock::new(Control {
                input: Queue::new(event_idx)?,
                output: Queue::new(event_idx)?,
                buffers: frame::alloc_zeroed()?,
                sent: 0,
            }),
            stdin: input::Input::new(Queue::new(event_idx)?),
            outputs: [output::Output::new(Queue::new(event_idx)?)?, output::Output::new(Queue::new(event_idx)?)?],
            size: AtomicU32::new(0),
        };
        {
            let c = console.control.lock();
            registers.set_up_queue(QUEUE_CONTROL_IN, &c.input)?;
            registers.set_up_queue(QUEUE_CONTROL_OUT, &c.output)?;
        }
        console.stdin.set_up(&registers, QUEUE_STDIN)?;
        console.outputs[0].set_up(&registers, QUEUE_STDOUT)?;
        console.outputs[1].set_up(&registers, QUEUE_STDERR)?;
        registers.go();
        Ok(console)
    }

    fn start(&self) {
        let mut c = self.control.lock();
        for slot in 0..CONTROL_SLOTS {
            self.post_control(&mut c, slot);
        }
        c.input.want_interrupt(true);
        self.send_control(&mut c, 0, EVENT_DEVICE_READY);
        if c.input.must_notify() {
            self.registers.notify(QUEUE_CONTROL_IN);
        }
    }

    fn post_control(&self, c: &mut Control, slot: u32) {
        let addr = c.buffers.0 + u64::from(slot * CONTROL_SLOT);
        let _ = c.input.offer(&[Piece { addr, len: CONTROL_SLOT }], true);
    }

    /// Sends { id, event, value = 1 }.
    fn send_control(&self, c: &mut Control, port: u32, event: u16) {
        while c.output.take_used().is_some() {}
        let slot = CONTROL_SLOTS + c.sent % CONTROL_SLOTS;
        c.sent += 1;
        let addr = PhysAddr(c.buffers.0 + u64::from(slot * CONTROL_SLOT));
        // SAFETY: a slot of our frame whose last use is 16 messages ago; a handshake has fewer.
        unsafe { addr.as_ptr::<u64>().write_volatile(u64::from(port) | u64::from(event) << 32 | 1 << 48) };
        let _ = c.output.offer(&[Piece { addr: addr.0, len: CONTROL_SIZE }], false);
        if c.output.must_notify() {
            self.registers.notify(QUEUE_CONTROL_OUT);
        }
    }

    /// The device has interrupted.
    fn interrupt(&self) {
        self.registers.acknowledge();
        self.control_interrupt();
        self.stdin.interrupt();
        self.outputs.iter().for_each(output::Output::interrupt);
    }

    fn control_interrupt(&self) {
        let mut wake = false;
        let mut c = self.control.lock();
        loop {
            while let Some((head, _)) = c.input.take_used() {
                // Slots are offered in order at the start and again as soon as they come back: the descriptor is the slot.
                let slot = u32::from(head) % CONTROL_SLOTS;
                let addr = PhysAddr(c.buffers.0 + u64::from(slot * CONTROL_SLOT));
                // SAFETY: a slot of our frame; the device has given it back.
                let (message, size) =
                    unsafe { (addr.as_ptr::<u64>().read_volatile(), addr.as_ptr::<u32>().add(2).read_volatile()) };
                let (port, event, value) = (message as u32, (message >> 32) as u16, (message >> 48) as u16);
                match event {
                    EVENT_DEVICE_ADD if port < 2 => self.send_control(&mut c, port, EVENT_PORT_READY),
                    EVENT_PORT_OPEN if port == 0 && value == 0 => {
                        self.stdin.end();
                        wake = true;
                    }
                    EVENT_RESIZE if port == 0 => {
                        // struct virtio_console_resize { le16 cols; le16 rows; }
                        self.size.store(size.rotate_right(16), Ordering::Relaxed);
                        wake = true;
                    }
                    _ => {}
                }
                self.post_control(&mut c, slot);
            }
            c.input.want_interrupt(true);
            if !c.input.has_used() {
                break;
            }
        }
        if c.input.must_notify() {
            self.registers.notify(QUEUE_CONTROL_IN);
        }
        drop(c);
        if wake {
            self.stdin.queue().wake_all();
        }
    }

    fn output(&self, stream: Stream) -> (&output::Output, u16) {
        match stream {
            Stream::Stdout => (&self.outputs[0], QUEUE_STDOUT),
            Stream::Stderr => (&self.outputs[1], QUEUE_STDERR),
        }
    }

    /// See `console::write_user`.
    pub fn write_user(&self, stream: Stream, addr: u64, len: usize, nonblock: bool) -> Result<usize, ConsoleError> {
        let (o, index) = self.output(stream);
        o.write_user(&self.registers, index, addr, len, nonblock)
    }

    /// See `console::write_kernel`.
    pub fn write_kernel(&self, stream: Stream, bytes: &[u8]) {
        let (o, index) = self.output(stream);
        o.write_kernel(&self.registers, index, bytes);
    }

    /// See `console::writable`.
    pub fn writable(&self, stream: Stream) -> bool {
        self.output(stream).0.writable()
    }

    /// See `console::write_queue`.
    pub fn write_queue(&self, stream: Stream) -> &WaitQueue {
        self.output(stream).0.queue()
    }

    /// Standard input.
    pub fn input(&self) -> &input::Input {
        &self.stdin
    }

    /// The registers, for `Input`.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Columns and rows, if the device has told.
    pub fn size(&self) -> Option<(u16, u16)> {
        let s = self.size.load(Ordering::Relaxed);
        (s != 0).then_some(((s >> 16) as u16, s as u16))
    }

    /// Waits until the device has taken all output.
    pub fn drain(&self) {
        self.outputs.iter().for_each(output::Output::drain);
    }
}

/// A pin has interrupted.
pub fn interrupt(gsi: u8) {
    if let Some(c) = get().filter(|c| c.gsi == gsi) {
        c.interrupt();
    }
}
