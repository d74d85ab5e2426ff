//! See `targets/traces.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/traces.rs"]
mod target;

fuzz_target!(|bytes: &[u8]| target::run(bytes));
