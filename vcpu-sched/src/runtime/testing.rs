//! The platform of this module's tests: threads of the host, or loom's, in the place of CPUs.

use std::boxed::Box;
use std::vec::Vec;

use super::lock::Spin;
use super::{Platform, Runtime};
use crate::ids::CpuId;

#[cfg(not(loom))]
mod waiting {
    use std::sync::{Condvar, Mutex};

    /// A kick that comes before the wait is not lost.
    #[derive(Default)]
    pub struct Token(Mutex<bool>, Condvar);

    impl Token {
        pub fn kick(&self) {
            *self.0.lock().unwrap() = true;
            self.1.notify_one();
        }

        pub fn wait(&self) {
            let mut kicked = self.0.lock().unwrap();
            while !*kicked {
                kicked = self.1.wait(kicked).unwrap();
            }
            *kicked = false;
        }
    }

    std::thread_local! {
        pub static CPU: core::cell::Cell<Option<u32>> = const { core::cell::Cell::new(None) };
    }
}

#[cfg(loom)]
mod waiting {
    pub struct Token(loom::sync::Notify);

    impl Default for Token {
        fn default() -> Self {
            Self(loom::sync::Notify::new())
        }
    }

    impl Token {
        pub fn kick(&self) {
            self.0.notify();
        }

        pub fn wait(&self) {
            self.0.wait();
        }
    }

    loom::thread_local! {
        pub static CPU: core::cell::Cell<Option<u32>> = core::cell::Cell::new(None);
    }
}

/// A machine of threads.
pub struct Threads(Vec<waiting::Token>);

// SAFETY: a thread is an executor's only inside `on_cpu`, which the tests call once for a CPU at a time.
unsafe impl Platform for Threads {
    type Lock = Spin;

    fn executor_cpu(&self) -> Option<CpuId> {
        waiting::CPU.with(|cpu| cpu.get()).map(CpuId)
    }

    fn kick(&self, cpu: CpuId) {
        self.0[cpu.index()].kick();
    }

    fn park(&self, cpu: CpuId) {
        self.0[cpu.index()].wait();
    }
}

/// A runtime for so many threads. It is never freed: a runtime lives as long as its kernel.
pub fn machine(cpus: u32) -> &'static Runtime<Threads> {
    let tokens = (0..cpus).map(|_| waiting::Token::default()).collect();
    Box::leak(Box::new(Runtime::new(Threads(tokens), cpus)))
}

/// What is done in `f` is done by the executor of a CPU.
pub fn on_cpu<T>(cpu: u32, f: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            waiting::CPU.with(|current| current.set(None));
        }
    }
    waiting::CPU.with(|current| current.set(Some(cpu)));
    let _leave = Leave;
    f()
}
