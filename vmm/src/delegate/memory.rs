//! The enclave's memory: two memory files that hold nothing but the region, and their mapping in one piece.
//!
//! [`make`] is called while a machine is built; [`Mapped::new`] also by a process that was handed the files ([`super::attach`]). The first
//! file holds what the guest and the host write, the second what the agent writes. The invariant: a process that has the descriptors
//! sees the region and nothing else of the guest, can't make the files shorter under anybody's feet, and can't write the first one.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::{SealFlags, fcntl_add_seals, fstat};
use vcpu_sched::delegation::layout::{Layout, LayoutError, Region, Sizes};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

use crate::boot::layout::ENCLAVE;
use crate::memory::Ram;

/// Why there is no region.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// It is none.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Another one than there is room for.
    #[error("the guest has laid out its enclave differently than the VMM expects: another version of the kernel?")]
    Differs,
}

/// The files, each with its size in bytes.
#[derive(Debug)]
pub struct Files {
    guest: (File, u64),
    agent: (File, u64),
}

impl Files {
    /// What the guest and the host write; sealed against all further writers.
    pub fn guest(&self) -> (BorrowedFd<'_>, u64) {
        (self.guest.0.as_fd(), self.guest.1)
    }

    /// What the agent writes.
    pub fn agent(&self) -> (BorrowedFd<'_>, u64) {
        (self.agent.0.as_fd(), self.agent.1)
    }
}

/// An enclave's memory, as the VMM has it.
#[derive(Debug)]
pub struct Memory {
    /// To be handed to an agent's process.
    pub files: Files,
    /// The VMM's own look at it.
    pub mapped: Mapped,
    layout: Layout,
}

/// Makes the memory for the enclave of so many CPUs, and puts it into the guest's address space at [`ENCLAVE`].
///
/// # Errors
/// The host's.
pub fn make(cpus: u32, ram: &Ram) -> io::Result<(Memory, Ram)> {
    let layout = Layout::new(Sizes::of_kernel(cpus)).map_err(io::Error::other)?;
    let bytes = |words: usize| words as u64 * 8;
    let files = Files {
        guest: file(c"taskvisor-enclave-guest", bytes(layout.agent_words()))?,
        agent: file(c"taskvisor-enclave-agent", bytes(layout.words() - layout.agent_words()))?,
    };
    // All writable mappings of the first one, before it is sealed.
    let mapped = Mapped::new(files.guest(), files.agent(), Rights::Host)?;
    let with_guest = insert(ram, &files.guest, ENCLAVE)?;
    let ram = insert(&with_guest, &files.agent, ENCLAVE + files.guest.1)?;
    let size = SealFlags::SHRINK | SealFlags::GROW;
    fcntl_add_seals(&files.guest.0, size | SealFlags::FUTURE_WRITE | SealFlags::SEAL)?;
    fcntl_add_seals(&files.agent.0, size | SealFlags::SEAL)?;
    Ok((Memory { files, mapped, layout }, ram))
}

fn file(name: &std::ffi::CStr, bytes: u64) -> io::Result<(File, u64)> {
    // SAFETY: the name has its end; the call has no other memory operand.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` has just been returned by the kernel, and nothing else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    Ok((file, bytes))
}

fn insert(ram: &Ram, (file, bytes): &(File, u64), at: u64) -> io::Result<Ram> {
    let mapping = MmapRegion::build(
        Some(FileOffset::new(file.try_clone()?, 0)),
        *bytes as usize,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | libc::MAP_NORESERVE,
    )
    .map_err(io::Error::other)?;
    let region = GuestRegionMmap::new(mapping, GuestAddress(at)).ok_or(io::ErrorKind::InvalidInput)?;
    ram.insert_region(Arc::new(region)).map_err(io::Error::other)
}

impl Memory {
    /// The region, once the guest has laid it out.
    ///
    /// # Errors
    /// [`RegionError`]: not yet ([`LayoutError::Magic`]), or never.
    pub fn region(&self) -> Result<Region<'_>, RegionError> {
        let region = self.mapped.region()?;
        if *region.layout() == self.layout { Ok(region) } else { Err(RegionError::Differs) }
    }
}

/// Who maps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// The VMM, which also writes what the host knows.
    Host,
    /// An agent's process.
    Agent,
}

/// Both files, one behind the other.
pub struct Mapped {
    words: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: it is a reference to atomics in memory that is mapped until this is dropped.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").field("words", &self.len).finish_non_exhaustive()
    }
}

impl Mapped {
    /// Maps the files, whose sizes are whole pages.
    ///
    /// # Errors
    /// The host's; or a file isn't as long as is said.
    pub fn new(guest: (BorrowedFd<'_>, u64), agent: (BorrowedFd<'_>, u64), rights: Rights) -> io::Result<Self> {
        let whole = |bytes: u64| bytes > 0 && bytes.is_multiple_of(crate::memory::PAGE_SIZE);
        for (fd, bytes) in [guest, agent] {
            if !whole(bytes) || u64::try_from(fstat(fd)?.st_size).is_ok_and(|size| size < bytes) {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        let bytes = guest.1.checked_add(agent.1).ok_or(io::ErrorKind::InvalidData)? as usize;
        // A place for both, then the files over it.
        // SAFETY: the kernel chooses where; nothing of ours is replaced.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), bytes, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        let base = if base == libc::MAP_FAILED { None } else { NonNull::new(base.cast::<AtomicU64>()) };
        // From here on it is unmapped whatever happens.
        let mapped = Self { words: base.ok_or_else(io::Error::last_os_error)?, len: bytes / 8 };
        let first = if rights == Rights::Host { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        mapped.put(0, guest, first)?;
        mapped.put(guest.1 as usize, agent, libc::PROT_READ | libc::PROT_WRITE)?;
        Ok(mapped)
    }

    fn put(&self, offset: usize, (file, bytes): (BorrowedFd<'_>, u64), rights: libc::c_int) -> io::Result<()> {
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the range lies in the mapping that was made for this, to which nobody has a reference yet.
        let at = unsafe {
            let at = self.words.as_ptr().byte_add(offset).cast();
            libc::mmap(at, bytes as usize, rights, flags, file.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The region, as its header has it now; checked.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn region(&self) -> Result<Region<'_>, LayoutError> {
        // SAFETY: so many words are mapped there, page-aligned, for as long as `self` lives; the files are as long, and sealed so. Any
        // bytes are values of atomics, and everybody uses this memory as such only. An agent's process has the first part read-only,
        // and its side of the region writes only the second one.
        let words = unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) };
        Region::open(words)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: our mapping, to which nobody has a reference any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.len * 8) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use std::os::unix::fs::FileExt;
    use vcpu_sched::cpumask::CpuMask;
    use vm_memory::Bytes;

    #[test]
    fn an_agent_sees_the_region_and_can_neither_shorten_it_nor_write_the_guest_s_part() {
        let ram = memory::allocate(64 << 20, 46).unwrap();
        let (enclave, ram) = make(3, &ram).unwrap();
        assert!(matches!(enclave.region(), Err(RegionError::Layout(LayoutError::Magic(0)))));
        let words = enclave.layout;
        // SAFETY: as in `Mapped::region`.
        let host = unsafe { std::slice::from_raw_parts(enclave.mapped.words.as_ptr(), enclave.mapped.len) };
        Region::new(host, words).unwrap().publish_header(0, &CpuMask::full(3));

        let (guest, agent) = (enclave.files.guest(), enclave.files.agent());
        assert!(Mapped::new(guest, agent, Rights::Host).is_err(), "a new writer");
        let theirs = Mapped::new(guest, agent, Rights::Agent).unwrap();
        let region = theirs.region().unwrap();
        assert_eq!(*region.layout(), *enclave.region().unwrap().layout());
        // What it writes, the guest sees behind its own part.
        region.agent_page()[0].store(77, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(ram.read_obj::<u64>(GuestAddress(ENCLAVE + guest.1)).unwrap(), 77);

        let files = &enclave.files;
        assert!(files.guest.0.write_at(b"x", 0).is_err() && files.guest.0.set_len(0).is_err());
        assert!(files.agent.0.set_len(0).is_err());
        assert!(Mapped::new(guest, (agent.0, agent.1 + memory::PAGE_SIZE), Rights::Agent).is_err(), "behind the end");
    }
}
