//! Access to the current task's user memory, and bulk copies of frames.
//!
//! Every pointer from a program goes through here. Invariants: an address is checked against the user half before it is used;
//! faults are resolved as the program's own would be (so these functions may sleep), and what can't be resolved comes back as
//! [`Fault`]. With interrupts off (a spin lock held) nothing is resolved: the access just fails, which `futex` relies on.

use alloc::vec::Vec;
use core::mem::MaybeUninit;

use super::PhysAddr;
use super::address_space::Access;
use super::frame;
use super::layout::{PAGE_SIZE, USER_END};
use super::page_down;
use crate::arch::features::{Features, has};
use crate::arch::{instr, ring3, user_copy};
use crate::sync::IrqGuard;
use crate::task::current;

/// A user address that can't be accessed (EFAULT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault;

/// From this size on, and where ring 0 is interpreted, a copy is made by the ring-3 engine: an excursion costs about as much
/// as this many interpreted bytes.
const ENGINE_THRESHOLD: usize = 2048;
/// Bytes of one such copy; interrupts are off meanwhile.
const ENGINE_MAX: usize = 64 << 10;

/// Types that any bytes are a valid value of, so that a program may supply them.
///
/// # Safety
/// No padding that must not be exposed, no invalid bit patterns.
pub unsafe trait Plain: Copy + 'static {}
// SAFETY: integers.
unsafe impl Plain for u8 {}
// SAFETY: integers.
unsafe impl Plain for u16 {}
// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for u64 {}
// SAFETY: integers.
unsafe impl Plain for i32 {}
// SAFETY: integers.
unsafe impl Plain for i64 {}
// SAFETY: integers.
unsafe impl Plain for usize {}
// SAFETY: elements are plain.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

fn check(addr: u64, len: usize) -> Result<(), Fault> {
    addr.checked_add(len as u64).filter(|end| *end <= USER_END).map(|_| ()).ok_or(Fault)
}

/// Opens user memory to ring 0 while it lives (SMAP).
struct Window;

impl Window {
    #[inline(always)]
    fn open() -> Self {
        if has(Features::SMAP) {
            // SAFETY: sets RFLAGS.AC; the CPU has SMAP.
            unsafe { core::arch::asm!("stac", options(nostack)) };
        }
        Self
    }
}

impl Drop for Window {
    #[inline(always)]
    fn drop(&mut self) {
        if has(Features::SMAP) {
            // SAFETY: clears RFLAGS.AC.
            unsafe { core::arch::asm!("clac", options(nostack)) };
        }
    }
}

/// Copies from user memory.
///
/// # Errors
/// [`Fault`]; the destination may be partly written.
pub fn read_bytes(dst: &mut [u8], src: u64) -> Result<(), Fault> {
    check(src, dst.len())?;
    if dst.len() >= ENGINE_THRESHOLD && ring3::available() {
        return engine(dst.as_mut_ptr() as u64, src, dst.len(), false);
    }
    let _w = Window::open();
    // SAFETY: `dst` is ours; the user range is checked.
    match unsafe { user_copy::copy_user(dst.as_mut_ptr(), src as *const u8, dst.len()) } {
        0 => Ok(()),
        _ => Err(Fault),
    }
}

/// Copies to user memory.
///
/// # Errors
/// [`Fault`]; a part may have been written.
pub fn write_bytes(dst: u64, src: &[u8]) -> Result<(), Fault> {
    check(dst, src.len())?;
    if src.len() >= ENGINE_THRESHOLD && ring3::available() {
        return engine(src.as_ptr() as u64, dst, src.len(), true);
    }
    let _w = Window::open();
    // SAFETY: `src` is ours; the user range is checked.
    match unsafe { user_copy::copy_user(dst as *mut u8, src.as_ptr(), src.len()) } {
        0 => Ok(()),
        _ => Err(Fault),
    }
}

/// Reads a value.
///
/// # Errors
/// [`Fault`].
#[inline]
pub fn read<T: Plain>(src: u64) -> Result<T, Fault> {
    check(src, size_of::<T>())?;
    let mut v = MaybeUninit::<T>::uninit();
    let _w = Window::open();
    // SAFETY: as `read_bytes`; `T` is plain, so any bytes make it valid.
    unsafe {
        if user_copy::copy_user(v.as_mut_ptr().cast(), src as *const u8, size_of::<T>()) != 0 {
            return Err(Fault);
        }
        Ok(v.assume_init())
    }
}

/// Writes a value.
///
/// # Errors
/// [`Fault`].
#[inline]
pub fn write<T: Plain>(dst: u64, v: &T) -> Result<(), Fault> {
    check(dst, size_of::<T>())?;
    let _w = Window::open();
    // SAFETY: as `write_bytes`; plain values have no padding.
    match unsafe { user_copy::copy_user(dst as *mut u8, core::ptr::from_ref(v).cast(), size_of::<T>()) } {
        0 => Ok(()),
        _ => Err(Fault),
    }
}

/// Reads an array of values.
///
/// # Errors
/// [`Fault`].
pub fn read_array<T: Plain>(src: u64, count: usize) -> Result<Vec<T>, Fault> {
    let size = count.checked_mul(size_of::<T>()).ok_or(Fault)?;
    check(src, size)?;
    let mut v = Vec::<T>::with_capacity(count);
    // SAFETY: the capacity is there; `T` is plain.
    unsafe {
        read_bytes(core::slice::from_raw_parts_mut(v.as_mut_ptr().cast(), size), src)?;
        v.set_len(count);
    }
    Ok(v)
}

/// Reads a zero-terminated string of at most `max` bytes, without the zero.
///
/// # Errors
/// `Err(None)` if no zero comes within `max` bytes (or as many as the kernel has room for).
pub fn read_cstr(src: u64, max: usize) -> Result<Vec<u8>, Option<Fault>> {
    let mut out = Vec::new();
    let mut at = src;
    while out.len() < max {
        // Up to the end of the page at most: the string may end right before an unmapped one.
        let room = (PAGE_SIZE - (at & (PAGE_SIZE - 1))) as usize;
        let take = room.min(max - out.len()).min(64);
        let old = out.len();
        out.try_reserve(take).map_err(|_| None)?;
        out.resize(old + take, 0);
        read_bytes(&mut out[old..], at).map_err(Some)?;
        if let Some(n) = out[old..].iter().position(|b| *b == 0) {
            out.truncate(old + n);
            return Ok(out);
        }
        at += take as u64;
    }
    Err(None)
}

/// Fills user memory with zeroes.
///
/// # Errors
/// [`Fault`].
pub fn zero(dst: u64, len: usize) -> Result<(), Fault> {
    static ZEROES: [u8; 512] = [0; 512];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(ZEROES.len());
        write_bytes(dst + done as u64, &ZEROES[..n])?;
        done += n;
    }
    Ok(())
}

/// Reads an aligned word with one access.
///
/// # Errors
/// [`Fault`].
pub fn load_u32(addr: u64) -> Result<u32, Fault> {
    check(addr, 4)?;
    let mut v = 0;
    let _w = Window::open();
    // SAFETY: the range is checked; the access may fault and is fixed up.
    match unsafe { user_copy::load_user_u32(addr as *const u32, &mut v) } {
        0 => Ok(v),
        _ => Err(Fault),
    }
}

/// Compare-and-swap on an aligned word; returns what was there.
///
/// # Errors
/// [`Fault`].
pub fn cas_u32(addr: u64, old: u32, new: u32) -> Result<u32, Fault> {
    check(addr, 4)?;
    let mut found = 0;
    let _w = Window::open();
    // SAFETY: as `load_u32`.
    match unsafe { user_copy::cas_user_u32(addr as *mut u32, old, new, &mut found) } {
        0 => Ok(found),
        _ => Err(Fault),
    }
}

/// Brings a user page in, as an access of the program would.
///
/// # Errors
/// [`Fault`] if the program could not access it.
pub fn touch(addr: u64, access: Access) -> Result<(), Fault> {
    check(addr, 1)?;
    let me = current();
    let space = me.space().ok_or(Fault)?;
    super::fault::resolve(space, me, addr, access).map_err(|_| Fault)
}

/// The frame of a user page with one more reference, brought in if need be.
///
/// # Errors
/// [`Fault`].
pub fn pin(addr: u64, access: Access) -> Result<PhysAddr, Fault> {
    check(addr, 1)?;
    let me = current();
    let space = me.space().ok_or(Fault)?;
    let page = page_down(addr);
    for _ in 0..16 {
        {
            // Under the lock nobody unmaps it between the look and the reference.
            let _inner = space.lock();
            if let Some(e) = space.lookup(page)
                && (access != Access::Write || e.is_writable())
            {
                frame::get(e.frame());
                return Ok(e.frame());
            }
        }
        touch(page, access)?;
    }
    Err(Fault)
}

/// Copies between kernel memory and user pages by the ring-3 engine.
fn engine(kernel: u64, user: u64, len: usize, to_user: bool) -> Result<(), Fault> {
    let mut done = 0;
    while done < len {
        let chunk = (len - done).min(ENGINE_MAX);
        let mut list = arrayvec::ArrayVec::<ring3::Transfer, 64>::new();
        let mut pinned = arrayvec::ArrayVec::<PhysAddr, 32>::new();
        let mut at = 0;
        let mut result = Ok(());
        while at < chunk && !list.is_full() && !pinned.is_full() {
            let (k, u) = (kernel + (done + at) as u64, user + (done + at) as u64);
            let to_edge = |a: u64| (PAGE_SIZE - (a & (PAGE_SIZE - 1))) as usize;
            let n = (chunk - at).min(to_edge(u)).min(to_edge(k));
            let Some(k_phys) = kernel_to_phys(k) else {
                result = Err(Fault);
                break;
            };
            match pin(u, if to_user { Access::Write } else { Access::Read }) {
                Ok(f) => {
                    pinned.push(f);
                    let u_phys = f.0 + (u & (PAGE_SIZE - 1));
                    let (dst, src) = if to_user { (u_phys, k_phys) } else { (k_phys, u_phys) };
                    list.push(ring3::Transfer { dst, src, len: n as u64 });
                }
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
            at += n;
        }
        // SAFETY: kernel memory is the caller's; user frames are pinned.
        unsafe { ring3::transfer(&list) };
        for f in pinned {
            frame::put(f);
        }
        result?;
        done += at;
    }
    Ok(())
}

/// Physical address of kernel memory in the direct map, the image, or the current task's stack.
fn kernel_to_phys(addr: u64) -> Option<u64> {
    use super::layout::{DIRECT_MAP, DIRECT_MAP_SIZE, KERNEL_BASE};
    if (DIRECT_MAP..DIRECT_MAP + DIRECT_MAP_SIZE).contains(&addr) {
        return Some(addr - DIRECT_MAP);
    }
    if addr >= KERNEL_BASE {
        return Some(addr - KERNEL_BASE);
    }
    current().block.stack_alias(addr).map(|a| a - DIRECT_MAP)
}

/// Copies a whole frame by the quickest way that this host has.
pub fn copy_frame(dst: PhysAddr, src: PhysAddr) {
    if ring3::available() {
        let _irq = IrqGuard::new();
        // SAFETY: the caller owns `dst` and holds `src`.
        unsafe { ring3::transfer(&[ring3::Transfer { dst: dst.0, src: src.0, len: PAGE_SIZE }]) };
        return;
    }
    // SAFETY: as above; a page is 512 words.
    unsafe { instr::copy_quads(dst.as_ptr(), src.as_ptr(), 512) };
}
