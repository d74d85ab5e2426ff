//! What one range of a user half is: rights, sharing, and where its pages come from.
//!
//! Pure data; `address_space` keeps the ranges in order and the page tables in step.

use alloc::sync::Arc;
use core::fmt;

use super::PhysAddr;
use super::frame::OutOfMemory;
use super::layout::PAGE_SIZE;

bitflags::bitflags! {
    /// Rights and kind of a mapping.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Prot: u32 {
        /// Loads allowed.
        const READ = 1;
        /// Stores allowed.
        const WRITE = 2;
        /// Instruction fetch allowed.
        const EXEC = 4;
    }
}

/// A frame from a [`PageSource`].
pub enum SourceFrame {
    /// The page's own frame, which the source keeps a reference to. The mapper takes one more.
    Kept(PhysAddr),
    /// The object ends before this page: access is a bus error.
    BeyondEnd,
}

/// Something whose pages can be mapped: an archive file, a tmpfs file, shared anonymous memory.
pub trait PageSource: Send + Sync {
    /// The frame of a page.
    ///
    /// # Errors
    /// [`OutOfMemory`] when the page must be made first and can't.
    fn frame(&self, page: u64) -> Result<SourceFrame, OutOfMemory>;

    /// The frame of a page if it can be had without waiting or making anything; used to map neighbours of a fault.
    fn frame_if_ready(&self, _page: u64) -> Option<PhysAddr> {
        None
    }

    /// What /proc/PID/maps shows.
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// Where a mapping's pages come from.
#[derive(Clone)]
pub enum Backing {
    /// Zeroes, private.
    Anonymous,
    /// A source, copied on the first write.
    Private(Arc<dyn PageSource>),
    /// A source, written through.
    Shared(Arc<dyn PageSource>),
}

/// One mapping: `[start, end)`, page aligned, not empty.
#[derive(Clone)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Rights.
    pub prot: Prot,
    /// Source of its pages.
    pub backing: Backing,
    /// Page index in the source of `start`.
    pub offset: u64,
    /// Lowest and highest address that ever got a page: teardown and fork look only there. `touched_low >= touched_high`: none.
    pub touched_low: u64,
    /// See `touched_low`.
    pub touched_high: u64,
    /// For /proc/PID/maps: "[heap]", "[stack]" or nothing.
    pub name: &'static str,
}

impl Vma {
    /// An untouched mapping.
    pub fn new(start: u64, end: u64, prot: Prot, backing: Backing, offset: u64, name: &'static str) -> Self {
        Self { start, end, prot, backing, offset, touched_low: u64::MAX, touched_high: 0, name }
    }

    /// Page index in the source of an address.
    #[inline(always)]
    pub fn source_page(&self, addr: u64) -> u64 {
        self.offset + (addr - self.start) / PAGE_SIZE
    }

    /// Notes that a page is about to appear.
    #[inline(always)]
    pub fn touch(&mut self, page: u64, end: u64) {
        self.touched_low = self.touched_low.min(page);
        self.touched_high = self.touched_high.max(end);
    }

    /// The part of `[start, end)` that can hold pages.
    pub fn touched_in(&self, start: u64, end: u64) -> (u64, u64) {
        let low = self.touched_low.max(start).max(self.start);
        let high = self.touched_high.min(end).min(self.end);
        (low, high.max(low))
    }

    /// Cuts the mapping in two at `at` (strictly inside): keeps the lower part, returns the upper.
    pub fn split_off(&mut self, at: u64) -> Vma {
        let mut upper = self.clone();
        upper.start = at;
        upper.offset = self.source_page(at);
        upper.touched_low = upper.touched_low.max(at);
        self.end = at;
        self.touched_high = self.touched_high.min(at);
        upper
    }

    /// Whether `next`, which starts where this one ends, can become a part of it.
    pub fn can_merge(&self, next: &Vma) -> bool {
        self.end == next.start
            && self.prot == next.prot
            && self.name == next.name
            && matches!((&self.backing, &next.backing), (Backing::Anonymous, Backing::Anonymous))
    }
}
