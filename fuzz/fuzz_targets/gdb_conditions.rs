//! See `targets/gdb_conditions.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/gdb_conditions.rs"]
mod target;

fuzz_target!(|code: &[u8]| target::run(code));
