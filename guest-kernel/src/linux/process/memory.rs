//! Memory calls: mmap and its kin, brk. `mm::address_space` does the work; here are Linux's arguments and errors.

use core::ops::Range;

use super::Thread;
use super::resource::INFINITY;
use super::shared_memory::SharedMemory;
use crate::linux::errno::{Errno, SysResult};
use crate::linux::fs;
use crate::mm::address_space::{AddressSpace, MapError, USER_START};
use crate::mm::layout::{PAGE_SIZE, USER_END};
use crate::mm::vma::{Backing, Prot, Vma};
use crate::mm::{frame, page_up, user};
use crate::task::current;

/// Linux include/uapi/asm-generic/mman-common.h and mman.h.
const PROT_MASK: u64 = 7;
const PROT_GROWSDOWN: u64 = 0x0100_0000;
const PROT_SEM: u64 = 8;
const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_SHARED_VALIDATE: u64 = 3;
const MAP_TYPE: u64 = 15;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_POPULATE: u64 = 0x8000;
const MAP_HUGETLB: u64 = 0x4_0000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const MREMAP_MAYMOVE: u64 = 1;
const MREMAP_FIXED: u64 = 2;
/// Pages that one MAP_POPULATE or MADV_POPULATE brings in at most.
const MAX_POPULATE: u64 = 4096;

fn prot_of(bits: u64) -> Result<Prot, Errno> {
    if bits & !(PROT_MASK | PROT_SEM) != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(Prot::from_bits_truncate(bits as u32))
}

fn with_space<T>(f: impl FnOnce(&AddressSpace) -> Result<T, Errno>) -> Result<T, Errno> {
    let me = current();
    f(me.space().ok_or(Errno::EFAULT)?)
}

/// Linux's heuristic over-commit: what can't ever fit is refused.
fn check_commit(pages: u64) -> Result<(), Errno> {
    let (_, total) = frame::usage();
    if pages > u64::from(total) { Err(Errno::ENOMEM) } else { Ok(()) }
}

/// RLIMIT_AS and RLIMIT_DATA, for a process that is to get `bytes` more, which are `data` (private and writable) or not.
/// `replaced`: a range that goes away for it.
fn check_limits(space: &AddressSpace, bytes: u64, data: bool, replaced: Range<u64>) -> Result<(), Errno> {
    let (most, most_data) = {
        let process = super::current();
        let limits = process.limits.lock();
        (limits.address_space(), if data { limits.data() } else { INFINITY })
    };
    if most == INFINITY && most_data == INFINITY {
        return Ok(());
    }
    let (mut all, mut private) = (bytes, bytes);
    for vma in space.lock().iter() {
        let overlap = vma.end.min(replaced.end).saturating_sub(vma.start.max(replaced.start));
        let len = vma.end - vma.start - overlap;
        all = all.saturating_add(len);
        if is_data(vma) {
            private = private.saturating_add(len);
        }
    }
    if all > most || private > most_data { Err(Errno::ENOMEM) } else { Ok(()) }
}

/// What RLIMIT_DATA counts (Linux: `is_data_mapping`).
fn is_data(vma: &Vma) -> bool {
    vma.prot.contains(Prot::WRITE) && !matches!(vma.backing, Backing::Shared(_)) && vma.name != "[stack]"
}

/// mmap(2).
pub fn mmap(thread: &Thread, a: &[u64; 6]) -> SysResult {
    let [addr, len, bits, flags, fd, offset] = *a;
    let prot = prot_of(bits)?;
    if len == 0 || offset % PAGE_SIZE != 0 {
        return Err(Errno::EINVAL);
    }
    let len = page_up(len).filter(|l| *l <= USER_END).ok_or(Errno::ENOMEM)?;
    offset.checked_add(len).ok_or(Errno::EOVERFLOW)?;
    if flags & MAP_HUGETLB != 0 {
        return Err(Errno::ENOMEM); // no huge pages are set aside
    }
    let shared = match flags & MAP_TYPE {
        MAP_SHARED | MAP_SHARED_VALIDATE => true,
        MAP_PRIVATE => false,
        _ => return Err(Errno::EINVAL),
    };
    let fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0;
    if fixed {
        if addr % PAGE_SIZE != 0 {
            return Err(Errno::EINVAL);
        }
        if addr < USER_START {
            return Err(Errno::EPERM);
        }
        addr.checked_add(len).filter(|e| *e <= USER_END).ok_or(Errno::ENOMEM)?;
    }
    if prot.contains(Prot::WRITE) && !(shared && flags & MAP_ANONYMOUS == 0) && flags & MAP_NORESERVE == 0 {
        check_commit(len / PAGE_SIZE)?;
    }
    let backing = if flags & MAP_ANONYMOUS == 0 {
        let (source, writable, readable) = fs::file_page_source(&thread.process, fd as i32)?;
        if !readable || (shared && prot.contains(Prot::WRITE) && !writable) {
            return Err(Errno::EACCES);
        }
        if shared { Backing::Shared(source) } else { Backing::Private(source) }
    } else if shared {
        Backing::Shared(SharedMemory::new(len / PAGE_SIZE))
    } else {
        Backing::Anonymous
    };
    let page = if flags & MAP_ANONYMOUS == 0 { offset / PAGE_SIZE } else { 0 };
    let hint = if fixed || addr >= USER_START { addr } else { 0 };
    let at = with_space(|s| {
        if flags & MAP_FIXED_NOREPLACE != 0 && flags & MAP_FIXED == 0 && s.lock().occupied(addr, addr + len) {
            return Err(Errno::EEXIST);
        }
        let data = !shared && prot.contains(Prot::WRITE);
        check_limits(s, len, data, if fixed { addr..addr + len } else { 0..0 })?;
        Ok(s.map(hint, len, prot, backing, page, fixed, "")?)
    })?;
    if flags & MAP_POPULATE != 0 {
        populate(at, len, prot.contains(Prot::WRITE));
    }
    Ok(at)
}

fn populate(start: u64, len: u64, write: bool) -> bool {
    use crate::mm::address_space::Access;
    let access = if write { Access::Write } else { Access::Read };
    (0..(len / PAGE_SIZE).min(MAX_POPULATE)).all(|i| user::touch(start + i * PAGE_SIZE, access).is_ok())
}

/// Start and length of a range of whole pages, as most calls check it.
fn range(start: u64, len: u64) -> Result<u64, Errno> {
    if !start.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let len = page_up(len).ok_or(Errno::EINVAL)?;
    start.checked_add(len).filter(|e| *e <= USER_END).ok_or(Errno::ENOMEM)?;
    Ok(len)
}

/// munmap(2).
pub fn munmap(start: u64, len: u64) -> SysResult {
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    let len = range(start, len).map_err(|_| Errno::EINVAL)?;
    with_space(|s| Ok(s.unmap(start, len)?))?;
    Ok(0)
}

/// mprotect(2).
pub fn mprotect(start: u64, len: u64, bits: u64) -> SysResult {
    if bits & PROT_GROWSDOWN != 0 {
        return Err(Errno::EINVAL);
    }
    let prot = prot_of(bits)?;
    let len = range(start, len)?;
    if len == 0 {
        return Ok(0);
    }
    with_space(|s| Ok(s.protect(start, len, prot)?))?;
    Ok(0)
}

/// mremap(2).
pub fn mremap(a: &[u64; 6]) -> SysResult {
    let [old, old_len, new_len, flags, new, _] = *a;
    if flags & !(MREMAP_MAYMOVE | MREMAP_FIXED) != 0 || new_len == 0 || old % PAGE_SIZE != 0 {
        return Err(Errno::EINVAL);
    }
    let fixed = flags & MREMAP_FIXED != 0;
    if (fixed && flags & MREMAP_MAYMOVE == 0) || old_len == 0 {
        return Err(Errno::EINVAL);
    }
    check_commit(page_up(new_len).ok_or(Errno::EINVAL)? / PAGE_SIZE)?;
    let target = fixed.then_some(new);
    with_space(|s| {
        if let Some(more) = new_len.checked_sub(old_len) {
            let data = s.lock().find(old).is_some_and(is_data);
            check_limits(s, more, data, 0..0)?;
        }
        s.remap(old, old_len, new_len, flags & MREMAP_MAYMOVE != 0, target).map_err(|e| match e {
            MapError::NotMapped => Errno::EFAULT,
            e => e.into(),
        })
    })
}

/// madvise(2): what frees or brings in pages is done, what only advises is accepted.
pub fn madvise(start: u64, len: u64, advice: u64) -> SysResult {
    /// Linux include/uapi/asm-generic/mman-common.h.
    const DONTNEED: u64 = 4;
    const FREE: u64 = 8;
    const REMOVE: u64 = 9;
    const DONTFORK: u64 = 10;
    const WIPEONFORK: u64 = 18;
    const KEEPONFORK: u64 = 19;
    const POPULATE_READ: u64 = 22;
    const POPULATE_WRITE: u64 = 23;
    let len = range(start, len)?;
    if len == 0 {
        return Ok(0);
    }
    match advice {
        // Freeing at once is a legal way to free lazily.
        DONTNEED | FREE => with_space(|s| {
            if !s.lock().covered(start, start + len) {
                return Err(Errno::ENOMEM);
            }
            Ok(s.discard(start, len)?)
        })?,
        POPULATE_READ | POPULATE_WRITE => {
            if !populate(start, len, advice == POPULATE_WRITE) {
                return Err(Errno::EFAULT);
            }
        }
        REMOVE | DONTFORK | WIPEONFORK | KEEPONFORK => return Err(Errno::EINVAL),
        0..=25 => {}
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// msync(2): nothing is ever behind.
pub fn msync(start: u64, len: u64, flags: u64) -> SysResult {
    /// MS_ASYNC, MS_INVALIDATE, MS_SYNC.
    const KNOWN: u64 = 7;
    if flags & !KNOWN != 0 || flags & 5 == 5 {
        return Err(Errno::EINVAL);
    }
    let len = range(start, len)?;
    if len != 0 && !with_space(|s| Ok(s.lock().covered(start, start + len)))? {
        return Err(Errno::ENOMEM);
    }
    Ok(0)
}

/// mlock(2), munlock(2): pages are never taken away here.
pub fn mlock(start: u64, len: u64, bring_in: bool) -> SysResult {
    let first = crate::mm::page_down(start);
    let end = start.checked_add(len).and_then(page_up).filter(|e| *e <= USER_END).ok_or(Errno::EINVAL)?;
    if end == first {
        return Ok(0);
    }
    if !with_space(|s| Ok(s.lock().covered(first, end)))? {
        return Err(Errno::ENOMEM);
    }
    if bring_in {
        populate(first, end - first, false);
    }
    Ok(0)
}

/// mincore(2).
pub fn mincore(start: u64, len: u64, out: u64) -> SysResult {
    let len = range(start, len)?;
    with_space(|s| {
        if len != 0 && !s.lock().covered(start, start + len) {
            return Err(Errno::ENOMEM);
        }
        for i in 0..len / PAGE_SIZE {
            let there = u8::from(s.lookup(start + i * PAGE_SIZE).is_some());
            user::write(out.wrapping_add(i), &there)?;
            if current().is_interrupted() {
                return Err(Errno::EAGAIN); // a huge range must not outlast a signal
            }
        }
        Ok(0)
    })
}

/// brk(2).
pub fn brk(want: u64) -> SysResult {
    with_space(|s| {
        let now = s.lock().brk;
        let refused = want > now && check_limits(s, want - now, true, 0..0).is_err();
        Ok(if refused { now } else { s.set_brk(want) })
    })
}
