//! Taskvisor's virtual machine monitor as a library.
//!
//! The binary `taskvisor` and the whole-system tests are its users.
