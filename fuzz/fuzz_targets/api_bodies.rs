//! See `targets/api_bodies.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/api_bodies.rs"]
mod target;

fuzz_target!(|bytes: &[u8]| target::run(bytes));
