//! The network between the schedulers. A connection keeps order and loses nothing until it breaks;
//! then all that was on its way is lost, and both ends notice in their own time.

use super::{Asked, Given, Happening, MILLISECOND, World};
use crate::exec::scheduler::event::{ActionKey, Event, ExecutionStage, PeerId, RunId};

/// What nodes say to each other. Runs are the origin's.
#[derive(Clone, Copy)]
pub(super) enum Message {
    Offer { run: RunId, action: ActionKey, priority: i32, joinable: bool },
    Cancel { run: RunId },
    Declined { run: RunId },
    Unreached { run: RunId },
    Stage { run: RunId, stage: ExecutionStage },
    Done { run: RunId },
    Failed { run: RunId },
}

pub(super) struct Network {
    nodes: usize,
    /// The connection between two nodes: a broken one is followed by another.
    links: Vec<u64>,
    /// Ways on which everything is lost.
    cut: Vec<bool>,
    /// When the last message that is on its way arrives.
    busy_until: Vec<u64>,
}

impl Network {
    pub(super) fn new(nodes: usize) -> Self {
        let ways = nodes * nodes;
        Self { nodes, links: vec![0; ways], cut: vec![false; ways], busy_until: vec![0; ways] }
    }

    fn way(&self, from: usize, to: usize) -> usize {
        from * self.nodes + to
    }

    pub(super) fn link(&self, one: usize, other: usize) -> u64 {
        self.links[self.way(one.min(other), one.max(other))]
    }

    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut[self.way(from, to)]
    }

    pub(super) fn toggle(&mut self, from: usize, to: usize) {
        let way = self.way(from, to);
        self.cut[way] ^= true;
    }

    pub(super) fn heal(&mut self) {
        self.cut.fill(false);
    }
}

impl World {
    pub(super) fn send(&mut self, from: usize, to: usize, message: Message) {
        if !self.nodes[to].up || self.network.is_cut(from, to) || self.mishap(200) {
            return self.break_link(from, to);
        }
        let link = self.network.link(from, to);
        let way = self.network.way(from, to);
        let slow = if self.mishap(20) { 300 } else { 3 };
        let arrives = self.now + 100 + self.rng.below(slow * MILLISECOND);
        let arrives = arrives.max(self.network.busy_until[way]);
        self.network.busy_until[way] = arrives;
        self.after(arrives - self.now, Happening::Arrives { from, to, link, message });
    }

    /// An answer goes the way that the question came, or none: another life of the one that asked
    /// has other runs by the same number.
    pub(super) fn reply(&mut self, from: usize, (to, link): (usize, u64), message: Message) {
        if self.network.link(from, to) == link {
            self.send(from, to, message);
        }
    }

    pub(super) fn break_link(&mut self, one: usize, other: usize) {
        if one == other {
            return;
        }
        let link = self.network.link(one, other);
        let way = self.network.way(one.min(other), one.max(other));
        self.network.links[way] += 1;
        for (node, other) in [(one, other), (other, one)] {
            let delay = 10 * MILLISECOND + self.rng.below(500 * MILLISECOND);
            self.after(delay, Happening::Cut { node, other, link });
        }
    }

    /// A node notices that a connection is gone, and all that went over it.
    pub(super) fn cut(&mut self, number: usize, other: usize, link: u64) {
        let node = &self.nodes[number];
        let there = node.given.iter().filter(|(_, given)| given.peer == other);
        let (lost, newer): (Vec<_>, Vec<_>) = there.partition(|(_, given)| given.link <= link);
        let lost: Vec<RunId> = lost.into_iter().map(|(&run, _)| run).collect();
        let newer = newer.len();
        let orphans = node.asked.iter().filter(|(_, asked)| {
            matches!(asked, Asked::Peer { origin, link: by, .. } if *origin == other && *by <= link)
        });
        let orphans: Vec<_> = orphans.map(|(&operation, _)| operation).collect();
        if newer == 0 && self.rng.below(2) == 0 {
            for run in lost {
                self.nodes[number].given.remove(&run);
            }
            self.tell(number, Event::PeerGone { peer: PeerId(other as u64) });
        } else {
            for run in lost {
                let returned = self.given_back(number, run, Event::Returned { run });
                self.tell(number, returned);
            }
        }
        for operation in orphans {
            let event = match self.rng.below(4) {
                0 => Event::Listeners { operation, count: 0 },
                _ => Event::Cancel { operation },
            };
            self.tell(number, event);
        }
    }

    pub(super) fn receive(&mut self, from: usize, to: usize, link: u64, message: Message) {
        let event = match message {
            Message::Offer { run, action, priority, joinable } => {
                let operation = self.open(to, Asked::Peer { origin: from, link, run });
                let locality = u64::from(action.0[0]);
                let forwarded = true;
                Event::Submit { operation, action, priority, joinable, locality, forwarded }
            }
            Message::Cancel { run } => {
                let asked = self.nodes[to].asked.iter().find(|(_, asked)| {
                    matches!(asked, Asked::Peer { origin, link: by, run: theirs }
                        if *origin == from && *by == link && *theirs == run)
                });
                let Some((&operation, _)) = asked else { return };
                Event::Cancel { operation }
            }
            Message::Stage { run, stage } => Event::Stage { run, stage },
            Message::Declined { run } => self.given_back(to, run, Event::Declined { run }),
            Message::Unreached { run } => self.given_back(to, run, Event::Unreached { run }),
            Message::Done { run } => self.given_back(to, run, Event::Finished { run }),
            Message::Failed { run } => self.given_back(to, run, Event::Returned { run }),
        };
        self.tell(to, event);
    }

    /// A late report is told like any other: the scheduler has to know it for what it is.
    fn given_back(&mut self, node: usize, run: RunId, event: Event) -> Event {
        let _: Option<Given> = self.nodes[node].given.remove(&run);
        event
    }
}
