//! `--stats`: wall time to milestones, exits by reason, memory.
//!
//! The event loop notes milestones, [`crate::vm`] prints at the end. Everything is measured from the process's start.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use taskvisor_devices::milestone::{Milestone, MilestoneHit};

use crate::vcpu::counts::{ExitCounts, Kind};

/// Times since the start of the process.
#[derive(Debug, Clone)]
pub struct Milestones {
    start: Instant,
    hits: Vec<(&'static str, Duration)>,
}

impl Milestones {
    /// `start` is when the process began, as near as can be had.
    pub fn new(start: Instant) -> Self {
        Self { start, hits: Vec::with_capacity(8) }
    }

    /// Notes something of the VMM's own.
    pub fn note(&mut self, name: &'static str) {
        self.hits.push((name, self.start.elapsed()));
    }

    /// Notes what the guest said; foreign kernels' other port writes are left out.
    pub fn hit(&mut self, hit: MilestoneHit) {
        let name = match hit.milestone {
            Milestone::KernelEntry => "kernel_entry",
            Milestone::FirstUser => "first_user_instruction",
            Milestone::LastProgramEnded => "last_program_ended",
            Milestone::Other(_) => return,
        };
        self.hits.push((name, hit.at.saturating_duration_since(self.start)));
    }
}

/// Formats everything, one `stats:` line each, `key=value` after it.
pub fn render(milestones: &Milestones, counts: &[Arc<ExitCounts>], touched: u64) -> String {
    let mut out = String::new();
    for (name, at) in &milestones.hits {
        let _ = writeln!(out, "stats: {name} ms={:.3}", at.as_secs_f64() * 1e3);
    }
    for (vcpu, counts) in counts.iter().enumerate() {
        let _ = write!(out, "stats: exits vcpu={vcpu} total={}", counts.total());
        for kind in Kind::ALL {
            if counts.get(kind) != 0 {
                let _ = write!(out, " {}={}", kind.name(), counts.get(kind));
            }
        }
        out.push('\n');
    }
    let peak = peak_rss();
    let _ = writeln!(
        out,
        "stats: memory peak_rss_kib={} guest_touched_kib={} beside_guest_kib={}",
        peak >> 10,
        touched >> 10,
        peak.saturating_sub(touched) >> 10
    );
    out
}

/// Peak resident memory of this process in bytes, guest pages included.
fn peak_rss() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for a rusage; all-zero is a value of it if the call fails.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    // ru_maxrss counts KiB (getrusage(2)).
    (usage.ru_maxrss as u64) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_machine_readable() {
        let mut milestones = Milestones::new(Instant::now());
        milestones.note("vcpus_started");
        milestones.hit(MilestoneHit { milestone: Milestone::Other(0x55), at: Instant::now() });
        milestones.hit(MilestoneHit { milestone: Milestone::FirstUser, at: Instant::now() });
        let counts = Arc::new(ExitCounts::default());
        counts.add(Kind::PortOut);
        let text = render(&milestones, &[counts], 4096);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines.iter().all(|line| line.starts_with("stats: ")));
        assert_eq!(lines[2], "stats: exits vcpu=0 total=1 port_out=1");
        assert!(lines[3].contains("guest_touched_kib=4 "));
    }
}
