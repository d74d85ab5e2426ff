//! The kernel file: what kind it is, whether it is ours, loading it, and its symbols for reports.
//!
//! [`crate::vm`] opens and loads it; [`crate::vcpu::report`] asks for symbols, long after. Invariant: the file is never
//! held in memory as a whole; linux-loader reads segments straight into the guest.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use linux_loader::bootparam::setup_header;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use object::elf::{FileHeader64, PT_LOAD, PT_NOTE};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{LittleEndian, Object, ObjectSymbol, ReadCache, ReadRef, SymbolKind};
use vm_memory::GuestAddress;

use super::builtin::BuiltIn;
use crate::memory::{HIGH_RAM_START, Ram, low_end};

/// `XEN_ELFNOTE_PHYS32_ENTRY` (xen/include/public/elfnote.h).
const XEN_PHYS32_ENTRY: u32 = 18;
/// Our kernel carries notes of this name.
const OUR_NOTE: &[u8] = b"Taskvisor";
/// Type of the note that says that it is ours; its value is the version of docs/abi.md.
const NOTE_ABI: u32 = 1;
/// Type of the note that says how many CPUs it brings up.
const NOTE_MAX_CPUS: u32 = 2;
/// Where `HdrS` stands in a bzImage (Linux, Documentation/arch/x86/boot.rst).
const BZIMAGE_MAGIC_OFFSET: u64 = 0x202;
/// bzImage: the 64-bit entry lies this far behind the 32-bit one (boot.rst, "64-bit boot protocol").
const BZIMAGE_ENTRY_64: u64 = 0x200;
/// `xloadflags` bit 0: the kernel has the 64-bit entry (boot.rst, XLF_KERNEL_64).
const XLF_KERNEL_64: u16 = 1;

/// Why a kernel file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It can't be opened or read.
    #[error("can't read the kernel {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Neither ELF nor bzImage.
    #[error("{path} is not a kernel: it {what}; --kernel takes an ELF with a PVH entry or a Linux bzImage")]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        what: &'static str,
    },
    /// The headers promise more than the file holds, or contradict each other.
    #[error("the kernel {path} is damaged or cut short: {detail}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// An ELF without the PVH note.
    #[error(
        "the ELF {path} has no PVH entry point (note XEN_ELFNOTE_PHYS32_ENTRY): it is a program or another kind of kernel"
    )]
    NoPvh {
        /// The file.
        path: PathBuf,
    },
    /// A segment lies where there is no RAM.
    #[error("the kernel {path} doesn't fit into guest memory, whose low part ends at {low_end:#x}: give more --memory")]
    TooBig {
        /// The file.
        path: PathBuf,
        /// End of low RAM.
        low_end: u64,
    },
}

/// A place that kernel bytes come from.
#[derive(Debug)]
enum Source {
    BuiltIn(BuiltIn),
    File(File),
}

/// The formats that boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// ELF with a PVH entry.
    PvhElf {
        /// Physical 32-bit entry.
        entry: u32,
    },
    /// Linux bzImage with a 64-bit entry.
    BzImage,
}

/// A kernel that passed its checks.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    source: Source,
    format: Format,
    ours: Option<Ours>,
}

/// What a kernel of ours says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ours {
    /// The most CPUs that it brings up, if it says so.
    max_cpus: Option<u32>,
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct Loaded {
    /// How it is entered.
    pub entry: Entry,
    /// First address behind it, .bss included.
    pub end: u64,
}

/// How a loaded kernel is entered.
#[derive(Debug)]
pub enum Entry {
    /// 32-bit protected mode, paging off (PVH).
    Pvh {
        /// Physical address.
        rip: u64,
    },
    /// 64-bit mode with identity page tables (Linux).
    Linux64 {
        /// Physical address.
        rip: u64,
        /// Setup header to be copied into the zero page.
        header: Box<setup_header>,
    },
}

impl Entry {
    /// The archive must lie below this address. Linux says so in its setup header (boot.rst, `initrd_addr_max`).
    pub fn archive_limit(&self) -> u64 {
        match self {
            Entry::Linux64 { header, .. } if header.initrd_addr_max != 0 => u64::from(header.initrd_addr_max) + 1,
            _ => u64::MAX,
        }
    }
}

impl Kernel {
    /// Opens a kernel file and finds out what it is.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let read_error = |source| KernelError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read_error)?;
        if file.metadata().map_err(read_error)?.is_dir() {
            return Err(KernelError::NotAKernel { path: path.to_owned(), what: "is a directory" });
        }
        Self::inspect(path.to_owned(), Source::File(file))
    }

    /// A kernel that is part of this program.
    pub fn built_in(image: BuiltIn) -> Result<Self, KernelError> {
        Self::inspect(PathBuf::from("(built in)"), Source::BuiltIn(image))
    }

    fn inspect(path: PathBuf, source: Source) -> Result<Self, KernelError> {
        let (format, ours) = match &source {
            Source::BuiltIn(image) => examine(&path, &**image)?,
            Source::File(file) => examine(&path, &ReadCache::new(file))?,
        };
        Ok(Self { path, source, format, ours })
    }

    /// The kernel's format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether it is Taskvisor's own kernel, which keeps docs/abi.md.
    pub fn is_ours(&self) -> bool {
        self.ours.is_some()
    }

    /// The most vCPUs that it can use, as far as it says: no foreign kernel does.
    pub fn max_vcpus(&self) -> Option<u32> {
        self.ours?.max_cpus
    }

    /// The name to show.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the kernel to `out`, for `taskvisor image`.
    pub fn write_to(&self, out: &mut impl io::Write) -> io::Result<u64> {
        match &self.source {
            Source::BuiltIn(image) => out.write_all(image).map(|()| image.len() as u64),
            Source::File(file) => {
                let mut file = file;
                file.seek(SeekFrom::Start(0))?;
                io::copy(&mut file, out)
            }
        }
    }

    /// Reads the kernel's segments into guest memory.
    pub fn load(&self, ram: &Ram) -> Result<Loaded, KernelError> {
        let result = match &self.source {
            Source::BuiltIn(image) => {
                let result = self.load_from(ram, &mut Cursor::new(&**image));
                image.forget();
                result
            }
            Source::File(file) => file
                .try_clone()
                .map_err(|source| KernelError::Read { path: self.path.clone(), source })
                .and_then(|mut file| self.load_from(ram, &mut file)),
        }?;
        let entry = match self.format {
            Format::PvhElf { entry } => Entry::Pvh { rip: entry.into() },
            Format::BzImage => Entry::Linux64 {
                rip: result.kernel_load.0 + BZIMAGE_ENTRY_64,
                header: Box::new(result.setup_header.unwrap_or_default()),
            },
        };
        // A bzImage unpacks itself behind its load address and says how much it needs for that.
        let end = match &entry {
            Entry::Linux64 { header, .. } => result.kernel_end.max(header.pref_address + u64::from(header.init_size)),
            Entry::Pvh { .. } => result.kernel_end,
        };
        if end > low_end(ram) {
            return Err(self.too_big(ram));
        }
        Ok(Loaded { entry, end })
    }

    fn load_from<F>(&self, ram: &Ram, file: &mut F) -> Result<KernelLoaderResult, KernelError>
    where
        F: Read + Seek + vm_memory::ReadVolatile,
    {
        let result = match self.format {
            Format::PvhElf { .. } => Elf::load(ram, None, file, None),
            Format::BzImage => BzImage::load(ram, None, file, Some(GuestAddress(HIGH_RAM_START))),
        };
        use linux_loader::loader::Error as L;
        use linux_loader::loader::bzimage::Error as B;
        use linux_loader::loader::elf::Error as E;
        match result {
            Ok(result) if matches!(result.pvh_boot_cap, PvhBootCapability::PvhEntryPresent(_)) => Ok(result),
            Ok(result) if self.format == Format::BzImage || result.kernel_end != 0 => Ok(result),
            Ok(_) => Err(self.damaged("it has nothing to load")),
            Err(L::Elf(E::ReadKernelImage) | L::Bzimage(B::ReadBzImageCompressedKernel)) => Err(self.too_big(ram)),
            Err(error) => Err(self.damaged(&error.to_string())),
        }
    }

    fn too_big(&self, ram: &Ram) -> KernelError {
        KernelError::TooBig { path: self.path.clone(), low_end: low_end(ram) }
    }

    fn damaged(&self, detail: &str) -> KernelError {
        KernelError::Damaged { path: self.path.clone(), detail: detail.to_owned() }
    }

    /// The function that holds `address`, and how far into it; `None` without a symbol table.
    pub fn symbol(&self, address: u64) -> Option<(String, u64)> {
        match &self.source {
            Source::BuiltIn(image) => symbol_in(&**image, address),
            Source::File(file) => symbol_in(&ReadCache::new(file), address),
        }
    }
}

/// Finds the format and whether the kernel is ours; refuses what won't boot.
fn examine<'data, R: ReadRef<'data>>(path: &Path, data: R) -> Result<(Format, Option<Ours>), KernelError> {
    let path = || path.to_owned();
    let magic = data.read_bytes_at(0, 4).unwrap_or_default();
    if magic == object::elf::ELFMAG {
        return examine_elf(path, data);
    }
    if data.read_bytes_at(BZIMAGE_MAGIC_OFFSET, 4) == Ok(b"HdrS") {
        // xloadflags: boot.rst, offset 0x236.
        let flags = data.read_bytes_at(0x236, 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
        return if flags & XLF_KERNEL_64 != 0 {
            Ok((Format::BzImage, None))
        } else {
            Err(KernelError::NotAKernel { path: path(), what: "is a bzImage without a 64-bit entry" })
        };
    }
    let len = data.len().unwrap_or(0);
    let head = data.read_bytes_at(0, len.min(512)).unwrap_or_default();
    let what = if head.is_empty() {
        "is empty"
    } else if head.starts_with(b"#!") {
        "is a script"
    } else if head.iter().all(|&b| b == b'\n' || b == b'\t' || b == b'\r' || (b >= 0x20 && b != 0x7f)) {
        "is a text file"
    } else {
        "has an unknown format"
    };
    Err(KernelError::NotAKernel { path: path(), what })
}

fn examine_elf<'data, R: ReadRef<'data>>(
    path: impl Fn() -> PathBuf,
    data: R,
) -> Result<(Format, Option<Ours>), KernelError> {
    let damaged = |detail: String| KernelError::Damaged { path: path(), detail };
    let ident = data.read_bytes_at(0, 20).map_err(|()| damaged("the ELF header is incomplete".into()))?;
    if ident[4] != object::elf::ELFCLASS64 {
        return Err(KernelError::NotAKernel { path: path(), what: "is a 32-bit ELF" });
    }
    if u16::from_le_bytes([ident[18], ident[19]]) != object::elf::EM_X86_64 {
        return Err(KernelError::NotAKernel { path: path(), what: "is an ELF for another CPU than x86-64" });
    }
    let header = FileHeader64::<LittleEndian>::parse(data).map_err(|e| damaged(e.to_string()))?;
    let endian = header.endian().map_err(|e| damaged(e.to_string()))?;
    let segments = header.program_headers(endian, data).map_err(|e| damaged(e.to_string()))?;

    let (mut entry, mut ours, mut max_cpus) = (None, false, None);
    let len = data.len().unwrap_or(0);
    for segment in segments {
        let (offset, size) = (segment.p_offset(endian), segment.p_filesz(endian));
        if offset.checked_add(size).is_none_or(|end| end > len) {
            return Err(damaged(format!("a segment ends at byte {}, the file has {len}", offset.saturating_add(size))));
        }
        if segment.p_type(endian) != PT_NOTE {
            continue;
        }
        let notes = segment.notes(endian, data).map_err(|e| damaged(e.to_string()))?;
        for note in notes.into_iter().flatten() {
            let note = note.map_err(|e| damaged(e.to_string()))?;
            match (note.name(), note.n_type(endian)) {
                (b"Xen", XEN_PHYS32_ENTRY) => {
                    // 4 or 8 bytes, a 32-bit physical address either way.
                    entry = note.desc().first_chunk::<4>().map(|b| u32::from_le_bytes(*b));
                }
                (OUR_NOTE, NOTE_ABI) => ours = true,
                (OUR_NOTE, NOTE_MAX_CPUS) => max_cpus = note.desc().first_chunk().map(|b| u32::from_le_bytes(*b)),
                _ => {}
            }
        }
    }
    let entry = entry.ok_or_else(|| KernelError::NoPvh { path: path() })?;
    Ok((Format::PvhElf { entry }, ours.then_some(Ours { max_cpus })))
}

/// Looks `address` up; before paging is on it is a physical one, which the segments translate.
fn symbol_in<'data, R: ReadRef<'data>>(data: R, address: u64) -> Option<(String, u64)> {
    let file = ElfFile64::<LittleEndian, R>::parse(data).ok()?;
    nearest(&file, address).or_else(|| nearest(&file, physical_to_virtual(&file, address)?))
}

fn nearest<'data, R: ReadRef<'data>>(file: &ElfFile64<'data, LittleEndian, R>, address: u64) -> Option<(String, u64)> {
    // Labels of assembly have no type.
    let is_code = |kind| matches!(kind, SymbolKind::Text | SymbolKind::Unknown);
    let best = file
        .symbols()
        .filter(|s| s.address() <= address && is_code(s.kind()) && s.section_index().is_some())
        .max_by_key(|s| (s.address(), s.kind() == SymbolKind::Text))?;
    let offset = address - best.address();
    // A symbol with a size ends there; one without is believed for a page.
    if offset >= if best.size() == 0 { 0x1000 } else { best.size() } {
        return None;
    }
    let name = best.name().ok().filter(|name| !name.is_empty())?;
    Some((format!("{:#}", rustc_demangle::demangle(name)), offset))
}

fn physical_to_virtual<'data, R: ReadRef<'data>>(
    file: &ElfFile64<'data, LittleEndian, R>,
    address: u64,
) -> Option<u64> {
    let endian = LittleEndian;
    file.elf_program_headers().iter().find_map(|segment| {
        let offset = address.checked_sub(segment.p_paddr(endian))?;
        let inside = segment.p_type(endian) == PT_LOAD && offset < segment.p_memsz(endian);
        inside.then(|| segment.p_vaddr(endian).checked_add(offset)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF with one loadable segment and one of notes.
    fn elf(notes: &[(&[u8], u32, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 0x200];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..24].copy_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[52..60].copy_from_slice(&[64, 0, 56, 0, 2, 0, 64, 0]);
        let mut bytes = Vec::new();
        for (name, kind, desc) in notes {
            for word in [name.len() as u32 + 1, desc.len() as u32, *kind] {
                bytes.extend(word.to_le_bytes());
            }
            for part in [&[name, &b"\0"[..]].concat(), *desc] {
                bytes.extend(part);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
        }
        for (at, kind, offset, size) in [(64, PT_LOAD, 0u64, 0x200), (120, PT_NOTE, 0x200, bytes.len() as u64)] {
            file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            for (n, value) in [offset, 0x20_0000, 0x10_0000, size, size, 4].into_iter().enumerate() {
                file[at + 8 + 8 * n..][..8].copy_from_slice(&value.to_le_bytes());
            }
        }
        file.extend(bytes);
        file
    }

    const PVH: (&[u8], u32, &[u8]) = (b"Xen", XEN_PHYS32_ENTRY, &[0x10, 0, 0x10, 0, 0, 0, 0, 0]);

    fn look(bytes: &[u8]) -> Result<(Format, Option<Ours>), String> {
        examine(Path::new("k"), bytes).map_err(|e| e.to_string())
    }

    #[test]
    fn notes_tell_the_entry_and_whose_kernel_it_is() {
        let entry = Format::PvhElf { entry: 0x10_0010 };
        assert_eq!(look(&elf(&[PVH])), Ok((entry, None)));
        let ours = (OUR_NOTE, NOTE_ABI, &[1, 0, 0, 0][..]);
        assert_eq!(look(&elf(&[(b"GNU", 1, b"x"), PVH, ours])), Ok((entry, Some(Ours { max_cpus: None }))));
        let limit = (OUR_NOTE, NOTE_MAX_CPUS, &[64, 0, 0, 0][..]);
        assert_eq!(look(&elf(&[PVH, ours, limit])), Ok((entry, Some(Ours { max_cpus: Some(64) }))));
        assert_eq!(look(&elf(&[PVH, limit])), Ok((entry, None)), "a limit alone doesn't make it ours");
        assert!(look(&elf(&[])).unwrap_err().contains("no PVH entry"));
    }

    #[test]
    fn other_files_are_named() {
        let with = |at: usize, value: u8| {
            let mut file = elf(&[PVH]);
            file[at] = value;
            look(&file).unwrap_err()
        };
        assert!(with(4, 1).contains("32-bit"));
        assert!(with(18, 183).contains("another CPU"));
        assert!(look(b"").unwrap_err().contains("is empty"));
        assert!(look(b"hello\n").unwrap_err().contains("text file"));
        assert!(look(b"#!/bin/sh\n").unwrap_err().contains("script"));
        assert!(look(&[1, 2, 3]).unwrap_err().contains("unknown format"));
    }

    #[test]
    fn a_kernel_cut_anywhere_is_an_error() {
        let file = elf(&[PVH]);
        for len in 0..file.len() {
            assert!(look(&file[..len]).is_err(), "{len} of {} bytes pass", file.len());
        }
    }

    #[test]
    fn a_bzimage_needs_the_64_bit_entry() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(look(&image).unwrap_err().contains("64-bit entry"));
        image[0x236] = 1;
        assert_eq!(look(&image), Ok((Format::BzImage, None)));
    }

    #[test]
    fn physical_addresses_are_translated_by_the_segments() {
        let bytes = elf(&[PVH]);
        let file = ElfFile64::<LittleEndian, &[u8]>::parse(&bytes).unwrap();
        assert_eq!(physical_to_virtual(&file, 0x10_0042), Some(0x20_0042));
        assert_eq!(physical_to_virtual(&file, 0x30_0000), None);
    }
}
