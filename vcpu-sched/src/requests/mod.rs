//! The mailbox: what a VMM asks of its guest's kernel, and the answers.
//!
//! The kernel names one region of its memory in the directory ([`EntryKind::Mailbox`](crate::directory::EntryKind)): a [`Header`],
//! then [`Header::slots`] slots. The VMM writes a request into a free slot, posts it, and interrupts the CPU that the header names
//! with [`VECTOR`]. The kernel carries it out in a task of its own, writes the answer into the same slot and the slot's number to
//! the port [`DOORBELL`]: one interrupt and one exit a request, and nobody polls. Slots are answered in any order.
//!
//! | module | what |
//! | --- | --- |
//! | [`slot`] | who owns a slot: the word that both sides change |
//! | [`head`] | what lies in a slot |
//! | [`message`] | requests and answers as values, and as bytes; those about programs in `program` |
//! | [`change`] | the part of a task's scheduling parameters that a request changes |
//!
//! Invariant: neither side follows what the other writes further than the slot. The kernel checks a request as it would a system
//! call; the VMM copies an answer before it looks at it, and keeps for itself which slots it has posted.

pub mod change;
mod cursor;
pub mod head;
pub mod message;
mod program;
pub mod slot;

/// First eight bytes of the region: "TVREQ\0\0\0".
pub const MAGIC: u64 = u64::from_le_bytes(*b"TVREQ\0\0\0");
/// Version of this layout. A VMM refuses any other.
pub const VERSION: u32 = 1;
/// The interrupt that says that a request was posted.
pub const VECTOR: u8 = 0xe0;
/// The port to which the kernel writes the number of a slot that it has answered, 4 bytes wide.
pub const DOORBELL: u16 = 0x5c8;
/// Most slots that a region may have.
pub const MAX_SLOTS: u32 = 64;
/// Sizes that a slot may have: a page at least, 64 KiB at most.
pub const SLOT_BYTES: core::ops::RangeInclusive<u32> = 4096..=65536;

/// Size of the [`Header`]; the first slot follows.
pub const HEADER_BYTES: usize = 64;

/// Head of the region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// How many slots follow, 1 to [`MAX_SLOTS`].
    pub slots: u32,
    /// Bytes of each, within [`SLOT_BYTES`] and a multiple of 64.
    pub slot_bytes: u32,
    /// The local APIC that gets the interrupt.
    pub apic_id: u32,
    /// Zero.
    pub reserved: [u64; 5],
}

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

/// What is wrong with a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// It doesn't start with [`MAGIC`].
    Magic(u64),
    /// Another version.
    Version(u32),
    /// Too many slots, none, or of a size that can't be.
    Slots {
        /// How many.
        slots: u32,
        /// Of how many bytes.
        bytes: u32,
    },
}

impl core::fmt::Display for HeaderError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "no mailbox there: magic number {found:#018x}, expected {MAGIC:#018x}"),
            Self::Version(found) => write!(f, "mailbox version {found}, this VMM knows {VERSION}"),
            Self::Slots { slots, bytes } => write!(f, "mailbox claims {slots} slots of {bytes} bytes"),
        }
    }
}

impl core::error::Error for HeaderError {}

impl Header {
    /// As bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&self.magic.to_le_bytes());
        for (at, word) in [(8, self.version), (12, self.slots), (16, self.slot_bytes), (20, self.apic_id)] {
            out[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Reads a copy of the header, and checks it.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        let (words, _) = bytes.as_chunks::<4>();
        let word = |i: usize| words.get(i).map_or(0, |word| u32::from_le_bytes(*word));
        let header = Self {
            magic: u64::from(word(0)) | u64::from(word(1)) << 32,
            version: word(2),
            slots: word(3),
            slot_bytes: word(4),
            apic_id: word(5),
            reserved: [0; 5],
        };
        if header.magic != MAGIC {
            return Err(HeaderError::Magic(header.magic));
        }
        if header.version != VERSION {
            return Err(HeaderError::Version(header.version));
        }
        let fits = SLOT_BYTES.contains(&header.slot_bytes) && header.slot_bytes.is_multiple_of(64);
        if !(1..=MAX_SLOTS).contains(&header.slots) || !fits {
            return Err(HeaderError::Slots { slots: header.slots, bytes: header.slot_bytes });
        }
        Ok(header)
    }

    /// Bytes of the whole region.
    pub const fn region_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + self.slots as u64 * self.slot_bytes as u64
    }

    /// Where a slot starts, from the start of the region.
    pub const fn slot_at(&self, slot: u32) -> u64 {
        HEADER_BYTES as u64 + slot as u64 * self.slot_bytes as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Header =
        Header { magic: MAGIC, version: VERSION, slots: 4, slot_bytes: 4096, apic_id: 7, reserved: [0; 5] };

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(Header::parse(&GOOD.to_bytes()), Ok(GOOD));
        assert_eq!((GOOD.region_bytes(), GOOD.slot_at(0), GOOD.slot_at(3)), (16448, 64, 12352));
    }

    #[test]
    fn a_wrong_region_is_refused_with_its_reason() {
        let slots = |slots, bytes| HeaderError::Slots { slots, bytes };
        for (header, expected) in [
            (Header { magic: 5, ..GOOD }, HeaderError::Magic(5)),
            (Header { version: 2, ..GOOD }, HeaderError::Version(2)),
            (Header { slots: 0, ..GOOD }, slots(0, 4096)),
            (Header { slots: 65, ..GOOD }, slots(65, 4096)),
            (Header { slot_bytes: 4095, ..GOOD }, slots(4, 4095)),
            (Header { slot_bytes: 4100, ..GOOD }, slots(4, 4100)),
            (Header { slot_bytes: u32::MAX, ..GOOD }, slots(4, u32::MAX)),
        ] {
            assert_eq!(Header::parse(&header.to_bytes()), Err(expected));
        }
    }
}
