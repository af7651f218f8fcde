//! What was said: the file, the environment and the flags, laid over `config.yaml` in this order.
//! The only file of the repository that reads environment variables. Must never judge a value
//! beyond its kind: `checked.rs` does that.
//!
//! Invariant: no default stands in the code. `config.yaml` is built into the program as the lowest
//! layer, so every key is optional for whoever starts a node, and none is absent here.

use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::around::{RawBacking, RawCluster, RawMetrics};
use super::error::ConfigError;
use super::parts::{Durability, LogFormat, LogLevel};
use super::read;
use super::tls::RawTls;
use super::tree::{Entry, Origin, Value};
use super::units::{AutoCount, Count, CpuChoice, Period, Size};

/// The documented defaults.
pub(super) const DEFAULTS: &str = include_str!("../../../config.yaml");

/// Begins every variable that is ours. Two underscores, because Kubernetes gives each pod variables
/// named after services: a service `ringforge` makes `RINGFORGE_PORT`.
const VARIABLE_PREFIX: &str = "RINGFORGE__";

/// What the command line of `serve` says about the configuration.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Flags {
    /// Address and port on which clients connect, instead of server.listen
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// Directory of all data, instead of store.directory
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<String>,
}

/// `config.yaml`, key by key, after all layers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) server: RawServer,
    pub(super) tls: RawTls,
    pub(super) store: RawStore,
    pub(super) cpus: RawCpus,
    pub(super) limits: RawLimits,
    pub(super) execution: RawExecution,
    pub(super) sandbox: RawSandbox,
    pub(super) backing: RawBacking,
    pub(super) cluster: RawCluster,
    pub(super) metrics: RawMetrics,
    pub(super) log: RawLog,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawServer {
    pub(super) listen: String,
    pub(super) connections_max: Count,
    pub(super) streams_max: Count,
    pub(super) header_bytes_max: Size,
    pub(super) message_bytes_max: Size,
    pub(super) batch_bytes_max: Size,
    pub(super) find_missing_digests_max: Count,
    pub(super) instances: Vec<String>,
    pub(super) grace: Period,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStore {
    pub(super) directory: String,
    pub(super) bytes_max: Size,
    pub(super) free_bytes_min: Size,
    pub(super) segment_bytes: Size,
    pub(super) small_blob_bytes_max: Size,
    pub(super) blob_bytes_max: Size,
    pub(super) lease: Period,
    pub(super) durability: Durability,
    pub(super) scrub_bytes_per_second: Size,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCpus {
    pub(super) data: CpuChoice,
    pub(super) control: CpuChoice,
    pub(super) actions: CpuChoice,
    pub(super) shards: Count,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    pub(super) inbox_len_max: Count,
    pub(super) in_flight_max: Count,
    pub(super) uploads_max: Count,
    pub(super) upload_idle: Period,
    pub(super) tree_bytes_max: Size,
    pub(super) tree_directories_max: Count,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawExecution {
    pub(super) enabled: bool,
    pub(super) slots: AutoCount,
    pub(super) queue_max: Count,
    pub(super) timeout_default: Period,
    pub(super) timeout_max: Period,
    pub(super) input_files_max: Count,
    pub(super) input_bytes_max: Size,
    pub(super) output_files_max: Count,
    pub(super) output_bytes_max: Size,
    pub(super) stream_bytes_max: Size,
    pub(super) operations_kept: Period,
    pub(super) operations_max: Count,
    pub(super) node_id: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSandbox {
    pub(super) toolchain: Vec<String>,
    pub(super) uid_first: Count,
    pub(super) open_files_max: Count,
    pub(super) processes_max: Count,
    pub(super) tmp_bytes_max: Size,
    pub(super) tmp_inodes_max: Count,
    pub(super) network: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) level: LogLevel,
    pub(super) format: LogFormat,
}

/// The environment of this process. Bytes that are no UTF-8 become U+FFFD, by which
/// [`gather`] refuses the value if the variable is ours.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    })
}

/// All layers in one tree. Of two that say a key, the later wins: defaults, file, environment,
/// flags.
pub(super) fn gather(
    file: Option<&Path>,
    flags: Flags,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Value, ConfigError> {
    let defaults =
        parsed(DEFAULTS, &Arc::from("config.yaml"), Language::Yaml, |_| Origin::Default)?;
    let mut tree = defaults.clone();
    if let Some(path) = file {
        tree.lay_over(file_layer(path)?)?;
    }
    for (key, value, origin) in variables(env) {
        if value.contains(char::REPLACEMENT_CHARACTER) {
            let expected = "text in UTF-8".to_owned();
            return Err(ConfigError::BadValue { origin, key, found: value, expected });
        }
        let value = typed(&value, defaults.entry(&key).map(|entry| &entry.value));
        tree.lay_over(vec![nested(&key, value, &origin)])?;
    }
    let flags =
        [("server.listen", "--listen", flags.listen), ("store.directory", "--data", flags.data)];
    for (key, name, value) in flags {
        if let Some(value) = value {
            tree.lay_over(vec![nested(key, Value::Text(value), &Origin::Flag(name))])?;
        }
    }
    Ok(tree)
}

/// The variable that overrides `key`.
pub(super) fn variable_of(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

#[derive(Clone, Copy)]
enum Language {
    Yaml,
    Toml,
}

fn file_layer(path: &Path) -> Result<Vec<Entry>, ConfigError> {
    let language = match path.extension().and_then(|ending| ending.to_str()) {
        Some("yaml" | "yml") => Language::Yaml,
        Some("toml") => Language::Toml,
        _ => return Err(ConfigError::Ending { path: path.to_owned() }),
    };
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    let name: Arc<str> = Arc::from(path.to_string_lossy());
    let in_file = |line| Origin::File { path: Arc::clone(&name), line };
    match parsed(&text, &name, language, in_file)? {
        Value::Section(entries) => Ok(entries),
        // Only comments, or empty.
        Value::Nothing => Ok(Vec::new()),
        other => Err(ConfigError::Syntax {
            origin: in_file(1),
            language: "sections with keys",
            message: format!("found {other}"),
        }),
    }
}

fn parsed(
    text: &str,
    path: &Arc<str>,
    language: Language,
    origin: impl Fn(u64) -> Origin,
) -> Result<Value, ConfigError> {
    let (name, tree) = match language {
        Language::Yaml => ("YAML", read::yaml(text, &origin)),
        Language::Toml => ("TOML", read::toml(text, &origin)),
    };
    tree.map_err(|error| ConfigError::Syntax {
        origin: Origin::File { path: Arc::clone(path), line: error.line },
        language: name,
        message: error.message,
    })
}

/// Key, text and origin of each variable that is ours, by name: the order of an environment is
/// chance, and the first error should not be.
fn variables(env: impl Iterator<Item = (String, String)>) -> Vec<(String, String, Origin)> {
    let mut variables: Vec<_> = env
        .filter_map(|(name, value)| {
            let key = name.strip_prefix(VARIABLE_PREFIX)?.to_lowercase().replace("__", ".");
            Some((key, value, Origin::Variable(name)))
        })
        .collect();
    variables.sort_by(|left, right| left.0.cmp(&right.0));
    variables
}

/// What the text of a variable means for a key whose default is `default`: the environment has no
/// kinds of its own.
fn typed(text: &str, default: Option<&Value>) -> Value {
    let scalar = read::scalar(text);
    // `[::1]:1,[::1]:2` begins as a list of YAML does, and is none.
    let in_brackets = text.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let is_address = in_brackets.is_some_and(|(inside, _)| inside.parse::<Ipv6Addr>().is_ok());
    match (default, scalar) {
        (Some(Value::List(_)), list @ Value::List(_)) if !is_address => list,
        (Some(Value::List(_)), _) if is_address || !text.trim_start().starts_with('[') => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Value::List(parts.map(|part| Value::Text(part.to_owned())).collect())
        }
        // Quotes are for the shell or for YAML; a bare 007 stays the text it is.
        (Some(Value::Text(_)), Value::Text(text)) => Value::Text(text),
        (Some(Value::Text(_)), _) => Value::Text(text.to_owned()),
        (_, scalar) => scalar,
    }
}

fn nested(key: &str, value: Value, origin: &Origin) -> Entry {
    let entry = |key: &str, value| Entry { key: key.to_owned(), origin: origin.clone(), value };
    match key.split_once('.') {
        Some((section, rest)) => entry(section, Value::Section(vec![nested(rest, value, origin)])),
        None => entry(key, value),
    }
}
