//! The other nodes of the cluster as this one uses them: who calls, how they are called, what is
//! asked of them. Must never decide what is given to whom: the scheduler does.
//!
//! Invariant: what a peer asks is answered by this node and the tier below, never by a third node;
//! a question travels one step.

pub(crate) mod errands;
pub(crate) mod home;
mod link;
mod outcome;
pub(crate) mod proof;
mod route;

pub(crate) use self::link::Link;

use self::proof::{HEADER, Secret};
use crate::{
    backing::channel::BadConnect,
    tls::{ClientCertificate, Tls},
};
use engine::{
    control::Peers,
    cores::Cores,
    tier::{GuardConfig, Health, TierConfig},
};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tonic::{Code, Extensions, Status, metadata::MetadataMap};

/// What talking to peers needs.
pub(crate) struct PeeringParts {
    /// This node's name.
    pub(crate) node_id: Arc<str>,
    /// Where it gossips.
    pub(crate) address: SocketAddr,
    /// Who is there.
    pub(crate) peers: Peers,
    /// What all of them know.
    pub(crate) secret: Secret,
    /// How they are reached; `None` = in the clear.
    pub(crate) tls: Option<Tls>,
    /// Whether their certificates prove what else the secret does.
    pub(crate) by_certificate: bool,
    /// An instance that every node serves; blobs are asked for under it.
    pub(crate) instance: String,
    /// This node's blobs.
    pub(crate) cores: Cores,
    /// How peers' blobs are asked for.
    pub(crate) tier: TierConfig,
    pub(crate) guard: GuardConfig,
    /// Where calls to peers run.
    pub(crate) runtime: tokio::runtime::Handle,
}

/// What a request says of who makes it.
#[derive(Clone, Copy)]
pub(crate) struct Asking<'a> {
    headers: &'a http::HeaderMap,
    certificate: Option<&'a ClientCertificate>,
}

impl<'a> Asking<'a> {
    /// From what came with a request beside its message.
    pub(crate) fn of(headers: &'a MetadataMap, extensions: &'a Extensions) -> Self {
        Self { headers: headers.as_ref(), certificate: extensions.get() }
    }
}

/// This node's dealings with its peers. Shared by all threads.
pub(crate) struct Peering {
    parts: PeeringParts,
    /// Connections, each to one process of one peer.
    links: Mutex<HashMap<Arc<str>, Arc<Link>>>,
}

/// How long a call to a peer may take until its first answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

impl Peering {
    /// With nobody connected yet.
    pub(crate) fn new(parts: PeeringParts) -> Arc<Self> {
        Arc::new(Self { parts, links: Mutex::default() })
    }

    /// This node's name.
    pub(crate) fn node_id(&self) -> &Arc<str> {
        &self.parts.node_id
    }

    /// Where this node gossips.
    pub(crate) fn address(&self) -> SocketAddr {
        self.parts.address
    }

    /// Who is there.
    pub(crate) fn peers(&self) -> &Peers {
        &self.parts.peers
    }

    /// How calls for the blobs of those peers go that were called.
    pub(crate) fn healths(&self) -> Vec<(Arc<str>, Health)> {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.iter().map(|(name, link)| (name.clone(), link.guard.health())).collect()
    }

    /// Where calls to peers run.
    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.parts.runtime
    }

    /// The peer that makes a request, by its header; `None` for a client.
    ///
    /// # Errors
    /// PERMISSION_DENIED where header and certificate prove nothing, UNAVAILABLE where no such node
    /// is known.
    pub(crate) fn caller(&self, asking: Asking<'_>) -> Result<Option<Arc<str>>, Status> {
        let Some(header) = asking.headers.get(HEADER) else { return Ok(None) };
        let header = header.to_str().map_err(|_| Status::permission_denied(HEADER))?;
        let own = &self.parts.node_id;
        let from = self.parts.secret.check(header, own, SystemTime::now())?;
        let Some(peer) = self.parts.peers.get(from) else {
            let message = format!("{own} does not know a node {from:?} (yet)");
            return Err(Status::unavailable(crate::status::short(message)));
        };
        if self.parts.by_certificate {
            let Some(state) = &peer.state else {
                let message = format!("{from} has not said yet where it serves");
                return Err(crate::status::retry(Code::Unavailable, message));
            };
            proof::check_certificate(asking.certificate, from, &state.endpoint)?;
        }
        Ok(Some(peer.node_id))
    }

    /// The way to a peer; `None` where it is not known, or not yet where it serves.
    pub(crate) fn link(&self, node_id: &str) -> Option<Arc<Link>> {
        let peer = self.parts.peers.get(node_id)?;
        let state = peer.state?;
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(node_id)
            && link.leads_to(&state.endpoint, peer.started)
        {
            return Some(link.clone());
        }
        links.retain(|known, _| self.parts.peers.get(known).is_some());
        match self.connect(node_id, &state.endpoint, peer.started) {
            Ok(link) => {
                let link = Arc::new(link);
                links.insert(peer.node_id, link.clone());
                Some(link)
            }
            Err(error) => {
                tracing::warn!(peer = node_id, endpoint = state.endpoint, %error, "no way to it");
                None
            }
        }
    }

    fn connect(&self, node_id: &str, endpoint: &str, started: u64) -> Result<Link, BadConnect> {
        let _inside = self.parts.runtime.enter();
        Link::open(&self.parts, node_id, endpoint, started)
    }
}
