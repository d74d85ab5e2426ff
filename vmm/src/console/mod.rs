//! The guest's console on the host: the user's terminal, the Ctrl-A escape, and where output goes.
//!
//! Used by [`crate::vm`] and [`crate::event_loop`].

pub mod escape;
pub mod input;
pub mod output;
pub mod terminal;
