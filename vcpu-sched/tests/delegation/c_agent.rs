//! An agent in C, in a process of its own, decides for the simulated guest over shared memory: resources/agents/fifo.c.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use std::{env, io, ptr, slice, thread};

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::delegation::enclave::Config;
use vcpu_sched::delegation::layout::{Layout, Sizes};
use vcpu_sched::ids::{CpuId, Nanos};

use super::guest::{Guest, Script};

fn owned(fd: i32) -> OwnedFd {
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: it was just made, for us alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Zeroed memory that another process can map, for as long as this one lives.
fn shared(layout: &Layout) -> (OwnedFd, &'static [AtomicU64]) {
    let bytes = layout.words() * 8;
    // SAFETY: the name is a C string.
    let memory = owned(unsafe { libc::memfd_create(c"region".as_ptr(), libc::MFD_CLOEXEC) });
    // SAFETY: no memory of ours is concerned; the mapping is new, so long, never unmapped, and read and written only as atomics.
    let words = unsafe {
        assert_eq!(libc::ftruncate(memory.as_raw_fd(), bytes as i64), 0);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, memory.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        slice::from_raw_parts(at.cast::<AtomicU64>(), layout.words())
    };
    (memory, words)
}

/// The reading end doesn't block.
fn pipe() -> (File, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: there is room for two.
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: flags of a descriptor of our own.
    unsafe { libc::fcntl(ends[0], libc::F_SETFL, libc::O_NONBLOCK) };
    (File::from(owned(ends[0])), owned(ends[1]))
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(region: &OwnedFd, kicks: &OwnedFd) -> Process {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fifo-agent");
    let built = Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(root.join("include"))
        .arg("-o")
        .arg(&program)
        .args([root.join("agents/fifo.c"), root.join("agents/attach.c")])
        .output()
        .expect("a C compiler; Rust links with one");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let (region, kicks) = (region.as_raw_fd(), kicks.as_raw_fd());
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    // SAFETY: only system calls that a child may make. First out of the way, in case one of them is 3 or 4.
    unsafe {
        command.pre_exec(move || {
            let (region, kicks) = (libc::fcntl(region, libc::F_DUPFD, 10), libc::fcntl(kicks, libc::F_DUPFD, 10));
            if libc::dup2(region, 3) < 0 || libc::dup2(kicks, 4) < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::close(region);
            libc::close(kicks);
            Ok(())
        })
    };
    Process(command.spawn().expect("started"))
}

#[test]
fn an_agent_in_c_decides_from_a_process_of_its_own() {
    let layout = Layout::new(Sizes { cpus: 2, tasks: 64, channels: 1, channel_len: 256, pick_len: 2 }).expect("sizes");
    let (memory, words) = shared(&layout);
    let (mut kicks, kick) = pipe();
    // The guest's time is its own; the agent's process may be kept waiting by the host.
    let config = Config { runnable_timeout: Nanos::MAX, flood_limit: u32::MAX, ..Config::new(1, CpuMask::full(2)) };
    let mut guest = Guest::over(words, layout, config);
    for n in 0..12 {
        guest.spawn(Script { run: 1 + n % 7, wait: n % 5, rounds: 20, nice: 0 });
    }
    let mut process = start(&memory, &kick);
    let started = Instant::now();
    let patience = |process: &mut Process| {
        assert!(started.elapsed() < Duration::from_secs(60), "it decides nothing");
        assert_eq!(process.0.try_wait().expect("a child"), None, "it has ended");
        thread::yield_now();
    };
    while !guest.enclave.delegates() {
        guest.enclave.poll_agent(guest.now());
        patience(&mut process);
    }
    let mut buffer = [0; 4];
    while !guest.all_ended() {
        match kicks.read_exact(&mut buffer) {
            Ok(()) => guest.kick(CpuId(u32::from_le_bytes(buffer))),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        guest.advance();
        guest.check();
        patience(&mut process);
    }
    assert!(guest.enclave.life().is_online(), "it was there to the end");
}
