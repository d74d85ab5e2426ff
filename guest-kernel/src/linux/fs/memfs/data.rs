//! Bytes of files: in the archive (read in place) or in frames of their own.
//!
//! Invariants of [`Data`]: the map owns one reference to each frame; bytes of a frame behind the file's size are zero, but for
//! what a program stores there through a mapping; `pages` is a leaf lock, because page faults come here under the address
//! space's lock.

use alloc::collections::BTreeMap;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Body, Node};
use crate::linux::errno::Errno;
use crate::linux::fs::inode::Inode;
use crate::linux::fs::io::IoCursor;
use crate::mm::PhysAddr;
use crate::mm::frame::{self, OutOfMemory};
use crate::mm::layout::PAGE_SIZE;
use crate::mm::vma::{PageSource, SourceFrame};
use crate::sync::{Mutex, SpinLock};

/// Largest file (Linux: MAX_LFS_FILESIZE).
const MAX_SIZE: u64 = i64::MAX as u64;

/// Frames in all files together.
static USED: AtomicU64 = AtomicU64::new(0);

/// Used and allowed frames of all files in memory: half of the machine's, as Linux's tmpfs has it.
pub fn usage() -> (u64, u64) {
    (USED.load(Ordering::Relaxed), u64::from(frame::usage().1 / 2))
}

/// Why a page can't be had.
enum PageError {
    /// The files' share of memory is used up.
    Full,
    NoMemory,
}

impl From<OutOfMemory> for PageError {
    fn from(_: OutOfMemory) -> Self {
        Self::NoMemory
    }
}

impl From<PageError> for Errno {
    fn from(e: PageError) -> Self {
        match e {
            PageError::Full => Self::ENOSPC,
            PageError::NoMemory => Self::ENOMEM,
        }
    }
}

fn frame_bytes(f: PhysAddr, from: usize, len: usize) -> &'static mut [u8] {
    debug_assert!(from + len <= PAGE_SIZE as usize);
    // SAFETY: inside one frame, to which the caller holds a reference while it uses the bytes. Programs may change them at the
    // same time through mappings; they are only ever copied, and any bytes are valid.
    unsafe { core::slice::from_raw_parts_mut(PhysAddr(f.0 + from as u64).as_ptr(), len) }
}

/// A file's bytes in the archive.
pub struct ArchiveData {
    base: PhysAddr,
    len: u64,
    /// Copies of the pages that can't be mapped as they are: the last one, or all if the data isn't page aligned.
    copies: SpinLock<BTreeMap<u64, PhysAddr>>,
}

impl ArchiveData {
    /// Over a part of the archive, which is never freed.
    pub fn new(base: PhysAddr, len: u64) -> Self {
        Self { base, len, copies: SpinLock::new(BTreeMap::new()) }
    }

    /// Size.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// All bytes from an offset on.
    pub fn bytes_from(&self, offset: u64) -> &'static [u8] {
        let offset = offset.min(self.len);
        // SAFETY: the archive lies in reserved RAM, is never written, and `init` has checked the range.
        unsafe { core::slice::from_raw_parts(PhysAddr(self.base.0 + offset).as_ptr(), (self.len - offset) as usize) }
    }

    fn whole(&self, page: u64) -> Option<PhysAddr> {
        let start = page.checked_mul(PAGE_SIZE)?;
        (self.base.0.is_multiple_of(PAGE_SIZE) && start.checked_add(PAGE_SIZE)? <= self.len)
            .then(|| PhysAddr(self.base.0 + start))
    }

    fn frame(&self, page: u64) -> Result<SourceFrame, OutOfMemory> {
        if let Some(f) = self.whole(page) {
            return Ok(SourceFrame::Kept(f));
        }
        let Some(start) = page.checked_mul(PAGE_SIZE).filter(|s| *s < self.len) else {
            return Ok(SourceFrame::BeyondEnd);
        };
        if let Some(f) = self.copies.lock().get(&page) {
            return Ok(SourceFrame::Kept(*f));
        }
        let f = frame::alloc_zeroed()?;
        let bytes = self.bytes_from(start);
        let n = bytes.len().min(PAGE_SIZE as usize);
        frame_bytes(f, 0, n).copy_from_slice(&bytes[..n]);
        let kept = *self.copies.lock().entry(page).or_insert(f);
        if kept != f {
            frame::put(f);
        }
        Ok(SourceFrame::Kept(kept))
    }
}

/// A file's bytes in frames.
pub struct Data {
    size: AtomicU64,
    /// Guards the map; a leaf.
    pages: SpinLock<BTreeMap<u64, PhysAddr>>,
    /// What the archive held; pages that aren't in the map yet come from there, below `lower_end`.
    lower: Option<ArchiveData>,
    lower_end: AtomicU64,
    /// It has been mapped: then pages are cleared where they would be freed, since a mapping may be about to use them.
    mapped: AtomicBool,
    /// One change of the size or the bytes by system calls at a time.
    order: Mutex<()>,
}

impl Data {
    /// Empty.
    pub fn new() -> Self {
        Self::over(None)
    }

    /// A changeable file over one of the archive.
    pub fn over(lower: Option<ArchiveData>) -> Self {
        let size = lower.as_ref().map_or(0, ArchiveData::len);
        Self {
            size: AtomicU64::new(size),
            pages: SpinLock::new(BTreeMap::new()),
            lower,
            lower_end: AtomicU64::new(size),
            mapped: AtomicBool::new(false),
            order: Mutex::new(()),
        }
    }

    /// Size.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// 512-byte blocks.
    pub fn blocks(&self) -> u64 {
        self.pages.lock().len() as u64 * (PAGE_SIZE / 512)
    }

    /// The file is about to be mapped.
    pub fn note_mapped(&self) {
        self.mapped.store(true, Ordering::SeqCst);
    }

    /// A page with a reference for the caller, if there is one; the lower layer's is copied.
    fn get(&self, page: u64) -> Result<Option<PhysAddr>, PageError> {
        if let Some(f) = self.pages.lock().get(&page).copied() {
            frame::get(f);
            return Ok(Some(f));
        }
        let Some(lower) = &self.lower else { return Ok(None) };
        let start = page * PAGE_SIZE;
        let end = self.lower_end.load(Ordering::Acquire);
        if start >= end {
            return Ok(None);
        }
        let f = frame::alloc_zeroed()?;
        let n = (end - start).min(PAGE_SIZE) as usize;
        frame_bytes(f, 0, n).copy_from_slice(&lower.bytes_from(start)[..n]);
        self.insert(page, f).map(Some)
    }

    /// Puts a frame in, unless another was quicker; takes over the caller's reference, returns the page's with one more.
    fn insert(&self, page: u64, f: PhysAddr) -> Result<PhysAddr, PageError> {
        let (used, limit) = usage();
        if used >= limit {
            frame::put(f);
            return Err(PageError::Full);
        }
        let (kept, new) = {
            let mut pages = self.pages.lock();
            let mut new = false;
            let kept = *pages.entry(page).or_insert_with(|| {
                new = true;
                f
            });
            frame::get(kept);
            (kept, new)
        };
        if new {
            USED.fetch_add(1, Ordering::Relaxed);
        } else {
            frame::put(f);
        }
        Ok(kept)
    }

    /// As [`Data::get`], making a zero page in a hole.
    fn get_or_make(&self, page: u64) -> Result<PhysAddr, PageError> {
        match self.get(page)? {
            Some(f) => Ok(f),
            None => self.insert(page, frame::alloc_zeroed()?),
        }
    }

    /// Reads at an offset.
    pub fn read(&self, io: &mut IoCursor<'_>, offset: u64) -> Result<usize, Errno> {
        let mut at = offset;
        let mut done = 0;
        while io.left() > 0 {
            let size = self.size();
            if at >= size {
                break;
            }
            let in_page = (at % PAGE_SIZE) as usize;
            let n = ((PAGE_SIZE as usize - in_page) as u64).min(size - at).min(io.left() as u64) as usize;
            let result = match self.get(at / PAGE_SIZE)? {
                Some(f) => {
                    let r = io.put(frame_bytes(f, in_page, n));
                    frame::put(f);
                    r
                }
                None => io.put_zeroes(n),
            };
            match result {
                Ok(k) => {
                    done += k;
                    at += k as u64;
                    if k < n {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Writes at an offset, or at the end; returns how many bytes and where they ended.
    pub fn write(&self, io: &mut IoCursor<'_>, offset: Option<u64>) -> Result<(usize, u64), Errno> {
        let _order = self.order.lock();
        let mut at = offset.unwrap_or_else(|| self.size());
        let mut done = 0;
        while io.left() > 0 {
            if at >= MAX_SIZE {
                return if done > 0 { Ok((done, at)) } else { Err(Errno::EFBIG) };
            }
            let in_page = (at % PAGE_SIZE) as usize;
            let n = (PAGE_SIZE as usize - in_page).min(io.left());
            match self.write_page(io, at / PAGE_SIZE, in_page, n) {
                Ok(k) => {
                    done += k;
                    at += k as u64;
                    self.size.fetch_max(at, Ordering::AcqRel);
                    if k < n {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok((done, at))
    }

    fn write_page(&self, io: &mut IoCursor<'_>, page: u64, in_page: usize, n: usize) -> Result<usize, Errno> {
        if let Some(f) = self.get(page)? {
            let r = io.take(frame_bytes(f, in_page, n));
            frame::put(f);
            return r;
        }
        // A new page is filled before anybody can see it, so that a whole one need not be cleared first.
        let f = if n == PAGE_SIZE as usize { frame::alloc() } else { frame::alloc_zeroed() }?;
        match io.take(frame_bytes(f, in_page, n)) {
            Ok(k) => {
                if k < n && n == PAGE_SIZE as usize {
                    frame_bytes(f, k, n - k).fill(0);
                }
                frame::get(f);
                let kept = self.insert(page, f);
                if let Ok(kept) = kept.as_ref()
                    && *kept != f
                {
                    // A fault of a mapping was quicker with a zero page: what came from the program goes over it.
                    frame_bytes(*kept, in_page, k).copy_from_slice(frame_bytes(f, in_page, k));
                }
                frame::put(f);
                let kept = kept?;
                frame::put(kept);
                Ok(k)
            }
            Err(e) => {
                frame::put(f);
                Err(e)
            }
        }
    }

    /// Sets the size.
    pub fn truncate(&self, size: u64) -> Result<(), Errno> {
        if size > MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        let _order = self.order.lock();
        let old = self.size.swap(size, Ordering::AcqRel);
        if size >= old {
            return Ok(());
        }
        self.lower_end.fetch_min(size, Ordering::AcqRel);
        let first_gone = size.div_ceil(PAGE_SIZE);
        let mut gone = if self.mapped.load(Ordering::SeqCst) {
            // A fault may just be handing such a page out.
            let pages = self.pages.lock();
            pages.range(first_gone..).for_each(|(_, f)| frame::clear(*f));
            BTreeMap::new()
        } else {
            self.pages.lock().split_off(&first_gone)
        };
        USED.fetch_sub(gone.len() as u64, Ordering::Relaxed);
        while let Some((_, f)) = gone.pop_first() {
            frame::put(f);
        }
        let in_page = (size % PAGE_SIZE) as usize;
        if in_page != 0
            && let Some(f) = self.pages.lock().get(&(size / PAGE_SIZE))
        {
            frame_bytes(*f, in_page, PAGE_SIZE as usize - in_page).fill(0);
        }
        Ok(())
    }

    /// Makes the pages of a range (fallocate); sets the size unless `keep_size`.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<(), Errno> {
        let end = offset.checked_add(len).filter(|e| *e <= MAX_SIZE).ok_or(Errno::EFBIG)?;
        let _order = self.order.lock();
        let (used, limit) = usage();
        if len.div_ceil(PAGE_SIZE) > limit.saturating_sub(used) {
            return Err(Errno::ENOSPC);
        }
        // Zero pages come by themselves when they are used; only the size has to be told.
        if !keep_size {
            self.size.fetch_max(end, Ordering::AcqRel);
        }
        Ok(())
    }

    fn frame_for_fault(&self, page: u64) -> Result<SourceFrame, OutOfMemory> {
        if page >= self.size().div_ceil(PAGE_SIZE) {
            return Ok(SourceFrame::BeyondEnd);
        }
        match self.get_or_make(page) {
            Ok(f) => {
                // The map's own reference stays: the file is mapped, so no page of it is freed before the file itself.
                frame::put(f);
                Ok(SourceFrame::Kept(f))
            }
            // Linux: SIGBUS when a mapped tmpfs file can't grow.
            Err(PageError::Full) => Ok(SourceFrame::BeyondEnd),
            Err(PageError::NoMemory) => Err(OutOfMemory),
        }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        let mut pages = core::mem::take(&mut *self.pages.lock());
        USED.fetch_sub(pages.len() as u64, Ordering::Relaxed);
        while let Some((_, f)) = pages.pop_first() {
            frame::put(f);
        }
    }
}

impl PageSource for Node {
    fn frame(&self, page: u64) -> Result<SourceFrame, OutOfMemory> {
        match &self.body {
            Body::Archive(d) => d.frame(page),
            Body::File(d) => d.frame_for_fault(page),
            _ => Ok(SourceFrame::BeyondEnd),
        }
    }

    fn frame_if_ready(&self, page: u64) -> Option<PhysAddr> {
        match &self.body {
            Body::Archive(d) => d.whole(page),
            Body::File(d) if page < d.size().div_ceil(PAGE_SIZE) => d.pages.lock().get(&page).copied(),
            _ => None,
        }
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&alloc::string::String::from_utf8_lossy(&self.path()))
    }
}
