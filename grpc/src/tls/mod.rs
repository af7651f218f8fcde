//! This node's certificates, and whose it believes: read at start, and again when the files change.
//! Must never give up what works for what does not load, nor show a key.
//!
//! ```text
//!   files ── Sources::load ── Loaded ── watch ──► Tls: data cores, connections to peers
//!     ▲                                   ▲
//!     └── changed, or SIGHUP ── Renewal ──┘
//! ```

mod believed;
mod files;
mod renewal;

pub(crate) use self::{
    believed::{ClientCertificate, Judge},
    files::BadTls,
    renewal::{Renewal, ignore},
};

use self::files::Sources;
use crate::config::{ClientAuth, TlsSettings};
use rustls::{ClientConfig, ServerConfig};
use std::{fmt, sync::Arc, time::SystemTime};
use tokio::sync::watch;

/// Protocols that are spoken over TLS: gRPC alone.
pub(crate) const ALPN: &[u8] = b"h2";

/// TLS as it is now. Cheap to clone, from any thread.
#[derive(Clone)]
pub(crate) struct Tls {
    current: watch::Receiver<Arc<Loaded>>,
    /// What clients have to show.
    pub(crate) client_auth: ClientAuth,
}

impl fmt::Debug for Tls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Tls").field("client_auth", &self.client_auth).finish_non_exhaustive()
    }
}

/// What was made of the files at one moment.
pub(crate) struct Loaded {
    /// For connections that are accepted.
    pub(crate) server: Arc<ServerConfig>,
    /// Whose certificates are believed.
    pub(crate) judge: Judge,
    /// For connections to other nodes, where there are any.
    pub(crate) nodes: Option<Nodes>,
    /// When this node's certificate ends.
    pub(crate) ends: SystemTime,
}

/// How other nodes are reached.
pub(crate) struct Nodes {
    /// Whom to believe, and whom to be.
    pub(crate) client: Arc<ClientConfig>,
    check: files::OwnCheck,
}

impl Tls {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// Which file is of no use, and why.
    pub(crate) fn open(settings: &TlsSettings) -> Result<(Self, Renewal), BadTls> {
        let sources = Sources::new(settings);
        // Looked at before they are read: what is written meanwhile is read again.
        let seen = sources.stamp();
        let loaded = sources.load(SystemTime::now())?;
        let (sender, current) = watch::channel(Arc::new(loaded));
        let tls = Self { current, client_auth: settings.client_auth };
        Ok((tls, Renewal::new(sources, seen, sender)))
    }

    /// What counts for a connection that begins now.
    pub(crate) fn now(&self) -> Arc<Loaded> {
        self.current.borrow().clone()
    }

    /// Whether nodes can prove by their certificates who they are.
    pub(crate) fn proves_nodes(&self) -> bool {
        self.client_auth != ClientAuth::None && self.now().nodes.is_some()
    }

    /// Whether other nodes, which reach this one under `host`, will believe its certificate.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_as_node(&self, host: &str) -> Result<(), BadTls> {
        let loaded = self.now();
        let Some(nodes) = &loaded.nodes else { return Ok(()) };
        nodes.check.run(host, self.proves_nodes(), SystemTime::now())
    }
}

#[cfg(test)]
pub(crate) mod tests;
