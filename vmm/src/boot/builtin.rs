//! The kernel that is part of this binary.
//!
//! [`super::kernel`] reads it as it reads a kernel file. Its pages are the binary's own on disk, so they need not stay in memory once
//! the guest has its copy.

use std::ops::Deref;

/// The embedded image.
#[derive(Debug, Clone, Copy)]
pub struct BuiltIn(&'static [u8]);

impl BuiltIn {
    /// The image, if this binary was built with one.
    pub fn get() -> Option<Self> {
        #[cfg(feature = "embedded-kernel")]
        return Some(Self(taskvisor_resources::KERNEL_ELF));
        #[cfg(not(feature = "embedded-kernel"))]
        return None;
    }

    /// Takes the image's pages out of this process's memory. They come back from the binary when somebody looks again, as
    /// a report does for a symbol.
    pub fn forget(self) {
        // SAFETY: sysconf takes and returns plain numbers.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Ok(page) = usize::try_from(page) else { return };
        let address = self.0.as_ptr() as usize;
        // Whole pages of the image alone: what else lies in its first and last one stays.
        let before = address.next_multiple_of(page) - address;
        let len = self.0.len().saturating_sub(before) / page * page;
        if len == 0 {
            return;
        }
        // SAFETY: the range lies inside `self.0`, which `get` alone makes, from a constant in the binary's read-only data. That
        // is a private mapping of a file, never written to: dropped pages read the same when they come back (madvise(2),
        // MADV_DONTNEED).
        unsafe { libc::madvise(self.0[before..].as_ptr().cast_mut().cast(), len, libc::MADV_DONTNEED) };
    }
}

impl Deref for BuiltIn {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0
    }
}

#[cfg(all(test, feature = "embedded-kernel"))]
mod tests {
    use super::*;

    #[test]
    fn a_forgotten_image_reads_the_same() {
        let image = BuiltIn::get().unwrap();
        let before = image.to_vec();
        image.forget();
        assert!(image.0 == before);
    }
}
