//! ringforge.v1.Cluster: who is there, as this node sees it. Must never ask another node, nor tell
//! a secret: whoever reaches the listener may ask.

use super::Node;
use crate::peer::Peering;
use engine::exec;
use proto::node::{
    Member, NodeState, PlatformProperty, ViewRequest, ViewResponse, cluster_server::Cluster,
};
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};

/// The service.
#[derive(Clone)]
pub(crate) struct ClusterService {
    pub(crate) node: Node,
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn view(&self, _: Request<ViewRequest>) -> Result<Response<ViewResponse>, Status> {
        let members = match &self.node.peering {
            Some(peering) => seen(peering, Instant::now()),
            None => vec![self.alone()],
        };
        Ok(Response::new(ViewResponse {
            node_id: self.node.node_id.to_string(),
            clustered: self.node.peering.is_some(),
            members,
        }))
    }
}

impl ClusterService {
    /// This node where nobody else is told of it.
    fn alone(&self) -> Member {
        let load = self.node.executions.as_ref().map(|executions| *executions.load().borrow());
        let load = load.unwrap_or_default();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let platform = exec::platform().into_iter();
        let state = NodeState {
            node_id: self.node.node_id.to_string(),
            slots: count(load.slots),
            running: count(load.running),
            queued: count(load.queued),
            draining: load.draining,
            platform: platform.map(|(name, value)| PlatformProperty { name, value }).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..NodeState::default()
        };
        let node_id = state.node_id.clone();
        Member { node_id, state: Some(state), ..Member::default() }
    }
}

/// This node and its peers; they are no more than a cluster may have.
fn seen(peering: &Peering, now: Instant) -> Vec<Member> {
    let snapshot = peering.peers().snapshot();
    let own = Member {
        node_id: peering.node_id().to_string(),
        gossip_address: peering.address().to_string(),
        state: Some((*snapshot.own).clone()),
        heard_ms: 0,
    };
    let peers = snapshot.peers.values().map(|peer| Member {
        node_id: peer.node_id.to_string(),
        gossip_address: peer.address.to_string(),
        state: peer.state.as_deref().cloned(),
        heard_ms: millis(now.saturating_duration_since(peer.heard)),
    });
    [own].into_iter().chain(peers).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
