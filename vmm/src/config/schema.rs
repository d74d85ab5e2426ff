//! The configuration file's JSON Schema, made from the flags' own types: for editors, and for the check of names in [`super::file`].

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::flags::{GuestFlags, MachineFlags};

/// The schema, as `taskvisor config schema` prints it.
pub fn schema() -> Value {
    // In place, so that a reader needs no references.
    let generator = || SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true).into_generator();
    let halves = [
        generator().into_root_schema_for::<MachineFlags>().to_value(),
        generator().into_root_schema_for::<GuestFlags>().to_value(),
    ];
    let properties: Map<String, Value> = halves
        .into_iter()
        .filter_map(|half| half.get("properties").and_then(Value::as_object).cloned())
        .flatten()
        .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Taskvisor's configuration",
        "description": "What the flags of `taskvisor run` say, one key for each (docs/config.md).",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}
