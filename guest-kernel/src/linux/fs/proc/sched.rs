//! What /proc shows of the scheduler: /proc/PID/sched, /proc/PID/schedstat, /proc/schedstat.

use core::sync::atomic::Ordering;

use vcpu_sched::ids::Nanos;

use super::Out;
use super::process::{line, name, task_of};
use crate::cpu;
use crate::linux::process::{Process, scheduling, times};
use crate::time;

/// Milliseconds with the nanoseconds behind the point, as Linux shows times there.
struct Millis(Nanos);

impl core::fmt::Display for Millis {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(&alloc::format!("{}.{:06}", self.0.0 / 1_000_000, self.0.0 % 1_000_000))
    }
}

/// /proc/PID/sched. Names and layout as on Linux with CONFIG_SCHEDSTATS; the wake-up latencies are ours.
pub fn sched(p: &Process, tid: u32, out: &mut Out) {
    line(out, format_args!("{} ({tid}, #threads: {})", name(p, tid), p.thread_count()));
    line(out, format_args!("{:-<67}", ""));
    let Some(task) = task_of(p, tid) else { return };
    let (params, a) = (task.sched.params(), task.sched.accounting().snapshot());
    let attr = params.to_attr(scheduling::slice_of(&task));
    let mut field = |name: &str, value: &dyn core::fmt::Display| line(out, format_args!("{name:<45}:{value:>21}"));
    field("se.sum_exec_runtime", &Millis(a.run));
    field("se.nr_migrations", &a.migrations);
    field("wait_sum", &Millis(a.wait));
    field("sum_sleep_runtime", &Millis(a.sleep));
    field("nr_wakeups", &a.wakeups);
    field("wakeup_latency_max", &Millis(a.max_latency));
    field("nr_switches", &a.switches());
    field("nr_voluntary_switches", &a.voluntary);
    field("nr_involuntary_switches", &a.involuntary);
    field("se.load.weight", &task.sched.weight());
    field("se.slice", &attr.runtime);
    field("policy", &attr.policy);
    field("prio", &params.tag().prio);
    field("last_cpu", &task.cpu.load(Ordering::Relaxed));
    // Bucket n: 2^n up to 2^(n+1) nanoseconds.
    for (bucket, count) in a.latency.iter().enumerate().filter(|(_, count)| **count != 0) {
        line(out, format_args!("{:<45}:{count:>21}", alloc::format!("wakeup_latency_ns[2^{bucket}]")));
    }
}

/// /proc/PID/schedstat: time on a CPU, time in a queue, times on a CPU.
pub fn schedstat(p: &Process, tid: u32, out: &mut Out) {
    let a = task_of(p, tid).map(|t| t.sched.accounting().snapshot());
    let (run, wait, turns) = a.map_or((0, 0, 0), |a| (a.run.0, a.wait.0, a.switches()));
    line(out, format_args!("{run} {wait} {turns}"));
}

/// /proc/schedstat, version 15 (Linux Documentation/scheduler/sched-stats.rst): of the fields of a CPU, schedule() calls, time
/// with something to run, and turns given; what is not counted here is 0.
pub fn machine(out: &mut Out) {
    line(out, format_args!("version 15\ntimestamp {}", time::now().0 / times::CLOCK_TICK));
    for c in cpu::all() {
        let switches = c.stats.switches.load(Ordering::Relaxed);
        let idle = c.idle.load(Ordering::Acquire);
        // SAFETY: a CPU's idle task lives for ever; null before it is made.
        let idle = unsafe { idle.as_ref() }.map_or(0, |t| t.run_ns());
        let busy = time::now() - Nanos(idle);
        line(out, format_args!("cpu{} 0 0 {switches} 0 0 0 {} 0 {switches}", c.id.0, busy.0));
    }
}
