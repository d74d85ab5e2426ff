//! Exits counted by kind, one set a vCPU.
//!
//! The vCPU's thread adds, anybody may read (`--stats`). Invariant: each counter has one writer, so plain relaxed
//! loads and stores are enough and no vCPU slows another down.

use std::sync::atomic::{AtomicU64, Ordering};

/// Kinds of exits, as `--stats` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// `in`.
    PortIn,
    /// `out`.
    PortOut,
    /// Read outside of RAM.
    MmioRead,
    /// Write outside of RAM.
    MmioWrite,
    /// Signal or kick.
    Interrupted,
    /// `hlt` that reached the VMM.
    Halted,
    /// The last one.
    Fatal,
}

impl Kind {
    /// All kinds in the order of their numbers.
    pub const ALL: [Kind; 7] =
        [Kind::PortIn, Kind::PortOut, Kind::MmioRead, Kind::MmioWrite, Kind::Interrupted, Kind::Halted, Kind::Fatal];

    /// The name to print.
    pub fn name(self) -> &'static str {
        match self {
            Kind::PortIn => "port_in",
            Kind::PortOut => "port_out",
            Kind::MmioRead => "mmio_read",
            Kind::MmioWrite => "mmio_write",
            Kind::Interrupted => "interrupted",
            Kind::Halted => "halted",
            Kind::Fatal => "fatal",
        }
    }

    /// The name of a kind's number, as trace records hold it.
    pub fn name_of(number: u64) -> &'static str {
        Kind::ALL.iter().find(|kind| **kind as u64 == number).map_or("unknown", |kind| kind.name())
    }
}

/// The counters of one vCPU.
#[derive(Debug, Default)]
pub struct ExitCounts([AtomicU64; Kind::ALL.len()]);

impl ExitCounts {
    /// Counts one exit; only the vCPU's own thread may call this.
    pub fn add(&self, kind: Kind) {
        let counter = &self.0[kind as usize];
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// One counter's value.
    pub fn get(&self, kind: Kind) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }

    /// All exits.
    pub fn total(&self) -> u64 {
        Kind::ALL.iter().map(|kind| self.get(*kind)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_numbered_as_listed() {
        let counts = ExitCounts::default();
        for (n, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, n);
            counts.add(kind);
            counts.add(kind);
            assert_eq!(counts.get(kind), 2);
        }
        assert_eq!(counts.total(), 14);
    }
}
