//! The task-aware debugger: a server of the GDB remote protocol that shows the guest's tasks as threads.
//!
//! ```text
//!  client <-> server (thread, socket) <-> session (commands) <-> target (threads, registers, memory)
//!               ^                                                  |  run, step, breakpoints
//!               +------ hub <- vCPU threads' exits                 +-> run control: stop, ask, go on
//! ```
//! Pure are [`packet`], [`command`], [`registers`], [`target_xml`], [`threads`], [`memory`], [`steps`], [`agent_expr`] and, but for the bytes in guest
//! memory, [`breakpoints`] and [`watch`]. Everything that comes from the guest or from the client is checked where it is used. See docs/debugging.md.

pub mod address;
pub mod agent_expr;
pub mod breakpoints;
pub mod command;
pub mod hex;
pub mod hub;
pub mod inflight;
pub mod judge;
pub mod kernel_file;
pub mod maps;
pub mod memory;
pub mod monitor;
pub mod observe;
pub mod packet;
pub mod registers;
pub mod run;
pub mod server;
pub mod session;
pub mod settings;
pub mod step;
pub mod steps;
pub mod stop;
pub mod target;
pub mod target_xml;
pub mod threads;
pub mod watch;
pub mod wishes;
