//! Traces: what guest and VMM recorded, in files.
//!
//! [`Recorder`] takes records from a running guest and hands them to a thread that owns a [`TraceWriter`]; [`Live`] does so from the
//! moment it is asked to; the simulator uses a
//! [`TraceWriter`] directly; `taskvisor report` reads files with a [`TraceReader`]. The formats are told in docs/tracing.md.
//!
//! Invariants: a file holds every record as it was written, with the place where each lost one is missing; writing and reading
//! take memory by the number of CPUs, never by the number of records.

pub mod clock;
mod index;
mod jsonl;
pub mod live;
mod merge;
mod names;
mod perfetto;
mod reader;
mod recorder;
mod rings;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use vcpu_sched::events::Record;

pub use live::Live;
pub use merge::Summary;
pub use names::{kind_name, policy_name};
pub use reader::{Records, TraceReader};
pub use recorder::{Recorder, VcpuTracer};
pub use writer::TraceWriter;

/// Version of both formats: of the header and of what a chunk or line holds.
pub const VERSION: u32 = 1;

/// What a trace file says about the whole recording.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Header {
    /// [`VERSION`].
    pub version: u32,
    /// Number of CPUs.
    pub cpus: u32,
    /// Frequency of the guest's TSC; 1,000,000 where stamps are nanoseconds.
    pub tsc_khz: u32,
    /// The scheduling policy of ordinary tasks (`--policy`), as far as it was told.
    pub policy: String,
    /// The kernel's command line, or the simulator's.
    pub command_line: String,
    /// The program and its arguments.
    pub program: Vec<String>,
    /// Wall clock at the trace's time 0, nanoseconds since 1970; 0: unknown.
    pub realtime_ns: u64,
}

/// Where a record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stream {
    /// The CPU, which for our kernel is the vCPU too.
    pub cpu: u32,
    /// The VMM's own records of that vCPU, not the guest's.
    pub vmm: bool,
}

/// A record with its origin and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamped {
    /// On which CPU it was written. The VMM's records are of kinds from 64.
    pub cpu: u32,
    /// Nanoseconds of the guest's monotonic clock; VMM's records are converted to it.
    pub time_ns: u64,
    /// The record itself.
    pub record: Record,
}

/// Which file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A Perfetto trace.
    Pftrace,
    /// JSON lines.
    Jsonl,
}

impl Format {
    /// By the name's extension; a name without one is a Perfetto trace.
    ///
    /// # Errors
    /// [`FormatError`]: any other extension.
    pub fn of(path: &Path) -> Result<Self, FormatError> {
        match path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).as_deref() {
            None | Some("pftrace") => Ok(Self::Pftrace),
            Some("jsonl") => Ok(Self::Jsonl),
            Some(other) => Err(FormatError(other.to_owned())),
        }
    }
}

/// A file name that names no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown trace format .{0}: name the file .pftrace (Perfetto) or .jsonl (JSON lines)")]
pub struct FormatError(pub String);

/// Why a trace can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The name.
    #[error("{path}: {source}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        source: FormatError,
    },
    /// The system refuses.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something else than a trace of ours, or a damaged one.
    #[error("{path}, byte {offset}: {what}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: Malformed,
    },
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// No header of ours.
    NotOurs,
    /// Another version.
    Version(u32),
    /// It ends in the middle of something.
    Truncated,
    /// Bytes that mean nothing.
    Syntax(String),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOurs => f.write_str("not a trace that taskvisor wrote"),
            Self::Version(found) => write!(f, "trace version {found}, this taskvisor knows {VERSION}"),
            Self::Truncated => f.write_str("the file ends in the middle of a record"),
            Self::Syntax(what) => f.write_str(what),
        }
    }
}
