//! Processes and threads: what the Linux layer hangs on the kernel's tasks.
//!
//! A [`Thread`] is the `UserContext` of one task; a [`Process`] is shared by the threads of one thread group.

use alloc::sync::Arc;

use crate::linux::fs::FsContext;
use crate::sync::SpinLock;
use crate::task::current;

/// A thread group.
pub struct Process {
    /// Thread group id.
    pub pid: u32,
    /// Open files, working directory, umask (owned by `fs`).
    pub fs: FsContext,
}

/// One thread.
pub struct Thread {
    /// Its process.
    pub process: Arc<Process>,
}
