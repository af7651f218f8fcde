//! What this node was told, in two steps: `raw.rs` is what was said, [`Config`] is what the node
//! needs, checked. Must never be read by a part that could be given its own settings instead.
//!
//! ```text
//!   config.yaml ─┐ (built in)
//!   --config ────┤
//!   RINGFORGE__* ┼─ tree ── Raw ── checked ── Config { server, store, … }
//!   flags ───────┘    └──────────────────────► printed, with who said what
//! ```

mod around;
mod checked;
mod error;
mod parts;
mod raw;
mod read;
mod tls;
mod tree;
mod units;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;

pub(crate) use around::{BackingSettings, ClusterSettings, MetricsSettings};
pub(crate) use error::ConfigError;
pub(crate) use parts::{
    CpuChoice, CpuSettings, Durability, ExecutionSettings, LimitSettings, LogFormat, LogLevel,
    LogSettings, SandboxSettings, ServerConfig, StoreSettings,
};
pub(crate) use raw::{Flags, environment};
pub(crate) use tls::{ClientAuth, TlsSettings};

use error::{Fault, shown};
use raw::Raw;
use tree::Value;

/// Column of the origins in the printed form; a longer line pushes its own to the right.
const ORIGIN_COLUMN: usize = 44;

/// Everything a node needs to know, checked; one value for each part, to be moved there.
#[derive(Debug)]
pub(crate) struct Config {
    /// Where clients connect.
    pub(crate) server: ServerConfig,
    /// TLS there; `None` = everything is in the clear.
    pub(crate) tls: Option<TlsSettings>,
    /// Blobs and action results on disk.
    pub(crate) store: StoreSettings,
    /// Which CPU does what.
    pub(crate) cpus: CpuSettings,
    /// Bounds inside the node.
    pub(crate) limits: LimitSettings,
    /// Running actions.
    pub(crate) execution: ExecutionSettings,
    /// The walls around an action.
    pub(crate) sandbox: SandboxSettings,
    /// The cache below this node.
    pub(crate) backing: BackingSettings,
    /// The nodes beside it.
    pub(crate) cluster: ClusterSettings,
    /// Who reads its numbers.
    pub(crate) metrics: MetricsSettings,
    /// What is said on stderr.
    pub(crate) log: LogSettings,
    /// All settings as YAML that reads back as the same configuration; behind each value, as a
    /// comment, who said it. Secrets are hidden.
    pub(crate) printed: String,
}

impl Config {
    /// The configuration that `file`, `env` and `flags` add up to; the later wins. Without a file
    /// none is looked for.
    pub(crate) fn load(
        file: Option<&Path>,
        flags: Flags,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let tree = raw::gather(file, flags, env)?;
        Self::checked(&tree).map_err(|fault| fault.in_tree(&tree))
    }

    fn checked(tree: &Value) -> Result<Self, Fault> {
        let raw = Raw::deserialize(tree)?;
        let Raw { server, tls, store, cpus, limits, execution, sandbox, .. } = raw;
        let Raw { backing, cluster, metrics, log, .. } = raw;
        let tls = tls::tls(tls).map_err(|fault| fault.under("tls"))?;
        let cluster = around::cluster(cluster).map_err(|fault| fault.under("cluster"))?;
        Ok(Self {
            tls: tls::with_nodes(tls, &cluster)?,
            cluster,
            server: checked::server(server).map_err(|fault| fault.under("server"))?,
            store: checked::store(store).map_err(|fault| fault.under("store"))?,
            cpus: checked::cpus(cpus).map_err(|fault| fault.under("cpus"))?,
            limits: checked::limits(limits).map_err(|fault| fault.under("limits"))?,
            execution: checked::execution(execution).map_err(|fault| fault.under("execution"))?,
            sandbox: checked::sandbox(sandbox).map_err(|fault| fault.under("sandbox"))?,
            backing: around::backing(backing).map_err(|fault| fault.under("backing"))?,
            metrics: around::metrics(&metrics).map_err(|fault| fault.under("metrics"))?,
            log: LogSettings { level: log.level, format: log.format },
            printed: printed(tree),
        })
    }
}

fn printed(tree: &Value) -> String {
    let mut text = String::new();
    for section in tree.entries() {
        let _ = writeln!(text, "{}:", section.key);
        for entry in section.value.entries() {
            let value = shown(&format!("{}.{}", section.key, entry.key), &entry.value);
            let said = format!("  {}: {value}", entry.key);
            let _ = writeln!(text, "{said:<ORIGIN_COLUMN$}  # {}", entry.origin);
        }
    }
    text
}
