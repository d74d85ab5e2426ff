//! The kernel's log (COM1) and its reports (COM2).
//!
//! Levels as on the command line. Lines are written whole: one lock, held for a line. Anyone may log, from anywhere; a
//! crashing CPU uses [`emergency`], which doesn't wait for the lock.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};

use crate::arch::features::{Features, has};
use crate::arch::uart;
use crate::sync::SpinLock;

/// Importance of a line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something failed.
    Error = 1,
    /// Something is odd, and a user may want to know.
    Warn = 2,
    /// Milestones.
    Info = 3,
    /// Details for developers of the kernel.
    Debug = 4,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);
/// Guards COM1 and COM2, for a line.
static PORT: SpinLock<()> = SpinLock::new(());

/// Sets the level by its name on the command line. Returns whether there is such a level.
pub fn set_level(name: &str) -> bool {
    let level = match name {
        "off" => 0,
        "error" => 1,
        "warn" => 2,
        "info" => 3,
        "debug" => 4,
        _ => return false,
    };
    LEVEL.store(level, Ordering::Relaxed);
    true
}

/// Whether lines of a level are wanted.
#[inline(always)]
pub fn enabled(level: Level) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

struct Port(u16);

impl Write for Port {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if has(Features::SLOW_RING0) {
            uart::write_fast(self.0, s.as_bytes());
        } else {
            s.bytes().for_each(|b| uart::write(self.0, b));
        }
        Ok(())
    }
}

/// Writes a line to the log. Use the macros.
pub fn line(level: Level, args: fmt::Arguments<'_>) {
    let now = crate::time::now().0;
    let tag = match level {
        Level::Error => "error",
        Level::Warn => "warn ",
        Level::Info => "info ",
        Level::Debug => "debug",
    };
    let _lock = PORT.lock();
    let _ = writeln!(Port(uart::COM1), "[{:>5}.{:06}] {tag} {args}", now / 1_000_000_000, now / 1000 % 1_000_000);
}

/// Writes a line to the reports port: `--strace`, `--stats`.
pub fn report(args: fmt::Arguments<'_>) {
    let _lock = PORT.lock();
    // Some machines (QEMU's microvm) have one UART only.
    let port = if uart::present(uart::COM2) { uart::COM2 } else { uart::COM1 };
    let _ = writeln!(Port(port), "{args}");
}

/// Writes raw bytes to the log UART: the programs' output where no virtio console exists.
pub fn raw(bytes: &[u8]) {
    let _lock = PORT.lock();
    bytes.iter().for_each(|b| uart::write(uart::COM1, *b));
}

/// For crashing CPUs: waits for the lock only a little, then writes anyway.
pub fn emergency(args: fmt::Arguments<'_>) {
    let mut lock = None;
    for _ in 0..1000 {
        lock = PORT.try_lock();
        if lock.is_some() {
            break;
        }
        core::hint::spin_loop();
    }
    let _ = writeln!(Port(uart::COM1), "{args}");
    drop(lock);
}

/// Logs an error.
#[macro_export]
macro_rules! error { ($($a:tt)*) => { if $crate::log::enabled($crate::log::Level::Error) { $crate::log::line($crate::log::Level::Error, format_args!($($a)*)) } } }
/// Logs a warning.
#[macro_export]
macro_rules! warn { ($($a:tt)*) => { if $crate::log::enabled($crate::log::Level::Warn) { $crate::log::line($crate::log::Level::Warn, format_args!($($a)*)) } } }
/// Logs a milestone.
#[macro_export]
macro_rules! info { ($($a:tt)*) => { if $crate::log::enabled($crate::log::Level::Info) { $crate::log::line($crate::log::Level::Info, format_args!($($a)*)) } } }
/// Logs a detail.
#[macro_export]
macro_rules! debug { ($($a:tt)*) => { if $crate::log::enabled($crate::log::Level::Debug) { $crate::log::line($crate::log::Level::Debug, format_args!($($a)*)) } } }
