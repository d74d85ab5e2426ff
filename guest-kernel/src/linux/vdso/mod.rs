//! The vDSO: clock reads and `getcpu` without a system call.
//!
//! `exec` maps two things into every program and names the second in its auxiliary vector (AT_SYSINFO_EHDR): the clock page, read-only, and
//! behind it an ELF shared object of one page, [`image`], whose functions read the clock page and, where it matters on which CPU
//! that happens, the CPU's own page in the per-CPU slot ([`crate::cpu::shown`]). glibc and musl find them by name, in static programs
//! too. Under virtual time ([`crate::chaos`]) there is none: every clock read must be seen by the kernel.
//!
//! Both mappings are private: a program that makes them writable gets copies of its own.

mod image;

use alloc::sync::Arc;
use core::fmt;

use vcpu_sched::clock::page::BYTES;

use crate::chaos;
use crate::mm::PhysAddr;
use crate::mm::address_space::{AddressSpace, MapError, VDSO_START};
use crate::mm::frame::OutOfMemory;
use crate::mm::layout::PAGE_SIZE;
use crate::mm::vma::{Backing, PageSource, Prot, SourceFrame};
use crate::time;

/// Pages of the clock page, which has its name from when it was one.
const CLOCK_PAGES: u64 = BYTES as u64 / PAGE_SIZE;

/// The clock page and the image, in their order.
struct Pages;

impl Pages {
    fn at(page: u64) -> Option<PhysAddr> {
        match page {
            ..CLOCK_PAGES => Some(PhysAddr(time::page_frame().0 + page * PAGE_SIZE)),
            CLOCK_PAGES => Some(image::frame()),
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
    space.map(VDSO_START, BYTES as u64, Prot::READ, private(), 0, true, "[vvar]")?;
    let image = VDSO_START + BYTES as u64;
    space.map(image, PAGE_SIZE, Prot::READ | Prot::EXEC, private(), CLOCK_PAGES, true, "[vdso]").map(Some)
}
