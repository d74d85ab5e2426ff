//! The Linux x86-64 user ABI, over the kernel's own objects. Nothing outside this folder knows it, except `main`, which starts it.
//!
//! `syscall` dispatches by number; `fs` holds files and everything with a file descriptor; `process` holds processes, threads,
//! signals, futexes, program loading.

pub mod errno;
pub mod fs;
pub mod process;

/// Loads the archive and starts the start list's programs.
pub fn start(_archive: (crate::mm::PhysAddr, u64)) {}
