//! ELF programs: headers read as hostile input, segments mapped without a copy.
//!
//! Static x86-64 executables: ET_EXEC, and static position-independent ET_DYN at a fixed bias (no randomisation, so that
//! runs and debugger sessions repeat). Sources: System V gABI 4.1 chapters 4 and 5; Linux fs/binfmt_elf.c.

use alloc::sync::Arc;

use crate::linux::errno::Errno;
use crate::linux::fs::Inode;
use crate::mm::address_space::{AddressSpace, USER_START};
use crate::mm::layout::PAGE_SIZE;
use crate::mm::vma::{Backing, PageSource, Prot};
use crate::mm::{page_down, page_up};
use crate::warn;

/// Where position-independent programs are put: where Linux puts them with randomisation off.
const PIE_BIAS: u64 = 0x5555_5555_4000;
/// Programs end below this address: what is above is the stack's and mmap's.
const HIGHEST: u64 = 0x7ff0_0000_0000;
/// Program headers that a program may have (Linux: 64 KiB of them).
const MAX_HEADERS: u16 = 128;
const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;

/// What the loader learned.
pub struct Program {
    /// First instruction.
    pub entry: u64,
    /// Added to the file's addresses.
    pub bias: u64,
    /// Program headers in memory, for AT_PHDR; 0 if they aren't mapped.
    pub headers: u64,
    /// How many.
    pub header_count: u64,
    /// End of the highest segment: the heap starts at the next page.
    pub end: u64,
    /// Rest of a file page to be cleared once the memory is in place: (start, length).
    pub clear: Option<(u64, u64)>,
    /// Stack is to be executable.
    pub executable_stack: bool,
}

#[derive(Clone, Copy)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    vaddr: u64,
    file_size: u64,
    memory_size: u64,
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from(u16_at(b, at)) | u32::from(u16_at(b, at + 2)) << 16
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

impl Segment {
    fn parse(b: &[u8]) -> Self {
        Self {
            kind: u32_at(b, 0),
            flags: u32_at(b, 4),
            offset: u64_at(b, 8),
            vaddr: u64_at(b, 16),
            file_size: u64_at(b, 32),
            memory_size: u64_at(b, 40),
        }
    }

    fn prot(&self) -> Prot {
        let mut p = Prot::empty();
        p.set(Prot::EXEC, self.flags & 1 != 0);
        p.set(Prot::WRITE, self.flags & 2 != 0);
        p.set(Prot::READ, self.flags & 4 != 0);
        p
    }
}

/// Whether a file begins like an ELF file.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

/// Checks the file header; says in the log what is wrong with it. Returns (entry, headers' offset, count, whether it is a PIE).
fn check_header(head: &[u8], name: &str) -> Result<(u64, u64, u16, bool), Errno> {
    let refuse = |why: &str| {
        warn!("{name}: {why}");
        Err(Errno::ENOEXEC)
    };
    if head.len() < HEADER_SIZE {
        return refuse("the ELF file ends in its header");
    }
    if head[4] != 2 || head[5] != 1 {
        return refuse("not a 64-bit little-endian ELF file: this kernel runs x86-64 programs only");
    }
    if u16_at(head, 18) != EM_X86_64 {
        return refuse("built for another processor: this kernel runs x86-64 programs only");
    }
    let kind = u16_at(head, 16);
    if kind != ET_EXEC && kind != ET_DYN {
        return refuse("an ELF file, but not a program");
    }
    let count = u16_at(head, 56);
    if usize::from(u16_at(head, 54)) != PROGRAM_HEADER_SIZE || count == 0 || count > MAX_HEADERS {
        return refuse("its program headers make no sense");
    }
    Ok((u64_at(head, 24), u64_at(head, 32), count, kind == ET_DYN))
}

/// Maps a program into an empty address space.
///
/// # Errors
/// ENOEXEC for what this kernel can't run, with the reason in the log; ENOMEM.
pub fn load(space: &AddressSpace, inode: &dyn Inode, head: &[u8], name: &str) -> Result<Program, Errno> {
    let (entry, table, count, pie) = check_header(head, name)?;
    let mut raw = alloc::vec![0; usize::from(count) * PROGRAM_HEADER_SIZE];
    if inode.read_at(table, &mut raw)? != raw.len() {
        warn!("{name}: the ELF file ends before its program headers");
        return Err(Errno::ENOEXEC);
    }
    let segments = || raw.chunks_exact(PROGRAM_HEADER_SIZE).map(Segment::parse);
    if segments().any(|s| s.kind == PT_INTERP) {
        warn!("{name}: dynamically linked: this kernel runs static programs (link with -static)");
        return Err(Errno::ELIBBAD);
    }
    let Some(source) = inode.page_source() else { return Err(Errno::EACCES) };
    let bias = if pie { PIE_BIAS } else { 0 };
    let mut p = Program {
        entry: entry.wrapping_add(bias),
        bias,
        headers: 0,
        header_count: u64::from(count),
        end: 0,
        clear: None,
        executable_stack: segments().any(|s| s.kind == PT_GNU_STACK && s.flags & 1 != 0),
    };
    for s in segments().filter(|s| s.kind == PT_LOAD && s.memory_size != 0) {
        map(space, &s, bias, &source, inode.size(), &mut p).inspect_err(|e| {
            warn!("{name}: segment at {:#x}, {:#x} bytes: {e:?}", s.vaddr, s.memory_size);
        })?;
        if p.headers == 0 && s.offset <= table && table - s.offset < s.file_size {
            p.headers = s.vaddr + bias + (table - s.offset);
        }
    }
    if let Some(s) = segments().find(|s| s.kind == PT_PHDR) {
        p.headers = s.vaddr.wrapping_add(bias);
    }
    if p.end == 0 || p.entry >= HIGHEST {
        warn!("{name}: nothing to load, or an entry point out of range");
        return Err(Errno::ENOEXEC);
    }
    Ok(p)
}

/// Maps one segment, its file part from the file's own pages.
fn map(
    space: &AddressSpace,
    s: &Segment,
    bias: u64,
    source: &Arc<dyn PageSource>,
    file_size: u64,
    p: &mut Program,
) -> Result<(), Errno> {
    let start = s.vaddr.checked_add(bias).ok_or(Errno::ENOEXEC)?;
    let end = start.checked_add(s.memory_size).filter(|e| *e <= HIGHEST).ok_or(Errno::ENOEXEC)?;
    let offset_end = s.offset.checked_add(s.file_size).ok_or(Errno::ENOEXEC)?;
    if s.file_size > s.memory_size
        || offset_end > file_size
        || start % PAGE_SIZE != s.offset % PAGE_SIZE
        || page_down(start) < USER_START
    {
        return Err(Errno::ENOEXEC);
    }
    let file_end = start + s.file_size;
    let (first, last) = (page_down(start), page_up(end).ok_or(Errno::ENOEXEC)?);
    let file_last = if s.file_size == 0 { first } else { page_up(file_end).ok_or(Errno::ENOEXEC)? };
    if file_last > first {
        let backing = Backing::Private(source.clone());
        space.map(first, file_last - first, s.prot(), backing, page_down(s.offset) / PAGE_SIZE, true, "")?;
    }
    if last > file_last {
        space.map(file_last, last - file_last, s.prot(), Backing::Anonymous, 0, true, "")?;
    }
    // What follows the file's part in its last page is another part of the file, and must read as zero.
    if s.memory_size > s.file_size && file_end < file_last && s.prot().contains(Prot::WRITE) {
        p.clear = Some((file_end, end.min(file_last) - file_end));
    }
    p.end = p.end.max(end);
    Ok(())
}
