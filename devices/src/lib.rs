//! The devices a Taskvisor guest can touch.
//!
//! Nothing in here knows KVM: a device is a register file (`BusDevice`) driven by vCPU threads, plus, where it moves
//! data, methods driven by the VMM's event loop. Interrupts leave through `EventFd`s which the VMM registers as irqfds.
//! So every device can be unit-tested and fuzzed with plain memory.
//!
//! Invariant of the whole crate: whatever a guest writes (registers, rings, descriptors) is hostile input; a device
//! answers with all-ones, ignores, counts or goes to DEVICE_NEEDS_RESET, and never panics, blocks or works without bound.

pub mod bus;
pub mod debug_exit;
pub mod event;
pub mod milestone;
pub mod reset;
pub mod trace_ring;
pub mod uart;
pub mod virtio;
pub mod word_port;
