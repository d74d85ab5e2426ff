//! The Linux x86-64 user ABI, over the kernel's own objects. Nothing outside this folder knows it, except `main`, which starts it.
//!
//! `syscall` dispatches by number; `fs` holds files and everything with a file descriptor; `process` holds processes, threads,
//! signals, futexes, program loading; `start` runs the start list and ends the guest.

pub mod errno;
pub mod fs;
pub mod names;
pub mod process;
pub mod random;
pub mod requests;
mod start;
mod start_list;
mod stats;
mod strace;
mod syscall;
mod vdso;

pub use process::table::init as init_tables;
pub use start::start;
