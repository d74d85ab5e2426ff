//! See `targets/scripts.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/scripts.rs"]
mod target;

fuzz_target!(|text: &str| target::run(text));
