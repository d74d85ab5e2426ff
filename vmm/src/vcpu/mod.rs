//! vCPUs: set-up, the run loop and its orders, the exit decoder, kicks, and the report of a fatal exit.
//!
//! [`crate::vm`] is the only caller. One thread owns one vCPU for its whole life.

pub mod counts;
pub mod exit;
pub mod kick;
pub mod report;
pub mod run_loop;
pub mod seat;
pub mod setup;
