//! The programs' standard streams: virtio console where there is one, else the log UART.

/// Finds the console devices. Boot CPU, tasks may run.
pub fn init() {}

/// A device pin has interrupted. Interrupts off.
pub fn device_interrupt(_gsi: u8) {}
