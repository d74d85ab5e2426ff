//! Scripts: any text is compiled or refused, within the language's bounds. Nothing is run: scripts start guests.
#![no_main]

use libfuzzer_sys::fuzz_target;
use taskvisor::script;

fuzz_target!(|text: &str| {
    // Refused or taken.
    let _ = script::check(text);
});
