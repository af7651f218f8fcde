//! YAML and TOML texts into trees that know their lines. Must never interpret a value: what `64MiB`
//! means is decided where the key is known.

use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Options, Spanned};
use toml::de::{DeTable, DeValue};

use super::tree::{Entry, Origin, Value};

/// A text that is not YAML or TOML at all.
#[derive(Debug)]
pub(super) struct SyntaxError {
    /// Where reading stopped, from 1.
    pub(super) line: u64,
    /// What the parser says about it.
    pub(super) message: String,
}

/// Reads YAML; `origin` is asked with the line of each key.
pub(super) fn yaml(text: &str, origin: &dyn Fn(u64) -> Origin) -> Result<Value, SyntaxError> {
    serde_saphyr::with_deserializer_from_str_with_options(text, options(), |deserializer| {
        Reading { origin }.deserialize(deserializer)
    })
    .map_err(|error| SyntaxError {
        line: error.location().map_or(1, |location| location.line()),
        message: first_line(&error.without_snippet().to_string()),
    })
}

/// Reads one YAML scalar; what is none, or no YAML, is a text.
pub(super) fn scalar(text: &str) -> Value {
    match yaml(text, &|_| Origin::Default) {
        Ok(Value::Section(_) | Value::Nothing) | Err(_) => Value::Text(text.to_owned()),
        Ok(value) => value,
    }
}

/// Reads TOML; `origin` is asked with the line of each key.
pub(super) fn toml(text: &str, origin: &dyn Fn(u64) -> Origin) -> Result<Value, SyntaxError> {
    let line_of = |byte: usize| {
        text.as_bytes().iter().take(byte).filter(|byte| **byte == b'\n').count() as u64 + 1
    };
    let table = DeTable::parse(text).map_err(|error| SyntaxError {
        line: line_of(error.span().map_or(0, |span| span.start)),
        message: first_line(error.message()),
    })?;
    Ok(toml_table(table.get_ref(), &|byte| origin(line_of(byte))))
}

fn options() -> Options {
    // `off`, `yes` and `no` stay the words they are.
    serde_saphyr::options! { strict_booleans: true, leading_zero_numbers_as_strings: true }
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

fn toml_table(table: &DeTable<'_>, origin: &dyn Fn(usize) -> Origin) -> Value {
    let entry = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| Entry {
        key: toml_key(key),
        origin: origin(key.span().start),
        value: toml_value(value.get_ref(), origin),
    };
    Value::Section(table.iter().map(entry).collect())
}

fn toml_key(key: &toml::Spanned<toml::de::DeString<'_>>) -> String {
    key.get_ref().to_string()
}

fn toml_value(value: &DeValue<'_>, origin: &dyn Fn(usize) -> Origin) -> Value {
    match value {
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Integer(value) => i128::from_str_radix(value.as_str(), value.radix())
            .map_or_else(|_| Value::Text(value.to_string()), Value::Integer),
        DeValue::Float(value) => {
            value.as_str().parse().map_or_else(|_| Value::Text(value.to_string()), Value::Float)
        }
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Datetime(value) => Value::Text(value.to_string()),
        DeValue::Array(list) => {
            Value::List(list.iter().map(|value| toml_value(value.get_ref(), origin)).collect())
        }
        DeValue::Table(table) => toml_table(table, origin),
    }
}

/// Builds a [`Value`] from whatever the YAML says.
#[derive(Clone, Copy)]
struct Reading<'a> {
    origin: &'a dyn Fn(u64) -> Origin,
}

impl<'de> DeserializeSeed<'de> for Reading<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reading<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a section")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            list.push(value);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let origin = (self.origin)(key.defined.line());
            let value = map.next_value_seed(self)?;
            entries.push(Entry { key: key.value, origin, value });
        }
        Ok(Value::Section(entries))
    }
}
