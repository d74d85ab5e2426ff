//! Page faults of programs and of the kernel's accesses to their memory.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicPtr, Ordering};

use super::address_space::{Access, AddressSpace, FaultError};
use crate::cpu;
use crate::task::{Current, current};

/// Page-fault error code bits. Intel SDM vol. 3A 4.7.
const WRITE: u64 = 1 << 1;
const FETCH: u64 = 1 << 4;
const RESERVED: u64 = 1 << 3;

/// What to do when no frame is left: ends the largest user. Returns whether it is worth trying again.
static OUT_OF_MEMORY: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Installs the handler for "no frame left". Once, at boot.
pub fn set_out_of_memory_handler(handler: fn() -> bool) {
    OUT_OF_MEMORY.store(handler as *mut (), Ordering::Release);
}

/// Asks the handler for memory.
pub fn out_of_memory() -> bool {
    let p = OUT_OF_MEMORY.load(Ordering::Acquire);
    if p.is_null() {
        return false;
    }
    // SAFETY: only `set_out_of_memory_handler` stores here.
    let handler: fn() -> bool = unsafe { core::mem::transmute(p) };
    handler()
}

/// What kind of access an error code tells of.
pub fn access_of(error: u64) -> Access {
    if error & FETCH != 0 {
        Access::Execute
    } else if error & WRITE != 0 {
        Access::Write
    } else {
        Access::Read
    }
}

/// Resolves a fault of the current task, making room if memory is short.
///
/// # Errors
/// [`FaultError`].
pub fn resolve(space: &Arc<AddressSpace>, me: Current<'_>, addr: u64, access: Access) -> Result<(), FaultError> {
    cpu::this().stats.faults.fetch_add(1, Ordering::Relaxed);
    me.stats.faults.fetch_add(1, Ordering::Relaxed);
    loop {
        match space.resolve(me.block.top(), addr, access) {
            Err(FaultError::OutOfMemory) => {
                if !out_of_memory() {
                    return Err(FaultError::OutOfMemory);
                }
                if me.is_interrupted() {
                    // We may be the one who was chosen to make room.
                    return Err(FaultError::OutOfMemory);
                }
                crate::sched::yield_now();
            }
            r => return r,
        }
    }
}

/// A fault in the user half, from ring 3 or from the kernel's copy routines. Interrupts are on.
///
/// # Errors
/// [`FaultError`].
pub fn handle(addr: u64, error: u64) -> Result<(), FaultError> {
    if error & RESERVED != 0 {
        panic!("page tables of {} are damaged: reserved bit at {addr:#x}", current().id);
    }
    let me = current();
    let Some(space) = me.space() else { return Err(FaultError::NotMapped) };
    resolve(space, me, addr, access_of(error))
}
