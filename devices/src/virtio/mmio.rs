//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2): a register file of 4 KiB and the device status machine.
//!
//! Only vCPU threads call it, through [`BusDevice`]. What the driver may do when:
//! ```text
//!  status      0 --ACKNOWLEDGE--> 1 --DRIVER--> 3 --FEATURES_OK--> 11 --DRIVER_OK--> 15
//!  features    -                 -             writable            fixed             fixed
//!  queues      -                 -             -                   set up            only: stop (QueueReady = 0)
//! ```
//! Writing 0 resets from anywhere. FEATURES_OK is refused (does not read back) for a set that we didn't offer or that
//! lacks VERSION_1. Bits can't be cleared, nor steps left out: such writes are ignored. A queue that can't work (size not
//! a power of two, addresses misaligned or not RAM), and a change to a queue that is ready, fail the device:
//! DEVICE_NEEDS_RESET, one logged line, and nothing but a reset is obeyed from then on.
//! Accesses that aren't aligned 32 bits (below the configuration space) read as 0 and are ignored.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::link::Link;
use super::{F_EVENT_IDX, F_VERSION_1, VirtioDevice};
use crate::bus::{BusDevice, lock};

/// Size of the register window (docs/abi.md: devices are 0x1000 apart).
pub const LEN: u64 = 0x1000;
/// Offset of QueueNotify: where the VMM puts the ioeventfds.
pub const QUEUE_NOTIFY: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt" (virtio 1.2, 4.2.2).
const MAGIC: u32 = 0x7472_6976;
/// Version 2: not the legacy interface.
const VERSION: u32 = 2;
/// Any value does (virtio 1.2, 4.2.2); "TSKV".
const VENDOR: u32 = 0x564b_5354;
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

/// One queue as the driver sets it up.
#[derive(Debug, Clone, Copy, Default)]
struct QueueSetup {
    size: u32,
    ready: bool,
    desc: u64,
    avail: u64,
    used: u64,
}

/// Why a queue can't be made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Zero, above the maximum, or not a power of two.
    #[error("size {size} (at most {max}, a power of two)")]
    Size {
        /// What the driver wrote to QueueNum.
        size: u32,
        /// What QueueNumMax says.
        max: u16,
    },
    /// Misaligned, zero, or not in RAM.
    #[error("{part} at {addr:#x}+{len:#x} is misaligned or not RAM")]
    Address {
        /// Which of the three areas.
        part: &'static str,
        /// Where it was put.
        addr: u64,
        /// How long it would be.
        len: u64,
    },
}

impl QueueSetup {
    /// Checks everything that virtio 1.2, 2.7 demands of a split queue and makes it a [`Queue`].
    fn build<M: GuestMemoryBackend>(&self, max: u16, event_idx: bool, mem: &M) -> Result<Queue, QueueError> {
        let bad_size = QueueError::Size { size: self.size, max };
        let size = u16::try_from(self.size).ok().filter(|size| *size <= max && size.is_power_of_two());
        let size = size.ok_or(bad_size)?;
        let n = u64::from(size);
        for (part, addr, len, align) in [
            ("descriptor table", self.desc, 16 * n, 16),
            ("available ring", self.avail, 6 + 2 * n, 2),
            ("used ring", self.used, 6 + 8 * n, 4),
        ] {
            // virtio-queue takes an available ring at 0 for "not set up".
            let inside = addr.checked_add(len).is_some()
                && GuestMemoryBackend::check_range(mem, GuestAddress(addr), len as usize);
            if addr == 0 || addr % align != 0 || !inside {
                return Err(QueueError::Address { part, addr, len });
            }
        }
        let mut queue = Queue::new(max).map_err(|_| bad_size)?;
        queue.set_size(size);
        let halves = |addr: u64| (Some(addr as u32), Some((addr >> 32) as u32));
        let (low, high) = halves(self.desc);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(self.avail);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(self.used);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(queue)
    }
}

/// The registers in front of one device.
pub struct MmioTransport<D, M> {
    device: Arc<Mutex<D>>,
    mem: Arc<M>,
    link: Arc<Link>,
    device_id: u32,
    offered: u64,
    max_sizes: Vec<u16>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueSetup>,
}

impl<D: VirtioDevice, M: GuestMemoryBackend> MmioTransport<D, M> {
    /// Puts registers in front of `device`, whose rings live in `mem`.
    pub fn new(device: Arc<Mutex<D>>, mem: Arc<M>) -> MmioTransport<D, M> {
        let guard = lock(&device);
        let (link, device_id, offered) = (guard.link().clone(), guard.device_id(), guard.offered_features());
        let max_sizes = guard.queue_max_sizes().to_vec();
        drop(guard);
        let mut transport = MmioTransport {
            device,
            mem,
            link,
            device_id,
            offered,
            max_sizes,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: Vec::new(),
        };
        transport.clear();
        transport
    }

    /// What the VMM registers: (offset in the window, 32-bit datamatch, eventfd) for each queue's notification.
    pub fn ioevents(&self) -> impl Iterator<Item = (u64, u32, &EventFd)> + '_ {
        (0..self.link.queue_count()).filter_map(|i| Some((QUEUE_NOTIFY, i as u32, self.link.queue_evt(i)?)))
    }

    /// What the VMM registers as the irqfd.
    pub fn interrupt_evt(&self) -> &EventFd {
        self.link.interrupt_evt()
    }

    fn clear(&mut self) {
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.queues = vec![QueueSetup::default(); self.max_sizes.len()];
    }

    fn selected(&self) -> Option<&QueueSetup> {
        self.queues.get(self.queue_sel as usize)
    }

    fn half(value: u64, sel: u32) -> u32 {
        match sel {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match u32::try_from(offset).unwrap_or(u32::MAX) {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device_id,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => Self::half(self.offered, self.device_features_sel),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.max_sizes.get(self.queue_sel as usize).map_or(0, |max| u32::from(*max))
            }
            reg::VIRTIO_MMIO_QUEUE_READY => self.selected().map_or(0, |queue| u32::from(queue.ready)),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.link.interrupt_status(),
            reg::VIRTIO_MMIO_STATUS => self.status | if self.link.failed() { NEEDS_RESET } else { 0 },
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.link.config_generation(),
            // No shared memory regions: length -1 (virtio 1.2, 4.2.2).
            reg::VIRTIO_MMIO_SHM_LEN_LOW
            | reg::VIRTIO_MMIO_SHM_LEN_HIGH
            | reg::VIRTIO_MMIO_SHM_BASE_LOW
            | reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match u32::try_from(offset).unwrap_or(u32::MAX) {
            reg::VIRTIO_MMIO_STATUS => self.write_status(value),
            // After a failure only a reset helps; an acknowledgement is harmless, and ends the interrupt.
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.link.acknowledge(value),
            _ if self.link.failed() => {}
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.write_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            // Normally taken by the ioeventfd before it gets here.
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => self.link.kick(value as usize),
            reg::VIRTIO_MMIO_QUEUE_READY => self.write_ready(value),
            reg::VIRTIO_MMIO_QUEUE_NUM => self.set_up("size", |queue| queue.size = value),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => self.set_up("address", |q| set_bits(&mut q.desc, 0..32, value)),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => self.set_up("address", |q| set_bits(&mut q.desc, 32..64, value)),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => self.set_up("address", |q| set_bits(&mut q.avail, 0..32, value)),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => self.set_up("address", |q| set_bits(&mut q.avail, 32..64, value)),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => self.set_up("address", |q| set_bits(&mut q.used, 0..32, value)),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => self.set_up("address", |q| set_bits(&mut q.used, 32..64, value)),
            _ => {}
        }
    }

    fn write_features(&mut self, value: u32) {
        if self.status & DRIVER == 0 || self.status & FEATURES_OK != 0 {
            return;
        }
        match self.driver_features_sel {
            0 => set_bits(&mut self.driver_features, 0..32, value),
            1 => set_bits(&mut self.driver_features, 32..64, value),
            // Bits we never offered; remembered as a bit we never offer, so that FEATURES_OK is refused.
            _ if value != 0 => self.driver_features |= 1 << 63,
            _ => {}
        }
    }

    /// Changes the selected queue, which the driver may do only between FEATURES_OK and making it ready.
    fn set_up(&mut self, what: &str, change: impl FnOnce(&mut QueueSetup)) {
        if self.status & FEATURES_OK == 0 {
            return;
        }
        let index = self.queue_sel;
        match self.queues.get_mut(index as usize) {
            None => {}
            Some(queue) if queue.ready => {
                self.link.fail(format_args!("queue {index}: its {what} was changed while it was ready"));
            }
            // A stopped queue of a running device can't be set up again: that is RING_RESET, which isn't offered.
            Some(_) if self.status & DRIVER_OK != 0 => {}
            Some(queue) => change(queue),
        }
    }

    fn write_ready(&mut self, value: u32) {
        let index = self.queue_sel as usize;
        let running = self.status & DRIVER_OK != 0;
        let (Some(queue), Some(max)) = (self.queues.get_mut(index), self.max_sizes.get(index)) else {
            return;
        };
        if value == 0 {
            if std::mem::take(&mut queue.ready) && running {
                lock(&self.device).stop_queue(index);
            }
        } else if value == 1 && !queue.ready && !running && self.status & FEATURES_OK != 0 {
            match queue.build(*max, false, &*self.mem) {
                Ok(_) => queue.ready = true,
                Err(error) => self.link.fail(format_args!("queue {index}: {error}")),
            }
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            // The device first, so that the loop can't fail the link again for the old rings.
            let mut device = lock(&self.device);
            device.reset();
            self.link.reset();
            drop(device);
            self.clear();
            self.link.kick_all();
            return;
        }
        // NEEDS_RESET is ours; the driver may write back what it has read.
        let value = value & !NEEDS_RESET;
        if value & self.status != self.status {
            return;
        }
        // The driver has given up, or we have: only a reset leads on.
        self.status |= value & FAILED;
        if self.status & FAILED != 0 || self.link.failed() {
            return;
        }
        let added = value & !self.status;
        // In the order of virtio 1.2, 3.1.1; each step needs the one before it.
        self.status |= added & ACKNOWLEDGE;
        if self.status & ACKNOWLEDGE != 0 {
            self.status |= added & DRIVER;
        }
        if self.status & DRIVER != 0 && added & FEATURES_OK != 0 {
            let acceptable = self.driver_features & !self.offered == 0 && self.driver_features & F_VERSION_1 != 0;
            self.status |= if acceptable { FEATURES_OK } else { 0 };
        }
        if self.status & FEATURES_OK != 0 && added & DRIVER_OK != 0 {
            self.activate();
        }
    }

    fn activate(&mut self) {
        let event_idx = self.driver_features & F_EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, (setup, max)) in self.queues.iter().zip(&self.max_sizes).enumerate() {
            match setup.ready.then(|| setup.build(*max, event_idx, &*self.mem)).transpose() {
                Ok(queue) => queues.push(queue),
                Err(error) => return self.link.fail(format_args!("queue {index}: {error}")),
            }
        }
        self.status |= DRIVER_OK;
        let mut device = lock(&self.device);
        self.link.set_driver_ok();
        device.activate(self.driver_features, queues);
        drop(device);
        self.link.kick_all();
    }
}

/// Puts `value` into `bits` of `target`.
fn set_bits(target: &mut u64, bits: Range<u32>, value: u32) {
    *target = *target & !(0xffff_ffff << bits.start) | u64::from(value) << bits.start;
}

impl<D: VirtioDevice, M: GuestMemoryBackend + Send + Sync> BusDevice for MmioTransport<D, M> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            lock(&self.device).read_config(offset, data);
        } else if let (4, 0) = (data.len(), offset % 4) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // No device of ours has writable configuration.
        if let (Ok(bytes), true, 0) = (<[u8; 4]>::try_from(data), offset < CONFIG, offset % 4) {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}
