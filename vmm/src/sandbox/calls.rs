//! Which system calls each kind of thread may make, each with its reason. The only place where that is decided.
//!
//! Pure data; [`super::filter`] makes programs for the kernel of it. What is here was measured (strace over each kind of run) and completed by what
//! glibc, musl and Rust's std may use instead. Invariant: no thread may execute another program, map memory that can be
//! executed, or signal another process.

use libc::c_long;

use super::Kind;

/// How far a call is allowed.
#[derive(Debug, Clone, Copy)]
pub enum Only {
    /// With any arguments.
    Any,
    /// An `ioctl` with one of these requests.
    Requests(&'static [u32]),
    /// An `ioctl` of KVM: its type is KVMIO (Linux, include/uapi/linux/kvm.h).
    Kvm,
    /// Memory that can't be executed: argument 2 is the protection.
    NotExecutable,
    /// The first argument is our own process.
    Ourselves,
    /// The first argument is one of these.
    First(&'static [u64]),
}

/// An allowed call.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its number.
    pub number: c_long,
    /// With which arguments.
    pub only: Only,
    /// What needs it.
    pub why: &'static str,
}

const fn call(number: c_long, why: &'static str) -> Call {
    Call { number, only: Only::Any, why }
}

const fn some(number: c_long, only: Only, why: &'static str) -> Call {
    Call { number, only, why }
}

/// Linux, include/uapi/asm-generic/ioctls.h; libc has the newer pair for other architectures only.
const TCGETS2: u32 = 0x802c_542a;
const TCSETS2: u32 = 0x402c_542b;
/// What the terminal is asked and told. TIOCSTI, which types for the user, is not among them.
const TERMINAL: &[u32] = &[
    libc::TCGETS as u32,
    libc::TCSETS as u32,
    TCGETS2,
    TCSETS2,
    libc::TIOCGWINSZ as u32,
    libc::TIOCGPGRP as u32,
    libc::FIONBIO as u32,
    libc::FIONREAD as u32,
];
const NON_BLOCKING: &[u32] = &[libc::FIONBIO as u32];

/// What every thread may do: memory, locks, time, its own end, bytes in descriptors that are open.
pub const ALL: &[Call] = &[
    call(libc::SYS_read, "eventfds, /proc files that are open, clients"),
    call(libc::SYS_write, "eventfds, the guest's output, logs"),
    call(libc::SYS_readv, "std's vectored reads"),
    call(libc::SYS_writev, "the guest's output without a copy"),
    call(libc::SYS_pread64, "the host's account of a thread, from a descriptor that is open"),
    call(libc::SYS_pwrite64, "a trace's index"),
    call(libc::SYS_lseek, "std, before it reads a file"),
    call(libc::SYS_fstat, "std and libc, of what is open"),
    call(libc::SYS_close, "ends of descriptors"),
    call(libc::SYS_fcntl, "std's checks of descriptors, and duplicates of them"),
    call(libc::SYS_poll, "waiting for room in a pipe"),
    call(libc::SYS_ppoll, "the same, as rustix and newer libcs do it"),
    call(libc::SYS_futex, "locks, condition variables, channels"),
    some(libc::SYS_mmap, Only::NotExecutable, "memory"),
    some(libc::SYS_mprotect, Only::NotExecutable, "memory: libc opens its arenas bit by bit"),
    call(libc::SYS_munmap, "memory"),
    call(libc::SYS_mremap, "memory: realloc"),
    call(libc::SYS_madvise, "memory: given back at a thread's end"),
    call(libc::SYS_brk, "memory"),
    call(libc::SYS_sigaltstack, "std, at a thread's beginning and end"),
    call(libc::SYS_rt_sigprocmask, "libc, around signals and a thread's end"),
    call(libc::SYS_rt_sigreturn, "the way back from a kick"),
    call(libc::SYS_restart_syscall, "the kernel's own, after a stop"),
    some(libc::SYS_tgkill, Only::Ourselves, "kicks of vCPU threads; abort"),
    call(libc::SYS_getpid, "whom to kick"),
    call(libc::SYS_gettid, "who is asking"),
    call(libc::SYS_pause, "a thread that broke its filter waits here for the end"),
    call(libc::SYS_clock_gettime, "time, where the vDSO doesn't tell it"),
    call(libc::SYS_clock_nanosleep, "sleeps"),
    call(libc::SYS_nanosleep, "sleeps, as musl does it"),
    call(libc::SYS_sched_yield, "std's channels under contention"),
    call(libc::SYS_sched_getaffinity, "libc: how many arenas; placements read back"),
    call(libc::SYS_getrandom, "hash maps' keys"),
    call(libc::SYS_exit, "the thread's end"),
    call(libc::SYS_exit_group, "the process's end"),
];

/// The thread of a vCPU: it runs what the guest controls, and needs the least.
const VCPU: &[Call] = &[some(libc::SYS_ioctl, Only::Kvm, "KVM_RUN, registers, interrupts")];

/// The main thread: event loop, console, the orderly end.
const MAIN: &[Call] = &[
    some(libc::SYS_ioctl, Only::Kvm, "interrupts to the guest"),
    some(libc::SYS_ioctl, Only::Requests(TERMINAL), "the user's terminal: its size, and its settings put back"),
    call(libc::SYS_epoll_create1, "the event loop"),
    call(libc::SYS_epoll_ctl, "the event loop"),
    call(libc::SYS_epoll_wait, "the event loop"),
    call(libc::SYS_epoll_pwait, "the event loop, as musl does it"),
    call(libc::SYS_timerfd_create, "--timeout"),
    call(libc::SYS_timerfd_settime, "--timeout"),
    call(libc::SYS_eventfd2, "wake-ups"),
    call(libc::SYS_getrusage, "--stats"),
    call(libc::SYS_rt_sigaction, "signals have their ordinary effect again at the end"),
    call(libc::SYS_statx, "whether a socket's file is still ours"),
    call(libc::SYS_newfstatat, "the same, as older libcs do it"),
    call(libc::SYS_unlink, "our sockets' files, at the end"),
    call(libc::SYS_fsync, "files that are complete"),
];

/// The control socket's thread, those that wait for the guest in its name, and the writer of a recording: whom nobody else starts.
const CONTROL: &[Call] = &[
    some(libc::SYS_ioctl, Only::Kvm, "interrupts to the guest"),
    some(libc::SYS_ioctl, Only::Requests(NON_BLOCKING), "sockets"),
    call(libc::SYS_accept4, "clients"),
    call(libc::SYS_recvfrom, "clients"),
    call(libc::SYS_sendto, "clients"),
    call(libc::SYS_recvmsg, "clients"),
    call(libc::SYS_sendmsg, "clients"),
    call(libc::SYS_shutdown, "clients"),
    call(libc::SYS_getsockopt, "who a client is"),
    call(libc::SYS_setsockopt, "how long a client is waited for"),
    call(libc::SYS_geteuid, "who we are"),
    call(libc::SYS_epoll_ctl, "tokio"),
    call(libc::SYS_epoll_wait, "tokio"),
    call(libc::SYS_epoll_pwait, "tokio, with musl"),
    call(libc::SYS_eventfd2, "wake-ups"),
    call(
        libc::SYS_openat,
        "/proc's files of threads, a recording's file without a name, programs to be started in the guest",
    ),
    call(libc::SYS_statx, "files that were opened"),
    call(libc::SYS_newfstatat, "the same, as older libcs do it"),
    call(libc::SYS_ftruncate, "a recording"),
    call(libc::SYS_readlink, "a recording"),
    call(libc::SYS_unlink, "a recording's file, where it can't be without a name"),
    call(libc::SYS_unlinkat, "the same"),
    call(libc::SYS_sched_setaffinity, "live pinning"),
    call(libc::SYS_sched_getscheduler, "classes of threads"),
    call(libc::SYS_sched_setscheduler, "live changes of classes"),
    call(libc::SYS_sched_getparam, "classes of threads"),
    call(libc::SYS_getpriority, "nice values"),
    call(libc::SYS_setpriority, "live changes of nice values"),
    some(libc::SYS_kill, Only::Ourselves, "the end as SIGTERM makes it"),
    call(libc::SYS_clone3, "threads that wait for the guest"),
    call(libc::SYS_clone, "the same, with musl and older libcs"),
    call(libc::SYS_set_robust_list, "libc, in a new thread"),
    call(libc::SYS_rseq, "libc, in a new thread"),
    call(libc::SYS_set_tid_address, "libc, in a new thread"),
    some(libc::SYS_prctl, Only::First(&[libc::PR_SET_NAME as u64]), "a new thread's name"),
];

/// The debugger's thread.
const GDB: &[Call] = &[
    some(libc::SYS_ioctl, Only::Kvm, "interrupts to the guest"),
    some(libc::SYS_ioctl, Only::Requests(NON_BLOCKING), "sockets"),
    call(libc::SYS_accept4, "the debugger"),
    call(libc::SYS_recvfrom, "the debugger"),
    call(libc::SYS_sendto, "the debugger"),
    call(libc::SYS_shutdown, "the debugger"),
    call(libc::SYS_getsockopt, "who the debugger is"),
    call(libc::SYS_setsockopt, "how long the debugger is waited for"),
    call(libc::SYS_geteuid, "who we are"),
    call(libc::SYS_eventfd2, "wake-ups"),
    call(libc::SYS_statx, "whether the socket's file is still ours"),
    call(libc::SYS_newfstatat, "the same, as older libcs do it"),
    call(libc::SYS_unlink, "the socket's file, at the end"),
    some(libc::SYS_kill, Only::Ourselves, "the end as SIGTERM makes it, for gdb's kill"),
];

/// The thread of `--chaos`.
const CHAOS: &[Call] = &[some(libc::SYS_ioctl, Only::Kvm, "interrupts to the guest")];

/// The agent: it reads and writes the guest's memory, and interrupts vCPUs.
const AGENT: &[Call] = &[some(libc::SYS_ioctl, Only::Kvm, "interrupts to the guest")];

/// Who lets agents' processes in.
const DOOR: &[Call] = &[
    some(libc::SYS_ioctl, Only::Requests(NON_BLOCKING), "sockets"),
    call(libc::SYS_accept4, "agents"),
    call(libc::SYS_sendmsg, "what an agent is given"),
    call(libc::SYS_getsockopt, "who an agent is"),
    call(libc::SYS_geteuid, "who we are"),
    call(libc::SYS_statx, "whether the socket's file is still ours"),
    call(libc::SYS_newfstatat, "the same, as older libcs do it"),
    call(libc::SYS_unlink, "the socket's file, at the end"),
];

/// What a kind of thread may do besides [`ALL`].
pub const fn of(kind: Kind) -> &'static [Call] {
    match kind {
        Kind::Main => MAIN,
        Kind::Vcpu => VCPU,
        Kind::Control => CONTROL,
        Kind::Gdb => GDB,
        // It writes into a file that is open.
        Kind::Trace => &[],
        Kind::Chaos => CHAOS,
        Kind::Agent => AGENT,
        Kind::Door => DOOR,
        // It has nothing but memory and event descriptors.
        Kind::Attached => &[],
    }
}
