//! The standard streams on COM1, for machines without a virtio console. Slow: each byte is an exit.

use alloc::collections::VecDeque;

use vcpu_sched::events::WaitReason;

use super::ConsoleError;
use crate::arch::{ioapic, uart};
use crate::cpu;
use crate::log;
use crate::mm::user;
use crate::sync::{SpinLock, WaitQueue};

/// Bytes kept when nobody reads; more stay in the device.
const INPUT_MAX: usize = 4096;

/// Guards the received bytes.
static INPUT: SpinLock<VecDeque<u8>> = SpinLock::new(VecDeque::new());
static QUEUE: WaitQueue = WaitQueue::of(WaitReason::Io);

/// Turns reception on.
pub fn init() {
    if uart::present(uart::COM1) {
        ioapic::enable(uart::COM1_GSI, cpu::this().apic_id());
        uart::enable_receive_interrupt(uart::COM1);
    }
}

/// Takes what the UART has, if the interrupt is its.
pub fn interrupt(gsi: u8) {
    if gsi != uart::COM1_GSI {
        return;
    }
    let mut input = INPUT.lock();
    while input.len() < INPUT_MAX {
        let Some(b) = uart::read(uart::COM1) else { break };
        input.push_back(b);
    }
    drop(input);
    QUEUE.wake_all();
}

/// Writes user memory.
pub fn write_user(addr: u64, len: usize) -> Result<usize, ConsoleError> {
    let mut chunk = [0; 256];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(chunk.len());
        if user::read_bytes(&mut chunk[..n], addr + done as u64).is_err() {
            return if done > 0 { Ok(done) } else { Err(ConsoleError::Fault) };
        }
        log::raw(&chunk[..n]);
        done += n;
    }
    Ok(done)
}

/// Writes kernel bytes.
pub fn write(bytes: &[u8]) {
    log::raw(bytes);
}

/// Takes received bytes.
pub fn read_available(buf: &mut [u8]) -> usize {
    let mut input = INPUT.lock();
    let n = buf.len().min(input.len());
    for (slot, b) in buf.iter_mut().zip(input.drain(..n)) {
        *slot = b;
    }
    n
}

/// Whether bytes have been received.
pub fn readable() -> bool {
    !INPUT.lock().is_empty()
}

/// Woken by reception.
pub fn queue() -> &'static WaitQueue {
    &QUEUE
}
