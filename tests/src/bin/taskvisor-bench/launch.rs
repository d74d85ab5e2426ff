//! Time from the start of the process to the kernel's first instruction, to the first user instruction and to the end, and
//! memory, beside QEMU's microvm with the same kernel and archive.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use taskvisor_tests::guest::taskvisor;
use taskvisor_tests::qemu::Image;
use taskvisor_tests::{Guest, Run, prereq};

use crate::table::{Row, Table};

/// Runs of each; the median is told.
const RUNS: usize = 11;
/// Aim for the VMM's own memory, in MiB.
const BESIDE_GUEST: f64 = 5.0;

/// One launch. Times in milliseconds from the start of the process, memory in MiB.
#[derive(Debug, Clone, Copy)]
struct Launch {
    kernel_entry: f64,
    first_user: f64,
    end: f64,
    resident: f64,
    beside_guest: f64,
}

/// Both sides.
pub fn measure(table: &mut Table) {
    table.section("Launch of `busybox true`, 1 vCPU, 128 MiB, median of 11");
    let (true, Some(busybox)) = (prereq::kvm_or_left_out(), prereq::busybox()) else {
        table.push(Row::missing("launch", "needs /dev/kvm and busybox-static"));
        return;
    };
    let ours: Result<Vec<_>, _> = (0..RUNS).map(|_| ours(&busybox)).collect();
    let ours = match ours {
        Ok(ours) => ours,
        Err(why) => return table.push(Row::missing("launch", why)),
    };
    let qemus: Result<Vec<_>, String> = match prereq::qemu() {
        Some(qemu) => {
            let quirks = quirks();
            let image = Image::new(&["--cmdline", &quirks], &busybox, &["true"]);
            (0..RUNS).map(|_| qemus(&qemu, &image)).collect()
        }
        None => Err("no QEMU".into()),
    };
    let theirs = qemus.as_ref().ok();
    type Field = fn(&Launch) -> f64;
    let fields: [(&str, &'static str, Field, Option<f64>); 5] = [
        ("process start to the kernel's first port write", "ms", |l| l.kernel_entry, Some(0.2)),
        ("process start to the first user instruction", "ms", |l| l.first_user, None),
        ("process start to the end of the process", "ms", |l| l.end, None),
        ("resident memory at its peak", "MiB", |l| l.resident, None),
        ("resident memory at its peak, besides touched guest RAM", "MiB", |l| l.beside_guest, None),
    ];
    for (name, unit, field, share) in fields {
        let mut row = Row::new(name, median(&ours, field), unit);
        // QEMU doesn't tell its own memory apart from the guest's.
        if unit != "MiB" || !name.contains("besides") {
            row = row.beside("QEMU microvm", theirs.map(|theirs| median(theirs, field)));
        } else {
            row = row.budget(BESIDE_GUEST);
        }
        if let (Some(share), Some((_, theirs))) = (share, row.counterpart) {
            row = row.budget(theirs * share);
        }
        if let Err(why) = &qemus {
            row = row.note(why.clone());
        }
        table.push(row);
    }
    let name = "resident memory besides guest RAM, while the guest sleeps";
    table.push(match asleep(&busybox) {
        Ok(resident) => Row::new(name, resident, "MiB").budget(BESIDE_GUEST),
        Err(why) => Row::missing(name, why),
    });
}

/// What the process itself takes in MiB when its guest has started and waits: all but the guest's memory, which is shared.
fn asleep(busybox: &Path) -> Result<f64, String> {
    let mut child = Command::new(taskvisor())
        .args(["run", "--memory", "128M", "--"])
        .arg(busybox)
        .args(["sh", "-c", "echo; exec sleep 1000"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut stdout = child.stdout.take().ok_or("its stdout")?;
    let started = stdout.read_exact(&mut [0u8]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
    // It may have ended by itself.
    let _ = child.kill();
    child.wait().map_err(|e| e.to_string())?;
    started.map_err(|e| format!("the guest printed nothing: {e}"))?;
    let status = status.map_err(|e| e.to_string())?;
    let kib = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let (own, files) = (kib("RssAnon:"), kib("RssFile:"));
    own.zip(files).map(|(own, files)| (own + files) / 1024.0).ok_or_else(|| "no figures in /proc/PID/status".into())
}

/// An image doesn't know where it will run; on this host's KVM the kernel needs what `taskvisor run` would tell it.
fn quirks() -> String {
    let doctor = Run::new(taskvisor()).arg("doctor").run().text();
    let quirks = doctor.lines().find_map(|line| line.strip_prefix("quirks ")).map(str::trim).unwrap_or_default();
    if quirks.is_empty() { String::new() } else { format!("quirks={quirks}") }
}

fn median(launches: &[Launch], field: fn(&Launch) -> f64) -> f64 {
    let mut values: Vec<_> = launches.iter().map(field).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn ours(busybox: &Path) -> Result<Launch, String> {
    let guest = Guest::new(1).memory("128M").flag("--stats");
    let outcome = guest.run(busybox, ["true"]);
    if outcome.code() != 0 {
        return Err(format!("taskvisor ended with exit code {}; again: {}", outcome.code(), outcome.typed));
    }
    let figure = |line: &str, key: &str| -> Result<f64, String> {
        let found =
            outcome.stderr.lines().filter_map(|l| l.strip_prefix("stats: ")).filter(|l| l.starts_with(line)).find_map(
                |l| {
                    l.split_whitespace()
                        .filter_map(|pair| pair.split_once('='))
                        .find(|(name, _)| *name == key)?
                        .1
                        .parse()
                        .ok()
                },
            );
        found.ok_or_else(|| format!("--stats has no {key} in a line {line}"))
    };
    Ok(Launch {
        kernel_entry: figure("kernel_entry", "ms")?,
        first_user: figure("first_user_instruction", "ms")?,
        end: outcome.elapsed.as_secs_f64() * 1e3,
        resident: figure("memory", "peak_rss_kib")? / 1024.0,
        beside_guest: figure("memory", "beside_guest_kib")? / 1024.0,
    })
}

/// QEMU tells nothing of port 0x80 itself; a debug console on that port gives each byte the moment it is written.
fn qemus(qemu: &Path, image: &Image) -> Result<Launch, String> {
    let cmdline = std::fs::read_to_string(image.file("cmdline")).map_err(|e| e.to_string())?;
    let start = Instant::now();
    let mut child = Command::new(qemu)
        .args(["-accel", "kvm", "-machine", "microvm", "-m", "128", "-smp", "1", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-no-reboot", "-serial", "null"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .args(["-chardev", "stdio,id=milestones,signal=off", "-device", "isa-debugcon,iobase=0x80,chardev=milestones"])
        .arg("-kernel")
        .arg(image.file("kernel.elf"))
        .arg("-initrd")
        .arg(image.file("archive.cpio"))
        .args(["-append", cmdline.trim()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("QEMU: {e}"))?;
    let mut stdout = child.stdout.take().ok_or("QEMU's stdout")?;
    let (mut kernel_entry, mut first_user) = (None, None);
    let mut byte = [0u8];
    while matches!(stdout.read(&mut byte), Ok(1)) {
        let now = start.elapsed().as_secs_f64() * 1e3;
        match byte[0] {
            1 => kernel_entry = kernel_entry.or(Some(now)),
            2 => first_user = first_user.or(Some(now)),
            _ => {}
        }
    }
    let (code, resident) = reap(&child);
    let end = start.elapsed().as_secs_f64() * 1e3;
    match (kernel_entry, first_user) {
        (Some(kernel_entry), Some(first_user)) => {
            Ok(Launch { kernel_entry, first_user, end, resident, beside_guest: f64::NAN })
        }
        _ => Err(format!("QEMU did not run the guest, wait status {code:#x}")),
    }
}

/// Waits for the child and returns its status and peak resident memory in MiB, which std doesn't tell.
fn reap(child: &Child) -> (i32, f64) {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    let pid = i32::try_from(child.id()).unwrap_or(-1);
    // SAFETY: both pointers are valid for writing; all-zero is a value of rusage should the call fail. `child` is never
    // waited for by std, so the process id is still ours.
    let usage = unsafe {
        libc::wait4(pid, &mut status, 0, usage.as_mut_ptr());
        usage.assume_init()
    };
    (status, usage.ru_maxrss as f64 / 1024.0)
}
