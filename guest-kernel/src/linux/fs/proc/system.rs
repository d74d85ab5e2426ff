//! What /proc and /sys show of the machine.

use core::fmt::Write;
use core::sync::atomic::Ordering;

use super::process::line;
use super::{Item, Out, What};
use crate::boot::cmdline;
use crate::cpu;
use crate::linux::fs::sys::{Dir, Entry};
use crate::linux::process::identity::{RELEASE, VERSION};
use crate::linux::process::{for_each, times};
use crate::linux::random;
use crate::mm::frame;
use crate::mm::layout::PAGE_SIZE;
use crate::time::{self, wall};

const NANOS: u64 = 1_000_000_000;

const fn text(name: &'static str, make: fn(&mut Out)) -> Item {
    Item { name, what: What::Text(make) }
}

const fn dir(name: &'static str, items: &'static [Item]) -> Item {
    Item { name, what: What::Dir(items) }
}

/// Entries of /proc, the processes left out.
pub const PROC: &[Item] = &[
    text("cmdline", |out| {
        cmdline::words().enumerate().for_each(|(i, w)| {
            out.push_str(if i > 0 { " " } else { "" });
            out.push_str(w);
        });
        out.push_str("\n");
    }),
    text("cpuinfo", super::cpuinfo::cpuinfo),
    text("filesystems", |out| out.push_str("nodev\ttmpfs\nnodev\tproc\nnodev\tsysfs\n")),
    text("futures", super::stack::futures),
    text("loadavg", loadavg),
    text("meminfo", meminfo),
    Item { name: "mounts", what: What::Link("self/mounts") },
    text("schedstat", super::sched::machine),
    text("stat", stat),
    dir("sys", PROC_SYS),
    text("uptime", uptime),
    text("version", |out| line(out, format_args!("Linux version {RELEASE} (taskvisor) {VERSION}"))),
    text("swaps", |out| out.push_str("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")),
    text("vmstat", |out| line(out, format_args!("nr_free_pages {}", frame::usage().0))),
];

const PROC_SYS: &[Item] = &[
    dir(
        "fs",
        &[
            text("file-max", |out| out.push_str("1048576\n")),
            text("nr_open", |out| out.push_str("65536\n")),
            text("pipe-max-size", |out| out.push_str("1048576\n")),
        ],
    ),
    dir(
        "kernel",
        &[
            text("cap_last_cap", |out| out.push_str("40\n")),
            text("hostname", |out| out.push_str("taskvisor\n")),
            text("domainname", |out| out.push_str("(none)\n")),
            text("ngroups_max", |out| out.push_str("65536\n")),
            text("osrelease", |out| line(out, format_args!("{RELEASE}"))),
            text("ostype", |out| out.push_str("Linux\n")),
            text("pid_max", |out| out.push_str("4194304\n")),
            text("randomize_va_space", |out| out.push_str("0\n")),
            text("threads-max", |out| out.push_str("32768\n")),
            text("version", |out| line(out, format_args!("{VERSION}"))),
            dir(
                "random",
                &[
                    text("boot_id", |out| out.push_str("00000000-0000-4000-8000-000000000000\n")),
                    text("entropy_avail", |out| out.push_str("256\n")),
                    text("poolsize", |out| out.push_str("256\n")),
                    text("uuid", uuid),
                ],
            ),
        ],
    ),
    dir(
        "vm",
        &[
            text("max_map_count", |out| out.push_str("65530\n")),
            text("mmap_min_addr", |out| out.push_str("65536\n")),
            text("overcommit_memory", |out| out.push_str("0\n")),
        ],
    ),
];

/// Entries of /sys.
pub const SYS: &[Item] = &[
    dir(
        "devices",
        &[dir(
            "system",
            &[
                Item { name: "cpu", what: What::Sys(Entry::Dir(Dir::Cpus)) },
                Item { name: "node", what: What::Sys(Entry::Dir(Dir::Nodes)) },
            ],
        )],
    ),
    dir(
        "kernel",
        &[dir(
            "mm",
            &[dir("transparent_hugepage", &[text("enabled", |out| out.push_str("always madvise [never]\n"))])],
        )],
    ),
];

fn uuid(out: &mut Out) {
    let mut b = [0; 16];
    random::fill(&mut b);
    // RFC 4122, 4.4: version 4.
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    for (i, byte) in b.iter().enumerate() {
        out.push_str(if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" });
        let _ = write!(out, "{byte:02x}");
    }
    out.push_str("\n");
}

/// Hundredths of a second that a CPU has idled, its present sleep not counted.
fn idle_ticks(c: &cpu::Cpu) -> u64 {
    let idle = c.idle.load(Ordering::Acquire);
    // SAFETY: a CPU's idle task lives for ever; null before it is made.
    unsafe { idle.as_ref() }.map_or(0, |t| times::clock_ticks(crate::sched::ran(t).0))
}

fn up_ticks() -> u64 {
    time::now().0 / (NANOS / 100)
}

fn stat(out: &mut Out) {
    let up = up_ticks();
    let stolen_ticks = |c: &cpu::Cpu| times::clock_ticks(c.steal.stolen().0);
    let idle: u64 = cpu::all().map(idle_ticks).sum();
    let steal: u64 = cpu::all().map(stolen_ticks).sum();
    let all = up * u64::from(cpu::count());
    line(out, format_args!("cpu  {} 0 0 {idle} 0 0 0 {steal} 0 0", all.saturating_sub(idle + steal)));
    for c in cpu::all() {
        let (idle, steal) = (idle_ticks(c), stolen_ticks(c));
        let busy = up.saturating_sub(idle + steal);
        line(out, format_args!("cpu{} {busy} 0 0 {idle} 0 0 0 {steal} 0 0", c.id.0));
    }
    let sum = |f: fn(&cpu::CpuStats) -> u64| cpu::all().map(|c| f(&c.stats)).sum::<u64>();
    line(out, format_args!("intr {}", sum(|s| s.timer_interrupts.load(Ordering::Relaxed))));
    line(out, format_args!("ctxt {}", sum(|s| s.switches.load(Ordering::Relaxed))));
    // Not Linux's: see `sync::SpinLock`. Whoever reads this file goes by the words.
    let (waits, preempted) = (
        |s: &cpu::CpuStats| s.lock_waits.load(Ordering::Relaxed),
        |s: &cpu::CpuStats| s.lock_waits_preempted.load(Ordering::Relaxed),
    );
    line(out, format_args!("lock_waits {} {}", sum(waits), sum(preempted)));
    line(out, format_args!("btime {}", wall::offset().0 / NANOS));
    let (running, total) = process_counts();
    line(out, format_args!("processes {total}\nprocs_running {running}\nprocs_blocked 0"));
}

/// Running and all processes.
fn process_counts() -> (u32, u32) {
    let (mut running, mut total) = (0, 0);
    for_each(|p| {
        total += 1;
        running += u32::from(p.state_char() == 'R');
    });
    (running, total)
}

fn loadavg(out: &mut Out) {
    let (running, total) = process_counts();
    line(out, format_args!("0.00 0.00 0.00 {running}/{total} {total}"));
}

fn uptime(out: &mut Out) {
    let up = up_ticks();
    let idle: u64 = cpu::all().map(idle_ticks).sum();
    line(out, format_args!("{}.{:02} {}.{:02}", up / 100, up % 100, idle / 100, idle % 100));
}

fn meminfo(out: &mut Out) {
    let (free, total) = frame::usage();
    let (files, _) = crate::linux::fs::memfs::usage();
    let kib = |pages: u64| pages * (PAGE_SIZE / 1024);
    let mut field =
        |name: &str, pages: u64| line(out, format_args!("{:<16}{:>8} kB", alloc::format!("{name}:"), kib(pages)));
    field("MemTotal", total.into());
    field("MemFree", free.into());
    field("MemAvailable", free.into());
    field("Buffers", 0);
    field("Cached", files);
    field("SwapCached", 0);
    field("Shmem", files);
    field("SwapTotal", 0);
    field("SwapFree", 0);
    field("CommitLimit", total.into());
}

const MOUNTS: [(&str, &str, &str, &str); 7] = [
    ("rootfs", "/", "tmpfs", "ro"),
    ("proc", "/proc", "proc", "ro"),
    ("sysfs", "/sys", "sysfs", "ro"),
    ("tmpfs", "/tmp", "tmpfs", "rw"),
    ("tmpfs", "/var/tmp", "tmpfs", "rw"),
    ("tmpfs", "/run", "tmpfs", "rw"),
    ("tmpfs", "/dev/shm", "tmpfs", "rw"),
];

/// /proc/PID/mounts.
pub fn mounts(out: &mut Out) {
    MOUNTS.iter().for_each(|(what, at, kind, how)| line(out, format_args!("{what} {at} {kind} {how} 0 0")));
}

/// /proc/PID/mountinfo.
pub fn mount_info(out: &mut Out) {
    for (i, (what, at, kind, how)) in MOUNTS.iter().enumerate() {
        line(out, format_args!("{} 1 0:{} / {at} {how} - {kind} {what} {how}", i + 1, i + 1));
    }
}
