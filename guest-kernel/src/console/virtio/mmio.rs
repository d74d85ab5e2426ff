//! The virtio-mmio transport, driver side. Source: VIRTIO 1.2, 4.2.2 (register layout), 3.1.1 (initialisation).
//!
//! Only `console::virtio` uses it. Registers lie below 4 GiB, where the direct map reaches them.

use crate::mm::PhysAddr;

use super::queue::Queue;

const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;

/// "virt", little endian.
const MAGIC_VALUE: u32 = 0x7472_6976;
/// Vendor of Taskvisor's devices ("TSKV"): they signal by irqfd, which needs no acknowledgement.
const VENDOR_TASKVISOR: u32 = 0x564b_5354;

const STATUS_ACKNOWLEDGE: u32 = 1;
const STATUS_DRIVER: u32 = 2;
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;
const STATUS_FAILED: u32 = 128;

/// Feature: VIRTIO 1.0 or later.
pub const F_VERSION_1: u64 = 1 << 32;
/// Feature: notifications and interrupts suppressed by index.
pub const F_EVENT_IDX: u64 = 1 << 29;

/// A device's registers.
#[derive(Clone, Copy)]
pub struct Registers {
    base: PhysAddr,
    acknowledge: bool,
}

/// Why a device can't be used.
#[derive(Debug, Clone, Copy)]
pub enum DeviceError {
    /// The device refused our choice of features.
    Features,
    /// A queue that we need doesn't exist or is too small.
    Queue(#[expect(dead_code, reason = "shown by Debug")] u16),
}

impl Registers {
    /// The registers at `base`, if there is a modern virtio-mmio device; with its device id.
    pub fn probe(base: PhysAddr) -> Option<(Self, u32)> {
        let mut r = Self { base, acknowledge: true };
        if r.read(MAGIC) != MAGIC_VALUE || r.read(VERSION) != 2 {
            return None;
        }
        let id = r.read(DEVICE_ID);
        r.acknowledge = r.read(VENDOR_ID) != VENDOR_TASKVISOR;
        (id != 0).then_some((r, id))
    }

    fn read(&self, offset: u64) -> u32 {
        // SAFETY: a device register found by `probe` (or read by it), mapped by the direct map.
        unsafe { PhysAddr(self.base.0 + offset).as_ptr::<u32>().read_volatile() }
    }

    fn write(&self, offset: u64, value: u32) {
        // SAFETY: as `read`.
        unsafe { PhysAddr(self.base.0 + offset).as_ptr::<u32>().write_volatile(value) };
    }

    fn write_u64(&self, offset: u64, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }

    /// Resets the device and settles on the features of `wanted` that it has; `needed` must be among them.
    ///
    /// # Errors
    /// [`DeviceError::Features`].
    pub fn negotiate(&self, wanted: u64, needed: u64) -> Result<u64, DeviceError> {
        self.write(STATUS, 0);
        self.write(STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
        let mut offered = 0;
        for half in [0, 1] {
            self.write(DEVICE_FEATURES_SEL, half);
            offered |= u64::from(self.read(DEVICE_FEATURES)) << (32 * half);
        }
        let chosen = offered & wanted;
        for half in [0, 1] {
            self.write(DRIVER_FEATURES_SEL, half);
            self.write(DRIVER_FEATURES, (chosen >> (32 * half)) as u32);
        }
        self.write(STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
        if chosen & needed != needed || self.read(STATUS) & STATUS_FEATURES_OK == 0 {
            self.write(STATUS, STATUS_FAILED);
            return Err(DeviceError::Features);
        }
        Ok(chosen)
    }

    /// Tells the device where a queue is.
    ///
    /// # Errors
    /// [`DeviceError::Queue`].
    pub fn set_up_queue(&self, index: u16, queue: &Queue) -> Result<(), DeviceError> {
        self.write(QUEUE_SEL, u32::from(index));
        if self.read(QUEUE_NUM_MAX) < u32::from(queue.size()) {
            self.write(STATUS, STATUS_FAILED);
            return Err(DeviceError::Queue(index));
        }
        self.write(QUEUE_NUM, u32::from(queue.size()));
        let (desc, driver, device) = queue.addresses();
        self.write_u64(QUEUE_DESC, desc.0);
        self.write_u64(QUEUE_DRIVER, driver.0);
        self.write_u64(QUEUE_DEVICE, device.0);
        self.write(QUEUE_READY, 1);
        Ok(())
    }

    /// The driver is ready.
    pub fn go(&self) {
        self.write(STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
    }

    /// Tells the device that a queue has something.
    #[inline]
    pub fn notify(&self, index: u16) {
        self.write(QUEUE_NOTIFY, u32::from(index));
    }

    /// Takes note of an interrupt.
    #[inline]
    pub fn acknowledge(&self) {
        if self.acknowledge {
            let pending = self.read(INTERRUPT_STATUS);
            self.write(INTERRUPT_ACK, pending);
        }
    }
}
