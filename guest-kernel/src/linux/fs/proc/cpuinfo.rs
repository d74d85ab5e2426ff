//! /proc/cpuinfo: what CPUID says, in Linux' words.
//!
//! Source: Linux, arch/x86/kernel/cpu/proc.c; names of flags from arch/x86/include/asm/cpufeatures.h.

use alloc::string::String;
use core::fmt::Write;

use super::Out;
use crate::arch::instr::cpuid;
use crate::cpu::{self, topology};
use crate::time;

/// Bit and name.
type Flags = &'static [(u32, &'static str)];

/// Leaf 1 EDX.
const LEAF_1_EDX: Flags = &[
    (0, "fpu"),
    (1, "vme"),
    (2, "de"),
    (3, "pse"),
    (4, "tsc"),
    (5, "msr"),
    (6, "pae"),
    (7, "mce"),
    (8, "cx8"),
    (9, "apic"),
    (11, "sep"),
    (12, "mtrr"),
    (13, "pge"),
    (14, "mca"),
    (15, "cmov"),
    (16, "pat"),
    (17, "pse36"),
    (19, "clflush"),
    (23, "mmx"),
    (24, "fxsr"),
    (25, "sse"),
    (26, "sse2"),
    (28, "ht"),
];
/// Leaf 0x80000001 EDX.
const EXTENDED_EDX: Flags = &[(11, "syscall"), (20, "nx"), (26, "pdpe1gb"), (27, "rdtscp"), (29, "lm")];
/// Leaf 1 ECX.
const LEAF_1_ECX: Flags = &[
    (0, "pni"),
    (1, "pclmulqdq"),
    (9, "ssse3"),
    (12, "fma"),
    (13, "cx16"),
    (17, "pcid"),
    (19, "sse4_1"),
    (20, "sse4_2"),
    (21, "x2apic"),
    (22, "movbe"),
    (23, "popcnt"),
    (24, "tsc_deadline_timer"),
    (25, "aes"),
    (26, "xsave"),
    (28, "avx"),
    (29, "f16c"),
    (30, "rdrand"),
    (31, "hypervisor"),
];
/// Leaf 0x80000001 ECX.
const EXTENDED_ECX: Flags = &[(0, "lahf_lm"), (5, "abm"), (6, "sse4a"), (7, "misalignsse"), (22, "topoext")];
/// Leaf 7 EBX.
const LEAF_7_EBX: Flags = &[
    (0, "fsgsbase"),
    (1, "tsc_adjust"),
    (3, "bmi1"),
    (5, "avx2"),
    (7, "smep"),
    (8, "bmi2"),
    (9, "erms"),
    (10, "invpcid"),
    (16, "avx512f"),
    (17, "avx512dq"),
    (18, "rdseed"),
    (19, "adx"),
    (20, "smap"),
    (21, "avx512ifma"),
    (23, "clflushopt"),
    (24, "clwb"),
    (28, "avx512cd"),
    (29, "sha_ni"),
    (30, "avx512bw"),
    (31, "avx512vl"),
];
/// Leaf 7 ECX.
const LEAF_7_ECX: Flags = &[
    (1, "avx512vbmi"),
    (2, "umip"),
    (6, "avx512_vbmi2"),
    (8, "gfni"),
    (9, "vaes"),
    (10, "vpclmulqdq"),
    (11, "avx512_vnni"),
    (12, "avx512_bitalg"),
    (14, "avx512_vpopcntdq"),
    (22, "rdpid"),
];

/// Registers as text, without the NULs and blanks around it.
fn text(registers: impl Iterator<Item = u32>) -> String {
    let bytes: alloc::vec::Vec<u8> = registers.flat_map(u32::to_le_bytes).filter(|b| *b != 0).collect();
    String::from_utf8_lossy(&bytes).trim().into()
}

/// The brand string, or nothing.
fn model_name() -> String {
    if cpuid(0x8000_0000, 0).0 < 0x8000_0004 {
        return String::new();
    }
    let leaves = (0x8000_0002..=0x8000_0004u32).map(|leaf| cpuid(leaf, 0));
    text(leaves.flat_map(|(a, b, c, d)| [a, b, c, d]))
}

fn flags() -> String {
    let (max, max_extended) = (cpuid(0, 0).0, cpuid(0x8000_0000, 0).0);
    let (_, _, c1, d1) = cpuid(1, 0);
    let (_, b7, c7, _) = if max >= 7 { cpuid(7, 0) } else { (0, 0, 0, 0) };
    let (_, _, ce, de) = if max_extended >= 0x8000_0001 { cpuid(0x8000_0001, 0) } else { (0, 0, 0, 0) };
    let words = [
        (d1, LEAF_1_EDX),
        (de, EXTENDED_EDX),
        (c1, LEAF_1_ECX),
        (ce, EXTENDED_ECX),
        (b7, LEAF_7_EBX),
        (c7, LEAF_7_ECX),
    ];
    let mut flags = String::new();
    for (register, names) in words {
        for (_, name) in names.iter().filter(|(bit, _)| register >> bit & 1 != 0) {
            flags.push_str(if flags.is_empty() { "" } else { " " });
            flags.push_str(name);
        }
    }
    flags
}

/// Family, model and stepping from leaf 1 EAX (Intel SDM vol. 2A, CPUID, figure 3-6).
fn signature(a: u32) -> (u32, u32, u32) {
    let base = a >> 8 & 15;
    let family = if base == 15 { base + (a >> 20 & 255) } else { base };
    let model = (a >> 4 & 15) | if base >= 6 { (a >> 16 & 15) << 4 } else { 0 };
    (family, model, a & 15)
}

/// One paragraph for each CPU; they differ in their place only.
pub fn cpuinfo(out: &mut Out) {
    let (_, b, c, d) = cpuid(0, 0);
    let (vendor, model_name, flags) = (text([b, d, c].into_iter()), model_name(), flags());
    let (family, model, stepping) = signature(cpuid(1, 0).0);
    let clflush = (cpuid(1, 0).1 >> 8 & 0xff) * 8;
    // Leaf 0x80000008: widths of addresses; 36 and 48 where it is missing.
    let widths = if cpuid(0x8000_0000, 0).0 >= 0x8000_0008 { cpuid(0x8000_0008, 0).0 } else { 48 << 8 | 36 };
    let khz = time::tsc_khz().0;
    for cpu in cpu::all() {
        let place = topology::place(cpu.id);
        let siblings = topology::package(cpu.id);
        let cores = siblings.iter().filter(|&id| topology::threads(id).first() == Some(id)).count();
        // Writing to memory can't fail.
        let _ = write!(
            out,
            "processor\t: {}\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {model_name}\n\
             stepping\t: {stepping}\ncpu MHz\t\t: {}.{:03}\nphysical id\t: {}\nsiblings\t: {}\ncore id\t\t: {}\n\
             cpu cores\t: {cores}\napicid\t\t: {apic_id}\ninitial apicid\t: {apic_id}\nfpu\t\t: yes\nfpu_exception\t: yes\n\
             wp\t\t: yes\nflags\t\t: {flags}\nbogomips\t: {}.{:02}\nclflush size\t: {clflush}\ncache_alignment\t: {clflush}\n\
             address sizes\t: {} bits physical, {} bits virtual\n\n",
            cpu.id.0,
            khz / 1000,
            khz % 1000,
            place.package,
            siblings.count(),
            place.core,
            khz / 500,
            khz / 5 % 100,
            widths & 0xff,
            widths >> 8 & 0xff,
            apic_id = cpu.apic_id(),
        );
    }
}
