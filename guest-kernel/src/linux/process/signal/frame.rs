//! Signal frames on the user stack, exactly Linux's `struct rt_sigframe` of x86-64, and the way back.
//!
//! Source: Linux arch/x86/include/uapi/asm/{sigcontext,ucontext}.h, arch/x86/kernel/{signal,signal_64,fpu/signal}.c.

use core::sync::atomic::Ordering;

use super::info::{Action, SigInfo, flags};
use super::{SIGSEGV, UNBLOCKABLE, bit, force, recalculate};
use crate::arch::debug_port;
use crate::arch::fpu::{self, Area};
use crate::arch::trap_entry::TrapFrame;
use crate::cpu;
use crate::linux::errno::{Errno, SysResult};
use crate::linux::process::Thread;
use crate::linux::process::thread::AltStack;
use crate::mm::layout::USER_END;
use crate::mm::user::{self, Fault};
use crate::sync::IrqGuard;
use crate::task::current;

/// The ABI's red zone below the stack pointer.
const RED_ZONE: u64 = 128;
/// `struct rt_sigframe` in words: return address (1), ucontext (38), siginfo (16).
const FRAME_WORDS: usize = 55;
/// Word indices in the frame: uc_flags, uc_stack, uc_mcontext, uc_sigmask, siginfo.
const UC: usize = 1;
const UC_STACK: usize = UC + 2;
const MCONTEXT: usize = UC + 5;
const SIGMASK: usize = MCONTEXT + 32;
const SIGINFO: usize = SIGMASK + 1;
/// `uc_flags`: FP state is an XSAVE image; SS is saved, and restored strictly.
const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
/// Words of `_fpx_sw_bytes` at byte 464 of the FP image, and the word behind the image.
const SW_BYTES_OFFSET: usize = 464;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// `ss_flags`.
const SS_ONSTACK: u64 = 1;
const SS_DISABLE: u64 = 2;
const SS_AUTODISARM: u64 = 1 << 31;
/// RFLAGS that a handler starts without: TF, DF, RF. Linux: `setup_rt_frame`.
const CLEARED_FLAGS: u64 = 1 << 8 | 1 << 10 | 1 << 16;
/// RFLAGS that sigreturn takes from the frame (Linux: FIX_EFLAGS): CF PF AF ZF SF TF DF OF RF AC.
const RETURNED_FLAGS: u64 = 0x0005_0dd5;

fn on_alt_stack(alt: &AltStack, sp: u64) -> bool {
    !alt.autodisarm && sp > alt.base && sp - alt.base <= alt.size
}

/// `stack_t` as three words, with the flags for a stack pointer.
pub fn alt_stack_words(alt: &AltStack, sp: u64) -> [u64; 3] {
    let state = match alt.size {
        0 => SS_DISABLE,
        _ if on_alt_stack(alt, sp) => SS_ONSTACK,
        _ => 0,
    };
    [alt.base, state | if alt.autodisarm { SS_AUTODISARM } else { 0 }, alt.size]
}

/// Sets the alternate stack from a `stack_t` (sigaltstack).
///
/// # Errors
/// EPERM while it is in use; EINVAL, ENOMEM as sigaltstack(2).
pub fn set_alt_stack(thread: &Thread, words: [u64; 3], sp: u64) -> Result<(), Errno> {
    /// Linux: MINSIGSTKSZ.
    const SMALLEST: u64 = 2048;
    let [base, state, size] = words;
    let state = state & 0xffff_ffff;
    let mut alt = thread.alt_stack.lock();
    if on_alt_stack(&alt, sp) {
        return Err(Errno::EPERM);
    }
    *alt = match state & !SS_AUTODISARM {
        SS_DISABLE => AltStack::default(),
        0 | SS_ONSTACK if size < SMALLEST => return Err(Errno::ENOMEM),
        0 | SS_ONSTACK => AltStack { base, size, autodisarm: state & SS_AUTODISARM != 0 },
        _ => return Err(Errno::EINVAL),
    };
    Ok(())
}

/// Makes the running thread enter a handler.
pub fn push(thread: &Thread, frame: &mut TrapFrame, info: &SigInfo, action: &Action) -> Result<(), Fault> {
    if action.handler >= USER_END || action.flags & flags::SA_RESTORER == 0 {
        return Err(Fault);
    }
    let alt = *thread.alt_stack.lock();
    let in_use = on_alt_stack(&alt, frame.rsp);
    let mut sp = frame.rsp.wrapping_sub(RED_ZONE);
    if action.flags & flags::SA_ONSTACK != 0 && alt.size != 0 && !in_use {
        sp = alt.base.wrapping_add(alt.size);
    }
    let fp = write_fpu(sp)?;
    let at = (fp.wrapping_sub(8 * FRAME_WORDS as u64) & !15).wrapping_sub(8);
    if in_use && !on_alt_stack(&alt, at) {
        return Err(Fault); // the alternate stack itself has overflowed
    }
    let xsave = fpu::components() != 0;
    let mut w = [0u64; FRAME_WORDS];
    w[0] = action.restorer;
    w[UC] = UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS | if xsave { UC_FP_XSTATE } else { 0 };
    w[UC_STACK..UC_STACK + 3].copy_from_slice(&alt_stack_words(&alt, frame.rsp));
    let fault = *thread.last_fault.lock();
    let stepped = debug_port::debuggers_flag(frame.rflags);
    w[MCONTEXT..MCONTEXT + 24].copy_from_slice(&[
        frame.r8,
        frame.r9,
        frame.r10,
        frame.r11,
        frame.r12,
        frame.r13,
        frame.r14,
        frame.r15,
        frame.rdi,
        frame.rsi,
        frame.rbp,
        frame.rbx,
        frame.rdx,
        frame.rax,
        frame.rcx,
        frame.rsp,
        frame.rip,
        frame.rflags & !stepped,
        frame.cs | frame.ss << 48,
        fault.error,
        fault.vector,
        thread.blocked(),
        fault.address,
        fp,
    ]);
    w[SIGINFO..SIGINFO + 6].copy_from_slice(&info.to_words());
    {
        let s = thread.process.signals.lock();
        let saved = thread.mask_is_saved.swap(false, Ordering::Relaxed);
        w[SIGMASK] = if saved { thread.saved_mask.load(Ordering::Relaxed) } else { thread.blocked() };
        let mut blocked = thread.blocked() | action.mask;
        if action.flags & flags::SA_NODEFER == 0 {
            blocked |= bit(info.signo);
        }
        thread.blocked.store(blocked & !UNBLOCKABLE, Ordering::Relaxed);
        drop(s);
    }
    user::write(at, &w)?;
    if alt.autodisarm {
        *thread.alt_stack.lock() = AltStack::default();
    }
    frame.rdi = u64::from(info.signo);
    frame.rsi = at + 8 * SIGINFO as u64;
    frame.rdx = at + 8 * UC as u64;
    frame.rax = 0;
    frame.rip = action.handler;
    frame.rsp = at;
    frame.rflags = frame.rflags & !CLEARED_FLAGS | stepped;
    frame.vector = 0;
    Ok(())
}

/// Writes the FP state below `sp`; returns where it begins.
fn write_fpu(sp: u64) -> Result<u64, Fault> {
    let me = current();
    let Some(area) = &me.fpu else { return Err(Fault) };
    let xsave = fpu::components() != 0;
    let size = if xsave { fpu::area_size() } else { 512 };
    let at = sp.wrapping_sub(size as u64 + if xsave { 4 } else { 0 }) & !63;
    // If we are moved to another CPU in between, the same state is written here once more.
    fpu::save_current_to(area);
    user::write_bytes(at, &area.bytes()[..size])?;
    if xsave {
        // magic1, extended_size, xfeatures, xstate_size. The image in the area keeps its own bytes there.
        let c = fpu::components();
        let words = [FP_XSTATE_MAGIC1, size as u32 + 4, c as u32, (c >> 32) as u32, size as u32, 0];
        user::write(at + SW_BYTES_OFFSET as u64, &words)?;
        user::write(at + size as u64, &FP_XSTATE_MAGIC2)?;
    }
    Ok(at)
}

fn read_fpu(at: u64) -> Result<(), Errno> {
    let me = current();
    let Some(own) = &me.fpu else { return Err(Errno::EFAULT) };
    let mut area = Area::new()?;
    if at != 0 {
        let xsave = fpu::components() != 0;
        let sw: [u32; 6] = user::read(at.checked_add(SW_BYTES_OFFSET as u64).ok_or(Errno::EFAULT)?)?;
        let whole = fpu::area_size();
        let extended = xsave && sw[0] == FP_XSTATE_MAGIC1 && sw[4] as usize == whole && {
            user::read::<u32>(at.checked_add(whole as u64).ok_or(Errno::EFAULT)?)? == FP_XSTATE_MAGIC2
        };
        if !at.is_multiple_of(64) && extended {
            return Err(Errno::EFAULT);
        }
        let size = if extended { whole } else { 512 };
        user::read_bytes(&mut area.bytes_mut()[..size], at)?;
        if xsave && !extended {
            /// x87 and SSE.
            const LEGACY: u64 = 3;
            area.bytes_mut()[512..520].copy_from_slice(&LEGACY.to_le_bytes());
        }
        area.sanitise();
    }
    let _irq = IrqGuard::new();
    fpu::load_current_from(cpu::this(), &me, &area);
    // The registers are the only copy now; what `own` holds is written at the next switch.
    let _ = own;
    Ok(())
}

/// rt_sigreturn(2): back to what the handler interrupted.
pub fn sigreturn(thread: &Thread, frame: &mut TrapFrame) -> SysResult {
    *thread.restart.lock() = None;
    frame.vector = 0;
    if restore(thread, frame).is_err() {
        force(thread, SigInfo::kernel(SIGSEGV));
    }
    Ok(frame.rax)
}

fn restore(thread: &Thread, frame: &mut TrapFrame) -> Result<(), Errno> {
    let w: [u64; SIGINFO - 1] = user::read(frame.rsp)?;
    // The handler's `ret` took the return address off.
    let word = |i: usize| w[i - 1];
    let rip = word(MCONTEXT + 16);
    if rip >= USER_END {
        return Err(Errno::EFAULT);
    }
    read_fpu(word(MCONTEXT + 23))?;
    {
        let s = thread.process.signals.lock();
        thread.blocked.store(word(SIGMASK) & !UNBLOCKABLE, Ordering::Relaxed);
        recalculate(&s);
    }
    let _ = set_alt_stack(thread, [word(UC_STACK), word(UC_STACK + 1), word(UC_STACK + 2)], word(MCONTEXT + 15));
    let r = |i: usize| word(MCONTEXT + i);
    (frame.r8, frame.r9, frame.r10, frame.r11) = (r(0), r(1), r(2), r(3));
    (frame.r12, frame.r13, frame.r14, frame.r15) = (r(4), r(5), r(6), r(7));
    (frame.rdi, frame.rsi, frame.rbp, frame.rbx) = (r(8), r(9), r(10), r(11));
    (frame.rdx, frame.rax, frame.rcx, frame.rsp) = (r(12), r(13), r(14), r(15));
    frame.rip = rip;
    let stepped = debug_port::debuggers_flag(frame.rflags);
    frame.rflags = frame.rflags & !RETURNED_FLAGS | r(17) & RETURNED_FLAGS | stepped;
    Ok(())
}
