//! What must always be true of the cluster.

use super::{Asked, Client, Happening, Node, SECOND, Waits, World};
use crate::exec::scheduler::{
    event::{ActionKey, Effect},
    peers::AVOID_MAX,
};
use std::collections::{BTreeMap, BTreeSet};

impl World {
    /// The bounds of one node, after each event.
    pub(super) fn check_node(&self, number: usize, effects: &[Effect]) {
        let Node { scheduler, config, asked, work, given, .. } = &self.nodes[number];
        let snapshot = scheduler.snapshot();
        assert_eq!(snapshot.executing, work.len());
        assert_eq!(snapshot.away, given.len());
        assert_eq!(snapshot.operations, asked.len());
        assert!(snapshot.executing <= config.slots, "more runs than slots");
        let wanted = given.values().filter(|given| !given.killed).count();
        let waiting = if snapshot.draining { snapshot.queued } else { snapshot.queued + wanted };
        assert!(waiting <= config.queue_max, "the queue is too long");
        assert!(!snapshot.draining || waiting == 0, "a node that stops lets something wait");
        assert!(snapshot.operations <= config.operations_max, "too many operations");
        assert!(snapshot.away <= config.operations_max, "too much is away");
        let starts = snapshot.executing < config.slots && !snapshot.draining;
        assert!(!starts || snapshot.queued == 0, "a slot lies idle");
        for (peer, node) in self.nodes.iter().enumerate() {
            let there = given.values().filter(|given| given.peer == peer).count();
            assert!(there <= 2 * node.config.slots, "more is at a peer than it takes");
        }
        for effect in effects {
            if let &Effect::Send { operation, .. } = effect {
                assert!(!starts, "sent away though it could run here");
                let run = &scheduler.runs[&scheduler.operations[&operation].run];
                let all_own = run
                    .operations
                    .iter()
                    .all(|(_, operation)| matches!(asked[operation], Asked::Client(_)));
                assert!(all_own, "what a peer has sent is sent on");
            }
        }
    }

    /// No action executes more often than there are nodes whose own clients wait for it, except
    /// for copies that nobody has been able to stop yet: those that a worker is killing, and
    /// those asked for by a node that has died, has taken the run back or does not want it.
    pub(super) fn check_copies(&self) {
        let mut executing: BTreeMap<ActionKey, usize> = BTreeMap::new();
        let mut wanted: BTreeSet<(ActionKey, usize)> = BTreeSet::new();
        let mut leftover: BTreeMap<ActionKey, usize> = BTreeMap::new();
        for (number, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.up) {
            for work in node.work.values() {
                *executing.entry(work.action).or_default() += 1;
                *leftover.entry(work.action).or_default() += usize::from(work.killed);
            }
            for (operation, asked) in &node.asked {
                let run = &node.scheduler.runs[&node.scheduler.operations[operation].run];
                match *asked {
                    Asked::Client(_) => _ = wanted.insert((run.action, number)),
                    Asked::Peer { origin, link, run: theirs } => {
                        let origin = Some(&self.nodes[origin]).filter(|origin| origin.up);
                        let current = origin.and_then(|origin| origin.given.get(&theirs));
                        let current = current.is_some_and(|given| {
                            given.peer == number && given.link == link && !given.killed
                        });
                        *leftover.entry(run.action).or_default() += usize::from(!current);
                    }
                }
            }
        }
        for (action, copies) in executing {
            let wanted = wanted.iter().filter(|&&(other, _)| other == action).count();
            let leftover = leftover.get(&action).copied().unwrap_or_default();
            assert!(copies <= wanted + leftover, "{copies} copies for {wanted} + {leftover}");
        }
    }

    pub(super) fn end_faults(&mut self) {
        self.faults = false;
        self.network.heal();
        for node in &mut self.nodes {
            node.clock_stands = false;
        }
    }

    /// Who still waits, for the message of a history that does not end.
    pub(super) fn waiting(&self) -> String {
        let clients = self.clients.iter().filter(|client| client.state != Waits::Done).count();
        let nodes = self.nodes.iter().map(|node| (node.up, node.scheduler.snapshot()));
        format!("{clients} clients, {:#?}", nodes.collect::<Vec<_>>())
    }

    /// Without faults everything ends, so that no node waits for one that waits for it.
    pub(super) fn check_everything_ends(&mut self) {
        self.takes = None;
        self.run_until(|world| {
            let clients = world.clients.iter().all(|client| client.state == Waits::Done);
            // One that stops comes back when it is idle.
            let rests = |node: &Node| {
                node.up && node.scheduler.is_idle() && !node.scheduler.snapshot().draining
            };
            clients && world.nodes.iter().all(rests)
        });
        for node in &self.nodes {
            assert!(node.asked.is_empty() && node.work.is_empty() && node.given.is_empty());
        }
        self.check_copies();
    }

    /// Everything is asked of one node, and after a few rounds of gossip, once nobody is avoided
    /// any more, all slots of all nodes are taken if anything waits anywhere. Tells whether
    /// anything did.
    pub(super) fn check_all_work_while_anything_waits(&mut self) -> usize {
        let until = self.now + AVOID_MAX.as_secs() * SECOND + 2 * SECOND;
        self.run_until(|world| world.now >= until);
        // Who failed is given one at a time until it shows that it works.
        self.ask_for_all_there_is();
        self.check_everything_ends();
        self.takes = Some(100 * SECOND);
        self.ask_for_all_there_is();
        let until = self.now + 2 * SECOND;
        self.run_until(|world| world.now >= until);
        let waits = self.nodes.iter().any(|node| node.scheduler.snapshot().queued > 0);
        let idle = self.nodes.iter().any(|node| node.work.len() < node.config.slots);
        assert!(!waits || !idle, "a slot lies idle while something waits: {}", self.waiting());
        // What takes long may end now.
        let now = self.now;
        let agenda = std::mem::take(&mut self.agenda);
        for ((at, number), happening) in agenda {
            let at = match happening {
                Happening::Ends { .. } => now + 1,
                _ => at,
            };
            self.agenda.insert((at, number), happening);
        }
        usize::from(waits)
    }

    /// As many actions as one node takes, at once.
    fn ask_for_all_there_is(&mut self) {
        let Node { config, .. } = &self.nodes[0];
        let room = (config.slots + config.queue_max).min(config.operations_max);
        for _ in 0..room {
            let client = self.clients.len();
            let mut action = ActionKey([0xff; _]);
            action.0[..8].copy_from_slice(&(client as u64 + 1000).to_be_bytes());
            let state = Waits::Nowhere;
            self.clients.push(Client { action, priority: 0, joinable: true, state });
            self.ask(client, 0);
        }
    }
}
