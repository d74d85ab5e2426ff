//! What a device's transport (vCPU threads) and its data plane (event loop) share without a lock.
//!
//! Invariants: an interrupt is raised only after its status bit is set, so a driver that reads the status in its
//! handler sees the reason; and a failed device (DEVICE_NEEDS_RESET) stays failed until the driver resets it.

use std::fmt::Display;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How many failures are logged in a device's life: a guest that resets and fails in a loop must not fill the log.
const MAX_LOGGED_FAILURES: u32 = 8;

/// See the module's description.
#[derive(Debug)]
pub struct Link {
    name: &'static str,
    interrupt_status: AtomicU32,
    interrupt: EventFd,
    queues: Box<[EventFd]>,
    driver_ok: AtomicBool,
    needs_reset: AtomicBool,
    failures: AtomicU32,
    config_generation: AtomicU32,
}

impl Link {
    /// For a device with `queues` queues; `name` starts its log lines. Fails when file descriptors run out.
    pub fn new(name: &'static str, queues: usize) -> io::Result<Link> {
        let evt = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Link {
            name,
            interrupt_status: AtomicU32::new(0),
            interrupt: evt()?,
            queues: (0..queues).map(|_| evt()).collect::<io::Result<_>>()?,
            driver_ok: AtomicBool::new(false),
            needs_reset: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            config_generation: AtomicU32::new(0),
        })
    }

    /// Register this as the irqfd of the device's line.
    pub fn interrupt_evt(&self) -> &EventFd {
        &self.interrupt
    }

    /// Queue `index`'s notification: an ioeventfd in the VMM, polled by the event loop.
    pub fn queue_evt(&self, index: usize) -> Option<&EventFd> {
        self.queues.get(index)
    }

    /// Number of queues.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Makes the loop look at queue `index`: the driver's kick, or our own "come back later".
    pub fn kick(&self, index: usize) {
        if let Some(evt) = self.queues.get(index) {
            // Fails only when the counter is full; then it is readable, which is all that is wanted.
            let _ = evt.write(1);
        }
    }

    /// Makes the loop look at every queue, after activation and reset.
    pub fn kick_all(&self) {
        (0..self.queues.len()).for_each(|index| self.kick(index));
    }

    /// Used buffers are there for the driver.
    pub fn signal_used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The configuration space has changed. (Virtio 1.2, 2.5.3: a new generation for every observable change.)
    pub fn signal_config(&self) {
        self.config_generation.fetch_add(1, Ordering::AcqRel);
        if self.driver_ok.load(Ordering::Acquire) {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    fn raise(&self, reason: u32) {
        self.interrupt_status.fetch_or(reason, Ordering::AcqRel);
        // Fails only when the counter is full, that is, when nobody takes interrupts.
        let _ = self.interrupt.write(1);
    }

    /// Virtio 1.2, 2.1.2: sets DEVICE_NEEDS_RESET and, if the driver is up, notifies it. Logs one line.
    pub fn fail(&self, why: impl Display) {
        if self.needs_reset.swap(true, Ordering::AcqRel) {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        if failures < MAX_LOGGED_FAILURES {
            let last = if failures + 1 == MAX_LOGGED_FAILURES { " (further failures are not logged)" } else { "" };
            log::error!("{}: {why}; the device needs a reset by its driver{last}", self.name);
        }
        if self.driver_ok.load(Ordering::Acquire) {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// True from [`Link::fail`] to the driver's reset.
    pub fn failed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// How often the device has failed since it was made.
    pub fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(super) fn interrupt_status(&self) -> u32 {
        self.interrupt_status.load(Ordering::Acquire)
    }

    pub(super) fn acknowledge(&self, reasons: u32) {
        self.interrupt_status.fetch_and(!reasons, Ordering::AcqRel);
    }

    pub(super) fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::Acquire)
    }

    pub(super) fn set_driver_ok(&self) {
        self.driver_ok.store(true, Ordering::Release);
    }

    pub(super) fn reset(&self) {
        self.driver_ok.store(false, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
        self.interrupt_status.store(0, Ordering::Release);
    }
}
