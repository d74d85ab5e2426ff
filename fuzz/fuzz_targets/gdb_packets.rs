//! See `targets/gdb_packets.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../targets/gdb_packets.rs"]
mod target;

fuzz_target!(|bytes: &[u8]| target::run(bytes));
