//! What can be wrong with a configuration, said so that a person can mend it: who said it, which
//! key, what was expected, and the key that was probably meant. Must never print more than a line.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::de;

use super::raw::variable_of;
use super::tree::{Origin, Value};

/// Most letters that may differ between an unknown key and the one suggested for it.
const SUGGESTION_DISTANCE_MAX: usize = 3;

/// Why a node cannot start with what it was told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file as it was named.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file's name does not tell its language.
    #[error("{}: the name of a configuration file ends in .yaml, .yml or .toml", path.display())]
    Ending {
        /// The file as it was named.
        path: PathBuf,
    },
    /// The file is not YAML or TOML.
    #[error("{origin}: expected {language}: {message}")]
    Syntax {
        /// Where reading stopped.
        origin: Origin,
        /// What the file's name promises.
        language: &'static str,
        /// What the parser says.
        message: String,
    },
    /// A key that no part of the node has.
    #[error("{origin}: unknown key `{key}`; {suggestion}")]
    UnknownKey {
        /// Who said it.
        origin: Origin,
        /// The key with its section.
        key: String,
        /// The nearest known key, or all of the section.
        suggestion: String,
    },
    /// A value that its key cannot have.
    #[error("{origin}: `{key}`: expected {expected}, found {found}")]
    BadValue {
        /// Who said it.
        origin: Origin,
        /// The key with its section.
        key: String,
        /// What was said.
        found: String,
        /// What would have been right.
        expected: String,
    },
}

/// A key that cannot have its value; who said the value is found later, in the tree.
#[derive(Debug)]
pub(super) struct Fault {
    /// The key with its section.
    pub(super) key: String,
    /// What would have been right.
    pub(super) expected: String,
    /// Another key that this one contradicts, with its section.
    against: Option<&'static str>,
}

impl Fault {
    /// A fault of a key that is not known yet: [`Fault::under`] names it on the way out.
    pub(super) fn new(expected: impl Into<String>) -> Self {
        Self { key: String::new(), expected: expected.into(), against: None }
    }

    /// The same fault, caused as much by `other` (`section.key`).
    pub(super) fn against(mut self, other: &'static str) -> Self {
        self.against = Some(other);
        self
    }

    /// The same fault, one section further out.
    pub(super) fn under(mut self, key: &str) -> Self {
        self.key = if self.key.is_empty() { key.to_owned() } else { format!("{key}.{}", self.key) };
        self
    }

    /// The whole error: `tree` knows what was said, and by whom.
    pub(super) fn in_tree(self, tree: &Value) -> ConfigError {
        let origin_of = |key: &str| tree.entry(key).map(|entry| entry.origin.clone());
        let said = |origin: &Origin| *origin != Origin::Default;
        // Of two keys that contradict each other, the one that somebody said has the place to mend.
        let origin = origin_of(&self.key)
            .filter(said)
            .or_else(|| self.against.and_then(origin_of))
            .unwrap_or(Origin::Default);
        let found = tree.entry(&self.key).map_or(&Value::Nothing, |entry| &entry.value);
        let found = shown(&self.key, found);
        ConfigError::BadValue { origin, key: self.key, found, expected: self.expected }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: expected {}", self.key, self.expected)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(_found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(expected.to_string())
    }

    fn invalid_value(_found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(expected.to_string())
    }

    fn unknown_variant(_found: &str, words: &'static [&'static str]) -> Self {
        Self::new(format!("one of {}", words.join(", ")))
    }
}

/// Keys whose values are nobody's business: they end up in logs and in tickets.
const SECRETS: [&str; 4] = ["backing.options", "backing.headers", "cluster.keys", "cluster.secret"];

/// A value as people may see it.
pub(super) fn shown(key: &str, value: &Value) -> String {
    let said = value.to_string();
    let is_empty = said == "[]" || said == "\"\"";
    if SECRETS.contains(&key) && !is_empty { "(hidden)".to_owned() } else { said }
}

/// The error for `key`, which does not stand in `known`.
pub(super) fn unknown(origin: Origin, key: &str, known: &Value) -> ConfigError {
    let spell = |key: &str| match origin {
        Origin::Variable(_) => variable_of(key),
        _ => key.to_owned(),
    };
    let suggestion = match nearest(key, known) {
        Some(near) => format!("did you mean `{}`?", spell(&near)),
        None => {
            let section = key.rsplit_once('.').map_or("", |(section, _)| section);
            let keys: Vec<_> =
                section_of(section, known).entries().iter().map(|e| e.key.as_str()).collect();
            format!("expected one of {}", keys.join(", "))
        }
    };
    ConfigError::UnknownKey { origin, key: key.to_owned(), suggestion }
}

fn section_of<'a>(section: &str, known: &'a Value) -> &'a Value {
    known.entry(section).map_or(known, |entry| &entry.value)
}

/// The known key that was probably meant: one of the very same name in another section, or else
/// one that is nearly the same.
fn nearest(key: &str, known: &Value) -> Option<String> {
    let mut keys = Vec::new();
    for section in known.entries() {
        keys.push(section.key.clone());
        keys.extend(section.value.entries().iter().map(|e| format!("{}.{}", section.key, e.key)));
    }
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let distance = |known: &String| strsim::osa_distance(key, known);
    // A short name is another name after one or two letters.
    let bound = SUGGESTION_DISTANCE_MAX.min(last(key).len() / 2);
    let near = || keys.iter().min_by_key(|known| distance(known)).filter(|k| distance(k) <= bound);
    keys.iter().find(|known| last(known) == last(key)).or_else(near).cloned()
}
