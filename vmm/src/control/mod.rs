//! The control interface: HTTP and JSON on a Unix socket, described by docs/openapi.json.
//!
//! `taskvisor run --control PATH` serves it ([`server`], on a thread of its own); `taskvisor ctl` ([`ctl`]) and `taskvisor top`
//! are its clients ([`client`]). What is served lies in [`machine`], what is done in [`act`], in the words of [`api`]; the
//! streams of programs are [`programs`]'.
//! Invariants: looking makes no vCPU wait; what has to wait for the guest does so on a thread of its own and for a bounded
//! time; nothing that a client sends or leaves undone outlives its connection, but what it has asked for.

mod act;
pub mod api;
pub mod client;
pub mod ctl;
mod hangup;
pub mod machine;
mod metrics;
mod pieces;
mod places;
mod problem;
pub mod programs;
mod routes;
pub mod runs;
pub mod server;
mod signals;
pub mod socket;
#[cfg(test)]
mod tests;

/// The interface's description, served under `/v1/openapi.json`.
pub const OPENAPI: &str = include_str!("../../../docs/openapi.json");
