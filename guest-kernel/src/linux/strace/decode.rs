//! One argument in strace's notation.

use alloc::string::String;
use core::fmt::{self, Write};

use crate::linux::errno::Errno;
use crate::linux::process::signal::{self, Action, MAX_SIGNAL, SigInfo, SigSet, code};
use crate::mm::user;

/// Bytes of a string that are shown, as strace's default.
const SHOWN: usize = 32;
/// Elements of an array that are shown.
const ELEMENTS: usize = 16;

/// Whether the call itself fills the argument in, so that it can be printed only afterwards.
pub fn is_output(code: u8) -> bool {
    matches!(code, b'R' | b'T' | b'w' | b'N' | b'v' | b'i' | b'b' | b'U' | b'C')
}

type Names = &'static [(u64, &'static str)];

const PROT: Names = &[(1, "PROT_READ"), (2, "PROT_WRITE"), (4, "PROT_EXEC")];
const MAP: Names = &[
    (1, "MAP_SHARED"),
    (2, "MAP_PRIVATE"),
    (0x10, "MAP_FIXED"),
    (0x20, "MAP_ANONYMOUS"),
    (0x800, "MAP_DENYWRITE"),
    (0x4000, "MAP_NORESERVE"),
    (0x8000, "MAP_POPULATE"),
    (0x2_0000, "MAP_STACK"),
    (0x10_0000, "MAP_FIXED_NOREPLACE"),
];
const OPEN: Names = &[
    (1, "O_WRONLY"),
    (2, "O_RDWR"),
    (0o100, "O_CREAT"),
    (0o200, "O_EXCL"),
    (0o400, "O_NOCTTY"),
    (0o1000, "O_TRUNC"),
    (0o2000, "O_APPEND"),
    (0o4000, "O_NONBLOCK"),
    (0o200_000, "O_DIRECTORY"),
    (0o400_000, "O_NOFOLLOW"),
    (0o2_000_000, "O_CLOEXEC"),
    (0o10_000_000, "O_PATH"),
];
const CLONE: Names = &[
    (0x100, "CLONE_VM"),
    (0x200, "CLONE_FS"),
    (0x400, "CLONE_FILES"),
    (0x800, "CLONE_SIGHAND"),
    (0x1000, "CLONE_PIDFD"),
    (0x4000, "CLONE_VFORK"),
    (0x1_0000, "CLONE_THREAD"),
    (0x4_0000, "CLONE_SYSVSEM"),
    (0x8_0000, "CLONE_SETTLS"),
    (0x10_0000, "CLONE_PARENT_SETTID"),
    (0x20_0000, "CLONE_CHILD_CLEARTID"),
    (0x40_0000, "CLONE_DETACHED"),
    (0x100_0000, "CLONE_CHILD_SETTID"),
];
const WAIT: Names = &[(1, "WNOHANG"), (2, "WUNTRACED"), (4, "WEXITED"), (8, "WCONTINUED"), (0x100_0000, "WNOWAIT")];
const ACTION: Names = &[
    (1, "SA_NOCLDSTOP"),
    (2, "SA_NOCLDWAIT"),
    (4, "SA_SIGINFO"),
    (0x0400_0000, "SA_RESTORER"),
    (0x0800_0000, "SA_ONSTACK"),
    (0x1000_0000, "SA_RESTART"),
    (0x4000_0000, "SA_NODEFER"),
    (0x8000_0000, "SA_RESETHAND"),
];
const HOW: &[&str] = &["SIG_BLOCK", "SIG_UNBLOCK", "SIG_SETMASK"];
const WHENCE: &[&str] = &["SEEK_SET", "SEEK_CUR", "SEEK_END", "SEEK_DATA", "SEEK_HOLE"];
const CLOCKS: &[&str] = &[
    "CLOCK_REALTIME",
    "CLOCK_MONOTONIC",
    "CLOCK_PROCESS_CPUTIME_ID",
    "CLOCK_THREAD_CPUTIME_ID",
    "CLOCK_MONOTONIC_RAW",
    "CLOCK_REALTIME_COARSE",
    "CLOCK_MONOTONIC_COARSE",
    "CLOCK_BOOTTIME",
];
const FUTEX: &[&str] = &[
    "FUTEX_WAIT",
    "FUTEX_WAKE",
    "FUTEX_FD",
    "FUTEX_REQUEUE",
    "FUTEX_CMP_REQUEUE",
    "FUTEX_WAKE_OP",
    "FUTEX_LOCK_PI",
    "FUTEX_UNLOCK_PI",
    "FUTEX_TRYLOCK_PI",
    "FUTEX_WAIT_BITSET",
    "FUTEX_WAKE_BITSET",
    "FUTEX_WAIT_REQUEUE_PI",
    "FUTEX_CMP_REQUEUE_PI",
    "FUTEX_LOCK_PI2",
];
const ADVICE: &[&str] =
    &["MADV_NORMAL", "MADV_RANDOM", "MADV_SEQUENTIAL", "MADV_WILLNEED", "MADV_DONTNEED", "", "", "", "MADV_FREE"];
const LIMITS: &[&str] = &[
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];
const EPOLL: &[&str] = &["", "EPOLL_CTL_ADD", "EPOLL_CTL_DEL", "EPOLL_CTL_MOD"];
const FCNTL: &[&str] =
    &["F_DUPFD", "F_GETFD", "F_SETFD", "F_GETFL", "F_SETFL", "F_GETLK", "F_SETLK", "F_SETLKW", "F_SETOWN", "F_GETOWN"];
const IOCTL: Names = &[
    (0x5401, "TCGETS"),
    (0x5402, "TCSETS"),
    (0x5403, "TCSETSW"),
    (0x5404, "TCSETSF"),
    (0x540f, "TIOCGPGRP"),
    (0x5410, "TIOCSPGRP"),
    (0x5413, "TIOCGWINSZ"),
    (0x541b, "FIONREAD"),
    (0x5421, "FIONBIO"),
];
const ARCH_PRCTL: Names =
    &[(0x1001, "ARCH_SET_GS"), (0x1002, "ARCH_SET_FS"), (0x1003, "ARCH_GET_FS"), (0x1004, "ARCH_GET_GS")];

fn flags(t: &mut String, value: u64, names: Names, none: &str) -> fmt::Result {
    let mut rest = value;
    let start = t.len();
    for (bit, name) in names {
        if rest & bit != 0 {
            rest &= !bit;
            write!(t, "{}{name}", if t.len() > start { "|" } else { "" })?;
        }
    }
    match (rest, t.len() > start) {
        (0, false) => t.write_str(none),
        (0, true) => Ok(()),
        (r, joined) => write!(t, "{}{r:#x}", if joined { "|" } else { "" }),
    }
}

fn listed(t: &mut String, value: u64, names: &[&str]) -> fmt::Result {
    match usize::try_from(value).ok().and_then(|i| names.get(i)).filter(|n| !n.is_empty()) {
        Some(n) => t.write_str(n),
        None => write!(t, "{value:#x}"),
    }
}

fn named(t: &mut String, value: u64, names: Names) -> fmt::Result {
    match names.iter().find(|(v, _)| *v == value) {
        Some((_, n)) => t.write_str(n),
        None => write!(t, "{value:#x}"),
    }
}

fn address(t: &mut String, value: u64) -> fmt::Result {
    if value == 0 { t.write_str("NULL") } else { write!(t, "{value:#x}") }
}

fn quoted(t: &mut String, bytes: &[u8], more: bool) -> fmt::Result {
    t.write_char('"')?;
    for (i, b) in bytes.iter().enumerate() {
        match b {
            b'\n' => t.write_str("\\n")?,
            b'\t' => t.write_str("\\t")?,
            b'\r' => t.write_str("\\r")?,
            b'"' => t.write_str("\\\"")?,
            b'\\' => t.write_str("\\\\")?,
            0x20..=0x7e => t.write_char(*b as char)?,
            // A digit that follows would be read as part of the number.
            b if bytes.get(i + 1).is_some_and(u8::is_ascii_digit) => write!(t, "\\{b:03o}")?,
            b => write!(t, "\\{b:o}")?,
        }
    }
    t.write_str(if more { "\"..." } else { "\"" })
}

fn buffer(t: &mut String, at: u64, len: u64) -> fmt::Result {
    let n = len.min(SHOWN as u64) as usize;
    let mut b = [0; SHOWN];
    match user::read_bytes(&mut b[..n], at) {
        Ok(()) => quoted(t, &b[..n], len > n as u64),
        Err(_) => address(t, at),
    }
}

fn string(t: &mut String, at: u64) -> fmt::Result {
    const LONGEST: usize = 4096;
    match user::read_cstr(at, LONGEST) {
        // Paths are shown whole, as by strace.
        Ok(s) => quoted(t, &s, false),
        Err(_) => address(t, at),
    }
}

fn strings(t: &mut String, at: u64, count_only: bool) -> fmt::Result {
    if at == 0 {
        return t.write_str("NULL");
    }
    if !count_only {
        t.write_char('[')?;
    }
    let mut n = 0;
    while let Ok(s) = user::read::<u64>(at.wrapping_add(8 * n)) {
        if s == 0 || n >= 4096 {
            break;
        }
        if !count_only && n < ELEMENTS as u64 {
            if n > 0 {
                t.write_str(", ")?;
            }
            string(t, s)?;
        }
        n += 1;
    }
    if count_only {
        return write!(t, "{at:#x} /* {n} vars */");
    }
    t.write_str(if n > ELEMENTS as u64 { ", ...]" } else { "]" })
}

fn vectors(t: &mut String, at: u64, count: u64, limit: u64) -> fmt::Result {
    t.write_char('[')?;
    let mut left = limit;
    for i in 0..count.min(ELEMENTS as u64) {
        let Ok([base, len]) = user::read::<[u64; 2]>(at.wrapping_add(16 * i)) else { break };
        t.write_str(if i > 0 { ", {iov_base=" } else { "{iov_base=" })?;
        buffer(t, base, len.min(left))?;
        left = left.saturating_sub(len);
        write!(t, ", iov_len={len}}}")?;
    }
    t.write_char(']')
}

fn signal_set(t: &mut String, at: u64) -> fmt::Result {
    let Ok(set) = user::read::<SigSet>(at) else { return address(t, at) };
    // More than half of them: shorter by what isn't there, as strace does it.
    let (shown, mark) = if set.count_ones() > 32 { (!set, "~[") } else { (set, "[") };
    t.write_str(mark)?;
    let mut first = true;
    for sig in (1..=MAX_SIGNAL).filter(|s| shown & signal::bit(*s) != 0) {
        t.write_str(if first { "" } else { " " })?;
        match sig - signal::FIRST_REALTIME.min(sig) {
            0 if sig == signal::FIRST_REALTIME => t.write_str("RTMIN")?,
            0 => t.write_str(signal::name(sig).trim_start_matches("SIG"))?,
            n => write!(t, "RT_{n}")?,
        }
        first = false;
    }
    t.write_char(']')
}

fn action(t: &mut String, at: u64) -> fmt::Result {
    let Ok([handler, bits, ..]) = user::read::<[u64; 4]>(at) else { return address(t, at) };
    match handler {
        0 => t.write_str("{sa_handler=SIG_DFL, sa_mask=")?,
        Action::IGNORE => t.write_str("{sa_handler=SIG_IGN, sa_mask=")?,
        h => write!(t, "{{sa_handler={h:#x}, sa_mask=")?,
    }
    signal_set(t, at + 24)?;
    t.write_str(", sa_flags=")?;
    flags(t, bits, ACTION, "0")?;
    t.write_char('}')
}

fn timespec(t: &mut String, at: u64) -> fmt::Result {
    match user::read::<[i64; 2]>(at) {
        Ok([s, n]) => write!(t, "{{tv_sec={s}, tv_nsec={n}}}"),
        Err(_) => address(t, at),
    }
}

fn wait_status(t: &mut String, at: u64) -> fmt::Result {
    let Ok(s) = user::read::<u32>(at) else { return address(t, at) };
    match s & 0x7f {
        0 => write!(t, "[{{WIFEXITED(s) && WEXITSTATUS(s) == {}}}]", s >> 8 & 0xff),
        0x7f if s == 0xffff => t.write_str("[{WIFCONTINUED(s)}]"),
        0x7f => write!(t, "[{{WIFSTOPPED(s) && WSTOPSIG(s) == {}}}]", signal::name(s >> 8 & 0xff)),
        sig => write!(t, "[{{WIFSIGNALED(s) && WTERMSIG(s) == {}}}]", signal::name(sig)),
    }
}

fn stat(t: &mut String, at: u64) -> fmt::Result {
    /// Offsets of st_mode and st_size in `struct stat`.
    const MODE: u64 = 24;
    const SIZE: u64 = 48;
    let (Ok(mode), Ok(size)) = (user::read::<u32>(at + MODE), user::read::<u64>(at + SIZE)) else {
        return address(t, at);
    };
    let kind = match mode >> 12 {
        0o10 => "S_IFREG",
        0o04 => "S_IFDIR",
        0o02 => "S_IFCHR",
        0o01 => "S_IFIFO",
        0o12 => "S_IFLNK",
        0o14 => "S_IFSOCK",
        _ => "0",
    };
    write!(t, "{{st_mode={kind}|{:#o}, st_size={size}, ...}}", mode & 0o7777)
}

/// Prints argument `i` of a call. `result`: what it gave, once it is over and unless it failed.
pub fn argument(t: &mut String, letter: u8, args: &[u64; 6], i: usize, result: Option<u64>) {
    let v = args[i];
    let next = args.get(i + 1).copied().unwrap_or(0);
    let _ = match letter {
        // Nothing came back.
        b'R' | b'v' | b'C' | b'N' | b'b' | b'U' if result.is_none() => address(t, v),
        b'd' | b'f' => write!(t, "{}", v as i32),
        b'l' => write!(t, "{}", v as i64),
        b'u' => write!(t, "{v}"),
        b'm' => write!(t, "{:#o}", v & 0o7777),
        b'a' | b'p' => address(t, v),
        b'F' if v as i32 == -100 => t.write_str("AT_FDCWD"),
        b'F' => write!(t, "{}", v as i32),
        b's' => string(t, v),
        b'B' => buffer(t, v, next),
        b'R' => buffer(t, v, result.unwrap_or(0)),
        b'V' => vectors(t, v, next, u64::MAX),
        b'v' => vectors(t, v, next, result.unwrap_or(0)),
        b'y' => strings(t, v, false),
        b'e' => strings(t, v, true),
        b'o' => flags(t, v & !0o100_000, OPEN, "O_RDONLY"),
        b'P' => flags(t, v, PROT, "PROT_NONE"),
        b'M' => flags(t, v, MAP, "0"),
        b'W' => flags(t, v, WAIT, "0"),
        b'c' => flags(t, v & !0xff, CLONE, "0").and_then(|()| write!(t, "|{}", signal::name(v as u32 & 0xff))),
        b'g' => t.write_str(if v == 0 { "0" } else { signal::name(v as u32) }),
        b'A' | b'C' if v == 0 => t.write_str("NULL"),
        b'A' | b'C' => action(t, v),
        b'h' => listed(t, v, HOW),
        b'n' | b'N' if v == 0 => t.write_str("NULL"),
        b'n' | b'N' => signal_set(t, v),
        b't' if v != 0 => timespec(t, v),
        b'T' if v != 0 && result.is_some() => timespec(t, v),
        b't' | b'T' => address(t, v),
        b'w' if v != 0 && result.is_some_and(|r| r != 0) => wait_status(t, v),
        b'w' => address(t, v),
        b'i' => match user::read::<[i32; 2]>(v) {
            Ok([a, b]) if result.is_some() => write!(t, "[{a}, {b}]"),
            _ => address(t, v),
        },
        b'b' => stat(t, v),
        b'U' => t.write_str("{sysname=\"Linux\", ...}"),
        b'q' => listed(t, v, WHENCE),
        b'k' => listed(t, v, CLOCKS),
        b'D' => listed(t, v, ADVICE),
        b'L' => listed(t, v, LIMITS),
        b'E' => listed(t, v, EPOLL),
        b'K' if v == 1030 => t.write_str("F_DUPFD_CLOEXEC"),
        b'K' => listed(t, v, FCNTL),
        b'O' => named(t, v, IOCTL),
        b'X' => named(t, v, ARCH_PRCTL),
        b'z' => listed(t, v & 0x7f, FUTEX).and_then(|()| t.write_str(if v & 0x80 != 0 { "_PRIVATE" } else { "" })),
        _ => write!(t, "{v:#x}"),
    };
}

/// A signal that is taken.
pub fn signal_info(t: &mut String, i: &SigInfo) -> fmt::Result {
    let name = signal::name(i.signo);
    write!(t, "--- {name} {{si_signo={name}, si_code=")?;
    match (i.signo, i.code) {
        (_, code::SI_USER) => t.write_str("SI_USER")?,
        (_, code::SI_KERNEL) => t.write_str("SI_KERNEL")?,
        (_, code::SI_TKILL) => t.write_str("SI_TKILL")?,
        (_, code::SI_TIMER) => t.write_str("SI_TIMER")?,
        (signal::SIGSEGV, code::SEGV_MAPERR) => t.write_str("SEGV_MAPERR")?,
        (signal::SIGSEGV, code::SEGV_ACCERR) => t.write_str("SEGV_ACCERR")?,
        (signal::SIGFPE, code::FPE_INTDIV) => t.write_str("FPE_INTDIV")?,
        (signal::SIGCHLD, code::CLD_EXITED) => t.write_str("CLD_EXITED")?,
        (signal::SIGCHLD, code::CLD_KILLED) => t.write_str("CLD_KILLED")?,
        (signal::SIGCHLD, code::CLD_STOPPED) => t.write_str("CLD_STOPPED")?,
        (signal::SIGCHLD, code::CLD_CONTINUED) => t.write_str("CLD_CONTINUED")?,
        (_, c) => write!(t, "{c}")?,
    }
    match (i.signo, i.code) {
        (signal::SIGCHLD, c) if c > 0 && c != code::SI_KERNEL => {
            write!(t, ", si_pid={}, si_uid=0, si_status={}", i.fields[0] as u32, i.fields[1] as u32)?;
        }
        (_, code::SI_USER | code::SI_TKILL) => write!(t, ", si_pid={}, si_uid=0", i.fields[0] as u32)?,
        (_, c) if c > 0 && c != code::SI_KERNEL => {
            t.write_str(", si_addr=")?;
            address(t, i.fields[0])?;
        }
        _ => {}
    }
    t.write_str("} ---")
}

/// What strace adds to an error's name.
pub fn error_text(e: Errno) -> &'static str {
    match e {
        Errno::EPERM => " (Operation not permitted)",
        Errno::ENOENT => " (No such file or directory)",
        Errno::ESRCH => " (No such process)",
        Errno::EINTR => " (Interrupted system call)",
        Errno::EBADF => " (Bad file descriptor)",
        Errno::ECHILD => " (No child processes)",
        Errno::EAGAIN => " (Resource temporarily unavailable)",
        Errno::ENOMEM => " (Cannot allocate memory)",
        Errno::EACCES => " (Permission denied)",
        Errno::EFAULT => " (Bad address)",
        Errno::EEXIST => " (File exists)",
        Errno::ENOTDIR => " (Not a directory)",
        Errno::EISDIR => " (Is a directory)",
        Errno::EINVAL => " (Invalid argument)",
        Errno::ENOTTY => " (Inappropriate ioctl for device)",
        Errno::ESPIPE => " (Illegal seek)",
        Errno::EROFS => " (Read-only file system)",
        Errno::EPIPE => " (Broken pipe)",
        Errno::ENOSYS => " (Function not implemented)",
        Errno::ETIMEDOUT => " (Connection timed out)",
        _ => "",
    }
}
