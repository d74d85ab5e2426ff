//! The program that the user wants to run: finding it, and refusing what can't run before anything is started.
//!
//! [`crate::guest`] calls it. The checks read headers only. Invariant: what passes is a static ELF64 for x86-64 whose
//! segments are all in the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{LittleEndian, ReadCache, ReadRef};

use crate::archive::parse::{self, Entry};
use crate::end::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND};

/// Why a program can't be run.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No such file.
    #[error("{name}: not found{}", hint(*.searched))]
    NotFound {
        /// As the user gave it.
        name: String,
        /// Looked up in PATH.
        searched: bool,
    },
    /// It can't be read.
    #[error("{name}: {source}")]
    Read {
        /// As the user gave it.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It can't be run.
    #[error("{name}: {why}")]
    Unsuitable {
        /// As the user gave it.
        name: String,
        /// What it is.
        why: Unsuitable,
    },
}

fn hint(searched: bool) -> &'static str {
    if searched { " in PATH (give a path with a slash for a file elsewhere)" } else { "" }
}

impl ProgramError {
    /// As shells give it.
    pub fn exit_code(&self) -> u8 {
        match self {
            ProgramError::NotFound { .. } => EXIT_NOT_FOUND,
            ProgramError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => EXIT_NOT_FOUND,
            ProgramError::Read { .. } | ProgramError::Unsuitable { .. } => EXIT_NOT_EXECUTABLE,
        }
    }
}

/// What a file is that can't be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsuitable {
    /// A directory.
    #[error("is a directory")]
    Directory,
    /// A device, a pipe, a socket.
    #[error("is not a regular file")]
    Special,
    /// Permissions.
    #[error("is not executable: chmod +x it")]
    NotExecutable,
    /// Nothing in it.
    #[error("is an empty file")]
    Empty,
    /// `#!`.
    #[error(
        "is a script for {interpreter}: run a static interpreter and add the script, as in: \
         taskvisor run --file {script}:/script -- INTERPRETER /script"
    )]
    Script {
        /// From its first line.
        interpreter: String,
        /// The script.
        script: String,
    },
    /// Text.
    #[error("is a text file, not an ELF program")]
    Text,
    /// Something else.
    #[error("is not an ELF program")]
    NotElf,
    /// The file is shorter than its headers say.
    #[error("is a truncated ELF: {0}")]
    Truncated(&'static str),
    /// Wrong class.
    #[error("is a 32-bit ELF; Taskvisor runs 64-bit x86-64 programs")]
    Bits32,
    /// Wrong machine.
    #[error("is an ELF for {0}; Taskvisor runs x86-64 programs")]
    Machine(&'static str),
    /// Big endian, unknown version.
    #[error("is a damaged ELF: {0}")]
    Damaged(&'static str),
    /// .o, core.
    #[error("is {0}, not a program")]
    Kind(&'static str),
    /// PT_INTERP.
    #[error(
        "is dynamically linked (it needs {interpreter}), and needs to be a static one: link with -static \
         (Rust: -C target-feature=+crt-static; Go: CGO_ENABLED=0)"
    )]
    Dynamic {
        /// The dynamic loader.
        interpreter: String,
    },
}

/// Where a program was found.
#[derive(Debug)]
pub enum Found {
    /// A file on the host, to be packed.
    Host {
        /// The file.
        path: PathBuf,
        /// Open.
        file: File,
    },
    /// In the archive that the user gave.
    Archive {
        /// Its path in the guest.
        guest: String,
    },
}

/// The archive that the user gave.
#[derive(Debug, Clone, Copy)]
pub struct UserArchive<'a> {
    /// The file.
    pub file: &'a File,
    /// What is in it.
    pub entries: &'a [Entry],
}

/// Directories in which a name without a slash is looked up inside of an archive; the guest's PATH.
pub const GUEST_PATH: [&str; 4] = ["/bin", "/usr/bin", "/sbin", "/usr/sbin"];

/// Finds `name` as a shell does, in the user's archive first if there is one, and checks it.
pub fn find(name: &str, archive: Option<UserArchive<'_>>, path: &str) -> Result<Found, ProgramError> {
    if let Some(archive) = archive
        && let Some(guest) = find_in_archive(name, archive)?
    {
        return Ok(Found::Archive { guest });
    }
    let (path, searched) = match name.contains('/') {
        true => (PathBuf::from(name), false),
        false => match search(name, path) {
            Some(path) => (path, true),
            None => return Err(ProgramError::NotFound { name: name.to_owned(), searched: true }),
        },
    };
    let read = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            ProgramError::NotFound { name: name.to_owned(), searched }
        }
        _ => ProgramError::Read { name: name.to_owned(), source },
    };
    let unsuitable = |why| ProgramError::Unsuitable { name: name.to_owned(), why };
    // The kind first: opening a pipe would wait for a writer.
    let meta = std::fs::metadata(&path).map_err(read)?;
    if meta.is_dir() {
        return Err(unsuitable(Unsuitable::Directory));
    }
    if !meta.is_file() {
        return Err(unsuitable(Unsuitable::Special));
    }
    let file = File::open(&path).map_err(read)?;
    check(&ReadCache::new(&file), name).map_err(unsuitable)?;
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(unsuitable(Unsuitable::NotExecutable));
    }
    Ok(Found::Host { path, file })
}

fn find_in_archive(name: &str, archive: UserArchive<'_>) -> Result<Option<String>, ProgramError> {
    let candidates: Vec<String> = match name.contains('/') {
        true => vec![name.to_owned()],
        false => GUEST_PATH.iter().map(|directory| format!("{directory}/{name}")).collect(),
    };
    let Some(entry) = candidates.iter().find_map(|path| parse::find(archive.entries, path)) else { return Ok(None) };
    let guest = format!("/{}", entry.name);
    // Where a link leads is the guest's to find out.
    if entry.is_symlink() {
        return Ok(Some(guest));
    }
    let unsuitable = |why| ProgramError::Unsuitable { name: name.to_owned(), why };
    if !entry.is_file() {
        return Err(unsuitable(Unsuitable::Directory));
    }
    let cache = ReadCache::new(archive.file);
    check(cache.range(entry.offset, entry.size), name).map_err(unsuitable)?;
    Ok(Some(guest))
}

/// The first executable file of this name in the directories of `path`.
fn search(name: &str, path: &str) -> Option<PathBuf> {
    path.split(':')
        // An empty part means the current directory (POSIX).
        .map(|directory| Path::new(if directory.is_empty() { "." } else { directory }).join(name))
        .find(|file| std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

/// Refuses everything but static x86-64 programs. `script` is the name to use in advice.
fn check<'data, R: ReadRef<'data>>(data: R, script: &str) -> Result<(), Unsuitable> {
    let len = data.len().unwrap_or(0);
    if len == 0 {
        return Err(Unsuitable::Empty);
    }
    let head = data.read_bytes_at(0, len.min(256)).map_err(|()| Unsuitable::NotElf)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let interpreter = String::from_utf8_lossy(line).trim().to_owned();
        return Err(Unsuitable::Script { interpreter, script: script.to_owned() });
    }
    if !elf::ELFMAG.starts_with(&head[..head.len().min(4)]) {
        let text = head.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..));
        return Err(if text { Unsuitable::Text } else { Unsuitable::NotElf });
    }
    // e_ident, e_type, e_machine (ELF-64, "ELF Header").
    let Some(start) = head.first_chunk::<20>() else { return Err(Unsuitable::Truncated("its header is incomplete")) };
    if start[4] == elf::ELFCLASS32 && start[5] == elf::ELFDATA2LSB {
        let machine = u16::from_le_bytes([start[18], start[19]]);
        return Err(if machine == elf::EM_ARM { Unsuitable::Machine("32-bit ARM") } else { Unsuitable::Bits32 });
    }
    if start[4] != elf::ELFCLASS64 || start[5] != elf::ELFDATA2LSB {
        return Err(Unsuitable::Damaged("its class or byte order is unknown"));
    }
    match u16::from_le_bytes([start[18], start[19]]) {
        elf::EM_X86_64 => {}
        elf::EM_AARCH64 => return Err(Unsuitable::Machine("ARM (aarch64)")),
        elf::EM_RISCV => return Err(Unsuitable::Machine("RISC-V")),
        elf::EM_PPC64 => return Err(Unsuitable::Machine("POWER")),
        elf::EM_S390 => return Err(Unsuitable::Machine("s390")),
        _ => return Err(Unsuitable::Machine("another CPU")),
    }
    check_elf(data, len)
}

fn check_elf<'data, R: ReadRef<'data>>(data: R, len: u64) -> Result<(), Unsuitable> {
    let header =
        FileHeader64::<LittleEndian>::parse(data).map_err(|_| Unsuitable::Truncated("its header is incomplete"))?;
    let endian = LittleEndian;
    match header.e_type(endian) {
        elf::ET_EXEC | elf::ET_DYN => {}
        elf::ET_REL => return Err(Unsuitable::Kind("an object file")),
        elf::ET_CORE => return Err(Unsuitable::Kind("a core dump")),
        _ => return Err(Unsuitable::Kind("an ELF of unknown type")),
    }
    let segments = header
        .program_headers(endian, data)
        .map_err(|_| Unsuitable::Truncated("its program headers are not in the file"))?;
    let (mut loads, mut pie) = (false, header.e_type(endian) == elf::ET_EXEC);
    for segment in segments {
        let end = segment.p_offset(endian).checked_add(segment.p_filesz(endian));
        let inside = end.is_some_and(|end| end <= len);
        match segment.p_type(endian) {
            elf::PT_INTERP => {
                let interpreter = segment.interpreter(endian, data).ok().flatten().unwrap_or_default();
                return Err(Unsuitable::Dynamic { interpreter: String::from_utf8_lossy(interpreter).into_owned() });
            }
            elf::PT_LOAD if !inside => return Err(Unsuitable::Truncated("a segment ends behind the end of the file")),
            elf::PT_LOAD => loads = true,
            elf::PT_DYNAMIC => {
                let flags = segment.dynamic(endian, data).ok().flatten().unwrap_or_default();
                let is_pie = |d: &elf::Dyn64<LittleEndian>| {
                    d.d_tag(endian) == elf::DT_FLAGS_1 && d.d_val(endian) & u64::from(elf::DF_1_PIE) != 0
                };
                pie |= flags.iter().any(is_pie);
            }
            _ => {}
        }
    }
    if !loads {
        return Err(Unsuitable::Damaged("it has nothing to load"));
    }
    // Old linkers mark no static PIE; but a shared library has no entry.
    if !pie && header.e_entry(endian) == 0 {
        return Err(Unsuitable::Kind("a shared library"));
    }
    Ok(())
}

/// Where a packed program lives in the guest: under its own name in /bin.
pub fn guest_path(host: &Path) -> Option<String> {
    Some(format!("/bin/{}", host.file_name()?.to_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A static ELF64 program of one segment, with room to break it.
    fn elf64() -> Vec<u8> {
        let mut file = vec![0; 0x80];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..18].copy_from_slice(&elf::ET_EXEC.to_le_bytes());
        file[18..20].copy_from_slice(&elf::EM_X86_64.to_le_bytes());
        file[20] = 1;
        file[24..32].copy_from_slice(&0x40_1000u64.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[52..54].copy_from_slice(&64u16.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[64..68].copy_from_slice(&elf::PT_LOAD.to_le_bytes());
        file[96..104].copy_from_slice(&0x80u64.to_le_bytes());
        file
    }

    fn verdict(bytes: &[u8]) -> Result<(), Unsuitable> {
        check(bytes, "x")
    }

    #[test]
    fn a_static_program_passes() {
        assert_eq!(verdict(&elf64()), Ok(()));
    }

    #[test]
    fn other_things_are_named() {
        assert_eq!(verdict(b""), Err(Unsuitable::Empty));
        assert_eq!(verdict("Grüße\n".as_bytes()), Err(Unsuitable::Text));
        assert_eq!(verdict(&[0, 1, 2]), Err(Unsuitable::NotElf));
        let script = verdict(b"#!/bin/sh -e\necho").unwrap_err().to_string();
        assert!(script.contains("script for /bin/sh -e") && script.contains("--file x:/script"), "{script}");
    }

    #[test]
    fn wrong_machines_are_named() {
        let with = |at: usize, value: &[u8]| {
            let mut file = elf64();
            file[at..at + value.len()].copy_from_slice(value);
            verdict(&file).unwrap_err()
        };
        assert_eq!(with(4, &[1]), Unsuitable::Bits32);
        assert_eq!(with(18, &elf::EM_AARCH64.to_le_bytes()), Unsuitable::Machine("ARM (aarch64)"));
        assert_eq!(with(16, &elf::ET_REL.to_le_bytes()), Unsuitable::Kind("an object file"));
        assert_eq!(with(5, &[2]), Unsuitable::Damaged("its class or byte order is unknown"));
    }

    #[test]
    fn truncation_anywhere_is_an_error() {
        let file = elf64();
        for len in 0..file.len() {
            assert!(verdict(&file[..len]).is_err(), "{len} bytes pass");
        }
        assert_eq!(verdict(&file[..0x7f]), Err(Unsuitable::Truncated("a segment ends behind the end of the file")));
    }

    #[test]
    fn dynamic_programs_are_told_what_they_need() {
        let mut file = elf64();
        file[64..68].copy_from_slice(&elf::PT_INTERP.to_le_bytes());
        file[72..80].copy_from_slice(&0x78u64.to_le_bytes());
        file[96..104].copy_from_slice(&8u64.to_le_bytes());
        file[0x78..0x80].copy_from_slice(b"/ld.so.\0");
        let error = verdict(&file).unwrap_err();
        assert_eq!(error, Unsuitable::Dynamic { interpreter: "/ld.so.".into() });
        assert!(error.to_string().contains("-static"));
    }

    #[test]
    fn libraries_have_no_entry() {
        let mut file = elf64();
        file[16..18].copy_from_slice(&elf::ET_DYN.to_le_bytes());
        assert_eq!(verdict(&file), Ok(()), "a static PIE of an old linker");
        file[24..32].fill(0);
        assert_eq!(verdict(&file), Err(Unsuitable::Kind("a shared library")));
    }

    #[test]
    fn names_are_looked_up_as_in_a_shell() {
        let missing = find("surely-not-there", None, "/bin:/usr/bin").unwrap_err();
        assert_eq!(missing.exit_code(), EXIT_NOT_FOUND);
        assert!(missing.to_string().contains("PATH"));
        let directory = find("/usr", None, "").unwrap_err();
        assert_eq!((directory.exit_code(), directory.to_string()), (126, "/usr: is a directory".into()));
        assert_eq!(find("/etc/passwd/x", None, "").unwrap_err().exit_code(), EXIT_NOT_FOUND);
        assert_eq!(search("sh", "/nonexistent:/bin"), Some("/bin/sh".into()));
    }
}
