//! See `targets/affinity.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/affinity.rs"]
mod target;

fuzz_target!(|text: &str| target::run(text));
