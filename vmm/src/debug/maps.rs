//! What is mapped in a program's address space, from its page tables: `monitor maps`.
//!
//! Invariant: whatever the tables hold, at most [`MAX_TABLES`] of them are read and [`MAX_LINES`] ranges are given.

use std::fmt::Write;

use vm_memory::{Bytes, GuestAddress};

use super::memory::{ADDRESS, LARGE, PRESENT, WRITE};
use crate::memory::Ram;

/// Ring 3 may (Intel SDM vol. 3A, 4.5).
const USER: u64 = 1 << 2;
/// Code there doesn't run.
const NO_EXECUTE: u64 = 1 << 63;
/// Page tables that are read: a guest's may lead to each other.
const MAX_TABLES: usize = 4096;
/// Ranges that are shown.
const MAX_LINES: usize = 1024;
/// Entries of the top-level table that are the program's.
const USER_ENTRIES: usize = 256;

/// Pages one after the other with equal rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
    rights: u64,
}

#[derive(Debug, Default)]
struct Walk {
    ranges: Vec<Range>,
    tables: usize,
}

impl Walk {
    fn table(&mut self, ram: &Ram, table: u64, level: u32, base: u64, above: u64) {
        self.tables += 1;
        let mut bytes = [0; 4096];
        if self.tables > MAX_TABLES || ram.read_slice(&mut bytes, GuestAddress(table)).is_err() {
            return;
        }
        let shift = 12 + 9 * level;
        let entries = if level == 3 { USER_ENTRIES } else { 512 };
        for (index, entry) in bytes.as_chunks::<8>().0.iter().take(entries).enumerate() {
            let entry = u64::from_le_bytes(*entry);
            if entry & PRESENT == 0 || self.ranges.len() > MAX_LINES {
                continue;
            }
            let start = base + ((index as u64) << shift);
            // A right needs all levels, a ban only one.
            let rights = (above & entry & (WRITE | USER)) | ((above | entry) & NO_EXECUTE);
            if level == 0 || level < 3 && entry & LARGE != 0 {
                self.add(Range { start, end: start + (1 << shift), rights });
            } else {
                self.table(ram, entry & ADDRESS, level - 1, start, rights);
            }
        }
    }

    fn add(&mut self, new: Range) {
        match self.ranges.last_mut().filter(|last| last.end == new.start && last.rights == new.rights) {
            Some(last) => last.end = new.end,
            None => self.ranges.push(new),
        }
    }
}

/// A line for each range.
pub fn render(ram: &Ram, root: u64) -> String {
    let mut walk = Walk::default();
    walk.table(ram, root & ADDRESS, 3, 0, WRITE | USER);
    let mut out = String::new();
    for range in walk.ranges.iter().filter(|range| range.rights & USER != 0).take(MAX_LINES) {
        let right = |bit, letter| if range.rights & bit != 0 { letter } else { '-' };
        let run = if range.rights & NO_EXECUTE == 0 { 'x' } else { '-' };
        let pages = (range.end - range.start) >> 12;
        // Writing to a String can't fail, here and below.
        let _ = writeln!(out, "{:#014x}-{:#014x} r{}{run} {pages} pages", range.start, range.end, right(WRITE, 'w'));
    }
    if walk.tables > MAX_TABLES || walk.ranges.len() > MAX_LINES {
        let _ = writeln!(out, "and more, which is left out");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: usize = 4 << 20;

    fn ram() -> Ram {
        Ram::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap()
    }

    #[test]
    fn ranges_have_the_rights_of_all_levels() {
        let ram = ram();
        let put = |table: u64, index: u64, entry: u64| ram.write_obj(entry, GuestAddress(table + 8 * index)).unwrap();
        put(0x1000, 0, 0x2000 | 7);
        put(0x2000, 0, 0x3000 | 7);
        put(0x3000, 2, 0x4000 | 7);
        put(0x4000, 1, 0x9000 | 5);
        put(0x4000, 2, 0xa000 | 5);
        put(0x4000, 3, 0xb000 | 7 | NO_EXECUTE);
        put(0x4000, 5, 0xb000 | 3);
        put(0x1000, 256, 0x2000 | 7);
        assert_eq!(
            render(&ram, 0x1000),
            "0x000000401000-0x000000403000 r-x 2 pages\n0x000000403000-0x000000404000 rw- 1 pages\n"
        );
        assert_eq!(render(&ram, u64::MAX), "");
    }

    #[test]
    fn tables_that_lead_to_themselves_end() {
        let ram = ram();
        for index in 0..512 {
            ram.write_obj(0x1000u64 | 7, GuestAddress(0x1000 + 8 * index)).unwrap();
        }
        assert!(render(&ram, 0x1000).ends_with("left out\n"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn noise_ends(entries in prop::collection::vec((0..SIZE as u64 / 8, any::<u64>()), 0..64)) {
            let ram = ram();
            for (place, entry) in entries {
                ram.write_obj(entry, GuestAddress(8 * place)).unwrap();
                ram.write_obj(entry & (SIZE as u64 - 1) | 7, GuestAddress(0x1000 + 8 * (place % 512))).unwrap();
            }
            prop_assert!(render(&ram, 0x1000).lines().count() <= MAX_LINES + 1);
        }
    }
}
