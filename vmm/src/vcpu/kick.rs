//! Getting a vCPU thread out of KVM_RUN: a signal whose handler sets `immediate_exit`.
//!
//! A kick races with the thread's way into KVM_RUN. Wrong would be: the signal arrives after the thread has looked for
//! commands and before the ioctl, and is forgotten. It can't be: the handler runs *in* the vCPU's thread and sets
//! `immediate_exit` in its own `kvm_run`, so the ioctl that follows returns at once. The thread clears the flag before
//! it looks for commands, so a later kick is kept too.

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// The `kvm_run` of the vCPU that this thread runs. Constant initial value, no destructor: safe in a handler.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// Installs the handler; once a process is enough, more do no harm.
pub fn install_handler() -> std::io::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    RUN.with(|run| {
        let run = run.get();
        if !run.is_null() {
            // SAFETY: `Armed` put the pointer there and takes it away before the mapping ends, in this same thread.
            unsafe { ptr::write_volatile(&raw mut (*run).immediate_exit, 1) };
        }
    });
}

/// While this lives, kicks of this thread reach its vCPU.
#[derive(Debug)]
pub struct Armed(());

impl Armed {
    /// Call in the vCPU's own thread; drop before the vCPU.
    pub fn new(vcpu: &mut VcpuFd) -> Self {
        RUN.set(vcpu.get_kvm_run());
        Self(())
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        RUN.set(ptr::null_mut());
    }
}

/// As [`kick`], by the thread's number. If the thread has ended, nothing happens.
pub fn kick_thread(tid: i32) {
    // SAFETY: no memory is involved; a number that another of our threads has got meanwhile runs no vCPU, and the handler then
    // does nothing.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, SIGRTMIN()) };
}

/// Makes the thread leave KVM_RUN, or not enter it.
pub fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: the handle has not been joined, so the thread's id is valid, even if the thread has ended.
    let result = unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
    if result != 0 && result != libc::ESRCH {
        log::error!("can't signal a vCPU thread: {}", std::io::Error::from_raw_os_error(result));
    }
}
