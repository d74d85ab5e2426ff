//! Virtio devices over the memory-mapped transport, version 2.
//!
//! Three parties, and what each may do:
//! - **vCPU threads** touch only [`mmio::MmioTransport`] (a [`crate::bus::BusDevice`]): registers, the status machine,
//!   queue set-up. Interrupt acknowledgement takes no device lock.
//! - **the event loop** touches only the device (e.g. [`console::ConsoleDevice`]) behind its mutex: the rings and the data.
//! - **[`link::Link`]** is what the two share: interrupt status, the eventfds, DEVICE_NEEDS_RESET.
//!
//! Lock order: transport, then device. The loop never takes a transport's lock.
//! Invariant: a ring is touched only between activation (DRIVER_OK) and reset, under the device's lock.

pub mod chain;
pub mod console;
pub mod link;
pub mod mmio;
pub mod ring;
pub mod stream;

use std::sync::Arc;

use virtio_queue::Queue;

/// Virtio 1.2, 6 "Reserved Feature Bits": the device complies with version 1 of the specification.
pub const F_VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
/// Virtio 1.2, 6: used_event and avail_event fields are used.
pub const F_EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

/// What the transport needs from a device. All methods are called with the device's lock held.
pub trait VirtioDevice: Send {
    /// The half that vCPU threads and the event loop share.
    fn link(&self) -> &Arc<link::Link>;
    /// Virtio 1.2, 5 "Device Types".
    fn device_id(&self) -> u32;
    /// The feature bits offered; must contain [`F_VERSION_1`].
    fn offered_features(&self) -> u64;
    /// The largest size of each queue, each a power of two.
    fn queue_max_sizes(&self) -> &[u16];
    /// Reads the device's configuration space; bytes past its end stay as they are (zero).
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// DRIVER_OK: `queues[i]` is the validated queue i, `None` where the driver has not enabled it.
    fn activate(&mut self, features: u64, queues: Vec<Option<Queue>>);
    /// The driver wrote 0 to QueueReady of an active queue: never touch that ring again.
    fn stop_queue(&mut self, index: usize);
    /// Status 0 was written: forget everything that came from the driver.
    fn reset(&mut self);
}
