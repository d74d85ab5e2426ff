//! A time limit on KVM_RUN, without a handler, a thread or any other mark on the process.
//!
//! A POSIX timer sends a signal to this thread, which keeps it blocked; KVM_SET_SIGNAL_MASK unblocks it for the time of
//! KVM_RUN only, so that the run ends with EINTR and the signal stays pending until [`Deadline`]'s drop takes it away.
//! Invariant: a `Deadline` is used and dropped on the thread that made it (it isn't `Send`).

use std::io;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use super::ProbeError;

/// _IOW(KVMIO, 0x8b, struct kvm_signal_mask) (linux/kvm.h).
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;

/// `struct kvm_signal_mask` with the kernel's 64-bit signal set behind it.
#[repr(C, packed)]
struct SignalMask {
    len: u32,
    sigset: u64,
}

/// A real-time signal that neither glibc (the first two) nor Rust uses.
fn signal() -> i32 {
    libc::SIGRTMIN() + 7
}

/// An armed time limit. Until it is dropped its signal is blocked in this thread.
pub struct Deadline {
    timer: libc::timer_t,
    old_mask: libc::sigset_t,
    at: Instant,
    thread: PhantomData<*const ()>,
}

impl Deadline {
    /// Ends runs of `vcpu` on this thread `limit` from now.
    pub fn arm(vcpu: &VcpuFd, limit: Duration) -> Result<Deadline, ProbeError> {
        let host = |call| ProbeError::Host { call, error: io::Error::last_os_error() };
        // SAFETY: all pointers are to locals of the right types; the timer is deleted in `drop`.
        unsafe {
            let mut ours = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(ours.as_mut_ptr());
            libc::sigaddset(ours.as_mut_ptr(), signal());
            let mut old = MaybeUninit::<libc::sigset_t>::uninit();
            libc::pthread_sigmask(libc::SIG_BLOCK, ours.as_ptr(), old.as_mut_ptr());
            let old_mask = old.assume_init();
            // The timer before what can fail on KVM's side, so that one `drop` undoes everything.
            let mut event: libc::sigevent = zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal();
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer = MaybeUninit::<libc::timer_t>::uninit();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, timer.as_mut_ptr()) < 0 {
                let error = host("timer_create");
                libc::pthread_sigmask(libc::SIG_SETMASK, &old_mask, std::ptr::null_mut());
                return Err(error);
            }
            let deadline =
                Deadline { timer: timer.assume_init(), old_mask, at: Instant::now() + limit, thread: PhantomData };
            let mut blocked = 0_u64;
            for number in 1..=64 {
                if number != signal() && libc::sigismember(&old_mask, number) == 1 {
                    blocked |= 1 << (number - 1);
                }
            }
            let mask = SignalMask { len: 8, sigset: blocked };
            if libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &mask) < 0 {
                return Err(host("KVM_SET_SIGNAL_MASK"));
            }
            let mut spec: libc::itimerspec = zeroed();
            spec.it_value.tv_sec = limit.as_secs() as libc::time_t;
            spec.it_value.tv_nsec = i64::from(limit.subsec_nanos());
            // Repeated, because the first may strike between two runs and be lost to the second's entry check.
            spec.it_interval.tv_nsec = 1_000_000;
            if libc::timer_settime(deadline.timer, 0, &spec, std::ptr::null_mut()) < 0 {
                return Err(host("timer_settime"));
            }
            Ok(deadline)
        }
    }

    /// The time is up.
    pub fn passed(&self) -> bool {
        Instant::now() >= self.at
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and live; the masks are locals; a pending signal is consumed, not delivered.
        unsafe {
            libc::timer_delete(self.timer);
            let mut ours = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(ours.as_mut_ptr());
            libc::sigaddset(ours.as_mut_ptr(), signal());
            let now: libc::timespec = zeroed();
            while libc::sigtimedwait(ours.as_ptr(), std::ptr::null_mut(), &now) > 0 {}
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.old_mask, std::ptr::null_mut());
        }
    }
}
