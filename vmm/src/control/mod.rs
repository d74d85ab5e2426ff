//! The control interface: HTTP and JSON on a Unix socket, described by docs/openapi.json.
//!
//! `taskvisor run --control PATH` serves it ([`server`], on a thread of its own); `taskvisor ctl` ([`ctl`]) and `taskvisor top`
//! are its clients ([`client`]). What is served lies in [`machine`], in the words of [`api`]. Invariants: nothing here ever makes
//! a vCPU wait, and nothing that a client sends or leaves undone outlives its connection.

pub mod api;
pub mod client;
pub mod ctl;
pub mod machine;
mod routes;
pub mod server;
pub mod socket;
#[cfg(test)]
mod tests;

/// The interface's description, served under `/v1/openapi.json`.
pub const OPENAPI: &str = include_str!("../../../docs/openapi.json");
