//! Values of the language, to and from resources of the control interface.

use rhai::{Dynamic, Map};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Answer, failed};

/// A resource as maps, arrays and numbers. Numbers beyond the language's 64 signed bits become floats.
pub fn show(resource: &impl Serialize) -> Answer<Dynamic> {
    rhai::serde::to_dynamic(resource)
}

/// A map as what the control interface takes.
pub fn read<T: DeserializeOwned>(map: Map) -> Answer<T> {
    rhai::serde::from_dynamic(&Dynamic::from_map(map)).map_err(|error| failed(error.to_string()))
}

/// Flags of `taskvisor run` from a map: `#{vcpus: 2, tsc_khz: 1000, exclusive: true, env: ["A=1"]}`.
pub fn flags(map: &Map) -> Answer<Vec<String>> {
    let mut flags = Vec::new();
    for (name, value) in map {
        let flag = format!("--{}", name.replace('_', "-"));
        if let Ok(on) = value.as_bool() {
            flags.extend(on.then_some(flag));
        } else if let Ok(list) = value.as_array_ref() {
            for value in list.iter() {
                flags.push(format!("{flag}={}", word(value)?));
            }
        } else {
            flags.push(format!("{flag}={}", word(value)?));
        }
    }
    Ok(flags)
}

/// A value as one word of a command line.
pub fn word(value: &Dynamic) -> Answer<String> {
    match value.is_string() || value.is_int() || value.is_float() || value.is_char() {
        true => Ok(value.to_string()),
        false => Err(failed(format!("{} is no word of a command line", value.type_name()))),
    }
}

/// A value as a number to be plotted.
pub fn number(value: &Dynamic) -> Option<f64> {
    value.as_float().ok().or_else(|| value.as_int().ok().map(|n| n as f64))
}
