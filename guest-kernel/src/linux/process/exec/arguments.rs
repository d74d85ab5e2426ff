//! What a program is started with: arguments, environment, auxiliary vector, and how they lie on its stack.
//!
//! Source: System V ABI, AMD64 supplement, 3.4.1; Linux fs/binfmt_elf.c `create_elf_tables`.

use alloc::vec::Vec;

use super::elf::Program;
use crate::arch::instr::cpuid;
use crate::linux::errno::Errno;
use crate::linux::random;
use crate::mm::user::{self, Fault};

/// Bytes of arguments and environment together (Linux: a quarter of the stack limit).
const MAX_BYTES: usize = 2 << 20;
/// Bytes of one string (Linux: MAX_ARG_STRLEN).
const MAX_STRING: usize = 128 << 10;
/// Strings of one list.
const MAX_STRINGS: usize = 128 << 10;
/// `AT_*`: Linux include/uapi/linux/auxvec.h.
mod at {
    pub const NULL: u64 = 0;
    pub const PHDR: u64 = 3;
    pub const PHENT: u64 = 4;
    pub const PHNUM: u64 = 5;
    pub const PAGESZ: u64 = 6;
    pub const BASE: u64 = 7;
    pub const FLAGS: u64 = 8;
    pub const ENTRY: u64 = 9;
    pub const UID: u64 = 11;
    pub const EUID: u64 = 12;
    pub const GID: u64 = 13;
    pub const EGID: u64 = 14;
    pub const PLATFORM: u64 = 15;
    pub const HWCAP: u64 = 16;
    pub const CLKTCK: u64 = 17;
    pub const SECURE: u64 = 23;
    pub const RANDOM: u64 = 25;
    pub const HWCAP2: u64 = 26;
    pub const EXECFN: u64 = 31;
    pub const SYSINFO_EHDR: u64 = 33;
    pub const MINSIGSTKSZ: u64 = 51;
}

/// Arguments and environment, copied from the caller before its memory goes.
#[derive(Default)]
pub struct Arguments {
    /// All strings, each ended by a zero byte: arguments first.
    bytes: Vec<u8>,
    /// Number of arguments.
    count: usize,
    /// Number of environment strings.
    environment: usize,
    /// Bytes of the arguments.
    split: usize,
}

impl Arguments {
    /// What they take on the stack: strings, and a word for each.
    pub fn size_on_stack(&self) -> u64 {
        (self.bytes.len() + 8 * (self.count + self.environment)) as u64
    }

    /// From kernel strings (the start list).
    pub fn from_strings<'a>(
        arguments: impl Iterator<Item = &'a [u8]>,
        environment: impl Iterator<Item = &'a [u8]>,
    ) -> Self {
        let mut a = Self::default();
        for s in arguments {
            a.push(s);
            a.count += 1;
        }
        a.split = a.bytes.len();
        for s in environment {
            a.push(s);
            a.environment += 1;
        }
        a
    }

    /// From the null-terminated pointer arrays of execve.
    ///
    /// # Errors
    /// EFAULT, E2BIG.
    pub fn from_user(argv: u64, envp: u64) -> Result<Self, Errno> {
        let mut a = Self::default();
        a.count = a.read_list(argv)?;
        a.split = a.bytes.len();
        a.environment = a.read_list(envp)?;
        Ok(a)
    }

    fn push(&mut self, s: &[u8]) {
        self.bytes.extend_from_slice(s);
        self.bytes.push(0);
    }

    fn read_list(&mut self, list: u64) -> Result<usize, Errno> {
        if list == 0 {
            return Ok(0);
        }
        for n in 0..MAX_STRINGS {
            let at = list.checked_add(8 * n as u64).ok_or(Errno::EFAULT)?;
            let string: u64 = user::read(at)?;
            if string == 0 {
                return Ok(n);
            }
            let s = user::read_cstr(string, MAX_STRING).map_err(|e| e.map_or(Errno::E2BIG, Errno::from))?;
            if self.bytes.len() + s.len() >= MAX_BYTES {
                return Err(Errno::E2BIG);
            }
            self.bytes.try_reserve(s.len() + 1).map_err(|_| Errno::ENOMEM)?;
            self.push(&s);
        }
        Err(Errno::E2BIG)
    }

    /// Replaces the first argument by others (`#!` scripts).
    pub fn replace_first(&mut self, by: &[&[u8]]) {
        let first = self.bytes[..self.split].iter().position(|b| *b == 0).map_or(0, |n| n + 1);
        let mut a = Self::default();
        by.iter().for_each(|s| a.push(s));
        a.count = by.len() + self.count.saturating_sub(1);
        a.split = a.bytes.len() + self.split - first;
        a.environment = self.environment;
        a.bytes.extend_from_slice(&self.bytes[first..]);
        *self = a;
    }

    /// The arguments' bytes.
    pub fn cmdline(&self) -> &[u8] {
        &self.bytes[..self.split]
    }

    /// The environment's bytes.
    pub fn environ(&self) -> &[u8] {
        &self.bytes[self.split..]
    }

    /// Writes everything below `top` in the current address space; returns the stack pointer and the auxiliary vector.
    pub fn write(&self, top: u64, program: &Program, vdso: Option<u64>, path: &[u8]) -> Result<(u64, Vec<u64>), Fault> {
        const PLATFORM: &[u8] = b"x86_64\0";
        let mut tail = Vec::new();
        tail.try_reserve(self.bytes.len() + path.len() + 40).map_err(|_| Fault)?;
        let mut seed = [0; 16];
        random::fill(&mut seed);
        tail.extend_from_slice(&seed);
        tail.extend_from_slice(PLATFORM);
        let strings = tail.len() as u64;
        tail.extend_from_slice(&self.bytes);
        let name = tail.len() as u64;
        tail.extend_from_slice(path);
        // As Linux: a null word ends the stack.
        tail.resize(tail.len() + 9, 0);
        let base = (top - tail.len() as u64) & !15;

        let auxv = auxiliary(program, vdso, base, base + seed.len() as u64, base + name);
        let words = 1 + self.count + 1 + self.environment + 1 + auxv.len();
        let sp = (base - 8 * words as u64) & !15;
        let mut table = Vec::new();
        table.try_reserve(8 * words).map_err(|_| Fault)?;
        let mut put = |w: u64| table.extend_from_slice(&w.to_le_bytes());
        put(self.count as u64);
        let mut at = base + strings;
        let mut rest = self.bytes.as_slice();
        for count in [self.count, self.environment] {
            for _ in 0..count {
                put(at);
                let n = rest.iter().position(|b| *b == 0).map_or(rest.len(), |n| n + 1);
                at += n as u64;
                rest = &rest[n..];
            }
            put(0);
        }
        auxv.iter().for_each(|w| put(*w));
        user::write_bytes(base, &tail)?;
        user::write_bytes(sp, &table)?;
        Ok((sp, auxv))
    }
}

fn auxiliary(p: &Program, vdso: Option<u64>, random: u64, platform: u64, name: u64) -> Vec<u64> {
    /// `_SC_CLK_TCK`.
    const CLOCK_TICKS: u64 = 100;
    /// Size of a program header.
    const HEADER_SIZE: u64 = 56;
    let fpu = crate::arch::fpu::area_size() as u64;
    // Signal frame, red zone and alignment around the FP image. Linux: `get_sigframe_size`.
    let smallest_stack = fpu + 440 + 8 + 128 + 64 + 16;
    let pairs = [
        (at::HWCAP, u64::from(cpuid(1, 0).3)),
        (at::PAGESZ, crate::mm::layout::PAGE_SIZE),
        (at::CLKTCK, CLOCK_TICKS),
        (at::PHDR, p.headers),
        (at::PHENT, HEADER_SIZE),
        (at::PHNUM, p.header_count),
        (at::BASE, 0),
        (at::FLAGS, 0),
        (at::ENTRY, p.entry),
        (at::UID, 0),
        (at::EUID, 0),
        (at::GID, 0),
        (at::EGID, 0),
        (at::SECURE, 0),
        (at::RANDOM, random),
        (at::HWCAP2, 0),
        (at::MINSIGSTKSZ, smallest_stack),
        (at::EXECFN, name),
        (at::PLATFORM, platform),
        (at::NULL, 0),
    ];
    let vdso = vdso.map(|base| (at::SYSINFO_EHDR, base));
    vdso.into_iter().chain(pairs).flat_map(|(k, v)| [k, v]).collect()
}
