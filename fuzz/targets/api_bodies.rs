//! Bodies of the control interface's requests: what is taken for good is written as JSON that is read as the same again.

use serde::Serialize;
use serde::de::DeserializeOwned;
use taskvisor::clock::Rate;
use taskvisor::config::values::Pins;
use taskvisor::control::api;

fn reads_back<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Option<T> {
    let value = serde_json::from_slice::<T>(bytes).ok()?;
    let text = serde_json::to_value(&value).expect("what was read can be written");
    let again: T = serde_json::from_value(text.clone()).expect("and read again");
    assert_eq!(serde_json::to_value(&again).ok(), Some(text));
    Some(value)
}

/// One input.
pub fn run(bytes: &[u8]) {
    reads_back::<api::TaskChange>(bytes);
    reads_back::<api::SignalRequest>(bytes);
    reads_back::<api::SpawnRequest>(bytes);
    if let Some(change) = reads_back::<api::ClockChange>(bytes) {
        // Refused or taken.
        let _ = change.rate.map(|rate| rate.parse::<Rate>());
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<Pins>();
    }
}
