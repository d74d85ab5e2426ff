//! Keeps what this process itself takes small: its own code and constants that only the start needed go out of its memory.
//!
//! Called by [`crate::vm`] after the machine is made, which keeps the peak low, and when all of its threads run, which keeps what stays
//! low. Linux maps sixteen pages of a file around
//! each one that is touched, so at that point most of the program is resident: flags, configuration, topology, libraries. What is
//! needed again comes back from the page cache, one fault for sixteen pages. Only mappings that nobody can write to are touched,
//! so nothing can be lost.

use std::ffi::{c_int, c_void};
use std::fs;

/// Takes the pages of this program's and its libraries' code and constants out of this process's memory.
pub fn forget_start() {
    // A debugger's breakpoints are changed copies of such pages, and would go with them.
    if is_traced() {
        return;
    }
    // SAFETY: the callback has the type that dl_iterate_phdr(3) asks for and doesn't use its last argument.
    unsafe { libc::dl_iterate_phdr(Some(forget_object), std::ptr::null_mut()) };
}

/// Whether a debugger has this process. Where /proc is missing nobody knows, so perhaps.
fn is_traced() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("TracerPid:")).is_none_or(|tracer| tracer.trim() != "0")
}

/// One loaded file: each segment of it that isn't writable, pages begun included, since segments share none in memory.
unsafe extern "C" fn forget_object(info: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: libc calls us with a valid description, and with program headers that stay mapped as long as the object.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)))
    };
    let constant = |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(constant) {
        let start = (base + header.p_vaddr) & !(crate::memory::PAGE_SIZE - 1);
        let len = base + header.p_vaddr + header.p_memsz - start;
        // SAFETY: the range is a segment of a loaded file, mapped privately and never writable (relocated constants are in
        // writable segments until they are protected, and those are left alone): dropped pages read the same when they come
        // back (madvise(2), MADV_DONTNEED). A refusal leaves them where they are.
        unsafe { libc::madvise(start as *mut c_void, len as usize, libc::MADV_DONTNEED) };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident pages of files, by the kernel's books (proc(5): RssFile).
    fn resident_kib() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_goes_and_works_when_it_comes_back() {
        let before = resident_kib();
        let goes = || {
            forget_start();
            resident_kib() < before
        };
        // Other tests' threads bring pages back meanwhile.
        assert!((0..100).any(|_| goes()), "{before} KiB of files' pages stay");
        // Text, constants and a library's code, all of which have just gone.
        assert_eq!(format!("{:.3}", f64::exp(1.0)), "2.718");
    }
}
