//! A configuration as a tree in which every key knows who said it, and the laying of one tree over
//! another. Must never know which keys exist: `config.yaml` says that, and `raw.rs`.

use std::fmt;
use std::sync::Arc;

use serde::de::value::{SeqDeserializer, StrDeserializer};
use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, Visitor};
use serde::forward_to_deserialize_any;

use super::error::{ConfigError, Fault, unknown};
use super::read;

/// Who said a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody: `config.yaml` as it is built into the program.
    Default,
    /// A line of the file that `--config` names.
    File {
        /// The file as it was named.
        path: Arc<str>,
        /// Line of the key, from 1.
        line: u64,
    },
    /// An environment variable, by its whole name.
    Variable(String),
    /// A flag of the command line, with its dashes.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Variable(name) => write!(f, "env {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One key with its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// The key, without the sections it lies in.
    pub(super) key: String,
    /// Who said the value. Of a section: where its key stands.
    pub(super) origin: Origin,
    /// The value.
    pub(super) value: Value,
}

/// What YAML, TOML and the environment have in common.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// A key without a value.
    Nothing,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// Any other number.
    Float(f64),
    /// A text, quoted or not.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// Keys with values, in the order of the text.
    Section(Vec<Entry>),
}

impl Value {
    /// The entry at `key` (`section.key`), if there is one.
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        let (first, rest) = match key.split_once('.') {
            Some((first, rest)) => (first, Some(rest)),
            None => (key, None),
        };
        let entry = self.entries().iter().find(|entry| entry.key == first)?;
        rest.map_or(Some(entry), |rest| entry.value.entry(rest))
    }

    /// The keys of a section; of anything else none.
    pub(super) fn entries(&self) -> &[Entry] {
        match self {
            Self::Section(entries) => entries,
            _ => &[],
        }
    }

    /// Lays `layer` over this tree: what the layer says replaces what stands here, and a key that
    /// does not stand here is refused.
    pub(super) fn lay_over(&mut self, layer: Vec<Entry>) -> Result<(), ConfigError> {
        let known = self.clone();
        lay(self, layer, "", &known)
    }
}

fn lay(
    ground: &mut Value,
    layer: Vec<Entry>,
    path: &str,
    known: &Value,
) -> Result<(), ConfigError> {
    let Value::Section(ground) = ground else { return Ok(()) };
    for said in layer {
        let key = if path.is_empty() { said.key.clone() } else { format!("{path}.{}", said.key) };
        let Some(place) = ground.iter_mut().find(|entry| entry.key == said.key) else {
            return Err(unknown(said.origin, &key, known));
        };
        let is_section = matches!(place.value, Value::Section(_));
        match said.value {
            Value::Section(entries) if is_section => lay(&mut place.value, entries, &key, known)?,
            // A section whose keys are all commented out.
            Value::Nothing if is_section => {}
            found if is_section || matches!(found, Value::Section(_)) => {
                let expected = if is_section { "a section with keys" } else { "a value" };
                let found = found.to_string();
                let expected = expected.to_owned();
                return Err(ConfigError::BadValue { origin: said.origin, key, found, expected });
            }
            found => (place.value, place.origin) = (found, said.origin),
        }
    }
    Ok(())
}

/// As YAML on one line, in a form that reads back as the same value.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Text(text) if is_plain(text) => f.write_str(text),
            // A JSON string is a YAML string.
            Self::Text(text) => write!(f, "{}", serde_json::Value::from(text.as_str())),
            Self::List(list) => {
                f.write_str("[")?;
                for (n, value) in list.iter().enumerate() {
                    write!(f, "{}{value}", if n == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Section(_) => f.write_str("a section with keys"),
        }
    }
}

fn is_plain(text: &str) -> bool {
    let safe = |c: char| c.is_ascii_alphanumeric() || "_./:+-".contains(c);
    !text.is_empty() && text.chars().all(safe) && read::scalar(text) == Value::Text(text.to_owned())
}

impl<'de> IntoDeserializer<'de, Fault> for &'de Value {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> de::Deserializer<'de> for &'de Value {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Value::Nothing => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => match u64::try_from(*value) {
                Ok(value) => visitor.visit_u64(value),
                Err(_) => visitor.visit_i128(*value),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::List(list) => visitor.visit_seq(SeqDeserializer::new(list.iter())),
            Value::Section(entries) => {
                visitor.visit_map(Keys { entries: entries.iter(), current: None })
            }
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let word = match self {
            Value::Text(text) => text.as_str(),
            // To YAML 1.1, which Helm still speaks, a bare `off` is false.
            Value::Bool(false) => "off",
            other => return Err(de::Error::unknown_variant(&other.to_string(), words)),
        };
        visitor.visit_enum(StrDeserializer::new(word))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Keys<'de> {
    entries: std::slice::Iter<'de, Entry>,
    current: Option<&'de Entry>,
}

impl<'de> MapAccess<'de> for Keys<'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        self.current = self.entries.next();
        let Some(entry) = self.current else { return Ok(None) };
        seed.deserialize(StrDeserializer::<Fault>::new(&entry.key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let entry = self.current.take().ok_or_else(|| Fault::new("a key before its value"))?;
        seed.deserialize(&entry.value).map_err(|fault| fault.under(&entry.key))
    }
}
