//! System calls by number: the one place that knows which function carries out which call.
//!
//! The way in is short: number and arguments from the frame, one jump table, the result into the frame. Tracing and counting
//! stand aside of it, in a way in of their own.

use core::sync::atomic::Ordering;

use super::errno::{Errno, SysResult};
use super::process::{
    Thread, clone, exec, exit, futex, identity, memory, resource, scheduling, signal, timers, times, wait,
};
use super::{fs, random, stats, strace};
use crate::arch::trap_entry::TrapFrame;
use crate::sched;
use crate::task::observers::{self, Observer};
use crate::task::{current, work};
use crate::trace;

/// Tells whether this layer wants to look at calls: they are counted, printed or recorded, or no longer.
pub fn observe() {
    observers::set(Observer::Layer, stats::on() || strace::on() || trace::on());
}

/// A system call of the running thread.
#[inline(always)]
pub fn enter(thread: &Thread, frame: &mut TrapFrame) {
    let (nr, args) = call_of(frame);
    let result = dispatch(thread, frame, nr, &args);
    leave(thread, frame, result);
}

/// The same where somebody looks at calls.
pub fn enter_observed(thread: &Thread, frame: &mut TrapFrame) {
    let (nr, args) = call_of(frame);
    let result = observed(thread, frame, nr, &args);
    leave(thread, frame, result);
}

/// Number and arguments.
#[inline(always)]
fn call_of(frame: &TrapFrame) -> (u64, [u64; 6]) {
    (frame.rax, [frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9])
}

#[inline(always)]
fn leave(thread: &Thread, frame: &mut TrapFrame, result: SysResult) {
    match result {
        Ok(v) if !thread.mask_is_saved.load(Ordering::Relaxed) => frame.rax = v,
        r => leave_slowly(thread, frame, r),
    }
}

/// An error, or a temporary signal mask to take back.
#[inline(never)]
fn leave_slowly(thread: &Thread, frame: &mut TrapFrame, result: SysResult) {
    let interrupted = match result {
        Ok(v) => {
            frame.rax = v;
            false
        }
        Err(e) => {
            frame.rax = (-i64::from(e.0)) as u64;
            matches!(
                e,
                Errno::ERESTARTSYS
                    | Errno::ERESTARTNOINTR
                    | Errno::ERESTARTNOHAND
                    | Errno::ERESTART_RESTARTBLOCK
                    | Errno::EINTR
            )
        }
    };
    if interrupted {
        // The way to ring 3 restarts the call, even if another thread took the signal meanwhile.
        current().work.fetch_or(work::USER, Ordering::SeqCst);
    } else {
        signal::restore_mask(thread);
    }
}

fn observed(thread: &Thread, frame: &mut TrapFrame, nr: u64, args: &[u64; 6]) -> SysResult {
    stats::count(nr);
    trace::syscall_enter(nr, args[0]);
    let result = if strace::on() {
        let call = strace::enter(thread, nr, args);
        let result = dispatch_apart(thread, frame, nr, args);
        strace::leave(call, &result);
        result
    } else {
        dispatch_apart(thread, frame, nr, args)
    };
    if trace::on() {
        let seen = match &result {
            Ok(v) => *v,
            Err(e) => (-i64::from(e.0)) as u64,
        };
        trace::syscall_exit(nr, seen);
    }
    result
}

#[inline(never)]
fn dispatch_apart(thread: &Thread, frame: &mut TrapFrame, nr: u64, args: &[u64; 6]) -> SysResult {
    dispatch(thread, frame, nr, args)
}

/// Carries out a call. Numbers: Linux arch/x86/entry/syscalls/syscall_64.tbl.
#[inline(always)]
fn dispatch(t: &Thread, frame: &mut TrapFrame, nr: u64, a: &[u64; 6]) -> SysResult {
    match nr {
        9 => memory::mmap(t, a),
        10 => memory::mprotect(a[0], a[1], a[2]),
        11 => memory::munmap(a[0], a[1]),
        12 => memory::brk(a[0]),
        13 => signal::rt_sigaction(t, a[0], a[1], a[2], a[3]),
        14 => signal::rt_sigprocmask(t, a[0], a[1], a[2], a[3]),
        15 => signal::sigreturn(t, frame),
        24 => {
            sched::yield_now();
            Ok(0)
        }
        25 => memory::mremap(a),
        26 => memory::msync(a[0], a[1], a[2]),
        27 => memory::mincore(a[0], a[1], a[2]),
        28 => memory::madvise(a[0], a[1], a[2]),
        34 => signal::pause(),
        35 => times::nanosleep(t, a[0], a[1]),
        36 => timers::getitimer(t, a[0], a[1]),
        37 => timers::alarm(t, a[0]),
        38 => timers::setitimer(t, a[0], a[1], a[2]),
        39 => Ok(u64::from(t.process.pid)),
        56 => clone::clone(t, frame, a),
        57 => clone::fork(t, frame),
        58 => clone::vfork(t, frame),
        59 => exec::execve(t, frame, a[0], a[1], a[2]),
        60 => exit::exit(t, a[0]),
        61 => wait::wait4(t, a[0], a[1], a[2], a[3]),
        62 => signal::kill(t, a[0], a[1]),
        63 => identity::uname(a[0]),
        96 => times::gettimeofday(a[0], a[1]),
        97 => resource::rlimit(t, a[0], 0, a[1]),
        98 => times::getrusage(t, a[0], a[1]),
        99 => resource::sysinfo(a[0]),
        100 => times::times(t, a[0]),
        102 | 104 | 107 | 108 => Ok(0), // getuid, getgid, geteuid, getegid: root
        103 => Err(Errno::EPERM),       // syslog
        105 | 106 => identity::set_ids(&a[..1]),
        109 => identity::setpgid(t, a[0], a[1]),
        110 => Ok(u64::from(t.process.ppid())),
        111 => Ok(u64::from(t.process.pgid())),
        112 => identity::setsid(t),
        113 | 114 => identity::set_ids(&a[..2]),
        115 => identity::getgroups(a[0], a[1]),
        116 => Ok(0), // setgroups
        117 | 119 => identity::set_ids(&a[..3]),
        118 | 120 => identity::getres(a),
        121 => identity::getpgid(t, a[0]),
        122 | 123 => Ok(0), // setfsuid, setfsgid: the old value
        124 => identity::getsid(t, a[0]),
        125 => identity::capget(a[0], a[1]),
        126 => Ok(0), // capset
        127 => signal::rt_sigpending(t, a[0], a[1]),
        128 => signal::rt_sigtimedwait(t, a[0], a[1], a[2], a[3]),
        129 => signal::rt_sigqueueinfo(t, a[0], a[1], a[2]),
        130 => signal::rt_sigsuspend(a[0], a[1]),
        131 => signal::sigaltstack(t, frame, a[0], a[1]),
        135 => personality(a[0]),
        140 => scheduling::get_priority(t, a[0], a[1]),
        141 => scheduling::set_priority(t, a[0], a[1], a[2]),
        142 => scheduling::set_param(t, a[0], a[1]),
        143 => scheduling::get_param(t, a[0], a[1]),
        144 => scheduling::set_scheduler(t, a[0], a[1], a[2]),
        145 => scheduling::get_scheduler(t, a[0]),
        146 => scheduling::priority_limit(a[0], true),
        147 => scheduling::priority_limit(a[0], false),
        148 => scheduling::rr_interval(t, a[0], a[1]),
        149 => memory::mlock(a[0], a[1], true),
        150 => memory::mlock(a[0], a[1], false),
        151 | 152 => Ok(0), // mlockall, munlockall: pages are never taken away
        157 => identity::prctl(t, a),
        158 => identity::arch_prctl(a[0], a[1]),
        160 => resource::rlimit(t, a[0], a[1], 0),
        // adjtimex, chroot, settimeofday, sethostname, setdomainname, clock_settime, clock_adjtime, setns
        159 | 161 | 164 | 170 | 171 | 227 | 305 | 308 => Err(Errno::EPERM),
        169 => Err(Errno::EPERM), // reboot
        186 => Ok(u64::from(t.tid())),
        200 => signal::tkill(t, a[0], a[1]),
        201 => times::time(a[0]),
        202 => futex::futex(t, a),
        203 => scheduling::set_affinity(t, a[0], a[1], a[2]),
        204 => scheduling::get_affinity(t, a[0], a[1], a[2]),
        218 => identity::set_tid_address(t, a[0]),
        219 => times::restart_syscall(t),
        222 => timers::timer_create(t, a[0], a[1], a[2]),
        223 => timers::timer_settime(t, a[0], a[1], a[2], a[3]),
        224 => timers::timer_gettime(t, a[0], a[1]),
        225 => timers::timer_getoverrun(t, a[0]),
        226 => timers::timer_delete(t, a[0]),
        228 => times::clock_gettime(t, a[0], a[1]),
        229 => times::clock_getres(t, a[0], a[1]),
        230 => times::clock_nanosleep(t, a[0], a[1], a[2], a[3]),
        231 => exit::exit_group(t, a[0]),
        234 => signal::tgkill(t, a[0], a[1], a[2]),
        247 => wait::waitid(t, a[0], a[1], a[2], a[3], a[4]),
        272 => clone::unshare(t, a[0]),
        273 => identity::set_robust_list(t, a[0], a[1]),
        274 => identity::get_robust_list(t, a[0], a[1], a[2]),
        297 => signal::rt_tgsigqueueinfo(t, a[0], a[1], a[2], a[3]),
        302 => resource::prlimit(t, a[0], a[1], a[2], a[3]),
        309 => scheduling::getcpu(a[0], a[1]),
        314 => scheduling::set_attr(t, a[0], a[1], a[2]),
        315 => scheduling::get_attr(t, a[0], a[1], a[2], a[3]),
        318 => random::getrandom(a[0], a[1], a[2]),
        322 => exec::execveat(t, frame, a[0] as i32, a[1], a[2], a[3], a[4]),
        324 => scheduling::membarrier(a[0], a[1]),
        325 => memory::mlock(a[0], a[1], a[2] & 1 == 0),
        435 => clone::clone3(t, frame, a[0], a[1]),
        449 => futex::two::wait_many(a[0], a[1], a[2], a[3], a[4]),
        454 => futex::two::wake_one_word(a[0], a[1], a[2], a[3]),
        455 => futex::two::wait_one_word(t, a),
        456 => futex::two::requeue(a[0], a[1], a[2], a[3]),
        _ => match fs::dispatch(&t.process, nr, a) {
            Some(r) => r,
            None => {
                stats::unknown(nr);
                Err(Errno::ENOSYS)
            }
        },
    }
}

/// personality(2): Linux, and nothing else.
fn personality(wanted: u64) -> SysResult {
    if matches!(wanted as u32, 0 | u32::MAX) { Ok(0) } else { Err(Errno::EINVAL) }
}
