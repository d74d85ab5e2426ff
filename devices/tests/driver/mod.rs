//! A mock driver: the guest's side of virtio-mmio and of split rings, over plain memory, and a small event loop.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use taskvisor_devices::bus::{BusDevice, lock};
use taskvisor_devices::virtio::console::{ConsoleDevice, ConsoleIo, Stream, WinSize};
use taskvisor_devices::virtio::mmio::MmioTransport;
use taskvisor_devices::virtio::stream::{InputStream, Interest, OutputStream};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub type Mem = GuestMemoryMmap<()>;
pub type Console = ConsoleDevice<Mem>;

pub const RAM: u64 = 8 << 20;
/// Where each queue's rings live: 64 KiB apart.
pub const RINGS: u64 = 0x10_0000;
/// Free for buffers.
pub const DATA: u64 = 0x20_0000;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const MULTIPORT: u64 = 1 << 1;
pub const SIZE: u64 = 1 << 0;

pub mod reg {
    pub const MAGIC: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE_ID: u64 = 0x08;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_NUM_MAX: u64 = 0x34;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC: u64 = 0x80;
    pub const QUEUE_AVAIL: u64 = 0x90;
    pub const QUEUE_USED: u64 = 0xa0;
    pub const CONFIG_GENERATION: u64 = 0xfc;
    pub const CONFIG: u64 = 0x100;
}

pub const F_NEXT: u16 = 1;
pub const F_WRITE: u16 = 2;
pub const F_INDIRECT: u16 = 4;

/// A split queue as the driver sees it.
#[derive(Debug, Clone, Copy)]
pub struct Vq {
    pub index: usize,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub next_desc: u16,
    pub avail_idx: u16,
    pub used_idx: u16,
}

impl Vq {
    pub fn at(index: usize, size: u16) -> Vq {
        let desc = RINGS + 0x1_0000 * index as u64;
        Vq { index, size, desc, avail: desc + 0x4000, used: desc + 0x8000, next_desc: 0, avail_idx: 0, used_idx: 0 }
    }
}

pub struct Guest {
    pub mem: Arc<Mem>,
    pub console: Arc<Mutex<Console>>,
    pub regs: MmioTransport<Console, Mem>,
    pub queues: Vec<Vq>,
    next_data: u64,
}

/// The host ends of the console's three files.
pub struct HostIo {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

pub fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: `fds` is two ints, and both descriptors are owned from here.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

pub fn borrow(fd: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(fd)
}

pub fn fcntl_flags(fd: &OwnedFd) -> i32 {
    // SAFETY: no memory involved.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }
}

pub fn write_fd(fd: &OwnedFd, bytes: &[u8]) {
    // SAFETY: `bytes` is readable.
    let count = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    assert_eq!(count, bytes.len() as isize, "{}", io::Error::last_os_error());
}

/// Reads what is there now; empty at the end or if nothing is.
pub fn read_available(fd: &OwnedFd) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd.
        if unsafe { libc::poll(&mut poll, 1, 0) } <= 0 || poll.revents & libc::POLLIN == 0 {
            return out;
        }
        let mut buffer = [0_u8; 65536];
        // SAFETY: `buffer` is writable.
        let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if count <= 0 {
            return out;
        }
        out.extend_from_slice(&buffer[..count as usize]);
    }
}

pub fn mem() -> Arc<Mem> {
    // Two regions, so that buffers can cross from one to the other at 6 MiB.
    let split = 6 << 20;
    let ranges = [(GuestAddress(0), split), (GuestAddress(split as u64), RAM as usize - split)];
    Arc::new(Mem::from_ranges(&ranges).unwrap())
}

impl Guest {
    /// A console over three pipes.
    pub fn with_pipes() -> (Guest, HostIo) {
        let ((in_read, in_write), (out_read, out_write), (err_read, err_write)) = (pipe(), pipe(), pipe());
        let io = ConsoleIo {
            stdin: InputStream::new(borrow(&in_read)).unwrap(),
            stdout: OutputStream::new(borrow(&out_write)).unwrap(),
            stderr: OutputStream::new(borrow(&err_write)).unwrap(),
        };
        (Guest::new(io, None), HostIo { stdin: Some(in_write), stdout: Some(out_read), stderr: Some(err_read) })
    }

    pub fn new(io: ConsoleIo, size: Option<WinSize>) -> Guest {
        let mem = mem();
        let console = Arc::new(Mutex::new(Console::new(mem.clone(), io, size).unwrap()));
        let regs = MmioTransport::new(console.clone(), mem.clone());
        Guest { mem, console, regs, queues: Vec::new(), next_data: DATA }
    }

    pub fn dev(&self) -> MutexGuard<'_, Console> {
        lock(&self.console)
    }

    pub fn get(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.regs.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn set(&mut self, offset: u64, value: u32) {
        self.regs.write(offset, &value.to_le_bytes());
    }

    pub fn set64(&mut self, offset: u64, value: u64) {
        self.set(offset, value as u32);
        self.set(offset + 4, (value >> 32) as u32);
    }

    pub fn needs_reset(&mut self) -> bool {
        self.get(reg::STATUS) & 0x40 != 0
    }

    /// Up to FEATURES_OK; whether it was accepted.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.set(reg::STATUS, 0);
        self.set(reg::STATUS, 1);
        self.set(reg::STATUS, 3);
        for sel in 0..2 {
            self.set(reg::DRIVER_FEATURES_SEL, sel);
            self.set(reg::DRIVER_FEATURES, (features >> (32 * sel)) as u32);
        }
        self.set(reg::STATUS, 11);
        self.get(reg::STATUS) == 11
    }

    pub fn program_queue(&mut self, vq: Vq) {
        self.set(reg::QUEUE_SEL, vq.index as u32);
        self.set(reg::QUEUE_NUM, u32::from(vq.size));
        self.set64(reg::QUEUE_DESC, vq.desc);
        self.set64(reg::QUEUE_AVAIL, vq.avail);
        self.set64(reg::QUEUE_USED, vq.used);
        self.set(reg::QUEUE_READY, 1);
    }

    /// The whole way to DRIVER_OK with six queues.
    pub fn start(&mut self, features: u64) {
        assert!(self.negotiate(features));
        self.queues.clear();
        for index in 0..6 {
            let vq = Vq::at(index, 64);
            for area in [vq.desc, vq.avail, vq.used] {
                self.mem.write_slice(&[0; 0x4000], GuestAddress(area)).unwrap();
            }
            self.program_queue(vq);
            assert_eq!(self.get(reg::QUEUE_READY), 1);
            self.queues.push(vq);
        }
        self.set(reg::STATUS, 15);
        assert_eq!(self.get(reg::STATUS), 15);
        self.turn();
    }

    pub fn started() -> (Guest, HostIo) {
        let (mut guest, host) = Guest::with_pipes();
        guest.start(VERSION_1 | MULTIPORT | SIZE);
        (guest, host)
    }

    /// Buffer space.
    pub fn alloc(&mut self, len: usize) -> u64 {
        let at = self.next_data;
        self.next_data += len as u64;
        assert!(self.next_data < RAM);
        at
    }

    pub fn write_desc(&self, queue: usize, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(self.queues[queue].desc + 16 * u64::from(index));
        self.mem.write_obj(addr, at).unwrap();
        self.mem.write_obj(len, GuestAddress(at.0 + 8)).unwrap();
        self.mem.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
        self.mem.write_obj(next, GuestAddress(at.0 + 14)).unwrap();
    }

    /// Makes `head` available.
    pub fn make_available(&mut self, queue: usize, head: u16) {
        let vq = &mut self.queues[queue];
        let slot = GuestAddress(vq.avail + 4 + 2 * u64::from(vq.avail_idx % vq.size));
        self.mem.write_obj(head, slot).unwrap();
        vq.avail_idx = vq.avail_idx.wrapping_add(1);
        self.mem.write_obj(vq.avail_idx, GuestAddress(vq.avail + 2)).unwrap();
    }

    /// Offers a chain of buffers; its head.
    pub fn offer(&mut self, queue: usize, buffers: &[(u64, u32)], write: bool) -> u16 {
        let size = self.queues[queue].size;
        let head = self.queues[queue].next_desc;
        for (i, (addr, len)) in buffers.iter().enumerate() {
            let index = self.queues[queue].next_desc;
            let next = (index + 1) % size;
            let last = i + 1 == buffers.len();
            let flags = if last { 0 } else { F_NEXT } | if write { F_WRITE } else { 0 };
            self.write_desc(queue, index, *addr, *len, flags, if last { 0xdead } else { next });
            self.queues[queue].next_desc = next;
        }
        self.make_available(queue, head);
        head
    }

    /// Offers `bytes` for transmission in one buffer.
    pub fn send(&mut self, queue: usize, bytes: &[u8]) -> u16 {
        let addr = self.alloc(bytes.len());
        self.mem.write_slice(bytes, GuestAddress(addr)).unwrap();
        self.offer(queue, &[(addr, bytes.len() as u32)], false)
    }

    /// Offers a receive buffer; its address.
    pub fn give(&mut self, queue: usize, len: u32) -> u64 {
        let addr = self.alloc(len as usize);
        self.offer(queue, &[(addr, len)], true);
        addr
    }

    pub fn kick(&mut self, queue: usize) {
        self.set(reg::QUEUE_NOTIFY, queue as u32);
    }

    /// New used entries: (head, length).
    pub fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let vq = &mut self.queues[queue];
        let idx: u16 = self.mem.read_obj(GuestAddress(vq.used + 2)).unwrap();
        let mut out = Vec::new();
        while vq.used_idx != idx {
            let at = vq.used + 4 + 8 * u64::from(vq.used_idx % vq.size);
            out.push((self.mem.read_obj(GuestAddress(at)).unwrap(), self.mem.read_obj(GuestAddress(at + 4)).unwrap()));
            vq.used_idx = vq.used_idx.wrapping_add(1);
        }
        out
    }

    pub fn read_mem(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.mem.read_slice(&mut out, GuestAddress(addr)).unwrap();
        out
    }

    /// How often the interrupt line was raised since the last call.
    pub fn interrupts(&self) -> u64 {
        self.regs.interrupt_evt().read().unwrap_or(0)
    }

    fn ready(fd: i32, events: i16) -> bool {
        let mut poll = libc::pollfd { fd, events, revents: 0 };
        // SAFETY: one pollfd.
        unsafe { libc::poll(&mut poll, 1, 0) > 0 }
    }

    /// Runs the event loop until nothing is ready. Panics if that takes suspiciously long.
    pub fn turn(&mut self) {
        for _ in 0..10_000 {
            let mut busy = false;
            let mut dev = lock(&self.console);
            let link = dev.shared_link();
            for index in 0..link.queue_count() {
                if Self::ready(link.queue_evt(index).unwrap().as_raw_fd(), libc::POLLIN) {
                    dev.process_queue(index);
                    busy = true;
                }
            }
            let input = match dev.stdin_interest() {
                Interest::Poll(fd) => Self::ready(fd, libc::POLLIN),
                interest => interest == Interest::Ready,
            };
            if input {
                dev.stdin_ready();
                busy = true;
            }
            for stream in Stream::ALL {
                let output = match dev.output_interest(stream) {
                    Interest::Poll(fd) => Self::ready(fd, libc::POLLOUT),
                    interest => interest == Interest::Ready,
                };
                if output {
                    dev.output_ready(stream);
                    busy = true;
                }
            }
            if !busy {
                return;
            }
        }
        panic!("the event loop spins");
    }

    /// A control message from the driver.
    pub fn control(&mut self, port: u32, event: u16, value: u16) {
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        self.send(3, &bytes);
        self.kick(3);
        self.turn();
    }

    /// Control messages from the device: (port, event, value, further bytes).
    pub fn control_received(&mut self) -> Vec<(u32, u16, u16, Vec<u8>)> {
        self.used(2)
            .into_iter()
            .map(|(head, len)| {
                let desc = self.queues[2].desc + 16 * u64::from(head);
                let addr: u64 = self.mem.read_obj(GuestAddress(desc)).unwrap();
                let bytes = self.read_mem(addr, len as usize);
                let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                (u32::from(half(0)) | u32::from(half(2)) << 16, half(4), half(6), bytes[8..].to_vec())
            })
            .collect()
    }
}
