//! CPU models: `--cpu host|baseline|x86-64-v2|x86-64-v3[,+feature,-feature]`.
//!
//! A [`Model`] is parsed from the command line and applied to the host's supported CPUID. What the host can't give is an
//! error that names the feature. Some hosts show programs their own CPUID whatever the VMM sets (`taskvisor doctor`, "CPUID
//! in ring 3"): there, [`Native`] counts as given, a feature can't be taken away by name, and what a model leaves out but
//! programs still see is told as a warning.

use std::arch::x86_64::__cpuid_count;
use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;

use super::features::{self, FEATURES, Feature, Level, Register, WORDS, Word};
use crate::config::text::{Cursor, TextError};

/// Leaf 0xD: what XSAVE saves (Intel SDM vol. 1, 13.2 and 13.3).
const XSAVE_LEAF: u32 = 0xd;
/// x87 and SSE state, which are always there.
const XCR0_LEGACY: u32 = 0b11;
/// The legacy area and the header.
const XSAVE_MIN: u32 = 512 + 64;
/// State components by the feature that they come with.
const COMPONENTS: [(u32, &str); 9] = [
    (2, "avx"),
    (3, "mpx"),
    (4, "mpx"),
    (5, "avx512f"),
    (6, "avx512f"),
    (7, "avx512f"),
    (9, "pku"),
    (17, "amx_tile"),
    (18, "amx_tile"),
];

/// What to start from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Base {
    /// Everything that the host has.
    #[default]
    Host,
    /// x86-64 as it was in 2003.
    Baseline,
    /// With SSE4.2 and POPCNT.
    V2,
    /// With AVX2, BMI and FMA.
    V3,
}

impl Base {
    const ALL: [(&str, Base); 4] =
        [("host", Base::Host), ("baseline", Base::Baseline), ("x86-64-v2", Base::V2), ("x86-64-v3", Base::V3)];

    fn level(self) -> Level {
        match self {
            Base::Host => Level::Extra,
            Base::Baseline => Level::V1,
            Base::V2 => Level::V2,
            Base::V3 => Level::V3,
        }
    }
}

/// A CPU model with changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    /// What to start from.
    pub base: Base,
    /// Names of features to add.
    pub plus: Vec<&'static str>,
    /// Names of features to leave out, with all that need them.
    pub minus: Vec<&'static str>,
}

/// Why a model can't be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The host lacks something.
    #[error("--cpu {model}: this host can't give {}", features.join(", "))]
    Missing {
        /// The model.
        model: Model,
        /// What it lacks.
        features: Vec<&'static str>,
    },
    /// Programs see it anyway.
    #[error(
        "--cpu {model}: this host's KVM shows programs the host's own CPUID, so that {} can't be taken away \
         (see taskvisor doctor)", features.join(", ")
    )]
    Shown {
        /// The model.
        model: Model,
        /// What remains.
        features: Vec<&'static str>,
    },
    /// Added without what it builds on.
    #[error("--cpu {model}: {feature} needs {needs}, which the model lacks: add +{needs}")]
    Needs {
        /// The model.
        model: Model,
        /// What was added.
        feature: &'static str,
        /// What it can't be without.
        needs: &'static str,
    },
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Base::ALL.iter().find(|(_, base)| *base == self.base).map_or("host", |(name, _)| name);
        f.write_str(name)?;
        self.plus.iter().try_for_each(|name| write!(f, ",+{name}"))?;
        self.minus.iter().try_for_each(|name| write!(f, ",-{name}"))
    }
}

impl std::str::FromStr for Model {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let mut cursor = Cursor::new(text);
        let start = cursor.clone();
        let name = cursor.until(&[',']);
        let known = Base::ALL.iter().find(|(known, _)| *known == name || known.strip_prefix("x86-64-") == Some(name));
        let (_, base) = known.ok_or_else(|| {
            start.error(format_args!("unknown model '{name}'"), "use host, baseline, x86-64-v2 or x86-64-v3")
        })?;
        let mut model = Model { base: *base, ..Model::default() };
        while cursor.eat(',') {
            let start = cursor.clone();
            let add = cursor.eat('+');
            if !add && !cursor.eat('-') {
                return Err(start.error("'+' or '-' is missing", "write +feature or -feature"));
            }
            let place = cursor.clone();
            let name = cursor.until(&[',']);
            let Some(feature) = features::find(name) else {
                let hint = features::nearest(name).map(|near| format!("is it {near}?")).unwrap_or_default();
                return Err(place.error(format_args!("unknown feature '{name}'"), &hint));
            };
            if model.plus.contains(&feature.name) || model.minus.contains(&feature.name) {
                return Err(place.error(format_args!("{} is there twice", feature.name), ""));
            }
            if feature.level == Level::Platform && !add {
                return Err(place.error(format_args!("{} is not an instruction of programs", feature.name), "leave it"));
            }
            if add { model.plus.push(feature.name) } else { model.minus.push(feature.name) }
        }
        Ok(model)
    }
}

/// The host's own CPUID, where programs see that.
#[derive(Debug, Clone, Default)]
pub struct Native(Vec<kvm_cpuid_entry2>);

impl Native {
    /// Reads it.
    pub fn read() -> Self {
        let answer = |function, index| {
            let answer = __cpuid_count(function, index);
            let (eax, ebx, ecx, edx) = (answer.eax, answer.ebx, answer.ecx, answer.edx);
            kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
        };
        let last = |function: u32| answer(function & 0x8000_0000, 0).eax;
        let there = WORDS.iter().filter(|(function, ..)| *function <= last(*function));
        Self(there.map(|(function, index, _)| answer(*function, *index)).collect())
    }

    #[cfg(test)]
    fn from_entries(entries: Vec<kvm_cpuid_entry2>) -> Self {
        Self(entries)
    }
}

fn register(entry: &mut kvm_cpuid_entry2, register: Register) -> &mut u32 {
    match register {
        Register::Eax => &mut entry.eax,
        Register::Ebx => &mut entry.ebx,
        Register::Ecx => &mut entry.ecx,
        Register::Edx => &mut entry.edx,
    }
}

fn word(entries: &[kvm_cpuid_entry2], (function, index, which): Word) -> u32 {
    let entry = entries.iter().find(|entry| (entry.function, entry.index) == (function, index));
    entry.map_or(0, |entry| *register(&mut entry.clone(), which))
}

fn has(entries: &[kvm_cpuid_entry2], feature: &Feature) -> bool {
    word(entries, feature.word) >> feature.bit & 1 != 0
}

impl Model {
    /// Whether the model, as asked for, has a feature.
    fn wants(&self, feature: &Feature) -> bool {
        if self.minus.contains(&feature.name) {
            return false;
        }
        let base = feature.level <= self.base.level() || self.plus.contains(&feature.name);
        let needs = features::find(feature.needs);
        base && needs.is_none_or(|needs| self.wants(needs))
    }

    /// Cuts a supported CPUID to this model.
    pub fn apply(&self, entries: &mut Vec<kvm_cpuid_entry2>, native: Option<&Native>) -> Result<(), ModelError> {
        if *self == Model::default() {
            return Ok(());
        }
        self.check(entries, native)?;
        // Where programs see the host's own CPUID, only the guest's kernel would miss what is cut, and it must know the state
        // that programs can really have.
        if native.is_some() {
            return Ok(());
        }
        for &(function, index, which) in &WORDS {
            let wanted = FEATURES.iter().filter(|f| f.word == (function, index, which) && self.wants(f));
            let mut keep = wanted.fold(0, |mask, f| mask | 1 << f.bit);
            if self.base == Base::Host {
                // What the table doesn't know is the host's as well.
                let known = FEATURES.iter().filter(|f| f.word == (function, index, which));
                keep |= !known.fold(0, |mask, f| mask | 1u32 << f.bit);
            }
            for entry in entries.iter_mut().filter(|e| (e.function, e.index) == (function, index)) {
                *register(entry, which) &= keep;
            }
        }
        self.cut_xsave(entries);
        Ok(())
    }

    fn check(&self, entries: &[kvm_cpuid_entry2], native: Option<&Native>) -> Result<(), ModelError> {
        let native = native.map_or(&[][..], |native| &native.0);
        let given = |feature: &Feature| has(entries, feature) || has(native, feature);
        for name in &self.plus {
            let needs = features::find(name).map_or("", |feature| feature.needs);
            if features::find(needs).is_some_and(|needs| !self.wants(needs)) {
                return Err(ModelError::Needs { model: self.clone(), feature: name, needs });
            }
        }
        let asked = |f: &&Feature| {
            let by_level = self.base != Base::Host && f.level != Level::Platform && f.level != Level::Extra;
            self.wants(f) && (by_level || self.plus.contains(&f.name))
        };
        let missing: Vec<_> = FEATURES.iter().filter(asked).filter(|f| !given(f)).map(|f| f.name).collect();
        if !missing.is_empty() {
            return Err(ModelError::Missing { model: self.clone(), features: missing });
        }
        let shown: Vec<_> = FEATURES.iter().filter(|f| !self.wants(f) && has(native, f)).map(|f| f.name).collect();
        let by_name: Vec<_> = shown.iter().copied().filter(|name| self.minus.contains(name)).collect();
        if !by_name.is_empty() {
            return Err(ModelError::Shown { model: self.clone(), features: by_name });
        }
        if !shown.is_empty() {
            log::warn!(
                "--cpu {self}: this host's KVM shows programs the host's own CPUID (see taskvisor doctor): they still see {}",
                shown.join(", ")
            );
        }
        Ok(())
    }

    /// State that no instruction is left for isn't saved: XCR0's bits and the size of the save area follow.
    fn cut_xsave(&self, entries: &mut Vec<kvm_cpuid_entry2>) {
        let wants = |name| features::find(name).is_some_and(|feature| self.wants(feature));
        let mut allowed = if wants("xsave") { !0 } else { 0 };
        for (bit, name) in COMPONENTS {
            if !wants(name) {
                allowed &= !(1u32 << bit);
            }
        }
        entries.retain(|e| e.function != XSAVE_LEAF || e.index < 2 || allowed >> e.index.min(31) & 1 != 0);
        let used: u32 =
            entries.iter().find(|e| (e.function, e.index) == (XSAVE_LEAF, 0)).map_or(0, |e| e.eax & allowed);
        let areas =
            entries.iter().filter(|e| e.function == XSAVE_LEAF && e.index >= 2 && used >> e.index.min(31) & 1 != 0);
        let size = areas.map(|e| e.ebx.saturating_add(e.eax)).fold(XSAVE_MIN, u32::max);
        for entry in entries.iter_mut().filter(|e| (e.function, e.index) == (XSAVE_LEAF, 0)) {
            entry.eax = used;
            if used & XCR0_LEGACY == 0 {
                (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0);
            } else {
                entry.ecx = entry.ecx.min(size);
                entry.ebx = entry.ebx.min(size);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A CPU with everything in the table, and XSAVE areas as AVX-512 machines have them.
    fn all() -> Vec<kvm_cpuid_entry2> {
        let mut entries: Vec<kvm_cpuid_entry2> = Vec::new();
        for &(function, index, which) in &WORDS {
            let at = entries.iter().position(|e| (e.function, e.index) == (function, index)).unwrap_or_else(|| {
                entries.push(kvm_cpuid_entry2 { function, index, ..Default::default() });
                entries.len() - 1
            });
            *register(&mut entries[at], which) = !0;
        }
        let entry =
            |index, eax, ebx, ecx| kvm_cpuid_entry2 { function: 0xd, index, eax, ebx, ecx, ..Default::default() };
        entries.extend([entry(0, 0xe7, 0x980, 0x980), entry(2, 0x100, 0x240, 0), entry(5, 0x40, 0x340, 0)]);
        entries.extend([entry(6, 0x200, 0x380, 0), entry(7, 0x400, 0x580, 0)]);
        entries
    }

    fn applied(text: &str) -> Vec<kvm_cpuid_entry2> {
        let mut entries = all();
        text.parse::<Model>().unwrap().apply(&mut entries, None).unwrap();
        entries
    }

    fn there(entries: &[kvm_cpuid_entry2], name: &str) -> bool {
        has(entries, features::find(name).unwrap())
    }

    #[test]
    fn models_have_what_their_level_says() {
        for (model, yes, no) in [
            ("baseline", &["sse2", "syscall", "x2apic", "nx"][..], &["sse3", "popcnt", "avx", "xsave", "rdrand"][..]),
            ("x86-64-v2", &["sse4_2", "popcnt", "cx16", "lahf_lm"], &["avx", "movbe", "aes", "abm"]),
            ("v3", &["avx2", "fma", "bmi2", "abm", "xsave"], &["avx512f", "sha_ni", "rdseed"]),
            ("host", &["avx512f", "amx_tile"], &[]),
            ("host,-avx", &["sse4_2", "aes"], &["avx", "avx2", "fma", "avx512f", "avx512_bf16", "vaes"]),
            ("v2,+aes,+avx,+xsave", &["aes", "avx"], &["avx2"]),
        ] {
            let entries = applied(model);
            yes.iter().for_each(|name| assert!(there(&entries, name), "{model} lacks {name}"));
            no.iter().for_each(|name| assert!(!there(&entries, name), "{model} has {name}"));
        }
    }

    #[test]
    fn the_save_area_shrinks_with_the_state() {
        let leaf = |entries: &[kvm_cpuid_entry2]| *entries.iter().find(|e| (e.function, e.index) == (0xd, 0)).unwrap();
        let v3 = applied("v3");
        assert_eq!((leaf(&v3).eax, leaf(&v3).ecx), (0x7, 0x340));
        assert!(!v3.iter().any(|e| e.function == 0xd && e.index > 2));
        assert_eq!((leaf(&applied("v2")).eax, leaf(&applied("v2")).ecx), (0, 0));
        assert_eq!(leaf(&applied("host,-rtm")).ecx, 0x980);
    }

    #[test]
    fn what_the_host_lacks_is_named() {
        let mut entries = all();
        for entry in entries.iter_mut().filter(|e| (e.function, e.index) == (7, 0)) {
            entry.ebx &= !(1 << 5 | 1 << 8);
        }
        let error =
            |text: &str| text.parse::<Model>().unwrap().apply(&mut entries.clone(), None).unwrap_err().to_string();
        assert_eq!(error("x86-64-v3"), "--cpu x86-64-v3: this host can't give avx2, bmi2");
        assert_eq!(error("host,+avx2"), "--cpu host,+avx2: this host can't give avx2");
        assert!(error("baseline,+avx").ends_with("avx needs xsave, which the model lacks: add +xsave"));
    }

    #[test]
    fn where_programs_see_the_host_s_own_cpuid_nothing_can_be_taken_away_by_name() {
        let native = Native::from_entries(all());
        let mut bare: Vec<_> = all().into_iter().filter(|e| e.function == 0xd).collect();
        "v3".parse::<Model>().unwrap().apply(&mut bare, Some(&native)).unwrap();
        let error = "v3,-avx2".parse::<Model>().unwrap().apply(&mut all(), Some(&native)).unwrap_err();
        assert!(matches!(error, ModelError::Shown { features, .. } if features == ["avx2"]));
    }

    #[test]
    fn errors_point_at_the_word() {
        for (text, message) in [
            ("v9", "unknown model 'v9' at character 1: use host, baseline, x86-64-v2 or x86-64-v3"),
            ("host,avx", "'+' or '-' is missing at character 6: write +feature or -feature"),
            ("host,-avx51f", "unknown feature 'avx51f' at character 7: is it avx512f?"),
            ("host,+aes,-aes", "aes is there twice at character 12"),
            ("host,-nx", "nx is not an instruction of programs at character 7: leave it"),
        ] {
            assert_eq!(text.parse::<Model>().unwrap_err().to_string(), message);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(host|baseline|v2|v3|x)?[,+a-z0-9_-]{0,30}") {
            let _ = text.parse::<Model>();
        }

        #[test]
        fn every_model_reads_back(plus in proptest::sample::subsequence(vec!["aes", "avx512f", "sha_ni"], 0..=3)) {
            let model = Model { base: Base::V3, plus, minus: vec!["movbe"] };
            prop_assert_eq!(model.to_string().parse::<Model>().unwrap(), model);
        }
    }
}
