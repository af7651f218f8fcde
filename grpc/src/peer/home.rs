//! The cluster as one store: each digest has a home among the nodes, and is asked for there. Must
//! never ask more than one node for one blob, nor this one.

use super::Peering;
use bytes::Bytes;
use engine::{
    digest::Digest,
    tier::{Below, BelowError, BelowResult, Incoming, Outgoing},
};
use futures_util::future::{BoxFuture, join_all};
use proto::reapi::ActionResult;
use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

/// Bytes of blobs in one request, to all homes together.
const BATCH_BYTES_MAX: u64 = 3 << 20;

/// All nodes but this one, each for the digests that belong to it.
pub(crate) struct Homes {
    /// Weak: what is below a node must not keep its peers.
    peering: Weak<Peering>,
}

impl Homes {
    /// The homes among the peers of this node.
    pub(crate) fn new(peering: &Arc<Peering>) -> Self {
        Self { peering: Arc::downgrade(peering) }
    }

    /// Where a digest belongs; `None` where that is here.
    fn of(&self, digest: &Digest) -> Option<Arc<dyn Below>> {
        let peering = self.peering.upgrade()?;
        let snapshot = peering.peers().snapshot();
        let own = peering.node_id();
        let serving = snapshot.peers.values().filter(|peer| peer.state.is_some());
        let others = serving.map(|peer| &peer.node_id);
        let home = others.chain([own]).max_by_key(|node| rank(digest, node))?;
        if home == own {
            return None;
        }
        peering.link(home).map(|link| link.below.clone())
    }

    /// The digests of each home, with their places.
    fn group(&self, digests: &[Digest]) -> Vec<(Arc<dyn Below>, Vec<usize>)> {
        let mut groups: BTreeMap<String, (Arc<dyn Below>, Vec<usize>)> = BTreeMap::new();
        for (place, digest) in digests.iter().enumerate() {
            if let Some(home) = self.of(digest) {
                let group = groups.entry(home.name().to_owned());
                group.or_insert_with(|| (home, Vec::new())).1.push(place);
            }
        }
        groups.into_values().collect()
    }
}

/// How much a digest belongs to a node (rendezvous hashing): the same on all nodes, and where one
/// comes or goes only its own digests move.
fn rank(digest: &Digest, node: &str) -> u64 {
    // FNV-1a: both inputs are hashed or short, and only equality among nodes matters.
    let bytes = digest.hash().iter().chain(node.as_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // Its low bits mix too little: as in the finish of MurmurHash3.
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

fn none_here<T>() -> BelowResult<T> {
    Err(BelowError::Absent)
}

impl Below for Homes {
    fn name(&self) -> &'static str {
        "home"
    }

    fn batch_bytes_max(&self) -> u64 {
        BATCH_BYTES_MAX
    }

    fn probe(&self) -> BoxFuture<'_, BelowResult<()>> {
        Box::pin(async { Ok(()) })
    }

    fn find_missing(&self, digests: Vec<Digest>) -> BoxFuture<'_, BelowResult<Vec<Digest>>> {
        Box::pin(async move {
            let groups = self.group(&digests);
            let asked = groups.iter().map(|(home, places)| {
                home.find_missing(places.iter().map(|&place| digests[place]).collect())
            });
            let mut absent = vec![true; digests.len()];
            for ((_, places), missing) in groups.iter().zip(join_all(asked).await) {
                // A node that can't be asked has nothing.
                let Ok(missing) = missing else { continue };
                for &place in places {
                    absent[place] = missing.contains(&digests[place]);
                }
            }
            let missing = digests.into_iter().zip(absent).filter(|(_, absent)| *absent);
            Ok(missing.map(|(digest, _)| digest).collect())
        })
    }

    fn read(&self, digest: Digest, offset: u64) -> BoxFuture<'_, BelowResult<Incoming>> {
        Box::pin(async move {
            match self.of(&digest) {
                // One that can't be asked has nothing: the tier below is asked next.
                Some(home) => home.read(digest, offset).await.map_err(absent_if_gone),
                None => none_here(),
            }
        })
    }

    fn read_many(
        &self,
        digests: Vec<Digest>,
    ) -> BoxFuture<'_, BelowResult<Vec<BelowResult<Bytes>>>> {
        Box::pin(async move {
            let groups = self.group(&digests);
            let asked = groups.iter().map(|(home, places)| {
                home.read_many(places.iter().map(|&place| digests[place]).collect())
            });
            let mut answers: Vec<BelowResult<Bytes>> =
                digests.iter().map(|_| none_here()).collect();
            for ((_, places), read) in groups.iter().zip(join_all(asked).await) {
                let Ok(read) = read else { continue };
                for (&place, one) in places.iter().zip(read) {
                    answers[place] = one.map_err(absent_if_gone);
                }
            }
            Ok(answers)
        })
    }

    fn write(&self, _: Digest, _: Outgoing) -> BoxFuture<'_, BelowResult<()>> {
        Box::pin(async { refuse() })
    }

    fn write_many(
        &self,
        _: Vec<(Digest, Bytes)>,
    ) -> BoxFuture<'_, BelowResult<Vec<BelowResult<()>>>> {
        Box::pin(async { refuse() })
    }

    fn get_action<'a>(
        &'a self,
        _: &'a str,
        _: Digest,
    ) -> BoxFuture<'a, BelowResult<Option<ActionResult>>> {
        Box::pin(async { Ok(None) })
    }

    fn put_action<'a>(
        &'a self,
        _: &'a str,
        _: Digest,
        _: ActionResult,
    ) -> BoxFuture<'a, BelowResult<()>> {
        Box::pin(async { refuse() })
    }
}

fn refuse<T>() -> BelowResult<T> {
    Err(BelowError::Refused("a home is read, never written".to_owned()))
}

fn absent_if_gone(error: BelowError) -> BelowError {
    if error.is_outage() { BelowError::Absent } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_spread_over_nodes_and_stay_where_they_are_when_one_goes() {
        let nodes = ["a", "b", "c", "node-4", "node-5"];
        let home = |digest: &Digest, nodes: &[&'static str]| {
            *nodes.iter().max_by_key(|node| rank(digest, node)).unwrap()
        };
        let digests: Vec<Digest> =
            (0..10_000_u32).map(|number| Digest::of(&number.to_be_bytes())).collect();
        for node in nodes {
            let own = digests.iter().filter(|digest| home(digest, &nodes) == node).count();
            assert!((1700..2300).contains(&own), "{node} has {own} of 10,000");
        }
        for digest in &digests {
            let before = home(digest, &nodes);
            if before != "c" {
                assert_eq!(home(digest, &["a", "b", "node-4", "node-5"]), before);
            }
        }
    }
}
