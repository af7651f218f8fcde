//! Who is in the cluster and what each last said, as a pure state machine: an event in, what
//! follows out. Must never take the time, wait, or believe a state of one who is no member.

use super::peers::Peer;
use proto::node::NodeState;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Instant};

/// Nodes in one cluster, this one included. A thousand states fit into one exchange.
pub const NODES_MAX: usize = 1000;

/// A member as the failure detector knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) id: Arc<str>,
    pub(super) address: SocketAddr,
    /// Which process of that name: when it started, ms since 1970.
    pub(super) started: u64,
}

/// What may happen to a view.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// Somebody came, or came back as another process or from another address.
    Joined(Member),
    /// Somebody said goodbye, or was found dead.
    Left(Arc<str>),
    /// All members there are, this node's own entry left out. What events were lost on the way is
    /// made good by it.
    Members(Vec<Member>),
    /// A node told of itself; through whomever.
    State(NodeState),
}

/// What follows from an event.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Effects {
    /// The view is another one.
    pub(super) changed: bool,
    /// This was news, and others may not know it.
    pub(super) relay: Option<Arc<NodeState>>,
}

impl Effects {
    fn changed(changed: bool) -> Self {
        Self { changed, relay: None }
    }
}

/// The other nodes of the cluster. Holds no more than `NODES_MAX` of them.
#[derive(Debug)]
pub(super) struct View {
    own: Arc<str>,
    peers: BTreeMap<Arc<str>, Peer>,
}

impl View {
    pub(super) fn new(own: Arc<str>) -> Self {
        Self { own, peers: BTreeMap::new() }
    }

    pub(super) fn peers(&self) -> &BTreeMap<Arc<str>, Peer> {
        &self.peers
    }

    pub(super) fn handle(&mut self, event: Event, now: Instant) -> Effects {
        match event {
            Event::Joined(member) => Effects::changed(self.join(member, now)),
            Event::Left(id) => Effects::changed(self.peers.remove(&id).is_some()),
            Event::Members(members) => {
                let before = self.peers.len();
                let stays = |id: &Arc<str>| members.iter().any(|member| member.id == *id);
                self.peers.retain(|id, _| stays(id));
                let mut changed = self.peers.len() != before;
                for member in members {
                    changed |= self.join(member, now);
                }
                Effects::changed(changed)
            }
            Event::State(state) => self.hear(state, now),
        }
    }

    fn join(&mut self, member: Member, now: Instant) -> bool {
        if member.id == self.own {
            return false;
        }
        let Some(peer) = self.peers.get_mut(&member.id) else {
            // One place is this node's own.
            if self.peers.len() + 1 >= NODES_MAX {
                return false;
            }
            let Member { id, address, started } = member;
            let peer = Peer { node_id: id.clone(), address, started, state: None, heard: now };
            self.peers.insert(id, peer);
            return true;
        };
        let same = peer.address == member.address && peer.started == member.started;
        if peer.started != member.started {
            // What the process before it said is void, even where a clock went backwards and its
            // generation is the higher one.
            peer.state = None;
            peer.started = member.started;
        }
        peer.address = member.address;
        if !same {
            peer.heard = now;
        }
        !same
    }

    fn hear(&mut self, state: NodeState, now: Instant) -> Effects {
        let Some(peer) = self.peers.get_mut(state.node_id.as_str()) else {
            return Effects::default();
        };
        // Another process of the same name: one that is gone, or a second one that was refused.
        if state.started != peer.started {
            return Effects::default();
        }
        let known = peer.state.as_ref().map_or(0, |known| known.generation);
        if state.generation <= known {
            return Effects::default();
        }
        let state = Arc::new(state);
        peer.state = Some(state.clone());
        peer.heard = now;
        Effects { changed: true, relay: Some(state) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn member(id: &str, started: u64) -> Member {
        let address = SocketAddr::from(([127, 0, 0, 1], 7000 + (started % 100) as u16));
        Member { id: id.into(), address, started }
    }

    fn state(id: &str, started: u64, count: u64) -> NodeState {
        NodeState {
            node_id: id.to_owned(),
            started,
            generation: (started << 16) + count,
            running: count as u32,
            ..NodeState::default()
        }
    }

    fn generation(view: &View, id: &str) -> Option<u64> {
        Some(view.peers().get(id)?.state.as_ref()?.generation)
    }

    #[test]
    fn an_older_state_never_replaces_a_newer_one() {
        let (mut view, now) = (View::new("a".into()), now());
        view.handle(Event::Joined(member("b", 1)), now);
        assert!(view.handle(Event::State(state("b", 1, 2)), now).relay.is_some());
        for count in [1, 2] {
            let effects = view.handle(Event::State(state("b", 1, count)), now);
            assert_eq!(effects, Effects::default(), "{count}");
        }
        assert_eq!(generation(&view, "b"), Some((1 << 16) + 2));
    }

    #[test]
    fn only_the_process_that_is_a_member_is_believed() {
        let (mut view, now) = (View::new("a".into()), now());
        assert_eq!(view.handle(Event::State(state("b", 1, 1)), now), Effects::default());
        view.handle(Event::Joined(member("b", 5)), now);
        for other in [4, 6] {
            assert!(!view.handle(Event::State(state("b", other, 9)), now).changed, "{other}");
        }
        view.handle(Event::State(state("b", 5, 1)), now);
        // A clock that went backwards between two starts.
        view.handle(Event::Joined(member("b", 3)), now);
        assert_eq!(generation(&view, "b"), None);
        assert!(view.handle(Event::State(state("b", 3, 1)), now).changed);
        view.handle(Event::Left("b".into()), now);
        assert!(view.peers().is_empty());
        assert_eq!(view.handle(Event::State(state("b", 3, 2)), now), Effects::default());
    }

    #[test]
    fn a_node_is_never_its_own_peer() {
        let (mut view, now) = (View::new("a".into()), now());
        assert!(!view.handle(Event::Joined(member("a", 1)), now).changed);
        assert!(!view.handle(Event::Members(vec![member("a", 1)]), now).changed);
        assert!(!view.handle(Event::State(state("a", 1, 1)), now).changed);
    }

    #[test]
    fn a_view_has_a_bound() {
        let (mut view, now) = (View::new("a".into()), now());
        for at in 0..2 * NODES_MAX {
            view.handle(Event::Joined(member(&format!("n{at}"), 1)), now);
        }
        assert_eq!(view.peers().len(), NODES_MAX - 1);
    }

    /// Of a seed, numbers.
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((self.0 >> 33) as usize) % bound
        }
    }

    /// Nodes come, go, start anew and tell; each view hears of it late, twice, in any order or not
    /// at all. In the end each hears once who there is and what each last said.
    #[test]
    fn views_converge_whatever_was_lost_on_the_way() {
        for seed in 0..300 {
            let mut chance = Chance(seed);
            let now = now();
            let ids = ["a", "b", "c", "d", "e"];
            let mut alive: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
            let mut views = ids.map(|id| View::new(id.into()));
            let mut told: Vec<Event> = Vec::new();
            for step in 1..200_u64 {
                let id = ids[chance.below(ids.len())];
                match (chance.below(4), alive.get_mut(id)) {
                    (0, Some(_)) => {
                        alive.remove(id);
                        told.push(Event::Left(id.into()));
                    }
                    (1, _) => {
                        // Now and then by a clock that went backwards.
                        let started = 1000 + step - chance.below(100) as u64;
                        alive.insert(id, (started, 0));
                        told.push(Event::Joined(member(id, started)));
                    }
                    (_, Some((started, count))) => {
                        *count += 1;
                        told.push(Event::State(state(id, *started, *count)));
                    }
                    (_, None) => {}
                }
                for view in &mut views {
                    for _ in 0..chance.below(3) {
                        if let Some(event) = told.get(chance.below(told.len().max(1))) {
                            view.handle(event.clone(), now);
                        }
                    }
                }
            }
            let members: Vec<_> = alive.iter().map(|(id, at)| member(id, at.0)).collect();
            for view in &mut views {
                view.handle(Event::Members(members.clone()), now);
                let last = alive.iter().filter(|(_, at)| at.1 > 0);
                for (id, (started, count)) in last {
                    view.handle(Event::State(state(id, *started, *count)), now);
                }
            }
            for view in &views {
                let expect: BTreeSet<_> = alive
                    .iter()
                    .filter(|(id, _)| **id != &*view.own)
                    .map(|(id, (started, count))| {
                        (*id, *started, (*count > 0).then_some((started << 16) + count))
                    })
                    .collect();
                let found: BTreeSet<_> = view
                    .peers()
                    .iter()
                    .map(|(id, peer)| (&**id, peer.started, generation(view, id)))
                    .collect();
                assert_eq!(found, expect, "seed {seed}, view of {}", view.own);
            }
        }
    }
}
