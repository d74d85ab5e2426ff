//! See `targets/guest_memory.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/guest_memory.rs"]
mod target;

fuzz_target!(|bytes: &[u8]| target::run(bytes));
