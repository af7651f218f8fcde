//! The way to one process of one peer: a connection for calls, and its blobs as a tier. Must never
//! outlive that process: one that starts again has another link.

use super::{CALL_TIMEOUT, PeeringParts};
use crate::backing::{
    channel::{BadConnect, Connect, Connection, Proof, Target},
    remote::{Remote, RemoteSettings},
};
use engine::tier::{Below, Guarded, Tier};
use std::{sync::Arc, time::Duration};

/// Time to connect: nodes of a cluster are near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time until the next piece of a blob.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connected peer.
pub(crate) struct Link {
    endpoint: String,
    started: u64,
    /// For calls other than blobs.
    pub(crate) connection: Connection,
    /// Its blobs, as they are asked for directly.
    pub(crate) below: Arc<dyn Below>,
    /// How asking it directly goes.
    pub(crate) guard: Guarded,
    /// Its blobs, brought here.
    pub(crate) tier: Tier,
}

impl Link {
    /// Connects when first used. Within the runtime of calls to peers only.
    pub(super) fn open(
        parts: &PeeringParts,
        node_id: &str,
        endpoint: &str,
        started: u64,
    ) -> Result<Self, BadConnect> {
        let connect = Connect {
            url: format!("grpc://{endpoint}"),
            ca: None,
            certificate: None,
            key: None,
            headers: Vec::new(),
            connect_timeout: CONNECT_TIMEOUT,
        };
        let proof =
            Proof { secret: parts.secret.clone(), from: parts.node_id.clone(), to: node_id.into() };
        let target = Target::new(&connect)?.proving(proof);
        let target = match &parts.tls {
            Some(tls) => target.secured(tls.clone()),
            None => target,
        };
        let settings = RemoteSettings {
            instance: parts.instance.clone(),
            compression: false,
            call_deadline: CALL_TIMEOUT,
            idle_deadline: IDLE_TIMEOUT,
        };
        let remote = Arc::new(Remote::new(&target, settings));
        let guard = Guarded::new(remote, parts.guard.clone());
        let below: Arc<dyn Below> = Arc::new(guard.clone());
        let (tier, serve) = Tier::new(below.clone(), parts.cores.clone(), parts.tier.clone());
        tokio::spawn(serve);
        let (endpoint, connection) = (endpoint.to_owned(), target.open());
        Ok(Self { endpoint, started, connection, below, guard, tier })
    }

    /// Whether this is the way to that process.
    pub(super) fn leads_to(&self, endpoint: &str, started: u64) -> bool {
        self.endpoint == endpoint && self.started == started
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Whoever still reads from it goes on; the loop ends with its last job.
        self.tier.close();
    }
}
