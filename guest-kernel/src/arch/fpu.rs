//! FPU and SIMD state of user tasks. The kernel itself is compiled without any.
//!
//! Two ways, chosen by the host's probe:
//! - XSAVE works in ring 0: saved when a task leaves its CPU, loaded when it comes back and the registers hold something else.
//! - XSAVE is refused in ring 0: it runs in the ring-3 engine, which is dear, so a task that makes way for the idle task or a
//!   kernel task leaves its state in the registers (`Task::fpu_live`). Such a task can be picked by that CPU only: wake-up
//!   placement and stealing respect `fpu_live` as they respect `on_cpu`. Leaving for another user task saves and loads in
//!   one excursion.
//!
//! Invariant: a task whose `fpu_live` is none has its state in its area.
//!
//! Sources: Intel SDM vol. 1 13.4 (XSAVE area), 13.7, 13.8; vol. 2 XSAVE/XRSTOR. Area size from CPUID 0xd.0 (standard
//! format), not from the compacted size of 0xd.1.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::features::{Features, has};
use super::instr::cpuid;
use super::ring3;
use crate::cpu::Cpu;
use crate::mm::PhysAddr;
use crate::mm::frame::{self, OutOfMemory};
use crate::mm::layout::PAGE_SIZE;
use crate::task::Task;

/// x87, SSE, AVX, AVX-512 (opmask, ZMM_Hi256, Hi16_ZMM). Intel SDM vol. 1 13.1. Others (AMX) must be asked for on Linux too.
const SUPPORTED: u64 = 0b1110_0111;
// XSAVE and XRSTOR take them in EDX:EAX, and EDX is zero throughout.
const _: () = assert!(SUPPORTED <= u32::MAX as u64);
/// Initial MXCSR and x87 control word. Intel SDM vol. 1 10.2.3, 8.1.5.
const MXCSR_DEFAULT: u32 = 0x1f80;
const FCW_DEFAULT: u16 = 0x037f;
/// Byte offsets in the legacy region. Intel SDM vol. 1 table 10-2.
const FCW_OFFSET: usize = 0;
const MXCSR_OFFSET: usize = 24;
/// Bytes of the legacy region and the header. Intel SDM vol. 1 13.4.
const LEGACY_AND_HEADER: u64 = 576;
/// `Task::fpu_live` of a task whose state is in its area.
pub const NOT_LIVE: u32 = u32::MAX;

/// State components in use; 0: FXSAVE only. With [`IN_RING_3`] if XSAVE is refused in ring 0: positive numbers are the common case.
static STATE: AtomicU64 = AtomicU64::new(0);
/// Reserved among the components. Intel SDM vol. 1 13.1.
const IN_RING_3: u64 = 1 << 63;
/// Bytes of an area.
static AREA_SIZE: AtomicU64 = AtomicU64::new(512);

/// A task's save area: one frame.
pub struct Area(PhysAddr);

impl Area {
    /// The initial state.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new() -> Result<Self, OutOfMemory> {
        let area = Self(frame::alloc_zeroed()?);
        area.reset();
        Ok(area)
    }

    /// Back to the initial state (exec).
    pub fn reset(&self) {
        let p: *mut u8 = self.0.as_ptr();
        // SAFETY: the frame is ours; header words (512..576) are zero: all components in their initial state.
        unsafe {
            core::ptr::write_bytes(p.add(512).cast::<u64>(), 0, 8);
            p.add(FCW_OFFSET).cast::<u16>().write(FCW_DEFAULT);
            p.add(MXCSR_OFFSET).cast::<u32>().write(MXCSR_DEFAULT);
        }
    }

    /// The saved bytes. True only while the owner's state is not live.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the frame is ours for as long as `self` lives.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr(), area_size()) }
    }

    /// The saved bytes, to be changed while the owner's state is not live. Call [`Area::sanitise`] afterwards.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `bytes`.
        unsafe { core::slice::from_raw_parts_mut(self.0.as_ptr(), area_size()) }
    }

    /// Makes bytes that came from user space loadable: reserved bits cleared, so that XRSTOR can't fault.
    pub fn sanitise(&self) {
        let p: *mut u8 = self.0.as_ptr();
        // SAFETY: the frame is ours. Offsets: MXCSR 24, XSTATE_BV 512, XCOMP_BV 520, reserved up to 576.
        unsafe {
            let mxcsr = p.add(MXCSR_OFFSET).cast::<u32>();
            mxcsr.write(mxcsr.read() & 0xffff);
            let bv = p.add(512).cast::<u64>();
            bv.write(bv.read() & components());
            core::ptr::write_bytes(p.add(520).cast::<u64>(), 0, 7);
        }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        frame::put(self.0);
    }
}

/// Bytes of a save area.
pub fn area_size() -> usize {
    AREA_SIZE.load(Ordering::Relaxed) as usize
}

/// State components that are saved.
pub fn components() -> u64 {
    STATE.load(Ordering::Relaxed) & !IN_RING_3
}

/// Whether only the ring-3 engine can save and load them.
fn in_ring3() -> bool {
    STATE.load(Ordering::Relaxed) & IN_RING_3 != 0
}

/// Finds the components and the size of an area, and turns the components on. Every CPU, when its ring-3 engine and its
/// stacks are there; the boot CPU first.
pub fn init_this_cpu() {
    let (mut want, mut size) = if has(Features::USER_XSAVE) {
        let (xcr0, size) = ring3::extended_state();
        (xcr0 & SUPPORTED, u64::from(size))
    } else if has(Features::XSAVE) {
        let (lo, _, _, hi) = cpuid(0xd, 0);
        let want = (u64::from(hi) << 32 | u64::from(lo)) & SUPPORTED;
        // SAFETY: CR4.OSXSAVE is set (`features::enable_on_this_cpu`), and CPUID lists the components.
        unsafe {
            asm!("xsetbv", in("ecx") 0, in("eax") want as u32, in("edx") (want >> 32) as u32, options(nomem, nostack))
        };
        (want, u64::from(cpuid(0xd, 0).1))
    } else {
        return;
    };
    if size > PAGE_SIZE {
        // Components that we don't save may have made the area that large; fall back to what always fits.
        want &= 0b11;
        size = LEGACY_AND_HEADER;
    }
    AREA_SIZE.store(size.max(LEGACY_AND_HEADER), Ordering::Relaxed);
    let engine = if want != 0 && has(Features::USER_XSAVE) { IN_RING_3 } else { 0 };
    STATE.store(want | engine, Ordering::Relaxed);
}

fn save(area: &Area) {
    let c = components();
    if in_ring3() {
        ring3::swap_fpu(Some(area.0), None, c);
    } else {
        save_here(area, c);
    }
}

/// Saves the components `c` in ring 0.
#[inline(always)]
fn save_here(area: &Area, c: u64) {
    let p: *mut u8 = area.0.as_ptr();
    if c == 0 {
        // SAFETY: 512 aligned bytes of ours.
        unsafe { asm!("fxsave64 [{}]", in(reg) p, options(nostack, preserves_flags)) };
    } else {
        // SAFETY: an aligned area of the size that CPUID gave for these components.
        unsafe { asm!("xsave64 [{}]", in(reg) p, in("eax") c as u32, in("edx") 0, options(nostack, preserves_flags)) };
    }
}

fn restore(area: &Area) {
    let c = components();
    if in_ring3() {
        ring3::swap_fpu(None, Some(area.0), c);
    } else {
        restore_here(area, c);
    }
}

/// Loads the components `c` in ring 0.
#[inline(always)]
fn restore_here(area: &Area, c: u64) {
    let p: *const u8 = area.0.as_ptr();
    if c == 0 {
        // SAFETY: 512 aligned bytes that `save` or `reset` wrote.
        unsafe { asm!("fxrstor64 [{}]", in(reg) p, options(nostack, preserves_flags, readonly)) };
    } else {
        // SAFETY: an area that `save`, `reset` or `sanitise` made loadable.
        unsafe {
            asm!("xrstor64 [{}]", in(reg) p, in("eax") c as u32, in("edx") 0, options(nostack, preserves_flags, readonly))
        };
    }
}

/// Keeps registers and areas in step at a task switch. Interrupts off, on `prev`'s stack.
#[inline(always)]
pub fn switch(me: &Cpu, prev: &Task, next: &Task) {
    let state = STATE.load(Ordering::Relaxed);
    // Relaxed throughout: the words are this CPU's, or travel with the run queue's lock.
    let owner = me.fpu_owner.load(Ordering::Relaxed);
    if state as i64 <= 0 {
        return switch_otherwise(me, owner, prev, next);
    }
    if core::ptr::eq(owner, prev)
        && let Some(area) = &prev.fpu
    {
        save_here(area, state);
    }
    if let Some(area) = &next.fpu
        && !core::ptr::eq(owner, next)
    {
        restore_here(area, state);
        me.fpu_owner.store(core::ptr::from_ref(next).cast_mut(), Ordering::Relaxed);
    }
}

/// [`switch`] by FXSAVE, or by the ring-3 engine.
#[inline(never)]
fn switch_otherwise(me: &Cpu, owner: *mut Task, prev: &Task, next: &Task) {
    let lazy = in_ring3();
    if let (Some(area), false) = (&prev.fpu, lazy)
        && core::ptr::eq(owner, prev)
    {
        save_here(area, 0);
    }
    let Some(area) = &next.fpu else { return };
    if core::ptr::eq(owner, next) {
        return;
    }
    if lazy {
        // SAFETY: a task whose state is live here can't be freed: it must run here once more to exit, which clears `fpu_owner`.
        let live = unsafe { owner.as_ref() }.filter(|t| t.fpu_live.load(Ordering::Relaxed) == me.id.0);
        ring3::swap_fpu(live.and_then(|t| t.fpu.as_ref()).map(|a| a.0), Some(area.0), components());
        if let Some(t) = live {
            // Release: whoever sees the task as free to move also sees its saved state.
            t.fpu_live.store(NOT_LIVE, Ordering::Release);
        }
        next.fpu_live.store(me.id.0, Ordering::Relaxed);
    } else {
        restore_here(area, 0);
    }
    me.fpu_owner.store(core::ptr::from_ref(next).cast_mut(), Ordering::Relaxed);
}

/// A task runs here next that ran elsewhere before, or never: should this CPU's registers still hold its state, it is an old one. (Or a
/// freed task's, whose memory this one got.) Interrupts off.
pub fn arrives(me: &Cpu, task: &Task) {
    if core::ptr::eq(me.fpu_owner.load(Ordering::Relaxed), task) {
        me.fpu_owner.store(core::ptr::null_mut(), Ordering::Relaxed);
    }
}

/// Writes a task's live state to its area, so that the task can move to another CPU. On the CPU that holds it, interrupts off.
pub fn flush_live(me: &Cpu, task: &Task) {
    if task.fpu_live.load(Ordering::Relaxed) != me.id.0 {
        return;
    }
    if let Some(area) = &task.fpu {
        save(area);
    }
    me.fpu_owner.store(core::ptr::null_mut(), Ordering::Relaxed);
    task.fpu_live.store(NOT_LIVE, Ordering::Release);
}

/// Copies the running task's present state into `area` (fork, signal frame). The task goes on with it.
pub fn save_current_to(area: &Area) {
    save(area);
}

/// Loads `area` into the registers as the running task's state (exec, sigreturn).
pub fn load_current_from(me: &Cpu, task: &Task, area: &Area) {
    restore(area);
    me.fpu_owner.store(core::ptr::from_ref(task).cast_mut(), Ordering::Relaxed);
    if in_ring3() {
        task.fpu_live.store(me.id.0, Ordering::Relaxed);
    }
}

/// The running task will not return to ring 3: its state may be lost.
pub fn forget(me: &Cpu, task: &Task) {
    if core::ptr::eq(me.fpu_owner.load(Ordering::Relaxed), task) {
        me.fpu_owner.store(core::ptr::null_mut(), Ordering::Relaxed);
    }
    task.fpu_live.store(NOT_LIVE, Ordering::Relaxed);
}
