//! The vDSO: clock reads and `getcpu` without a system call.
//!
//! `exec` maps two pages into every program and names the second in its auxiliary vector (AT_SYSINFO_EHDR): the clock page, read-only, and
//! behind it an ELF shared object of one page, [`image`], whose functions read the clock page and, where it matters on which CPU
//! that happens, the CPU's own page in the per-CPU slot ([`crate::cpu::shown`]). glibc and musl find them by name, in static programs
//! too. Under virtual time ([`crate::chaos`]) there is none: every clock read must be seen by the kernel.
//!
//! Both mappings are private: a program that makes them writable gets copies of its own.

mod image;

use alloc::sync::Arc;
use core::fmt;

use crate::chaos;
use crate::mm::PhysAddr;
use crate::mm::address_space::{AddressSpace, MapError, VDSO_START};
use crate::mm::frame::OutOfMemory;
use crate::mm::layout::PAGE_SIZE;
use crate::mm::vma::{Backing, PageSource, Prot, SourceFrame};
use crate::time;

/// The two pages, in their order.
struct Pages;

impl Pages {
    fn at(page: u64) -> Option<PhysAddr> {
        match page {
            0 => Some(time::page_frame()),
            1 => Some(image::frame()),
            _ => None,
        }
    }
}

impl PageSource for Pages {
    fn frame(&self, page: u64) -> Result<SourceFrame, OutOfMemory> {
        Ok(Self::at(page).map_or(SourceFrame::BeyondEnd, SourceFrame::Kept))
    }

    fn frame_if_ready(&self, page: u64) -> Option<PhysAddr> {
        Self::at(page)
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("")
    }
}

/// Maps it, and returns what AT_SYSINFO_EHDR shall say; `None` if there is none.
///
/// # Errors
/// [`MapError`].
pub fn map(space: &AddressSpace) -> Result<Option<u64>, MapError> {
    if chaos::clock::on() {
        return Ok(None);
    }
    let pages: Arc<dyn PageSource> = Arc::new(Pages);
    let private = || Backing::Private(pages.clone());
    space.map(VDSO_START, PAGE_SIZE, Prot::READ, private(), 0, true, "[vvar]")?;
    space.map(VDSO_START + PAGE_SIZE, PAGE_SIZE, Prot::READ | Prot::EXEC, private(), 1, true, "[vdso]").map(Some)
}
