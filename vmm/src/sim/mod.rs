//! `taskvisor sim`: workloads on a simulated machine under the scheduler that the guest kernel has.
//!
//! The machine is `vcpu_sched::sim`; here are its files, flags and reports. The binary calls [`run::run`] and prints
//! [`report::text`] or [`report::json`].
//!
//! | module | what |
//! | --- | --- |
//! | [`args`] | the flags |
//! | [`source`] | built-in workloads, files, traces |
//! | [`file`](mod@file), [`span`] | the TOML format |
//! | [`replay`] | a trace as a workload |
//! | [`observe`] | checker and trace file |
//! | [`run`] | all of it in order |
//! | [`report`] | the results |

pub mod args;
pub mod file;
pub mod observe;
pub mod replay;
pub mod report;
pub mod run;
pub mod source;
pub mod span;

/// Exit code when an invariant of the scheduler was broken.
pub const EXIT_VIOLATION: u8 = 1;
