//! See `targets/topology.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/topology.rs"]
mod target;

fuzz_target!(|text: &str| target::run(text));
