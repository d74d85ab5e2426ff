//! What only the host knows of the vCPUs, written into the enclave for policies: whether each runs, on which host CPU, since when, how much
//! was stolen from it, and whose core it shares.
//!
//! Read from /proc, through descriptors that are opened before the agent's thread is confined; so it is as fresh as the last
//! [`Watch::look`], and right at that moment only. A vCPU that waits for a host CPU has used none between two looks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use vcpu_sched::delegation::abi::host_flags;
use vcpu_sched::delegation::layout::Region;
use vcpu_sched::delegation::status::HostStatus;
use vcpu_sched::ids::{CpuId, Nanos};

/// How often it is worth looking: two reads a vCPU, some microseconds.
const INTERVAL: Duration = Duration::from_millis(1);

/// One vCPU's thread.
#[derive(Debug)]
struct Thread {
    stat: File,
    schedstat: File,
    ran: u64,
    told: HostStatus,
}

/// All vCPUs' threads.
#[derive(Debug)]
pub struct Watch {
    /// By vCPU; `None`: the host doesn't tell of it.
    threads: Vec<Option<Thread>>,
    looked: Option<Instant>,
}

impl Watch {
    /// Of threads of this process, in the order of the vCPUs, each with the number of its core in the guest.
    pub fn new(threads: impl Iterator<Item = (i32, u32)>) -> Self {
        let open = |(tid, core): (i32, u32)| {
            let file = |name: &str| File::open(format!("/proc/self/task/{tid}/{name}")).ok();
            let told = HostStatus { core: Some(core), ..HostStatus::default() };
            Some(Thread { stat: file("stat")?, schedstat: file("schedstat")?, ran: 0, told })
        };
        Self { threads: threads.map(open).collect(), looked: None }
    }

    /// Looks, unless it has just done so. `now` is the guest's time.
    pub fn look(&mut self, region: &Region<'_>, now: Nanos) {
        if self.looked.is_some_and(|looked| looked.elapsed() < INTERVAL) {
            return;
        }
        self.looked = Some(Instant::now());
        for (vcpu, thread) in (0..).zip(&mut self.threads) {
            if let Some(thread) = thread
                && thread.look(now).is_some()
            {
                region.publish_host(CpuId(vcpu), &thread.told);
            }
        }
    }
}

impl Thread {
    fn look(&mut self, now: Nanos) -> Option<()> {
        let mut text = [0; 512];
        let (ran, waited) = schedstat(read(&self.schedstat, &mut text)?)?;
        let (state, host_cpu) = stat(read(&self.stat, &mut text)?)?;
        let does = match state {
            b'R' if ran != self.ran => host_flags::RUNNING,
            // It wants to, and has not.
            b'R' => 0,
            _ => host_flags::HALTED,
        };
        self.ran = ran;
        let flags = host_flags::KNOWN | does;
        let since = if flags == self.told.flags { self.told.since } else { now };
        self.told = HostStatus { flags, host_cpu, since, stolen: Nanos(waited), core: self.told.core };
        Some(())
    }
}

fn read<'t>(file: &File, text: &'t mut [u8]) -> Option<&'t str> {
    let len = file.read_at(text, 0).ok()?;
    std::str::from_utf8(text.get(..len)?).ok()
}

/// Nanoseconds on a CPU, and nanoseconds waiting for one (Linux, Documentation/scheduler/sched-stats.rst).
fn schedstat(text: &str) -> Option<(u64, u64)> {
    let mut numbers = text.split_ascii_whitespace().map_while(|word| word.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// State and CPU (proc_pid_stat(5), fields 3 and 39). The name before may hold anything, parentheses too.
fn stat(text: &str) -> Option<(u8, u32)> {
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(39 - 4)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_whatever_the_name() {
        let rest = (4..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(stat(&format!("77 (a) R (b) S {rest}\n")), Some((b'S', 39)));
        assert_eq!(stat("77 (vcpu0) R 1 2"), None);
        assert_eq!(stat(""), None);
        assert_eq!(schedstat("12 34 5\n"), Some((12, 34)));
        assert_eq!(schedstat("12"), None);
    }

    #[test]
    fn this_thread_runs() {
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        let mut watch = Watch::new(std::iter::once((tid, 3)));
        let thread = watch.threads[0].as_mut().expect("our own files");
        thread.look(Nanos(1)).expect("both are as documented");
        // Until the host has accounted for what we do.
        while thread.told.flags & host_flags::RUNNING == 0 {
            std::hint::black_box(thread.look(Nanos(2)));
        }
        assert_eq!(thread.told.core, Some(3));
    }
}
