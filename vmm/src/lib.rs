//! Taskvisor's virtual machine monitor as a library.
//!
//! The binary `taskvisor` and the whole-system tests are its users. A [`guest::Guest`] says what runs inside,
//! [`vm::Options`] on what machine; [`vm::Vm`] runs it.

pub mod boot;
pub mod console;
pub mod end;
pub mod event_loop;
pub mod guest;
pub mod memory;
pub mod signals;
pub mod stats;
pub mod vcpu;
pub mod vm;
