//! CPU features by name: where CPUID tells them, and from which x86-64 level on programs may take them for granted.
//!
//! A table and nothing else; `super::model` gives it its meaning. Names are those of /proc/cpuinfo (Linux,
//! arch/x86/include/asm/cpufeatures.h), levels those of the x86-64 psABI, table 3.1.

use crate::config::near;

/// A register of CPUID's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// Leaf, subleaf and register.
pub type Word = (u32, u32, Register);

/// From which model on a feature is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For kernels, or no instruction: models leave it as the host has it.
    Platform,
    /// x86-64 itself.
    V1,
    /// x86-64-v2.
    V2,
    /// x86-64-v3.
    V3,
    /// In no model: only the host's own CPU has it, or who asks for it by name.
    Extra,
}

/// One feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// Where.
    pub word: Word,
    /// Bit number.
    pub bit: u32,
    /// Since when.
    pub level: Level,
    /// What it can't be without.
    pub needs: &'static str,
}

const ONE_C: Word = (1, 0, Register::Ecx);
const ONE_D: Word = (1, 0, Register::Edx);
const SEVEN_B: Word = (7, 0, Register::Ebx);
const SEVEN_C: Word = (7, 0, Register::Ecx);
const SEVEN_D: Word = (7, 0, Register::Edx);
const SEVEN_ONE_A: Word = (7, 1, Register::Eax);
const XSAVE_A: Word = (0xd, 1, Register::Eax);
const EXT_C: Word = (0x8000_0001, 0, Register::Ecx);
const EXT_D: Word = (0x8000_0001, 0, Register::Edx);

/// The words that a model decides about; bits in them that the table doesn't name are in no model.
pub const WORDS: [Word; 9] = [ONE_C, ONE_D, SEVEN_B, SEVEN_C, SEVEN_D, SEVEN_ONE_A, XSAVE_A, EXT_C, EXT_D];

macro_rules! features {
    ($($word:ident: $($name:literal $bit:literal $level:ident $($needs:literal)?,)*;)*) => {
        /// All of them.
        pub const FEATURES: &[Feature] = &[$($(Feature {
            name: $name, word: $word, bit: $bit, level: Level::$level, needs: concat!($($needs)?),
        },)*)*];
    };
}

features! {
    ONE_D:
        "fpu" 0 V1, "vme" 1 Platform, "de" 2 Platform, "pse" 3 Platform, "tsc" 4 Platform, "msr" 5 Platform,
        "pae" 6 Platform, "mce" 7 Platform, "cx8" 8 V1, "apic" 9 Platform, "sep" 11 Platform, "mtrr" 12 Platform,
        "pge" 13 Platform, "mca" 14 Platform, "cmov" 15 V1, "pat" 16 Platform, "pse36" 17 Platform,
        "clflush" 19 Platform, "acpi" 22 Platform, "mmx" 23 V1, "fxsr" 24 V1, "sse" 25 V1, "sse2" 26 V1,
        "ss" 27 Platform, "ht" 28 Platform,;
    EXT_D:
        "syscall" 11 V1, "nx" 20 Platform, "mmxext" 22 Extra, "fxsr_opt" 25 Platform, "pdpe1gb" 26 Platform,
        "rdtscp" 27 Platform, "lm" 29 V1, "3dnowext" 30 Extra, "3dnow" 31 Extra,;
    ONE_C:
        "sse3" 0 V2, "pclmulqdq" 1 Extra, "ssse3" 9 V2, "fma" 12 V3 "avx", "cx16" 13 V2, "pdcm" 15 Platform,
        "pcid" 17 Platform, "sse4_1" 19 V2, "sse4_2" 20 V2, "x2apic" 21 Platform, "movbe" 22 V3, "popcnt" 23 V2,
        "tsc_deadline_timer" 24 Platform, "aes" 25 Extra, "xsave" 26 V3, "avx" 28 V3 "xsave", "f16c" 29 V3 "avx",
        "rdrand" 30 Extra, "hypervisor" 31 Platform,;
    SEVEN_B:
        "fsgsbase" 0 Platform, "tsc_adjust" 1 Platform, "bmi1" 3 V3, "hle" 4 Extra, "avx2" 5 V3 "avx", "smep" 7 Platform,
        "bmi2" 8 V3, "erms" 9 Platform, "invpcid" 10 Platform, "rtm" 11 Extra, "mpx" 14 Extra "xsave",
        "avx512f" 16 Extra "avx", "avx512dq" 17 Extra "avx512f", "rdseed" 18 Extra, "adx" 19 Extra, "smap" 20 Platform,
        "avx512ifma" 21 Extra "avx512f", "clflushopt" 23 Extra, "clwb" 24 Extra, "avx512cd" 28 Extra "avx512f",
        "sha_ni" 29 Extra, "avx512bw" 30 Extra "avx512f", "avx512vl" 31 Extra "avx512f",;
    SEVEN_C:
        "avx512vbmi" 1 Extra "avx512f", "umip" 2 Platform, "pku" 3 Extra "xsave", "waitpkg" 5 Extra,
        "avx512_vbmi2" 6 Extra "avx512f", "shstk" 7 Extra, "gfni" 8 Extra, "vaes" 9 Extra "avx",
        "vpclmulqdq" 10 Extra "avx", "avx512_vnni" 11 Extra "avx512f", "avx512_bitalg" 12 Extra "avx512f",
        "avx512_vpopcntdq" 14 Extra "avx512f", "la57" 16 Extra, "rdpid" 22 Extra, "movdiri" 27 Extra,
        "movdir64b" 28 Extra,;
    SEVEN_D:
        "fsrm" 4 Platform, "avx512_vp2intersect" 8 Extra "avx512f", "md_clear" 10 Platform, "serialize" 14 Extra,
        "ibt" 20 Extra, "amx_bf16" 22 Extra "amx_tile", "avx512_fp16" 23 Extra "avx512f", "amx_tile" 24 Extra "xsave",
        "amx_int8" 25 Extra "amx_tile", "ibrs" 26 Platform, "stibp" 27 Platform, "flush_l1d" 28 Platform,
        "arch_capabilities" 29 Platform, "ssbd" 31 Platform,;
    SEVEN_ONE_A:
        "avx_vnni" 4 Extra "avx", "avx512_bf16" 5 Extra "avx512f",;
    XSAVE_A:
        "xsaveopt" 0 Extra "xsave", "xsavec" 1 Extra "xsave", "xgetbv1" 2 Extra "xsave", "xsaves" 3 Extra "xsave",;
    EXT_C:
        "lahf_lm" 0 V2, "cmp_legacy" 1 Platform, "svm" 2 Extra, "cr8_legacy" 4 Platform, "abm" 5 V3, "sse4a" 6 Extra,
        "misalignsse" 7 Extra, "3dnowprefetch" 8 Extra, "osvw" 9 Platform, "xop" 11 Extra "avx", "fma4" 16 Extra "avx",
        "tbm" 21 Extra, "topoext" 22 Platform, "perfctr_core" 23 Platform,;
}

/// Other names under which people know some.
const ALIASES: [(&str, &str); 9] = [
    ("pni", "sse3"),
    ("lzcnt", "abm"),
    ("sse4.1", "sse4_1"),
    ("sse4.2", "sse4_2"),
    ("cmpxchg16b", "cx16"),
    ("sha", "sha_ni"),
    ("lahf", "lahf_lm"),
    ("pclmul", "pclmulqdq"),
    ("tsc-deadline", "tsc_deadline_timer"),
];

/// Looks a feature up; `-` is as good as `_`.
pub fn find(name: &str) -> Option<&'static Feature> {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, name)| *name);
    let name = alias.map_or_else(|| name.replace('-', "_"), str::to_owned);
    FEATURES.iter().find(|feature| feature.name == name)
}

/// The known name that is nearest to a wrong one, if any is near.
pub fn nearest(name: &str) -> Option<&'static str> {
    near::nearest(name, FEATURES.iter().map(|feature| feature.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_bits_are_unique_and_needs_exist() {
        let names: BTreeSet<_> = FEATURES.iter().map(|f| f.name).collect();
        let bits: BTreeSet<_> = FEATURES.iter().map(|f| (f.word, f.bit)).collect();
        assert_eq!((names.len(), bits.len()), (FEATURES.len(), FEATURES.len()));
        for feature in FEATURES {
            assert!(WORDS.contains(&feature.word) && feature.bit < 32, "{}", feature.name);
            assert!(feature.needs.is_empty() || find(feature.needs).is_some(), "{}", feature.name);
        }
        for (_, name) in ALIASES {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn wrong_names_are_guessed() {
        assert_eq!(find("avx512-vnni").map(|f| f.name), Some("avx512_vnni"));
        assert_eq!(
            (nearest("avx51f"), nearest("popcnt2"), nearest("hyperdrive9000")),
            (Some("avx512f"), Some("popcnt"), None)
        );
    }
}
