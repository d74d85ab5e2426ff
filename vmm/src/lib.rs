//! Taskvisor's virtual machine monitor as a library.
//!
//! The binary `taskvisor` and the whole-system tests are its users. A [`config::Config`] says what is wanted,
//! [`launch::run`] does it: [`guest`] checks and lays out what runs inside, [`vm`] builds the machine ([`memory`],
//! [`boot`], [`vcpu`], [`console`], the devices) and runs it under [`event_loop`]; [`end`] is how it ended.

pub mod affinity;
pub mod archive;
pub mod boot;
pub mod chaos;
pub mod clock;
pub mod config;
pub mod console;
pub mod control;
pub mod debug;
pub mod delegate;
pub mod end;
pub mod event_loop;
pub mod footprint;
pub mod guest;
pub mod guestview;
pub mod host;
pub mod launch;
pub mod logger;
pub mod manual;
pub mod memory;
pub mod program;
pub mod report;
pub mod requests;
pub mod sandbox;
pub mod script;
pub mod signals;
pub mod sim;
pub mod stats;
pub mod sweep;
pub mod top;
pub mod topology;
pub mod trace;
pub mod vcpu;
pub mod vm;
