//! What is around a node: the cache below it, the nodes beside it, whoever reads its numbers. Raw
//! and checked in one file for each section. Must never show a secret.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use engine::{
    control::{KEYS_MAX, SEEDS_MAX, Seed},
    tier::WriteMode,
};
use serde::Deserialize;

use super::checked::{Checked, DAY, MILLION, SECOND, address, count, fault, period};
use super::units::{Count, Period};

/// Entries of one list.
const ENTRIES_MAX: usize = 1000;
/// Characters that make guessing hopeless.
const SECRET_CHARS_MIN: usize = 16;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBacking {
    url: String,
    instance: String,
    options: Vec<String>,
    headers: Vec<String>,
    ca: String,
    certificate: String,
    key: String,
    compression: bool,
    write: String,
    write_by_instance: Vec<String>,
    connect_timeout: Period,
    timeout: Period,
    idle_timeout: Period,
    concurrency_max: Count,
    waiting_max: Count,
    absent_kept: Period,
    failures_max: Count,
    open_for: Period,
    hedge: bool,
    backlog_max: Count,
}

/// The cache below this node.
#[derive(Clone)]
pub(crate) struct BackingSettings {
    /// Where it is; empty = there is none.
    pub(crate) url: String,
    /// Under which instance blobs lie there.
    pub(crate) instance: String,
    /// More of an object store: names and values.
    pub(crate) options: Vec<(String, String)>,
    /// Headers of every call: names and values.
    pub(crate) headers: Vec<(String, String)>,
    /// How the two know each other.
    pub(crate) tls: TlsFiles,
    /// Whether large blobs may travel compressed.
    pub(crate) compression: bool,
    /// When a write is acknowledged.
    pub(crate) write: WriteMode,
    /// Instances that have another mode.
    pub(crate) write_by_instance: Vec<(String, WriteMode)>,
    /// Time to connect.
    pub(crate) connect_timeout: Duration,
    /// Time of one call.
    pub(crate) timeout: Duration,
    /// Time until the next piece of a stream.
    pub(crate) idle_timeout: Duration,
    /// Calls at once.
    pub(crate) concurrency_max: usize,
    /// Calls that wait.
    pub(crate) waiting_max: usize,
    /// How long absence is remembered.
    pub(crate) absent_kept: Duration,
    /// Failures in a row that open the circuit.
    pub(crate) failures_max: u32,
    /// How long it stays open.
    pub(crate) open_for: Duration,
    /// Whether slow reads are sent twice.
    pub(crate) hedge: bool,
    /// What may wait to be written.
    pub(crate) backlog_max: usize,
}

impl fmt::Debug for BackingSettings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("BackingSettings").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Files of certificates, each in PEM.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsFiles {
    /// Who may have signed the other's.
    pub(crate) ca: Option<PathBuf>,
    /// This node's, and its key.
    pub(crate) own: Option<(PathBuf, PathBuf)>,
}

pub(super) fn backing(raw: RawBacking) -> Checked<BackingSettings> {
    let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
    let own = match (path(raw.certificate), path(raw.key)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(fault("certificate", "both certificate and key, or neither")),
    };
    let mode = |key: &str, text: &str| match text {
        "sync" => Ok(WriteMode::Sync),
        "async" => Ok(WriteMode::Async),
        "local-only" => Ok(WriteMode::LocalOnly),
        _ => Err(fault(key, "sync, async or local-only")),
    };
    let by_instance = pairs("write_by_instance", &raw.write_by_instance, '=')?;
    let by_instance = by_instance
        .into_iter()
        .map(|(instance, text)| mode("write_by_instance", &text).map(|mode| (instance, mode)));
    Ok(BackingSettings {
        url: raw.url,
        instance: raw.instance,
        options: pairs("options", &raw.options, '=')?,
        headers: pairs("headers", &raw.headers, ':')?,
        tls: TlsFiles { ca: path(raw.ca), own },
        compression: raw.compression,
        write: mode("write", &raw.write)?,
        write_by_instance: by_instance.collect::<Result<_, _>>()?,
        connect_timeout: period("connect_timeout", raw.connect_timeout, TENTH..=MINUTE)?,
        timeout: period("timeout", raw.timeout, TENTH..=DAY)?,
        idle_timeout: period("idle_timeout", raw.idle_timeout, TENTH..=DAY)?,
        concurrency_max: count("concurrency_max", raw.concurrency_max, 1..=100_000)?,
        waiting_max: count("waiting_max", raw.waiting_max, 1..=MILLION)?,
        absent_kept: period("absent_kept", raw.absent_kept, Duration::ZERO..=MINUTE)?,
        failures_max: count("failures_max", raw.failures_max, 1..=1000)?,
        open_for: period("open_for", raw.open_for, TENTH..=OPEN_MAX)?,
        hedge: raw.hedge,
        backlog_max: count("backlog_max", raw.backlog_max, 1..=100 * MILLION)?,
    })
}

const TENTH: Duration = Duration::from_millis(100);
const MINUTE: Duration = Duration::from_secs(60);
/// A cache that is well again is used again within ten seconds.
const OPEN_MAX: Duration = Duration::from_secs(8);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCluster {
    listen: String,
    advertise: String,
    endpoint: String,
    peers: Vec<String>,
    resolve_every: Period,
    keys: Vec<String>,
    secret: String,
    ca: String,
    offload: bool,
    share: bool,
}

/// The nodes beside this one.
#[derive(Clone)]
pub(crate) struct ClusterSettings {
    /// Where gossip is heard; `None` = this node works alone.
    pub(crate) listen: Option<SocketAddr>,
    /// Where others send gossip; `None` = where it is heard.
    pub(crate) advertise: Option<SocketAddr>,
    /// Where others find the services, HOST:PORT; empty = made of the others.
    pub(crate) endpoint: String,
    /// Nodes to join, HOST:PORT.
    pub(crate) peers: Vec<String>,
    /// How often their names are looked up.
    pub(crate) resolve_every: Duration,
    /// Keys of gossip, base64; the first encrypts.
    pub(crate) keys: Vec<String>,
    /// What nodes prove to know; empty = nothing.
    pub(crate) secret: String,
    /// Who signs nodes' certificates; `None` = who signs clients'.
    pub(crate) ca: Option<PathBuf>,
    /// Whether waiting actions are given away.
    pub(crate) offload: bool,
    /// Whether blobs are asked of their home node.
    pub(crate) share: bool,
}

impl fmt::Debug for ClusterSettings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ClusterSettings").field("listen", &self.listen).finish_non_exhaustive()
    }
}

pub(super) fn cluster(raw: RawCluster) -> Checked<ClusterSettings> {
    let optional = |key: &str, text: &str| match text {
        "" => Ok(None),
        text => address(key, text).map(Some),
    };
    let advertise = optional("advertise", &raw.advertise)?;
    if advertise.is_some_and(|address| address.ip().is_unspecified() || address.port() == 0) {
        return Err(fault("advertise", "an address and port that others can reach"));
    }
    if !raw.endpoint.is_empty() {
        let is_one = raw.endpoint.parse::<Seed>().is_ok();
        let address = raw.endpoint.parse::<SocketAddr>();
        if !is_one || address.is_ok_and(|address| address.ip().is_unspecified()) {
            return Err(fault("endpoint", "HOST:PORT, where others can reach this node"));
        }
    }
    let secret_chars = raw.secret.chars().count();
    if secret_chars > 0 && secret_chars < SECRET_CHARS_MIN {
        let expected = format!("nothing, or at least {SECRET_CHARS_MIN} characters");
        return Err(fault("secret", expected));
    }
    if raw.peers.len() > SEEDS_MAX {
        return Err(fault("peers", format!("at most {SEEDS_MAX} of them")));
    }
    if raw.keys.len() > KEYS_MAX {
        return Err(fault("keys", format!("at most {KEYS_MAX} of them")));
    }
    Ok(ClusterSettings {
        listen: optional("listen", &raw.listen)?,
        advertise,
        endpoint: raw.endpoint,
        peers: raw.peers,
        resolve_every: period("resolve_every", raw.resolve_every, SECOND..=DAY)?,
        keys: raw.keys,
        secret: raw.secret,
        ca: (!raw.ca.is_empty()).then(|| PathBuf::from(raw.ca)),
        offload: raw.offload,
        share: raw.share,
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMetrics {
    listen: String,
}

/// Where numbers are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MetricsSettings {
    /// Where; `None` = nowhere.
    pub(crate) listen: Option<SocketAddr>,
}

pub(super) fn metrics(raw: &RawMetrics) -> Checked<MetricsSettings> {
    let listen = match raw.listen.as_str() {
        "" => None,
        text => Some(address("listen", text)?),
    };
    Ok(MetricsSettings { listen })
}

/// `NAME=VALUE` entries, or `NAME: VALUE`.
fn pairs(key: &str, entries: &[String], between: char) -> Checked<Vec<(String, String)>> {
    let expected = || match between {
        '=' => fault(key, "NAME=VALUE entries"),
        _ => fault(key, "NAME: VALUE entries"),
    };
    if entries.len() > ENTRIES_MAX {
        return Err(expected());
    }
    let pairs = entries.iter().map(|entry| {
        let (name, value) = entry.split_once(between).ok_or_else(expected)?;
        // An instance may be the empty one.
        if name.trim().is_empty() && between != '=' {
            return Err(expected());
        }
        Ok((name.trim().to_owned(), value.trim().to_owned()))
    });
    pairs.collect()
}
