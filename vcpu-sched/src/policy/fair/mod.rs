//! The fair class.

pub mod weight;
