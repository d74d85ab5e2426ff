//! What a program's violent end looked like, on the log at `warn`: signal and reason in words, registers, code bytes, and a
//! backtrace with symbols.
//!
//! Runs on the thread that dies, which may have damaged its stack and its own file's symbol table: everything is read
//! checked, and bounded. Backtraces follow frame pointers; code built without them shows its first frame only.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use super::{Image, Thread, fault, signal};
use crate::arch::trap_entry::TrapFrame;
use crate::linux::fs::Inode;
use crate::linux::process::signal::SigInfo;
use crate::linux::process::thread::LastFault;
use crate::mm::address_space::AddressSpace;
use crate::mm::user;
use crate::mm::vma::{Backing, Prot, Vma};
use crate::task::current;
use crate::warn;

/// Frames shown.
const MAX_FRAMES: usize = 24;
/// A fault this near to the stack pointer, with nothing mapped, is the stack's end.
const NEAR_STACK: u64 = 64 << 10;
/// Bytes of code shown.
const CODE_BYTES: usize = 16;
/// Symbols looked at.
const MAX_SYMBOLS: u64 = 200_000;
/// Longest symbol name shown.
const MAX_NAME: usize = 200;

/// Reports the end of the running thread's process by `info`.
pub fn report(thread: &Thread, frame: &TrapFrame, info: &SigInfo) {
    let me = current();
    let mut reason = String::new();
    let last: LastFault = *thread.last_fault.lock();
    let _ = fault::describe(&mut reason, info, &last);
    let (name, pid, tid) = (me.name(), thread.process.pid, thread.tid());
    warn!("{name} (process {pid}, thread {tid}) ends by {}: {reason}", signal::name(info.signo));
    let f = frame;
    warn!("  rip {:#018x} rsp {:#018x} rbp {:#018x} rflags {:#x}", f.rip, f.rsp, f.rbp, f.rflags);
    warn!("  rax {:#018x} rbx {:#018x} rcx {:#018x} rdx {:#018x}", f.rax, f.rbx, f.rcx, f.rdx);
    warn!("  rsi {:#018x} rdi {:#018x} r8  {:#018x} r9  {:#018x}", f.rsi, f.rdi, f.r8, f.r9);
    warn!("  r10 {:#018x} r11 {:#018x} r12 {:#018x} r13 {:#018x}", f.r10, f.r11, f.r12, f.r13);
    warn!("  r14 {:#018x} r15 {:#018x} fs_base {:#018x}", f.r14, f.r15, me.fs_base());
    let mut code = [0; CODE_BYTES];
    match user::read_bytes(&mut code, f.rip) {
        Ok(()) => warn!("  code at rip: {}", Bytes(&code)),
        Err(_) => warn!("  code at rip: not readable"),
    }
    let Some(space) = me.space() else { return };
    let image = thread.process.image();
    let trace = backtrace(space, frame);
    let symbols = image.file.as_deref().map(|file| symbols(file, &image, &trace)).unwrap_or_default();
    for (i, addr) in trace.iter().enumerate() {
        let symbol = symbols.get(i).and_then(Option::as_ref);
        warn!("  #{i} {addr:#x} {}{}", Symbol(symbol), Place(place(space, *addr).as_ref()));
    }
    if matches!(info.signo, signal::SIGSEGV | signal::SIGBUS) && info.fields[0] != 0 {
        let addr = info.fields[0];
        warn!("  address {addr:#x}{}", Place(place(space, addr).as_ref()));
        if addr.abs_diff(frame.rsp) < NEAR_STACK && place(space, addr).is_none() {
            warn!("  the stack has overflowed: the address is at its end");
        }
    }
}

struct Bytes<'a>(&'a [u8]);

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x} "))
    }
}

fn place(space: &AddressSpace, addr: u64) -> Option<Vma> {
    space.lock().find(addr).cloned()
}

struct Place<'a>(Option<&'a Vma>);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(v) = self.0 else { return f.write_str(" (nothing mapped there)") };
        let right = |p, c| if v.prot.contains(p) { c } else { '-' };
        let (r, w, x) = (right(Prot::READ, 'r'), right(Prot::WRITE, 'w'), right(Prot::EXEC, 'x'));
        write!(f, " in {:#x}-{:#x} {r}{w}{x} ", v.start, v.end)?;
        match &v.backing {
            Backing::Anonymous if v.name.is_empty() => f.write_str("anonymous"),
            Backing::Anonymous => f.write_str(v.name),
            Backing::Private(s) | Backing::Shared(s) => s.describe(f),
        }
    }
}

/// Return addresses along the frame pointers, as long as they lead upwards and into code.
fn backtrace(space: &Arc<AddressSpace>, frame: &TrapFrame) -> Vec<u64> {
    let mut trace = alloc::vec![frame.rip];
    let is_code = |addr: u64| place(space, addr).is_some_and(|v| v.prot.contains(Prot::EXEC));
    if !is_code(frame.rip) {
        // A jump into nowhere: the caller's address is on top of the stack.
        if let Some(ret) = user::read::<u64>(frame.rsp).ok().filter(|r| is_code(*r)) {
            trace.push(ret);
        }
    }
    let mut rbp = frame.rbp;
    while trace.len() < MAX_FRAMES && rbp.is_multiple_of(8) && rbp >= frame.rsp {
        let Ok([next, ret]) = user::read::<[u64; 2]>(rbp) else { break };
        if !is_code(ret) {
            break;
        }
        trace.push(ret);
        if next <= rbp {
            break;
        }
        rbp = next;
    }
    trace
}

struct Found {
    start: u64,
    name_at: u64,
    offset: u64,
    name: String,
}

struct Symbol<'a>(Option<&'a Found>);

impl fmt::Display for Symbol<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(s) => write!(f, "{:#}+{:#x}", rustc_demangle::demangle(&s.name), s.offset),
            None => f.write_char('?'),
        }
    }
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

/// The functions around addresses, from the program's own symbol table, in one pass over it. System V gABI 4.1, chapter 4.
fn symbols(file: &dyn Inode, image: &Image, addresses: &[u64]) -> Vec<Option<Found>> {
    let mut found: Vec<Option<Found>> = addresses.iter().map(|_| None).collect();
    let Some((table, size, strings)) = symbol_table(file) else { return found };
    let mut chunk = alloc::vec![0; SYMBOL_SIZE * 128];
    let mut at = 0;
    let size = size.min(MAX_SYMBOLS * SYMBOL_SIZE as u64);
    while at < size {
        let want = chunk.len().min((size - at) as usize);
        let Ok(n) = file.read_at(table + at, &mut chunk[..want]) else { break };
        if n < SYMBOL_SIZE {
            break;
        }
        for s in chunk[..n].chunks_exact(SYMBOL_SIZE) {
            // st_info: type FUNC is 2.
            if s[4] & 15 != 2 {
                continue;
            }
            let start = u64_at(s, 8).wrapping_add(image.bias);
            let len = u64_at(s, 16).max(1);
            for (addr, slot) in addresses.iter().zip(&mut found) {
                let offset = addr.wrapping_sub(start);
                if offset < len && slot.as_ref().is_none_or(|f| f.start < start) {
                    let name_at = strings + u64::from(u32_at(s, 0));
                    *slot = Some(Found { start, name_at, offset, name: String::new() });
                }
            }
        }
        at += n as u64;
    }
    let mut name = alloc::vec![0; MAX_NAME];
    for f in found.iter_mut().flatten() {
        let n = file.read_at(f.name_at, &mut name).unwrap_or(0);
        let end = name[..n].iter().position(|b| *b == 0).unwrap_or(n);
        f.name = String::from_utf8_lossy(&name[..end]).into_owned();
    }
    found
}

const SYMBOL_SIZE: usize = 24;

/// Place and size of `.symtab`, and place of its strings.
fn symbol_table(file: &dyn Inode) -> Option<(u64, u64, u64)> {
    const SHT_SYMTAB: u32 = 2;
    const SECTION_SIZE: usize = 64;
    const MAX_SECTIONS: usize = 256;
    let mut head = [0; 64];
    file.read_at(0, &mut head).ok().filter(|n| *n == head.len())?;
    let sections = u64_at(&head, 40);
    let count = usize::from(u16::from_le_bytes([head[60], head[61]])).min(MAX_SECTIONS);
    let mut raw = alloc::vec![0; count * SECTION_SIZE];
    file.read_at(sections, &mut raw).ok().filter(|n| *n == raw.len())?;
    let section = |i: usize| raw.get(i * SECTION_SIZE..(i + 1) * SECTION_SIZE);
    let symtab = raw.chunks_exact(SECTION_SIZE).find(|s| u32_at(s, 4) == SHT_SYMTAB)?;
    let strings = section(u32_at(symtab, 40) as usize)?;
    // No sum of these may wrap: files are smaller.
    let limit = file.size();
    let (at, size, names) = (u64_at(symtab, 24), u64_at(symtab, 32), u64_at(strings, 24));
    (at <= limit && size <= limit && names <= limit).then_some((at, size, names))
}
