//! Scripts: any text is compiled or refused, within the language's bounds. Nothing is run: scripts start guests.

use taskvisor::script;

/// One input.
pub fn run(text: &str) {
    // Refused or taken.
    let _ = script::check(text);
}
