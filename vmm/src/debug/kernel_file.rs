//! The kernel's file, as debuggers want it: its bytes, and where its segments lie.

use std::io;
use std::sync::Arc;

use object::Endianness;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

use super::breakpoints::Segments;
use crate::boot::kernel::Kernel;

/// Reads all of it.
pub fn read(kernel: &Kernel) -> io::Result<Arc<[u8]>> {
    let mut bytes = Vec::new();
    kernel.write_to(&mut bytes)?;
    Ok(bytes.into())
}

/// Virtual address, guest-physical address and length of what is loaded; nothing for other formats than ELF.
pub fn segments(bytes: &[u8]) -> Segments {
    let all = || -> Option<Segments> {
        let header = FileHeader64::<Endianness>::parse(bytes).ok()?;
        let endian = header.endian().ok()?;
        let headers = header.program_headers(endian, bytes).ok()?;
        let loaded = headers.iter().filter(|segment| segment.p_type(endian) == PT_LOAD);
        Some(loaded.map(|s| (s.p_vaddr(endian), s.p_paddr(endian), s.p_filesz(endian))).collect())
    };
    all().unwrap_or_default()
}
