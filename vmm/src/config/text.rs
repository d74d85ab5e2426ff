//! Reading the structured values of flags: a cursor that knows its place, so that every error names a character.
//!
//! Used by the parsers of `--topology`, `--numa`, `--affinity` and their like. Pure. Invariant: no input panics, and none
//! makes more than [`MAX_ID`] + 1 entries.

use std::collections::BTreeSet;
use std::fmt;

/// The largest number of a CPU, vCPU or node that is taken: far beyond any machine, and small enough that `0-N` can't eat
/// the memory.
pub const MAX_ID: u32 = 65_535;

/// What is wrong with a flag's value, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at character {at}{hint}")]
pub struct TextError {
    /// What is wrong.
    pub what: String,
    /// Where, counted from 1 in characters.
    pub at: usize,
    /// What to write instead, with its own separator; may be empty.
    pub hint: String,
}

/// A set of small numbers: CPUs of the host, vCPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdSet(BTreeSet<u32>);

impl IdSet {
    /// All numbers below `n`.
    pub fn below(n: u32) -> Self {
        (0..n).collect()
    }

    /// In ascending order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `id` is one of them.
    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }

    /// Adds one; false if it was there.
    pub fn insert(&mut self, id: u32) -> bool {
        self.0.insert(id)
    }

    /// Those that are in both.
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    /// Those that `other` lacks.
    pub fn difference(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }
}

impl FromIterator<u32> for IdSet {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        Self(ids.into_iter().collect())
    }
}

/// As Linux writes CPU lists: `0-3,7`.
impl fmt::Display for IdSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while let Some(next) = ids.next_if(|next| *next == last + 1) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl std::str::FromStr for IdSet {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        let mut cursor = Cursor::new(text);
        let set = cursor.ids()?;
        cursor.end()?;
        Ok(set)
    }
}

/// A place in a text.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the start.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// What is left.
    pub fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// The next character.
    pub fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// Whether nothing is left.
    pub fn is_at_end(&self) -> bool {
        self.rest().is_empty()
    }

    /// Takes `c` if it comes next.
    pub fn eat(&mut self, c: char) -> bool {
        let there = self.peek() == Some(c);
        if there {
            self.at += c.len_utf8();
        }
        there
    }

    /// Takes `c`.
    pub fn expect(&mut self, c: char) -> Result<(), TextError> {
        if self.eat(c) { Ok(()) } else { Err(self.error(format_args!("'{c}' is missing"), "")) }
    }

    /// Takes everything up to one of `stops`.
    pub fn until(&mut self, stops: &[char]) -> &'a str {
        let rest = self.rest();
        let taken = rest.split(stops).next().unwrap_or_default();
        self.at += taken.len();
        taken
    }

    /// Takes a number.
    pub fn number(&mut self) -> Result<u32, TextError> {
        let rest = self.rest();
        let digits = &rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())];
        if digits.is_empty() {
            return Err(self.error("a number is missing", ""));
        }
        let value = digits.parse().ok().filter(|value| *value <= MAX_ID);
        let value = value.ok_or_else(|| self.error(format_args!("{digits} is too large"), ""))?;
        self.at += digits.len();
        Ok(value)
    }

    /// Takes a list of numbers and ranges, `0-3,7`. A comma that no digit follows ends it and is left.
    pub fn ids(&mut self) -> Result<IdSet, TextError> {
        let mut ids = IdSet::default();
        loop {
            let start = self.clone();
            let first = self.number()?;
            let last = if self.eat('-') { self.number()? } else { first };
            if last < first {
                return Err(start.error(format_args!("the range {first}-{last} runs backwards"), ""));
            }
            for id in first..=last {
                if !ids.insert(id) {
                    return Err(start.error(format_args!("{id} is there twice"), ""));
                }
            }
            let mut next = self.clone();
            if !(next.eat(',') && next.peek().is_some_and(|c| c.is_ascii_digit())) {
                return Ok(ids);
            }
            *self = next;
        }
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), TextError> {
        match self.peek() {
            None => Ok(()),
            Some(c) => Err(self.error(format_args!("'{c}' doesn't belong here"), "")),
        }
    }

    /// An error at this place.
    pub fn error(&self, what: impl fmt::Display, hint: &str) -> TextError {
        let before = self.text.get(..self.at).unwrap_or_default();
        let hint = if hint.is_empty() { String::new() } else { format!(": {hint}") };
        TextError { what: what.to_string(), at: before.chars().count() + 1, hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_are_written_as_linux_does() {
        for text in ["0", "0-3", "0-1,4,6-9"] {
            assert_eq!(text.parse::<IdSet>().unwrap().to_string(), text);
        }
        assert_eq!(IdSet::default().to_string(), "");
    }

    #[test]
    fn errors_point_at_the_character() {
        for (text, message) in [
            ("", "a number is missing at character 1"),
            ("0-", "a number is missing at character 3"),
            ("0,3-1", "the range 3-1 runs backwards at character 3"),
            ("0-4,2", "2 is there twice at character 5"),
            ("0;1", "';' doesn't belong here at character 2"),
            ("1,99999999999", "99999999999 is too large at character 3"),
            ("1,", "',' doesn't belong here at character 2"),
        ] {
            assert_eq!(text.parse::<IdSet>().unwrap_err().to_string(), message, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_set_reads_back(ids in proptest::collection::btree_set(0..=MAX_ID, 1..40)) {
            let set: IdSet = ids.into_iter().collect();
            prop_assert_eq!(set.to_string().parse::<IdSet>().unwrap(), set);
        }

        #[test]
        fn no_text_panics_and_errors_stay_inside(text in "\\PC*") {
            if let Err(error) = text.parse::<IdSet>() {
                prop_assert!((1..=text.chars().count() + 1).contains(&error.at));
            }
        }
    }
}
