//! See `targets/config.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/config.rs"]
mod target;

fuzz_target!(|text: &str| target::run(text));
