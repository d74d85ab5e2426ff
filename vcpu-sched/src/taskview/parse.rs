//! The reader's half: from copied bytes to numbers, nothing believed.

use core::fmt;
use core::mem::offset_of;

use crate::cpumask::CpuMask;

use super::{ABSENT, CpuField, HEADER_BYTES, Header, MAGIC, MAX_FIELDS, NAME_BYTES, TaskField, VERSION};

/// Largest structure that a reader accepts; a guest can't make it read more for a task.
const MAX_STRUCTURE: u32 = 32 << 10;

/// What is wrong with a view's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ViewError {
    /// Doesn't start with [`MAGIC`].
    Magic(u64),
    /// Another version.
    Version(u32),
    /// A structure is too large to be one.
    Size(u32),
    /// A field lies outside of its structure: number of the field, and its offset.
    Field(usize, u16),
}

impl fmt::Display for ViewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "no task view there: magic number {found:#018x}, expected {MAGIC:#018x}"),
            Self::Version(found) => write!(f, "task view version {found}, this VMM knows {VERSION}"),
            Self::Size(found) => {
                write!(f, "the task view claims structures of {found} bytes, at most {MAX_STRUCTURE} can be")
            }
            Self::Field(number, offset) => {
                write!(f, "field {number} of the task view lies at {offset}, outside of its structure")
            }
        }
    }
}

impl core::error::Error for ViewError {}

/// A checked copy of a [`Header`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    /// Size of a task.
    pub task_bytes: u32,
    /// Size of a CPU.
    pub cpu_bytes: u32,
    /// Tasks listed; unchecked.
    pub live: u32,
    /// Slots; unchecked.
    pub slots: u32,
    /// Tasks not listed; unchecked.
    pub unlisted: u32,
    /// See [`Header::generation`].
    pub generation: u64,
    /// Guest-physical address; unchecked.
    pub first_chunk: u64,
    task_fields: [u16; MAX_FIELDS],
    cpu_fields: [u16; MAX_FIELDS],
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn offsets_at(bytes: &[u8; HEADER_BYTES], at: usize) -> [u16; MAX_FIELDS] {
    let (pairs, _) = bytes[at..at + 2 * MAX_FIELDS].as_chunks::<2>();
    core::array::from_fn(|n| u16::from_le_bytes(pairs[n]))
}

fn check(offsets: &[u16], sizes: impl Iterator<Item = usize>, total: u32) -> Result<(), ViewError> {
    if total > MAX_STRUCTURE {
        return Err(ViewError::Size(total));
    }
    for (number, (&offset, size)) in offsets.iter().zip(sizes).enumerate() {
        if offset != ABSENT && usize::from(offset) + size > total as usize {
            return Err(ViewError::Field(number, offset));
        }
    }
    Ok(())
}

impl Table {
    /// Reads a copy of a header.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ViewError> {
        // In range, since every field lies within the header.
        let word = |at| array_at(bytes, at).map_or(0, u64::from_le_bytes);
        let half = |at| array_at(bytes, at).map_or(0, u32::from_le_bytes);
        let (magic, version) = (word(offset_of!(Header, magic)), half(offset_of!(Header, version)));
        if magic != MAGIC {
            return Err(ViewError::Magic(magic));
        }
        if version != VERSION {
            return Err(ViewError::Version(version));
        }
        let table = Self {
            task_bytes: half(offset_of!(Header, task_bytes)),
            cpu_bytes: half(offset_of!(Header, cpu_bytes)),
            live: half(offset_of!(Header, live)),
            slots: half(offset_of!(Header, slots)),
            unlisted: half(offset_of!(Header, unlisted)),
            generation: word(offset_of!(Header, generation)),
            first_chunk: word(offset_of!(Header, first_chunk)),
            task_fields: offsets_at(bytes, offset_of!(Header, task_fields)),
            cpu_fields: offsets_at(bytes, offset_of!(Header, cpu_fields)),
        };
        check(&table.task_fields, TaskField::ALL.iter().map(|f| f.size()), table.task_bytes)?;
        check(&table.cpu_fields, CpuField::ALL.iter().map(|f| f.size()), table.cpu_bytes)?;
        Ok(table)
    }

    /// A task's bytes, by fields.
    pub fn task<'a>(&'a self, bytes: &'a [u8]) -> Record<'a> {
        Record { offsets: &self.task_fields, bytes }
    }

    /// A CPU's bytes, by fields.
    pub fn cpu<'a>(&'a self, bytes: &'a [u8]) -> Record<'a> {
        Record { offsets: &self.cpu_fields, bytes }
    }
}

/// A copied structure, by fields.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    offsets: &'a [u16; MAX_FIELDS],
    bytes: &'a [u8],
}

impl Record<'_> {
    fn at(&self, field: usize, size: usize) -> Option<&[u8]> {
        let offset = *self.offsets.get(field)?;
        if offset == ABSENT {
            return None;
        }
        self.bytes.get(usize::from(offset)..)?.get(..size)
    }

    fn number(&self, field: usize, size: usize) -> Option<u64> {
        Some(self.at(field, size)?.iter().take(8).rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    /// A field of a task, zero-extended; `None` if this kernel doesn't have it.
    pub fn task_field(&self, field: TaskField) -> Option<u64> {
        self.number(field as usize, field.size())
    }

    /// A field of a CPU, zero-extended; `None` if this kernel doesn't have it.
    pub fn cpu_field(&self, field: CpuField) -> Option<u64> {
        self.number(field as usize, field.size())
    }

    /// The CPUs that a task may run on, CPUs that aren't there perhaps included; `None` if this kernel doesn't tell.
    pub fn task_affinity(&self) -> Option<CpuMask> {
        let first = self.task_field(TaskField::Affinity)?;
        let rest = self.at(TaskField::AffinityRest as usize, TaskField::AffinityRest.size()).unwrap_or_default();
        let (rest, _) = rest.as_chunks::<8>();
        Some(CpuMask::from_words(core::iter::once(first).chain(rest.iter().map(|word| u64::from_le_bytes(*word)))))
    }

    /// A task's name up to the first zero, as the guest wrote it.
    pub fn task_name(&self) -> Option<&[u8]> {
        let name = self.at(TaskField::Name as usize, NAME_BYTES)?;
        Some(name.split(|&b| b == 0).next().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(task_bytes: u32, id: u16, name: u16) -> [u8; HEADER_BYTES] {
        let mut bytes = [0xff; HEADER_BYTES];
        bytes[offset_of!(Header, magic)..][..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[offset_of!(Header, version)..][..4].copy_from_slice(&VERSION.to_le_bytes());
        bytes[offset_of!(Header, task_bytes)..][..4].copy_from_slice(&task_bytes.to_le_bytes());
        bytes[offset_of!(Header, cpu_bytes)..][..4].copy_from_slice(&8u32.to_le_bytes());
        let at = |field| offset_of!(Header, task_fields) + 2 * field as usize;
        bytes[at(TaskField::Id)..][..2].copy_from_slice(&id.to_le_bytes());
        bytes[at(TaskField::Name)..][..2].copy_from_slice(&name.to_le_bytes());
        bytes
    }

    #[test]
    fn fields_are_found_where_the_header_says() {
        let table = Table::parse(&header(40, 36, 4)).unwrap();
        let mut task = [0; 40];
        task[36..].copy_from_slice(&0x0102_0304u32.to_le_bytes());
        task[4..9].copy_from_slice(b"hello");
        let record = table.task(&task);
        assert_eq!(record.task_field(TaskField::Id), Some(0x0102_0304));
        assert_eq!(record.task_name(), Some(&b"hello"[..]));
        assert_eq!(record.task_field(TaskField::Nice), None, "absent");
        assert_eq!(table.cpu(&[0; 8]).cpu_field(CpuField::Current), None);
    }

    #[test]
    fn an_affinity_has_as_many_words_as_the_kernel_shows() {
        let mut bytes = header(136, 0, ABSENT);
        let put = |bytes: &mut [u8; HEADER_BYTES], field: TaskField, offset: u16| {
            let at = offset_of!(Header, task_fields) + 2 * field as usize;
            bytes[at..at + 2].copy_from_slice(&offset.to_le_bytes());
        };
        put(&mut bytes, TaskField::Affinity, 8);
        let mut task = [0; 136];
        task[8] = 0b101;
        task[16] = 1 << 6; // the first byte of the second word: CPU 70
        task[135] = 0x80;
        let affinity = |bytes: &[u8; HEADER_BYTES]| Table::parse(bytes).unwrap().task(&task).task_affinity().unwrap();
        assert_eq!(affinity(&bytes), "0,2".parse().unwrap(), "a kernel with 64 CPUs at most");
        put(&mut bytes, TaskField::AffinityRest, 16);
        assert_eq!(affinity(&bytes), "0,2,70,1023".parse().unwrap());
    }

    #[test]
    fn a_short_copy_has_no_field() {
        let table = Table::parse(&header(40, 36, 4)).unwrap();
        assert_eq!(table.task(&[0; 39]).task_field(TaskField::Id), None);
        assert_eq!(table.task(&[]).task_name(), None);
    }

    #[test]
    fn a_wrong_header_is_refused_with_its_reason() {
        let mut other = header(40, 0, 0);
        other[8] = 9;
        assert_eq!(Table::parse(&other), Err(ViewError::Version(9)));
        other[0] = 0;
        assert!(matches!(Table::parse(&other), Err(ViewError::Magic(_))));
        assert_eq!(Table::parse(&header(40, 37, 0)), Err(ViewError::Field(0, 37)));
        assert_eq!(Table::parse(&header(1 << 20, 0, 0)), Err(ViewError::Size(1 << 20)));
    }

    #[test]
    fn a_name_without_an_end_has_sixteen_bytes() {
        let table = Table::parse(&header(16, ABSENT, 0)).unwrap();
        assert_eq!(table.task(&[b'x'; 16]).task_name(), Some(&[b'x'; 16][..]));
    }
}
