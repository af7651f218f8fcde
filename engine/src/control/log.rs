//! Says things once in a while: what others cause, they can cause a thousand times a second. Must
//! never say one thing so often that another is not said.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a thing that was said is not said again.
const SILENCE: Duration = Duration::from_secs(60);

/// Things remembered; beyond it nothing is said until some are old enough.
const REMEMBERED_MAX: usize = 64;

/// What is worth a line, and of whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Remark {
    /// Speaks another wire version, or none that can be read.
    Incompatible { id: Arc<str>, address: SocketAddr, wire: Option<u32> },
    /// One node more than a cluster may have.
    TooMany { id: Arc<str>, address: SocketAddr },
    /// Two processes have one name.
    Conflict { id: Arc<str>, known: SocketAddr, other: SocketAddr },
    /// Somebody sends what can't be read, most likely without the key.
    Foreign { from: SocketAddr, why: String },
    /// A seed does not answer, and there is nobody else.
    Alone { seed: String, why: String },
}

/// What was said lately.
#[derive(Debug, Default)]
pub(super) struct Lately(BTreeMap<Remark, Instant>);

impl Lately {
    /// Whether it is time to say it.
    pub(super) fn is_due(&mut self, remark: &Remark, now: Instant) -> bool {
        self.0.retain(|_, said| now.saturating_duration_since(*said) < SILENCE);
        if self.0.len() >= REMEMBERED_MAX || self.0.contains_key(remark) {
            return false;
        }
        self.0.insert(remark.clone(), now);
        true
    }

    /// Says it, if it is time to.
    pub(super) fn say(&mut self, remark: &Remark, now: Instant, own: &str, wire: u32) {
        if !self.is_due(remark, now) {
            return;
        }
        match remark {
            Remark::Incompatible { id, address, wire: Some(theirs) } => tracing::warn!(
                node = %id, %address, theirs, ours = wire,
                "a node was refused: its wire version is not ours"
            ),
            Remark::Incompatible { id, address, wire: None } => tracing::warn!(
                node = %id, %address,
                "a node was refused: it is none of ours, for it says no wire version"
            ),
            Remark::TooMany { id, address } => {
                tracing::warn!(node = %id, %address, "a node was refused: the cluster is full");
            }
            Remark::Conflict { id, known, other } if &**id == own => tracing::warn!(
                node = %id, here = %known, there = %other,
                "this node's name is also that of another address: either this node was there \
                 before and is not forgotten yet, or two nodes have one name"
            ),
            Remark::Conflict { id, known, other } => tracing::warn!(
                node = %id, %known, %other,
                "a node was refused: another one that is alive has its name"
            ),
            Remark::Foreign { from, why } => {
                tracing::warn!(%from, why, "gossip that can't be read was ignored");
            }
            Remark::Alone { seed, why } => tracing::warn!(
                seed,
                why,
                "this node knows nobody, and a seed does not answer: is it up, and has it our keys?"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_said_once_a_minute_and_another_is_said_too() {
        let (mut lately, start) = (Lately::default(), tokio::time::Instant::now().into_std());
        let remark = |id: &str| Remark::TooMany {
            id: id.into(),
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
        };
        assert!(lately.is_due(&remark("a"), start));
        assert!(!lately.is_due(&remark("a"), start));
        assert!(lately.is_due(&remark("b"), start));
        let late = start + SILENCE;
        assert!(lately.is_due(&remark("a"), late));
        for at in 0..2 * REMEMBERED_MAX {
            lately.is_due(&remark(&at.to_string()), late);
        }
        assert_eq!(lately.0.len(), REMEMBERED_MAX);
    }
}
