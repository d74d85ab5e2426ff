//! Signals: numbers, information, what is pending, what a process does about each.
//!
//! `send` posts them, `deliver` takes them on the way to ring 3, `frame` builds and reads the frames on user stacks, `calls`
//! are the system calls. All that several threads may touch is guarded by `Process::signals` (and `Thread::pending` under
//! it), as Linux's siglock does.

mod calls;
mod deliver;
mod frame;
mod info;
mod send;

pub use calls::*;
pub use deliver::{before_user, restore_mask, set_temporary_mask};
pub use frame::sigreturn;
pub use info::{Action, Pending, SigInfo, code, flags};
pub use send::{
    force, notify_parent, recalculate, send_info, send_info_to_thread, send_to_current_thread, send_to_group,
    send_to_process, start_group_exit,
};

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::sync::SpinLock;
use crate::task::Task;

macro_rules! signals {
    ($($name:ident = $n:literal)*) => {
        // All of them, whether this kernel raises them or not.
        $(#[allow(missing_docs, dead_code)] pub const $name: u32 = $n;)*
        /// The signal's name, for reports.
        pub fn name(sig: u32) -> &'static str {
            match sig { $($n => stringify!($name),)* 32..=64 => "SIGRT", _ => "SIG?" }
        }
    };
}

// Linux arch/x86/include/uapi/asm/signal.h.
signals! {
    SIGHUP = 1 SIGINT = 2 SIGQUIT = 3 SIGILL = 4 SIGTRAP = 5 SIGABRT = 6 SIGBUS = 7 SIGFPE = 8 SIGKILL = 9 SIGUSR1 = 10
    SIGSEGV = 11 SIGUSR2 = 12 SIGPIPE = 13 SIGALRM = 14 SIGTERM = 15 SIGSTKFLT = 16 SIGCHLD = 17 SIGCONT = 18
    SIGSTOP = 19 SIGTSTP = 20 SIGTTIN = 21 SIGTTOU = 22 SIGURG = 23 SIGXCPU = 24 SIGXFSZ = 25 SIGVTALRM = 26
    SIGPROF = 27 SIGWINCH = 28 SIGIO = 29 SIGPWR = 30 SIGSYS = 31
}

/// Largest signal number (`_NSIG`).
pub const MAX_SIGNAL: u32 = 64;
/// First real-time signal: from here on signals queue.
pub const FIRST_REALTIME: u32 = 32;

/// A set of signals: bit n-1 is signal n, as in user memory.
pub type SigSet = u64;

/// The set of one signal.
pub const fn bit(sig: u32) -> SigSet {
    1 << ((sig - 1) & 63)
}

/// Can't be blocked, caught or ignored.
pub const UNBLOCKABLE: SigSet = bit(SIGKILL) | bit(SIGSTOP);
/// Stop the process by default.
pub const STOPPING: SigSet = bit(SIGSTOP) | bit(SIGTSTP) | bit(SIGTTIN) | bit(SIGTTOU);
/// Ignored by default.
const IGNORED_BY_DEFAULT: SigSet = bit(SIGCHLD) | bit(SIGURG) | bit(SIGWINCH) | bit(SIGCONT);
/// End the process with a report by default (Linux: with a core dump).
pub const REPORTED: SigSet = bit(SIGQUIT)
    | bit(SIGILL)
    | bit(SIGTRAP)
    | bit(SIGABRT)
    | bit(SIGBUS)
    | bit(SIGFPE)
    | bit(SIGSEGV)
    | bit(SIGXCPU)
    | bit(SIGXFSZ)
    | bit(SIGSYS);
/// Raised by the instruction itself; taken before all others.
const SYNCHRONOUS: SigSet = bit(SIGSEGV) | bit(SIGBUS) | bit(SIGILL) | bit(SIGTRAP) | bit(SIGFPE) | bit(SIGSYS);

/// What a process does about each signal.
#[derive(Clone)]
struct Actions {
    /// Those that are not the default one.
    list: Vec<(u32, Action)>,
    /// Signals with action SIG_IGN.
    ignored: SigSet,
}

/// Whose the actions are: other processes may share them (CLONE_SIGHAND). The lock of shared ones is a leaf.
enum Handlers {
    Own(Actions),
    Shared(Arc<SpinLock<Actions>>),
}

/// The part of a process that its threads' signals depend on; guarded by `Process::signals`.
pub struct SignalState {
    /// Living threads.
    pub threads: Vec<Arc<Task>>,
    /// Pending for the process.
    pub shared: Pending,
    handlers: Handlers,
    /// All threads stop at their next way to ring 3.
    pub stopped: bool,
    /// The signal that stopped it, until wait4 has reported it; 0: none.
    pub stop_report: u32,
    /// Continued, until wait4 has reported it.
    pub continue_report: bool,
}

impl SignalState {
    /// Default actions, nothing pending.
    pub const fn new() -> Self {
        Self {
            threads: Vec::new(),
            shared: Pending::new(),
            handlers: Handlers::Own(Actions { list: Vec::new(), ignored: 0 }),
            stopped: false,
            stop_report: 0,
            continue_report: false,
        }
    }

    /// For a child: the same actions, copied or shared, nothing pending.
    pub fn fork(&mut self, share: bool) -> Self {
        let handlers =
            if share { Handlers::Shared(self.share_actions()) } else { Handlers::Own(self.with(|a| a.clone())) };
        Self { handlers, ..Self::new() }
    }

    /// Ends the sharing of actions with other processes (exec).
    pub fn unshare_actions(&mut self) {
        if let Handlers::Shared(_) = self.handlers {
            self.handlers = Handlers::Own(self.with(|a| a.clone()));
        }
    }

    fn share_actions(&mut self) -> Arc<SpinLock<Actions>> {
        match &self.handlers {
            Handlers::Shared(actions) => actions.clone(),
            Handlers::Own(actions) => {
                let shared = Arc::new(SpinLock::new(actions.clone()));
                self.handlers = Handlers::Shared(shared.clone());
                shared
            }
        }
    }

    /// Whether another process has the same actions.
    pub fn shares_actions(&self) -> bool {
        matches!(&self.handlers, Handlers::Shared(actions) if Arc::strong_count(actions) > 1)
    }

    fn with<R>(&self, f: impl FnOnce(&Actions) -> R) -> R {
        match &self.handlers {
            Handlers::Own(actions) => f(actions),
            Handlers::Shared(actions) => f(&actions.lock()),
        }
    }

    fn with_mut<R>(&mut self, f: impl FnOnce(&mut Actions) -> R) -> R {
        match &mut self.handlers {
            Handlers::Own(actions) => f(actions),
            Handlers::Shared(actions) => f(&mut actions.lock()),
        }
    }

    /// Signals with action SIG_IGN.
    pub fn ignored(&self) -> SigSet {
        self.with(|a| a.ignored)
    }

    /// What the process does about a signal.
    pub fn action(&self, sig: u32) -> Action {
        self.with(|a| a.list.iter().find(|(s, _)| *s == sig).map_or(Action::DEFAULT, |(_, a)| *a))
    }

    /// Replaces an action.
    pub fn set_action(&mut self, sig: u32, action: Action) {
        self.with_mut(|a| {
            a.list.retain(|(s, _)| *s != sig);
            a.ignored &= !bit(sig);
            if action.handler == Action::IGNORE {
                a.ignored |= bit(sig);
            }
            if action != Action::DEFAULT {
                a.list.push((sig, action));
            }
        });
    }

    /// Handlers go back to the default, ignored stays ignored (exec, CLONE_CLEAR_SIGHAND).
    pub fn reset_handlers(&mut self) {
        self.with_mut(|a| {
            a.list.retain(|(_, a)| a.handler == Action::IGNORE);
            for (_, a) in &mut a.list {
                *a = Action { handler: Action::IGNORE, ..Action::DEFAULT };
            }
        });
    }

    /// Whether a signal, once taken, would do nothing.
    pub fn discards(&self, sig: u32) -> bool {
        self.ignored() & bit(sig) != 0
            || (IGNORED_BY_DEFAULT & bit(sig) != 0 && self.action(sig).handler == Action::DEFAULT.handler)
    }
}
