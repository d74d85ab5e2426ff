//! Read-copy-update: readers that touch nothing but their own CPU's memory, and updaters that wait for them to go.
//! docs/runtime.md tells the whole story.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`grace`] | periods: a pure state machine over sets of CPUs |
//! | [`Domain`], [`Guard`] | readers, reports, callbacks |
//! | [`RcuPointer`] | a pointer that can only be read inside a guard |
//! | [`RcuMap`] | values by number, found without a lock |
//! | [`Synchronize`] | waiting for a period as a future |
//!
//! The invariant: what was unlinked before a period began is used by nobody after its end.
//!
//! `unsafe` for the same reason as in [`runtime`](crate::runtime): memory whose owner a protocol decides.
// Elsewhere in the crate it is refused.
#![allow(unsafe_code)]

mod callbacks;
mod domain;
pub mod grace;
mod map;
mod pointer;
mod wait;

#[cfg(all(test, loom))]
mod loom_models;
#[cfg(all(test, not(loom)))]
mod tests;

pub use domain::{Backlog, Domain, Guard, InReader, Progress, RcuPlatform};
pub use grace::{Cookie, Stall};
pub use map::RcuMap;
pub use pointer::RcuPointer;
pub use wait::Synchronize;
