//! Values that a file may hold as the very text that the flag takes, and some of them as a number or a table as well.
//!
//! [`as_text`] and [`as_text_or`] give a type with `FromStr` and `Display` its serde and its JSON Schema. One grammar for
//! flag and file: whatever the flag refuses, the file refuses with the same words.

use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error, MapAccess, SeqAccess, Visitor};

/// Takes the flag's text; a number counts as its digits.
pub(super) struct Text<T>(pub PhantomData<T>);

impl<T> Visitor<'_> for Text<T>
where
    T: FromStr<Err: Display>,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(|error| E::custom(format_args!("'{text}': {error}")))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

/// Takes the flag's text, or the same said with tables and arrays, `S`.
pub(super) struct TextOr<T, S>(pub PhantomData<(T, S)>);

impl<'de, T, S> Visitor<'de> for TextOr<T, S>
where
    T: FromStr<Err: Display>,
    S: Deserialize<'de> + TryInto<T, Error: Display>,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a table")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Text(PhantomData).visit_str(text)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        S::deserialize(MapAccessDeserializer::new(map))?.try_into().map_err(A::Error::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<T, A::Error> {
        S::deserialize(SeqAccessDeserializer::new(seq))?.try_into().map_err(A::Error::custom)
    }
}

/// Serde and schema of a type that is text, or a whole number where the schema says so.
macro_rules! as_text {
    ($type:ty, $schema:tt) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any($crate::config::text_value::Text(std::marker::PhantomData))
            }
        }

        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!($schema)
            }
        }
    };
}

/// Serde and schema of a type that is text, or what `$table` reads.
macro_rules! as_text_or {
    ($type:ty, $table:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let either = $crate::config::text_value::TextOr::<$type, $table>(std::marker::PhantomData);
                deserializer.deserialize_any(either)
            }
        }

        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let table = generator.subschema_for::<$table>();
                schemars::json_schema!({ "anyOf": [{ "type": "string" }, table] })
            }
        }
    };
}

pub(super) use {as_text, as_text_or};
