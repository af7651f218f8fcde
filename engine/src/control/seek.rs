//! How a node finds the others, at first and again: the seeds, and those who take it for another.
//! Must never give up.

use super::{
    log::Remark,
    membership::{LOOK_EVERY, Membership},
    peers::ClusterCounters,
};
use futures_util::future::join_all;
use memberlist::proto::MaybeResolvedAddress;
use std::{cell::Cell, collections::BTreeSet, net::SocketAddr, time::Duration};
use tokio::time::Instant;

/// Until a seed that could not be reached is tried again.
const SEEK_AGAIN: Duration = Duration::from_secs(2);
/// For a name server to answer.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(10);
/// Addresses asked in one round; of more, as many by chance.
const SEEK_MAX: usize = 32;

/// How long this node insists on its name after it last heard that it is taken.
const CONFLICT: Duration = Duration::from_secs(15);
/// Seconds to which the pause between two attempts grows while it insists.
const INSIST_PAUSE_MAX: u32 = 10;

/// A name that others know from another address: that of the process before this one, it is to be
/// hoped, which they will find dead. Until then they refuse this one.
#[derive(Debug, Default)]
pub(super) struct Insisting {
    until: Cell<Option<Instant>>,
    rounds: Cell<u32>,
}

impl Insisting {
    /// Somebody says that the name is taken.
    pub(super) fn begin(&self) {
        self.until.set(Some(Instant::now() + CONFLICT));
    }

    fn is_on(&self) -> bool {
        self.until.get().is_some_and(|until| Instant::now() < until)
    }

    /// Longer each time: if there are two nodes of that name, it never ends.
    fn pause(&self) -> Option<Duration> {
        let rounds = if self.is_on() { self.rounds.get() + 1 } else { 0 };
        self.rounds.set(rounds.min(INSIST_PAUSE_MAX));
        (rounds > 0).then(|| LOOK_EVERY * self.rounds.get())
    }
}

/// Nobody's secret and nobody's proof: what spreads nodes over time.
fn chance(below: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) % below.max(1)
}

/// Give or take a fifth, so that nodes that start together do not ask together.
fn jittered(around: Duration) -> Duration {
    around.mul_f64(0.8 + 0.4 * (chance(1000) as f64 / 1000.0))
}

impl Membership {
    /// Asks seeds that are no members, for ever: else two halves of a cluster that once took each
    /// other for dead would never meet again (hashicorp/memberlist#222).
    pub(super) async fn seek(&self) {
        loop {
            let failed = self.seek_once().await;
            let pause = match (self.insisting.pause(), failed) {
                (Some(pause), _) => pause,
                (None, true) => SEEK_AGAIN.min(self.config.resolve_every),
                (None, false) => self.config.resolve_every,
            };
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    /// Returns whether something is to be tried again soon.
    async fn seek_once(&self) -> bool {
        let (mut addresses, mut failed) = self.resolve().await;
        let list = self.running().list;
        let known: Vec<_> = self.view.borrow().peers().values().map(|peer| peer.address).collect();
        if self.insisting.is_on() {
            addresses.extend(&known);
        } else {
            addresses.retain(|address| !known.contains(address));
        }
        addresses.remove(list.advertise_address());
        addresses.remove(&self.config.listen);
        let mut addresses: Vec<_> = addresses.into_iter().collect();
        while addresses.len() > SEEK_MAX {
            addresses.swap_remove(chance(addresses.len() as u64) as usize);
        }
        let joins = addresses.iter().map(|&address| {
            let join = list.join(MaybeResolvedAddress::resolved(address));
            async move { (address.to_string(), join.await) }
        });
        for (seed, joined) in join_all(joins).await {
            if let Err(error) = joined {
                ClusterCounters::count(&self.gossip.guard.counters.joins_failed);
                self.complain(seed, error.to_string());
                failed = true;
            }
        }
        failed
    }

    /// All addresses of all seeds, and whether one has none at the moment.
    async fn resolve(&self) -> (BTreeSet<SocketAddr>, bool) {
        let (mut addresses, mut failed) = (BTreeSet::new(), false);
        let answers = self.config.seeds.iter().map(|seed| async move {
            (seed, tokio::time::timeout(RESOLVE_PATIENCE, seed.resolve()).await)
        });
        for (seed, answer) in join_all(answers).await {
            let why = match answer {
                Ok(Ok(found)) => {
                    addresses.extend(found);
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no name server answers".to_owned(),
            };
            self.complain(seed.to_string(), why);
            failed = true;
        }
        (addresses, failed)
    }

    /// One seed of many may well be away; that all are is worth a line.
    fn complain(&self, seed: String, why: String) {
        if self.view.borrow().peers().is_empty() {
            self.say(&Remark::Alone { seed, why });
        } else {
            tracing::debug!(seed, why, "a seed does not answer");
        }
    }
}
