//! What is known about one signal, what is pending, and an action: plain data.

use alloc::collections::VecDeque;

use super::{FIRST_REALTIME, SYNCHRONOUS, SigSet, bit};

/// `siginfo_t`, cut to the fields that anything uses: bytes 16 to 48 are the union's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SigInfo {
    /// Number.
    pub signo: u32,
    /// `si_errno`, nearly always 0.
    pub errno: i32,
    /// `si_code`.
    pub code: i32,
    /// The union.
    pub fields: [u64; 4],
}

/// `si_code`: Linux include/uapi/asm-generic/siginfo.h.
pub mod code {
    /// kill(2).
    pub const SI_USER: i32 = 0;
    /// The kernel.
    pub const SI_KERNEL: i32 = 0x80;
    /// POSIX timer.
    pub const SI_TIMER: i32 = -2;
    /// tgkill(2).
    pub const SI_TKILL: i32 = -6;
    /// Address not mapped.
    pub const SEGV_MAPERR: i32 = 1;
    /// Mapped without that right.
    pub const SEGV_ACCERR: i32 = 2;
    /// Alignment.
    pub const BUS_ADRALN: i32 = 1;
    /// Beyond the end of an object.
    pub const BUS_ADRERR: i32 = 2;
    /// Illegal operand.
    pub const ILL_ILLOPN: i32 = 2;
    /// Integer division by zero.
    pub const FPE_INTDIV: i32 = 1;
    /// Single step.
    pub const TRAP_TRACE: i32 = 2;
    /// Child exited.
    pub const CLD_EXITED: i32 = 1;
    /// Child was killed.
    pub const CLD_KILLED: i32 = 2;
    /// Child stopped.
    pub const CLD_STOPPED: i32 = 5;
    /// Child continued.
    pub const CLD_CONTINUED: i32 = 6;
}

impl SigInfo {
    /// From the kernel, without more to say.
    pub fn kernel(signo: u32) -> Self {
        Self { signo, code: code::SI_KERNEL, ..Self::default() }
    }

    /// From a process (kill, tgkill).
    pub fn user(signo: u32, code: i32, pid: u32) -> Self {
        Self { signo, code, fields: [u64::from(pid), 0, 0, 0], ..Self::default() }
    }

    /// From a faulting instruction.
    pub fn fault(signo: u32, code: i32, addr: u64) -> Self {
        Self { signo, code, fields: [addr, 0, 0, 0], ..Self::default() }
    }

    /// About a child.
    pub fn child(signo: u32, code: i32, pid: u32, status: u32, clock_ticks: u64) -> Self {
        Self { signo, code, fields: [u64::from(pid), u64::from(status), clock_ticks, 0], ..Self::default() }
    }

    /// The first 48 bytes of `siginfo_t`; the rest is zero.
    pub fn to_words(self) -> [u64; 6] {
        let f = self.fields;
        [
            u64::from(self.signo) | u64::from(self.errno as u32) << 32,
            u64::from(self.code as u32),
            f[0],
            f[1],
            f[2],
            f[3],
        ]
    }

    /// From a program's `siginfo_t` (rt_sigqueueinfo).
    pub fn from_words(w: [u64; 6]) -> Self {
        Self { signo: w[0] as u32, errno: (w[0] >> 32) as i32, code: w[1] as i32, fields: [w[2], w[3], w[4], w[5]] }
    }
}

/// Signals that wait to be taken.
pub struct Pending {
    /// Which.
    pub set: SigSet,
    queue: VecDeque<SigInfo>,
}

impl Pending {
    /// None.
    pub const fn new() -> Self {
        Self { set: 0, queue: VecDeque::new() }
    }

    /// Adds a signal; a standard one that is pending already is left as it is. Returns whether there was room for it among
    /// `most` (RLIMIT_SIGPENDING, which Linux counts per user).
    pub fn add(&mut self, info: SigInfo, most: u64) -> bool {
        if info.signo < FIRST_REALTIME && self.set & bit(info.signo) != 0 {
            return true;
        }
        if info.signo >= FIRST_REALTIME && self.queue.len() as u64 >= most {
            return false;
        }
        self.set |= bit(info.signo);
        self.queue.push_back(info);
        true
    }

    /// Takes the most urgent one of `wanted`: those of the faulting instruction first, then by number.
    pub fn take(&mut self, wanted: SigSet) -> Option<SigInfo> {
        let ready = self.set & wanted;
        if ready == 0 {
            return None;
        }
        let first = if ready & SYNCHRONOUS != 0 { ready & SYNCHRONOUS } else { ready };
        let sig = first.trailing_zeros() + 1;
        let at = self.queue.iter().position(|i| i.signo == sig)?;
        let info = self.queue.remove(at);
        if !self.queue.iter().any(|i| i.signo == sig) {
            self.set &= !bit(sig);
        }
        info
    }

    /// Forgets the signals of a set.
    pub fn discard(&mut self, set: SigSet) {
        if self.set & set != 0 {
            self.queue.retain(|i| set & bit(i.signo) == 0);
            self.set &= !set;
        }
    }
}

/// What a process does about a signal (`struct sigaction` of the kernel's ABI).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Action {
    /// Handler's address, or [`Action::IGNORE`], or 0 for the default.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where a handler returns to.
    pub restorer: u64,
    /// Blocked while it runs.
    pub mask: SigSet,
}

impl Action {
    /// `SIG_DFL`.
    pub const DEFAULT: Self = Self { handler: 0, flags: 0, restorer: 0, mask: 0 };
    /// `SIG_IGN`.
    pub const IGNORE: u64 = 1;
}

/// `SA_*`: Linux include/uapi/asm-generic/signal-defs.h, arch/x86/include/uapi/asm/signal.h.
pub mod flags {
    /// No SIGCHLD when a child stops.
    pub const SA_NOCLDSTOP: u64 = 1;
    /// Children leave no zombies.
    pub const SA_NOCLDWAIT: u64 = 2;
    /// `restorer` is set; without it the frame can't be left.
    pub const SA_RESTORER: u64 = 0x0400_0000;
    /// On the alternate stack.
    pub const SA_ONSTACK: u64 = 0x0800_0000;
    /// Interrupted calls are restarted.
    pub const SA_RESTART: u64 = 0x1000_0000;
    /// The signal isn't blocked in its own handler.
    pub const SA_NODEFER: u64 = 0x4000_0000;
    /// Back to the default before the handler runs.
    pub const SA_RESETHAND: u64 = 0x8000_0000;
}
