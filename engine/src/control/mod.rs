//! The control core: slow decisions, made on a tokio thread of their own. Must never be awaited by
//! a request: whoever serves one reads the last snapshot.
//!
//! - [`membership`] gossip in, a snapshot of [`Peers`] out
//! - [`janitor`] what the store uses in, what each shard may keep out
//!
//! What `memberlist` does and what is done here: it finds out who is alive (SWIM with Lifeguard)
//! and carries packets; what nodes say of themselves, who may join, where others are found and how
//! a partition heals is ours.

mod gossip;
pub mod janitor;
mod list;
mod log;
pub mod membership;
mod peers;
mod seeds;
mod seek;
mod transport;
mod view;

#[cfg(test)]
mod tests;

pub use membership::{Membership, start};
pub use peers::{ClusterCounters, Peer, Peers, Snapshot};
pub use seeds::{Seed, SeedError};
pub use view::NODES_MAX;

use memberlist::proto::SecretKey;
use std::{fmt, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

/// Version of what nodes say to each other: the state, its meta, and the calls between nodes. A
/// node refuses those with another.
pub const WIRE: u32 = 1;

/// Keys at the same time: the one in use, the one before it, and room for a slow rollout.
pub const KEYS_MAX: usize = 8;

/// Seeds of one node.
pub const SEEDS_MAX: usize = 64;

/// Bytes of a node's name: it stands in front of every operation name.
pub const NODE_ID_BYTES_MAX: usize = 128;

/// What membership needs to start.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Unique in the cluster.
    pub node_id: Arc<str>,
    /// Where this node gossips: TCP and UDP. `[::]` takes IPv4 as well.
    pub listen: SocketAddr,
    /// Where others reach `listen`, if that is another address. With an unspecified `listen` and
    /// without this, the first private address of the machine.
    pub advertise: Option<SocketAddr>,
    /// HOST:PORT where others reach this node's gRPC.
    pub endpoint: String,
    /// Where others are looked for, for ever; this node may be among them. At most `SEEDS_MAX`.
    pub seeds: Vec<Seed>,
    /// How often the seeds' names are asked for, give or take a fifth.
    pub resolve_every: Duration,
    /// The first encrypts, all decrypt; none at all means plain text. At most `KEYS_MAX`.
    pub keys: Vec<Key>,
    /// When the node started, in milliseconds since 1970: tells two processes of one name apart.
    pub started: u64,
    /// The program's version, for people.
    pub version: String,
    /// `WIRE`, except in tests.
    pub wire: u32,
}

/// What a node says of itself and others decide by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnState {
    /// Actions that may run at the same time.
    pub slots: u32,
    /// Actions that run.
    pub running: u32,
    /// Actions that wait.
    pub queued: u32,
    /// The node takes no further actions.
    pub draining: bool,
    /// What it offers to actions.
    pub platform: Vec<(String, String)>,
}

/// A key of the cluster's gossip: AES-GCM with 128, 192 or 256 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(SecretKey);

impl FromStr for Key {
    type Err = ClusterError;

    /// From base64 of 16, 24 or 32 bytes.
    fn from_str(text: &str) -> Result<Self, ClusterError> {
        // The text is a secret: it must not come up in the error.
        let refused = || ClusterError::Config("a key is base64 of 16, 24 or 32 bytes".to_owned());
        text.trim().parse().map(Self).map_err(|_| refused())
    }
}

impl From<[u8; 32]> for Key {
    fn from(bytes: [u8; 32]) -> Self {
        Self(SecretKey::Aes256(bytes))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Why a node can't take part in a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Something in the configuration can't be.
    #[error("{0}")]
    Config(String),
    /// The sockets can't be had, or no address can be found to advertise.
    #[error("gossip on {listen}: {why}")]
    Listen {
        /// Where it was to listen.
        listen: SocketAddr,
        /// What the system says.
        why: String,
    },
}

impl ClusterConfig {
    fn check(&self) -> Result<(), ClusterError> {
        let refuse = |why: String| Err(ClusterError::Config(why));
        if self.node_id.is_empty() || self.node_id.len() > NODE_ID_BYTES_MAX {
            return refuse(format!("a node's name has 1 to {NODE_ID_BYTES_MAX} bytes"));
        }
        if self.listen.port() == 0 {
            return refuse("gossip needs a port that others can know".to_owned());
        }
        if self.seeds.len() > SEEDS_MAX {
            return refuse(format!("{} seeds, at most {SEEDS_MAX}", self.seeds.len()));
        }
        if self.keys.len() > KEYS_MAX {
            return refuse(format!("{} keys, at most {KEYS_MAX}", self.keys.len()));
        }
        Ok(())
    }
}
