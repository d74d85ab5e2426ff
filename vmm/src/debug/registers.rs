//! The registers of a task as clients see them: numbers, names and widths, and how they come out of what KVM and the guest's
//! memory hold.
//!
//! Invariant: what isn't known is `None` and shown as unavailable, never as zero. The order of [`REGISTERS`] is the order of
//! the `g` packet and of the target description ([`super::target_xml`]), which is made from it.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vcpu_sched::taskdebug::{SWITCH_WORDS, frame};

use super::hex;

/// Part of the target description that a register belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// gdb knows it as the x86-64 core.
    Core,
    /// XMM.
    Sse,
    /// FS and GS base.
    Segments,
    /// Upper halves of YMM.
    Avx,
    /// Ours.
    Task,
    /// What gdb wants of Linux programs, to believe that they make system calls.
    Linux,
}

/// A register.
#[derive(Debug, Clone, Copy)]
pub struct Register {
    /// Name.
    pub name: &'static str,
    /// Width.
    pub bits: u32,
    /// gdb's type.
    pub kind: &'static str,
    /// Where it is described.
    pub feature: Feature,
}

const fn register(name: &'static str, bits: u32, kind: &'static str, feature: Feature) -> Register {
    Register { name, bits, kind, feature }
}

macro_rules! table {
    ($($bits:literal $kind:literal $feature:ident: $($name:literal)*;)*) => {
        &[$($(register($name, $bits, $kind, Feature::$feature)),*),*]
    };
}

/// All of them.
pub const REGISTERS: &[Register] = table! {
    64 "int64" Core: "rax" "rbx" "rcx" "rdx" "rsi" "rdi";
    64 "data_ptr" Core: "rbp" "rsp";
    64 "int64" Core: "r8" "r9" "r10" "r11" "r12" "r13" "r14" "r15";
    64 "code_ptr" Core: "rip";
    32 "i386_eflags" Core: "eflags";
    32 "int32" Core: "cs" "ss" "ds" "es" "fs" "gs";
    80 "i387_ext" Core: "st0" "st1" "st2" "st3" "st4" "st5" "st6" "st7";
    32 "int" Core: "fctrl" "fstat" "ftag" "fiseg" "fioff" "foseg" "fooff" "fop";
    128 "vec128" Sse: "xmm0" "xmm1" "xmm2" "xmm3" "xmm4" "xmm5" "xmm6" "xmm7" "xmm8" "xmm9" "xmm10" "xmm11" "xmm12"
        "xmm13" "xmm14" "xmm15";
    32 "i386_mxcsr" Sse: "mxcsr";
    64 "int64" Segments: "fs_base" "gs_base";
    128 "uint128" Avx: "ymm0h" "ymm1h" "ymm2h" "ymm3h" "ymm4h" "ymm5h" "ymm6h" "ymm7h" "ymm8h" "ymm9h" "ymm10h" "ymm11h"
        "ymm12h" "ymm13h" "ymm14h" "ymm15h";
    64 "int64" Task: "cr0" "cr2" "cr3" "cr4" "cr8" "efer";
    32 "int32" Task: "task_id" "cpu" "mode";
    64 "int64" Linux: "orig_rax";
};

/// Places in [`REGISTERS`].
pub mod number {
    /// RBX.
    pub const RBX: usize = 1;
    /// RBP.
    pub const RBP: usize = 6;
    /// RSP.
    pub const RSP: usize = 7;
    /// R8 to R15.
    pub const R8: usize = 8;
    /// RIP.
    pub const RIP: usize = 16;
    /// Flags.
    pub const EFLAGS: usize = 17;
    /// CS, SS, DS, ES, FS, GS.
    pub const CS: usize = 18;
    /// SS.
    pub const SS: usize = 19;
    /// Eight of the x87.
    pub const ST0: usize = 24;
    /// The x87's control word and what follows.
    pub const FCTRL: usize = 32;
    /// Sixteen.
    pub const XMM0: usize = 40;
    /// MXCSR.
    pub const MXCSR: usize = 56;
    /// FS base, then GS base.
    pub const FS_BASE: usize = 57;
    /// Sixteen upper halves.
    pub const YMM0H: usize = 59;
    /// CR0, CR2, CR3, CR4, CR8, EFER.
    pub const CR0: usize = 75;
    /// Number of the task.
    pub const TASK_ID: usize = 81;
    /// Its CPU.
    pub const CPU: usize = 82;
    /// 3 in its program, 0 in the kernel.
    pub const MODE: usize = 83;
    /// Number of the system call that it stops for, else -1.
    pub const CALL: usize = 84;
}

/// Everything that a vCPU holds.
#[derive(Debug, Clone)]
pub struct VcpuRegisters {
    /// General.
    pub regs: kvm_regs,
    /// Control and segments.
    pub sregs: kvm_sregs,
    /// x87, SSE, AVX: the XSAVE area's first 1024 bytes in standard form, if it was read and the host gives it.
    pub xsave: Option<Box<[u8; XSAVE]>>,
}

impl VcpuRegisters {
    /// All but the vectors, which few want to know.
    pub fn read(fd: &VcpuFd) -> Result<Self, kvm_ioctls::Error> {
        Ok(Self { regs: fd.get_regs()?, sregs: fd.get_sregs()?, xsave: None })
    }

    /// The vectors.
    pub fn read_xsave(fd: &VcpuFd) -> Option<Box<[u8; XSAVE]>> {
        let xsave = fd.get_xsave().ok()?;
        let mut bytes = Box::new([0; XSAVE]);
        for (to, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(xsave.region) {
            *to = word.to_le_bytes();
        }
        Some(bytes)
    }

    /// Writes what is different from `old`.
    pub fn write(&self, fd: &VcpuFd, old: &Self) -> Result<(), kvm_ioctls::Error> {
        if old.sregs != self.sregs {
            fd.set_sregs(&self.sregs)?;
        }
        if old.regs != self.regs {
            fd.set_regs(&self.regs)?;
        }
        let Some(bytes) = self.xsave.as_ref().filter(|_| old.xsave != self.xsave) else { return Ok(()) };
        let mut xsave = fd.get_xsave()?;
        for (word, bytes) in xsave.region.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        // SAFETY: the area was read from this vCPU a moment ago, so it has the size that KVM expects.
        unsafe { fd.set_xsave(&xsave) }
    }
}

/// Whether a register is in the XSAVE area.
pub const fn is_vector(number: usize) -> bool {
    matches!(number, number::ST0..=number::MXCSR | number::YMM0H..number::CR0)
}

/// So much of the XSAVE area is used.
pub const XSAVE: usize = 1024;
/// Intel SDM vol. 1, 13.4: x87 and SSE in the legacy region, XSTATE_BV in the header, YMM_Hi128 in standard form.
const XSAVE_ST: usize = 32;
const XSAVE_XMM: usize = 160;
const XSAVE_BV: usize = 512;
const XSAVE_YMM: usize = 576;
const XSAVE_MXCSR: usize = 24;
/// XSTATE_BV: x87, SSE, AVX have something else than their initial state.
const BV_SSE: u8 = 1 << 1;
const BV_AVX: u8 = 1 << 2;

/// Values by register number.
#[derive(Debug, Clone)]
pub struct Values([Option<u128>; REGISTERS.len()]);

impl Default for Values {
    fn default() -> Self {
        Self([None; REGISTERS.len()])
    }
}

impl Values {
    /// One register.
    pub fn get(&self, number: usize) -> Option<u128> {
        self.0.get(number).copied().flatten()
    }

    /// One of 64 bits or less.
    pub fn word(&self, number: usize) -> Option<u64> {
        self.get(number).map(|value| value as u64)
    }

    /// Sets one.
    pub fn set(&mut self, number: usize, value: impl Into<u128>) {
        if let Some(slot) = self.0.get_mut(number) {
            *slot = Some(value.into());
        }
    }

    /// What a vCPU holds.
    pub fn of_vcpu(vcpu: &VcpuRegisters) -> Self {
        let mut values = Self::default();
        let (r, s) = (&vcpu.regs, &vcpu.sregs);
        let general = [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
            r.r15, r.rip, r.rflags,
        ];
        for (number, value) in general.into_iter().enumerate() {
            values.set(number, value);
        }
        for (n, segment) in [&s.cs, &s.ss, &s.ds, &s.es, &s.fs, &s.gs].into_iter().enumerate() {
            values.set(number::CS + n, segment.selector);
        }
        values.set(number::FS_BASE, s.fs.base);
        values.set(number::FS_BASE + 1, s.gs.base);
        for (n, value) in [s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer].into_iter().enumerate() {
            values.set(number::CR0 + n, value);
        }
        values.set(number::MODE, s.ss.dpl & 3);
        if let Some(xsave) = &vcpu.xsave {
            values.add_xsave(xsave);
        }
        values
    }

    fn add_xsave(&mut self, area: &[u8; XSAVE]) {
        let wide = |at: usize, len: usize| {
            let mut bytes = [0; 16];
            bytes[..len].copy_from_slice(&area[at..at + len]);
            u128::from_le_bytes(bytes)
        };
        for n in 0..8 {
            self.set(number::ST0 + n, wide(XSAVE_ST + 16 * n, 10));
        }
        // One bit a register there, two here: 0 valid, 3 empty (Intel SDM vol. 1, 8.1.7 and 10.5.1.1).
        let tags = (0..8).fold(0u32, |tags, n| if area[4] >> n & 1 != 0 { tags } else { tags | 3 << (2 * n) });
        let control =
            [wide(0, 2), wide(2, 2), tags.into(), wide(12, 2), wide(8, 4), wide(20, 2), wide(16, 4), wide(6, 2)];
        for (n, value) in control.into_iter().enumerate() {
            self.set(number::FCTRL + n, value);
        }
        self.set(number::MXCSR, wide(XSAVE_MXCSR, 4));
        let has = |bit| area[XSAVE_BV] & bit != 0;
        for n in 0..16 {
            self.set(number::XMM0 + n, if has(BV_SSE) { wide(XSAVE_XMM + 16 * n, 16) } else { 0 });
            self.set(number::YMM0H + n, if has(BV_AVX) { wide(XSAVE_YMM + 16 * n, 16) } else { 0 });
        }
    }

    /// General registers from a user task's saved frame (`vcpu_sched::taskdebug::frame`); the others stay as they are.
    pub fn with_frame(mut self, words: &[u64; frame::WORDS]) -> Self {
        for (n, number) in FRAME_REGISTERS.into_iter().enumerate() {
            if let Some(number) = number {
                self.set(number, words[n]);
            }
        }
        self.set(number::MODE, 3u32);
        self
    }

    /// Of a task that stands in the switch with this stack pointer: what the switch has saved. In the kernel.
    pub fn of_switch(rsp: u64, words: &[u64; SWITCH_WORDS]) -> Self {
        let mut values = Self::default();
        for (n, number) in SWITCH_REGISTERS.into_iter().enumerate() {
            values.set(number, words[n]);
        }
        values.set(number::RSP, rsp.wrapping_add(8 * SWITCH_WORDS as u64));
        values.set(number::MODE, 0u32);
        values
    }

    /// The `g` packet.
    pub fn packet(&self) -> String {
        let mut out = String::new();
        for number in 0..REGISTERS.len() {
            self.put(number, &mut out);
        }
        out
    }

    /// One register's digits, `xx` where it isn't known.
    pub fn put(&self, number: usize, out: &mut String) {
        let Some(register) = REGISTERS.get(number) else { return };
        let bytes = register.bits as usize / 8;
        match self.get(number) {
            Some(value) => hex::put(&value.to_le_bytes()[..bytes], out),
            None => out.extend(std::iter::repeat_n("xx", bytes)),
        }
    }
}

/// Which register each word of a frame is.
const FRAME_REGISTERS: [Option<usize>; frame::WORDS] = [
    Some(15), // r15
    Some(14),
    Some(13),
    Some(12),
    Some(11),
    Some(10),
    Some(9),
    Some(8),
    Some(number::RBP),
    Some(5), // rdi
    Some(4), // rsi
    Some(3), // rdx
    Some(2), // rcx
    Some(number::RBX),
    Some(0), // rax
    None,    // vector
    None,    // error code
    Some(number::RIP),
    Some(number::CS),
    Some(number::EFLAGS),
    Some(number::RSP),
    Some(number::SS),
];

/// The same of what the switch saves.
const SWITCH_REGISTERS: [usize; SWITCH_WORDS] = [15, 14, 13, 12, number::RBX, number::RBP, number::RIP];

/// The word of a frame that holds a register.
pub fn frame_word(number: usize) -> Option<usize> {
    FRAME_REGISTERS.iter().position(|known| *known == Some(number))
}

/// The same of what the switch saves.
pub fn switch_word(number: usize) -> Option<usize> {
    SWITCH_REGISTERS.iter().position(|known| *known == number)
}

/// Sets a register of a vCPU; `false` if that one can't be set.
pub fn set_in_vcpu(vcpu: &mut VcpuRegisters, number: usize, value: u128) -> bool {
    let (r, s, word) = (&mut vcpu.regs, &mut vcpu.sregs, value as u64);
    let select = |segment: &mut kvm_segment| segment.selector = word as u16;
    match number {
        0..=17 => {
            let general = [
                &mut r.rax,
                &mut r.rbx,
                &mut r.rcx,
                &mut r.rdx,
                &mut r.rsi,
                &mut r.rdi,
                &mut r.rbp,
                &mut r.rsp,
                &mut r.r8,
                &mut r.r9,
                &mut r.r10,
                &mut r.r11,
                &mut r.r12,
                &mut r.r13,
                &mut r.r14,
                &mut r.r15,
                &mut r.rip,
                &mut r.rflags,
            ];
            for (n, place) in general.into_iter().enumerate() {
                if n == number {
                    *place = word;
                }
            }
        }
        // A client writes back what it has read; a selector alone changes nothing in 64-bit mode but these four.
        18 | 19 => return word as u16 == if number == number::CS { s.cs.selector } else { s.ss.selector },
        20 => select(&mut s.ds),
        21 => select(&mut s.es),
        22 => select(&mut s.fs),
        23 => select(&mut s.gs),
        number::FS_BASE => s.fs.base = word,
        58 => s.gs.base = word,
        40..=56 | 59..=74 => return set_in_xsave(vcpu.xsave.as_deref_mut(), number, value),
        _ => return false,
    }
    true
}

fn set_in_xsave(area: Option<&mut [u8; XSAVE]>, number: usize, value: u128) -> bool {
    let Some(area) = area else { return false };
    let (at, len, bit) = match number {
        number::MXCSR => (XSAVE_MXCSR, 4, BV_SSE),
        n if n >= number::YMM0H => (XSAVE_YMM + 16 * (n - number::YMM0H), 16, BV_AVX),
        n => (XSAVE_XMM + 16 * (n - number::XMM0), 16, BV_SSE),
    };
    area[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    area[XSAVE_BV] |= bit;
    true
}

/// Takes the `G` packet apart, or one register's bytes for `P`.
pub fn value_of(number: usize, bytes: &[u8]) -> Option<u128> {
    let register = REGISTERS.get(number)?;
    (bytes.len() == register.bits as usize / 8).then(|| {
        let mut wide = [0; 16];
        wide[..bytes.len()].copy_from_slice(bytes);
        u128::from_le_bytes(wide)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_names() {
        let names = [
            (number::RBX, "rbx"),
            (number::RBP, "rbp"),
            (number::RSP, "rsp"),
            (number::R8, "r8"),
            (number::RIP, "rip"),
            (number::EFLAGS, "eflags"),
            (number::CS, "cs"),
            (number::SS, "ss"),
            (number::ST0, "st0"),
            (number::FCTRL, "fctrl"),
            (number::XMM0, "xmm0"),
            (number::MXCSR, "mxcsr"),
            (number::FS_BASE, "fs_base"),
            (number::YMM0H, "ymm0h"),
            (number::CR0, "cr0"),
            (number::TASK_ID, "task_id"),
            (number::CPU, "cpu"),
            (number::MODE, "mode"),
            (number::CALL, "orig_rax"),
        ];
        for (number, name) in names {
            assert_eq!(REGISTERS[number].name, name);
        }
        assert_eq!(REGISTERS.len(), number::CALL + 1);
    }

    #[test]
    fn what_is_not_known_is_not_zero() {
        let values = Values::of_switch(0xffff_ff00_0000_1000, &[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(values.word(number::RIP), Some(7));
        assert_eq!(values.word(number::RSP), Some(0xffff_ff00_0000_1038));
        assert_eq!(values.get(0), None);
        assert!(values.packet().starts_with("xxxxxxxxxxxxxxxx0500000000000000xx"), "{}", values.packet());
        let bits: u32 = REGISTERS.iter().map(|register| register.bits).sum();
        assert_eq!(values.packet().len(), bits as usize / 4);
    }

    #[test]
    fn a_register_can_be_set_where_it_came_from() {
        let mut vcpu =
            VcpuRegisters { regs: kvm_regs::default(), sregs: kvm_sregs::default(), xsave: Some(Box::new([0; XSAVE])) };
        for number in (0..18).chain(40..75).filter(|n| *n != number::CS) {
            let value = 0x1000 + number as u128;
            assert!(set_in_vcpu(&mut vcpu, number, value), "{number}");
            assert_eq!(Values::of_vcpu(&vcpu).get(number), Some(value), "{}", REGISTERS[number].name);
        }
        assert!(!set_in_vcpu(&mut vcpu, number::CR0, 1));
        assert!(!set_in_vcpu(&mut vcpu, number::TASK_ID, 1));
    }

    #[test]
    fn a_frame_is_the_program_s_registers() {
        let mut words = [0; frame::WORDS];
        (words[frame::RIP], words[frame::RAX], words[frame::RSP]) = (0x401000, 9, 0x7fff_0000);
        let values = Values::default().with_frame(&words);
        assert_eq!(
            (values.word(number::RIP), values.word(0), values.word(number::RSP)),
            (Some(0x401000), Some(9), Some(0x7fff_0000))
        );
        assert_eq!(
            (values.word(number::MODE), frame_word(number::RIP), frame_word(number::XMM0)),
            (Some(3), Some(frame::RIP), None)
        );
    }
}
