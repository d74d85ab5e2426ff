//! stub
use core::sync::atomic::{AtomicBool, Ordering};
use super::errno::SysResult;
use super::process::Thread;
use super::process::signal::SigInfo;
static ON: AtomicBool = AtomicBool::new(false);
pub struct Call;
pub fn init() -> bool { let on = crate::boot::cmdline::flag("strace"); ON.store(on, Ordering::Relaxed); on }
pub fn on() -> bool { ON.load(Ordering::Relaxed) }
pub fn enter(t: &Thread, nr: u64, a: &[u64; 6]) -> Call { if on() { crate::log::report(format_args!("[{}] {} {:x?}", t.tid(), super::names::name(nr).unwrap_or("?"), a)); } Call }
pub fn leave(_: Call, r: &SysResult) { crate::log::report(format_args!("   = {r:x?}")); }
pub fn signal(_: &Thread, i: &SigInfo) { if on() { crate::log::report(format_args!("--- {i:?}")); } }
pub fn exited(_: &Thread, s: u32) { if on() { crate::log::report(format_args!("+++ {s:x}")); } }
