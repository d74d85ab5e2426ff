//! The system calls with files, by subject. Arguments come as the registers have them.

pub mod descriptor;
pub mod info;
pub mod name;
pub mod open;
pub mod socket;
pub mod transfer;

use crate::linux::errno::Errno;

/// `AT_*` flags. Linux include/uapi/linux/fcntl.h.
pub mod at {
    /// Don't follow a link in the last component.
    pub const SYMLINK_NOFOLLOW: u64 = 0x100;
    /// unlinkat: remove a directory. faccessat: use the effective ids.
    pub const REMOVEDIR: u64 = 0x200;
    /// linkat: follow a link in the last component.
    pub const SYMLINK_FOLLOW: u64 = 0x400;
    /// Accepted, without effect.
    pub const NO_AUTOMOUNT: u64 = 0x800;
    /// An empty path means the descriptor itself.
    pub const EMPTY_PATH: u64 = 0x1000;
    /// statx: how to synchronise; nothing to do here.
    pub const STATX_SYNC_TYPE: u64 = 0x6000;
}

/// Refuses flags that the call doesn't know.
///
/// # Errors
/// EINVAL.
fn only(flags: u64, known: u64) -> Result<(), Errno> {
    if flags as u32 as u64 & !known != 0 { Err(Errno::EINVAL) } else { Ok(()) }
}
