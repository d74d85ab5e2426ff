//! stub
use super::Thread;
use super::signal::SigInfo;
use crate::arch::trap_entry::TrapFrame;
/// Report.
pub fn report(_: &Thread, f: &TrapFrame, i: &SigInfo) {
    crate::warn!("fatal {i:x?} {f:x?}");
}
