//! `--affinity`, `--vcpu-sched` and lists of CPUs: what is read reads back.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use taskvisor::config::text::IdSet;
use taskvisor::config::values::{Classes, Pins};

fn reads_back<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().ok(), Some(value), "{text}");
    }
}

/// One input.
pub fn run(text: &str) {
    reads_back::<Pins>(text);
    reads_back::<Classes>(text);
    reads_back::<IdSet>(text);
}
