//! Sets of CPUs: affinity, the online CPUs, the idle CPUs.
//!
//! Plain values without locks or atomics; whoever shares one protects it. The invariant: no CPU number reaches
//! [`MAX_CPUS`], and all words from `used` on are zero, so that on a machine with at most 64 CPUs every operation
//! touches a single word.

use core::fmt;
use core::str::FromStr;

use crate::ids::CpuId;

/// A mask holds CPUs 0 to `MAX_CPUS - 1`: as many as the C library's `cpu_set_t` (`CPU_SETSIZE`, 1024).
pub const MAX_CPUS: u32 = 1024;

/// Bytes of a whole mask, as `sched_setaffinity(2)` passes it.
pub const MASK_BYTES: usize = MAX_CPUS as usize / 8;

const WORDS: usize = MAX_CPUS as usize / 64;

/// A set of CPUs.
///
/// Not `Copy`: it is 136 bytes, and a copy should be seen.
#[derive(Clone)]
pub struct CpuMask {
    words: [u64; WORDS],
    /// `words[used..]` are all zero. An upper bound: words below may be zero too.
    used: u8,
}

impl CpuMask {
    /// No CPU.
    #[inline]
    pub const fn empty() -> Self {
        Self { words: [0; WORDS], used: 0 }
    }

    /// CPUs 0 to `count - 1`.
    ///
    /// # Panics
    /// If `count` is more than [`MAX_CPUS`].
    pub const fn full(count: u32) -> Self {
        assert!(count <= MAX_CPUS, "a CpuMask holds at most 1024 CPUs");
        let mut mask = Self::empty();
        let whole = count as usize / 64;
        let mut i = 0;
        while i < whole {
            mask.words[i] = u64::MAX;
            i += 1;
        }
        mask.used = whole as u8;
        if !count.is_multiple_of(64) {
            mask.words[whole] = (1 << (count % 64)) - 1;
            mask.used += 1;
        }
        mask
    }

    /// One CPU.
    ///
    /// # Panics
    /// If `cpu` is not below [`MAX_CPUS`].
    pub const fn one_shot(cpu: CpuId) -> Self {
        let mut mask = Self::empty();
        mask.set(cpu);
        mask
    }

    /// Adds a CPU.
    ///
    /// # Panics
    /// If `cpu` is not below [`MAX_CPUS`], like any index that is too large.
    #[inline]
    pub const fn set(&mut self, cpu: CpuId) {
        let word = cpu.index() / 64;
        self.words[word] |= 1 << (cpu.0 % 64);
        if self.used as usize <= word {
            self.used = word as u8 + 1;
        }
    }

    /// Removes a CPU. One that isn't there, or could not be, changes nothing.
    #[inline]
    pub const fn clear(&mut self, cpu: CpuId) {
        if cpu.0 < MAX_CPUS {
            self.words[cpu.index() / 64] &= !(1 << (cpu.0 % 64));
        }
    }

    /// Is the CPU in the set? No for numbers that no mask can hold.
    #[inline]
    pub const fn test(&self, cpu: CpuId) -> bool {
        cpu.0 < MAX_CPUS && self.words[cpu.index() / 64] >> (cpu.0 % 64) & 1 != 0
    }

    /// The lowest CPU.
    #[inline]
    pub const fn first(&self) -> Option<CpuId> {
        self.at_or_after(0)
    }

    /// The lowest CPU above `after`.
    #[inline]
    pub const fn next(&self, after: CpuId) -> Option<CpuId> {
        self.at_or_after(after.0.saturating_add(1))
    }

    /// Round robin: the lowest CPU above `after`, else the lowest of all. `None` only for the empty set.
    #[inline]
    pub const fn next_wrapping(&self, after: CpuId) -> Option<CpuId> {
        match self.next(after) {
            None => self.first(),
            found => found,
        }
    }

    const fn at_or_after(&self, from: u32) -> Option<CpuId> {
        let mut i = from as usize / 64;
        let mut keep = u64::MAX << (from % 64);
        while i < self.used as usize {
            let word = self.words[i] & keep;
            if word != 0 {
                return Some(CpuId(i as u32 * 64 + word.trailing_zeros()));
            }
            keep = u64::MAX;
            i += 1;
        }
        None
    }

    /// The CPUs in ascending order.
    #[inline]
    pub const fn iter(&self) -> Iter<'_> {
        Iter { mask: self, word: self.words[0], index: 0 }
    }

    /// The CPUs that are in both sets, from `start` upwards and then from 0 up to `start`. Makes no third mask.
    #[inline]
    pub const fn iter_both_from<'a>(&'a self, other: &'a Self, start: CpuId) -> BothFrom<'a> {
        let used = if self.used < other.used { self.used } else { other.used };
        // A start above both sets is a start from 0: the whole circle is the same.
        let (index, bit) = if start.index() / 64 < used as usize { (start.index() / 64, start.0 % 64) } else { (0, 0) };
        let from_start = u64::MAX << bit;
        let word = self.words[index] & other.words[index] & from_start;
        BothFrom { a: self, b: other, word, index, used: used as usize, left: used as usize, last: !from_start }
    }

    /// The CPUs in both.
    #[must_use]
    pub const fn and(&self, other: &Self) -> Self {
        let mut result = Self::empty();
        result.used = if self.used < other.used { self.used } else { other.used };
        let mut i = 0;
        while i < result.used as usize {
            result.words[i] = self.words[i] & other.words[i];
            i += 1;
        }
        result
    }

    /// The CPUs in either.
    #[must_use]
    pub const fn or(&self, other: &Self) -> Self {
        let mut result = Self::empty();
        result.used = if self.used > other.used { self.used } else { other.used };
        let mut i = 0;
        while i < result.used as usize {
            result.words[i] = self.words[i] | other.words[i];
            i += 1;
        }
        result
    }

    /// The CPUs in exactly one of the two.
    #[must_use]
    pub const fn xor(&self, other: &Self) -> Self {
        let mut result = Self::empty();
        result.used = if self.used > other.used { self.used } else { other.used };
        let mut i = 0;
        while i < result.used as usize {
            result.words[i] = self.words[i] ^ other.words[i];
            i += 1;
        }
        result
    }

    /// The CPUs of this set that aren't in `other`.
    #[must_use]
    pub const fn andnot(&self, other: &Self) -> Self {
        let mut result = Self::empty();
        result.used = self.used;
        let mut i = 0;
        while i < result.used as usize {
            result.words[i] = self.words[i] & !other.words[i];
            i += 1;
        }
        result
    }

    /// Is every CPU of this set in `other`? The empty set is a subset of all.
    pub const fn is_subset(&self, other: &Self) -> bool {
        let mut i = 0;
        while i < self.used as usize {
            if self.words[i] & !other.words[i] != 0 {
                return false;
            }
            i += 1;
        }
        true
    }

    /// Is there at least one CPU in both?
    pub const fn intersects(&self, other: &Self) -> bool {
        let mut i = 0;
        while i < self.used as usize {
            if self.words[i] & other.words[i] != 0 {
                return true;
            }
            i += 1;
        }
        false
    }

    /// Is there no CPU?
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    /// How many CPUs.
    #[doc(alias = "weight")]
    pub const fn count(&self) -> u32 {
        let mut count = 0;
        let mut i = 0;
        while i < self.used as usize {
            count += self.words[i].count_ones();
            i += 1;
        }
        count
    }

    /// From words of 64 CPUs each, the lowest first. Words past the highest CPU are ignored.
    pub fn from_words(words: impl IntoIterator<Item = u64>) -> Self {
        let mut mask = Self::empty();
        for (to, word) in mask.words.iter_mut().zip(words) {
            *to = word;
            mask.used += 1;
        }
        mask
    }

    /// CPUs `64 * index` and the 63 that follow, one bit each.
    #[inline]
    pub const fn word(&self, index: usize) -> u64 {
        if index < self.used as usize { self.words[index] } else { 0 }
    }

    /// From the bytes that `sched_setaffinity(2)` passes: bit `n % 8` of byte `n / 8` is CPU `n`. Missing bytes count as
    /// zero; bytes past [`MASK_BYTES`] are ignored, as Linux ignores what exceeds its own mask.
    pub fn from_le_bytes(bytes: &[u8]) -> Self {
        let mut mask = Self::empty();
        for (i, &byte) in bytes.iter().take(MASK_BYTES).enumerate() {
            if byte != 0 {
                mask.words[i / 8] |= u64::from(byte) << (i % 8 * 8);
                mask.used = (i / 8) as u8 + 1;
            }
        }
        mask
    }

    /// The bytes that `sched_getaffinity(2)` returns; see [`CpuMask::from_le_bytes`].
    pub fn to_le_bytes(&self) -> [u8; MASK_BYTES] {
        let mut bytes = [0; MASK_BYTES];
        for (out, word) in bytes.chunks_exact_mut(8).zip(&self.words) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl PartialEq for CpuMask {
    fn eq(&self, other: &Self) -> bool {
        self.words == other.words
    }
}

impl Eq for CpuMask {}

impl FromIterator<CpuId> for CpuMask {
    /// # Panics
    /// If a CPU is not below [`MAX_CPUS`].
    fn from_iter<I: IntoIterator<Item = CpuId>>(cpus: I) -> Self {
        let mut mask = Self::empty();
        for cpu in cpus {
            mask.set(cpu);
        }
        mask
    }
}

impl<'a> IntoIterator for &'a CpuMask {
    type Item = CpuId;
    type IntoIter = Iter<'a>;
    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// See [`CpuMask::iter`].
#[derive(Clone)]
pub struct Iter<'a> {
    mask: &'a CpuMask,
    word: u64,
    index: usize,
}

impl Iterator for Iter<'_> {
    type Item = CpuId;

    #[inline]
    fn next(&mut self) -> Option<CpuId> {
        while self.word == 0 {
            if self.index + 1 >= self.mask.used as usize {
                return None;
            }
            self.index += 1;
            self.word = self.mask.words[self.index];
        }
        let bit = self.word.trailing_zeros();
        self.word &= self.word - 1;
        Some(CpuId(self.index as u32 * 64 + bit))
    }
}

/// See [`CpuMask::iter_both_from`].
#[derive(Clone)]
pub struct BothFrom<'a> {
    a: &'a CpuMask,
    b: &'a CpuMask,
    /// Bits of word `index` still to give out.
    word: u64,
    index: usize,
    /// Words on the circle.
    used: usize,
    /// Words still to load. The last of them is the first word again, of which `last` has not been given out yet.
    left: usize,
    last: u64,
}

impl Iterator for BothFrom<'_> {
    type Item = CpuId;

    #[inline]
    fn next(&mut self) -> Option<CpuId> {
        while self.word == 0 {
            if self.left == 0 {
                return None;
            }
            self.left -= 1;
            self.index = if self.index + 1 == self.used { 0 } else { self.index + 1 };
            self.word = self.a.words[self.index] & self.b.words[self.index];
            if self.left == 0 {
                self.word &= self.last;
            }
        }
        let bit = self.word.trailing_zeros();
        self.word &= self.word - 1;
        Some(CpuId(self.index as u32 * 64 + bit))
    }
}

/// Linux list syntax: `0-3,8,10-11`; nothing for the empty set.
impl fmt::Display for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().peekable();
        let mut comma = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(cpu) = cpus.next_if_eq(&CpuId(last.0 + 1)) {
                last = cpu;
            }
            write!(f, "{comma}{first}")?;
            if last != first {
                write!(f, "-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuMask({self})")
    }
}

/// Why a CPU list could not be read, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParseCpuMaskError {
    /// Byte offset in the text that was given, of the number or character that is wrong.
    pub at: usize,
    /// What is wrong there.
    pub kind: ParseCpuMaskErrorKind,
}

/// See [`ParseCpuMaskError`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParseCpuMaskErrorKind {
    /// Something else, or the end, where a decimal number must stand.
    ExpectedNumber,
    /// A CPU number that is not below [`MAX_CPUS`], or a stride above it.
    TooLarge,
    /// The end of a range is below its start.
    ReversedRange,
    /// In `first-last:used/group`: `used` and `group` must be at least 1, and `used` at most `group`.
    BadStride,
    /// In `first-last:used/group`: the `/group` is missing.
    ExpectedSlash,
    /// Something else than a comma after an item.
    ExpectedComma,
}

impl fmt::Display for ParseCpuMaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ParseCpuMaskErrorKind::*;
        let what = match self.kind {
            ExpectedNumber => "expected a CPU number",
            TooLarge => "number too large (the highest CPU is 1023)",
            ReversedRange => "the range ends before it starts",
            BadStride => "bad stride (write first-last:used/group with 1 <= used <= group)",
            ExpectedSlash => "expected '/' and the group size",
            ExpectedComma => "expected ',' or the end",
        };
        write!(f, "{what} at character {}", self.at + 1)
    }
}

impl core::error::Error for ParseCpuMaskError {}

/// Linux list syntax (`Documentation/admin-guide/kernel-parameters.rst`, "cpu lists"): numbers and ranges separated by
/// commas, a range optionally with a stride: `0-31:2/4` is the first 2 of every 4 CPUs. White space around the whole is
/// accepted, as in `/sys/devices/system/cpu/online`; an empty text is the empty set.
impl FromStr for CpuMask {
    type Err = ParseCpuMaskError;

    fn from_str(text: &str) -> Result<Self, ParseCpuMaskError> {
        use ParseCpuMaskErrorKind::*;
        let bytes = text.trim_ascii_end().as_bytes();
        let mut at = text.len() - text.trim_ascii_start().len();
        let mut mask = Self::empty();
        if at >= bytes.len() {
            return Ok(mask);
        }
        loop {
            let (first, _) = number(bytes, &mut at, MAX_CPUS - 1)?;
            let (mut last, mut used, mut group) = (first, 1, 1);
            if eat(bytes, &mut at, b'-') {
                let last_at;
                (last, last_at) = number(bytes, &mut at, MAX_CPUS - 1)?;
                if last < first {
                    return Err(ParseCpuMaskError { at: last_at, kind: ReversedRange });
                }
                if eat(bytes, &mut at, b':') {
                    let used_at;
                    (used, used_at) = number(bytes, &mut at, MAX_CPUS)?;
                    if !eat(bytes, &mut at, b'/') {
                        return Err(ParseCpuMaskError { at, kind: ExpectedSlash });
                    }
                    (group, _) = number(bytes, &mut at, MAX_CPUS)?;
                    if used == 0 || used > group {
                        return Err(ParseCpuMaskError { at: used_at, kind: BadStride });
                    }
                }
            }
            for cpu in first..=last {
                if (cpu - first) % group < used {
                    mask.set(CpuId(cpu));
                }
            }
            if at == bytes.len() {
                return Ok(mask);
            }
            if !eat(bytes, &mut at, b',') {
                return Err(ParseCpuMaskError { at, kind: ExpectedComma });
            }
        }
    }
}

/// Steps over `byte` if it is next.
fn eat(bytes: &[u8], at: &mut usize, byte: u8) -> bool {
    let there = bytes.get(*at) == Some(&byte);
    *at += usize::from(there);
    there
}

/// Reads a decimal number of at most `max`; returns it and where it started.
fn number(bytes: &[u8], at: &mut usize, max: u32) -> Result<(u32, usize), ParseCpuMaskError> {
    let start = *at;
    let mut value: u32 = 0;
    while let Some(digit) = bytes.get(*at).filter(|b| b.is_ascii_digit()) {
        value = value.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
        *at += 1;
    }
    if *at == start {
        Err(ParseCpuMaskError { at: start, kind: ParseCpuMaskErrorKind::ExpectedNumber })
    } else if value > max {
        Err(ParseCpuMaskError { at: start, kind: ParseCpuMaskErrorKind::TooLarge })
    } else {
        Ok((value, start))
    }
}
