//! A thread's own state, and how it enters the Linux layer.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use vcpu_sched::ids::Nanos;

use super::Process;
use super::signal::{self, Pending, SigSet};
use crate::arch::trap;
use crate::arch::trap_entry::TrapFrame;
use crate::arch::{descriptors, switch};
use crate::linux::syscall;
use crate::mm::user;
use crate::sync::SpinLock;
use crate::task::{UserContext, UserFault, current};

/// The alternate signal stack (`stack_t`).
#[derive(Clone, Copy, Default)]
pub struct AltStack {
    /// Lowest address.
    pub base: u64,
    /// Bytes; 0: none.
    pub size: u64,
    /// Disarm while a handler runs on it (`SS_AUTODISARM`).
    pub autodisarm: bool,
}

/// What restart_syscall(2) goes on with.
#[derive(Clone, Copy)]
pub enum Restart {
    /// clock_nanosleep until a monotonic time; where the rest goes if it is interrupted again (0: nowhere).
    Sleep {
        /// Monotonic deadline.
        deadline: Nanos,
        /// User address of a timespec.
        remaining: u64,
    },
    /// The same on a clock of CPU time.
    CpuSleep {
        /// Which clock.
        id: i32,
        /// What it must show.
        until: Nanos,
        /// User address of a timespec.
        remaining: u64,
    },
    /// FUTEX_WAIT with a relative timeout.
    Futex {
        /// Address of the word.
        addr: u64,
        /// Expected value.
        value: u32,
        /// Monotonic deadline.
        deadline: Nanos,
        /// `FUTEX_PRIVATE_FLAG` given.
        private: bool,
        /// Which wakers.
        bitset: u32,
    },
}

/// Vector, error code and address of the last exception, for signal frames.
#[derive(Clone, Copy, Default)]
pub struct LastFault {
    /// Vector.
    pub vector: u64,
    /// Hardware error code.
    pub error: u64,
    /// CR2.
    pub address: u64,
}

/// One thread. Fields without a lock are written by the thread itself only.
pub struct Thread {
    /// Its process.
    pub process: Arc<Process>,
    /// Linux's number: the task's, except after an exec by a thread that wasn't the first.
    pub tid: AtomicU32,
    /// Blocked signals. Written by the thread with `Process::signals` locked.
    pub blocked: AtomicU64,
    /// A mask to go back to is in `saved_mask`.
    pub mask_is_saved: AtomicBool,
    /// See `mask_is_saved`.
    pub saved_mask: AtomicU64,
    /// Signals for this thread only; its `set` is changed with `Process::signals` locked too.
    pub pending: SpinLock<Pending>,
    /// Signals that sigtimedwait waits for although they are blocked.
    pub waiting_for: AtomicU64,
    /// Zeroed, and its futex woken, at the thread's end.
    pub clear_child_tid: AtomicU64,
    /// Gets the thread's number when it starts; 0: nothing does.
    pub set_child_tid: AtomicU64,
    /// Head of the robust list.
    pub robust_list: AtomicU64,
    /// It ends: no lock that it holds can be waited for any more. Written with the graph of `futex::pi` locked.
    pub left_locks: AtomicBool,
    /// Alternate stack.
    pub alt_stack: SpinLock<AltStack>,
    /// Interrupted call to go on with.
    pub restart: SpinLock<Option<Restart>>,
    /// See [`LastFault`].
    pub last_fault: SpinLock<LastFault>,
    /// PR_SET_PDEATHSIG.
    pub parent_death_signal: AtomicU32,
    /// A vfork parent that waits for this thread to let go of its memory.
    pub vfork: SpinLock<Option<Arc<super::clone::Vfork>>>,
}

impl Thread {
    /// A thread with nothing pending.
    pub fn new(process: Arc<Process>, tid: u32, blocked: SigSet) -> Self {
        Self {
            process,
            tid: AtomicU32::new(tid),
            blocked: AtomicU64::new(blocked),
            mask_is_saved: AtomicBool::new(false),
            saved_mask: AtomicU64::new(0),
            pending: SpinLock::new(Pending::new()),
            waiting_for: AtomicU64::new(0),
            clear_child_tid: AtomicU64::new(0),
            set_child_tid: AtomicU64::new(0),
            robust_list: AtomicU64::new(0),
            left_locks: AtomicBool::new(false),
            alt_stack: SpinLock::new(AltStack::default()),
            restart: SpinLock::new(None),
            last_fault: SpinLock::new(LastFault::default()),
            parent_death_signal: AtomicU32::new(0),
            vfork: SpinLock::new(None),
        }
    }

    /// Linux's number of this thread.
    #[inline(always)]
    pub fn tid(&self) -> u32 {
        self.tid.load(Ordering::Relaxed)
    }

    /// Blocked signals.
    #[inline(always)]
    pub fn blocked(&self) -> SigSet {
        self.blocked.load(Ordering::Relaxed)
    }
}

impl UserContext for Thread {
    #[inline]
    fn syscall(&self, frame: &mut TrapFrame) {
        syscall::enter(self, frame);
    }

    fn observed_syscall(&self, frame: &mut TrapFrame) {
        syscall::enter_observed(self, frame);
    }

    fn exception(&self, frame: &mut TrapFrame, fault: UserFault) {
        super::fault::exception(self, frame, fault);
    }

    fn before_user(&self, frame: &mut TrapFrame) {
        signal::before_user(self, frame);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A frame that enters ring 3 at `rip`.
pub fn fresh_frame(rip: u64, rsp: u64) -> TrapFrame {
    /// RFLAGS: interrupts on, bit 1 always set.
    const INITIAL_RFLAGS: u64 = 0x202;
    TrapFrame {
        rip,
        rsp,
        cs: u64::from(descriptors::USER_CS),
        ss: u64::from(descriptors::USER_SS),
        rflags: INITIAL_RFLAGS,
        ..TrapFrame::default()
    }
}

/// Task entry of a new thread: `argument` is a boxed [`TrapFrame`] to go to ring 3 with.
pub extern "C" fn run(argument: usize) -> ! {
    // SAFETY: `clone` made it by `Box::into_raw` for this task alone.
    let mut frame = *unsafe { Box::from_raw(argument as *mut TrapFrame) };
    let me = current();
    if let Some(t) = super::thread_of(&me) {
        let word = t.set_child_tid.load(Ordering::Relaxed);
        if word != 0 {
            // As on Linux, a bad address is the program's own problem.
            let _ = user::write(word, &t.tid());
        }
    }
    enter(&mut frame)
}

/// Leaves the kernel for good; the next entry starts on an empty kernel stack, so the caller holds nothing any more.
pub fn enter(frame: &mut TrapFrame) -> ! {
    trap::leave_to_user(frame);
    debug_assert!(current().space().is_some());
    // SAFETY: interrupts are off, and every frame of this layer has the user selectors (`fresh_frame`, a trap from ring 3).
    unsafe { switch::enter_user(frame) }
}
