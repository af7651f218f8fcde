//! What is given to peers and taken back, one rule at a time; `cluster` tries them all at once.

use super::{
    A, ALONE, B, Bench, C, CONFIG, D, SHARED, complete, fail, key, kill, publish, refuse, run,
};
use crate::exec::scheduler::{
    Config, Counters, RETURNS_MAX,
    event::{
        Effect, Event,
        ExecutionStage::{Executing, Queued},
        FailReason::{self, Cancelled, WorkerFailed},
        OperationId, PeerId, PeerLoad, RefuseReason, RunId,
    },
    peers::{AVOID_FIRST, AVOID_MAX, COOL_DOWN, PEERS_MAX},
};
use std::time::Duration;

const P: u64 = 101;
const Q: u64 = 102;

/// A peer of which no slot is used.
fn idle(peer: u64, slots: u32) -> PeerLoad {
    let peer = PeerId(peer);
    PeerLoad { peer, slots, running: 0, queued: 0, draining: false, fits: true }
}

fn send(run: u64, operation: u64, action: u8, peer: u64) -> Effect {
    let (run, operation, action) = (RunId(run), OperationId(operation), key(action));
    Effect::Send { run, operation, action, peer: PeerId(peer) }
}

/// To whom things were sent, in order.
fn receivers(effects: &[Effect]) -> Vec<u64> {
    let sent = effects.iter().filter_map(|effect| match effect {
        Effect::Send { peer, .. } => Some(peer.0),
        _ => None,
    });
    sent.collect()
}

impl Bench {
    fn peers(&mut self, peers: &[PeerLoad]) -> Vec<Effect> {
        self.tell(Event::Peers { peers: peers.to_vec() })
    }

    fn declined(&mut self, run: u64) -> Vec<Effect> {
        self.tell(Event::Declined { run: RunId(run) })
    }

    fn unreached(&mut self, run: u64) -> Vec<Effect> {
        self.tell(Event::Unreached { run: RunId(run) })
    }

    fn gone(&mut self, peer: u64) -> Vec<Effect> {
        self.tell(Event::PeerGone { peer: PeerId(peer) })
    }

    fn forwarded_as(&mut self, operation: u64, action: u8, joinable: bool) -> Vec<Effect> {
        let (operation, action, locality) = (OperationId(operation), key(action), 0);
        let submit =
            Event::Submit { operation, action, priority: 0, joinable, locality, forwarded: true };
        self.tell(submit)
    }

    fn forwarded(&mut self, operation: u64, action: u8) -> Vec<Effect> {
        self.forwarded_as(operation, action, SHARED)
    }

    fn near(&mut self, operation: u64, action: u8, locality: u64) -> Vec<Effect> {
        let (operation, action, joinable) = (OperationId(operation), key(action), SHARED);
        let submit =
            Event::Submit { operation, action, priority: 0, joinable, locality, forwarded: false };
        self.tell(submit)
    }
}

#[test]
fn what_can_start_here_is_not_given_away() {
    let mut bench = Bench::new(CONFIG);
    assert_eq!(bench.peers(&[idle(P, 4)]), []);
    assert_eq!(bench.submit(1, A), [publish(1, Queued), run(1, 1, A)]);
    assert_eq!(bench.submit(2, B), [publish(2, Queued), send(2, 2, B, P)]);
    assert_eq!(bench.finished(1), [complete(1)]);
    assert_eq!(bench.submit(3, C), [publish(3, Queued), run(3, 3, C)]);
    assert_eq!(bench.stage(2, Executing), [publish(2, Executing)]);
    assert_eq!(bench.scheduler.snapshot().away, 1);
    assert!(!bench.scheduler.is_idle());
    assert_eq!(bench.finished(2), [complete(2)]);
    assert_eq!(bench.finished(3), [complete(3)]);
    assert!(bench.scheduler.is_idle());
}

#[test]
fn what_waits_goes_as_soon_as_a_peer_is_known_the_most_urgent_first() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit_as(2, B, 5, SHARED);
    bench.submit_as(3, C, -5, ALONE);
    bench.submit_as(4, D, 0, SHARED);
    assert_eq!(bench.peers(&[idle(P, 1)]), [send(2, 3, C, P), send(3, 4, D, P)]);
    assert_eq!(bench.scheduler.snapshot().queued, 1, "one to run there and one to wait");
    assert_eq!(bench.finished(2), [complete(3), send(4, 2, B, P)], "room is used at once");
}

#[test]
fn peers_that_can_not_take_anything_are_given_nothing() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit(2, B);
    let draining = PeerLoad { draining: true, ..idle(P, 4) };
    let other = PeerLoad { fits: false, ..idle(P, 4) };
    for load in [draining, other, idle(P, 0)] {
        assert_eq!(bench.peers(&[load]), []);
    }
    assert_eq!(bench.peers(&[idle(P, 4)]), [send(2, 2, B, P)]);
}

#[test]
fn what_others_use_of_a_peer_is_left_to_them_but_for_one_try() {
    for (running, queued, sent) in [(0, 0, 4), (2, 0, 2), (2, 1, 1), (2, 2, 1), (2, 999, 1)] {
        let mut bench = Bench::new(CONFIG);
        for operation in 1..=6 {
            bench.submit(operation, u8::try_from(operation).unwrap());
        }
        let load = PeerLoad { running, queued, ..idle(P, 2) };
        assert_eq!(receivers(&bench.peers(&[load])).len(), sent, "{running} {queued}");
        let ours = u32::try_from(sent).unwrap();
        let later = PeerLoad { queued: queued + ours, ..load };
        assert_eq!(bench.peers(&[later]), [], "what is ours is not taken for others'");
    }
}

#[test]
fn a_free_slot_goes_before_locality_and_locality_is_the_same_for_all() {
    let peers = [idle(P, 1), idle(Q, 1), idle(103, 1)];
    let first = |peers: &[PeerLoad], locality| {
        let mut bench = Bench::new(CONFIG);
        bench.submit(1, A);
        bench.peers(peers);
        receivers(&bench.near(2, B, locality))[0]
    };
    let homes: Vec<u64> = (0..60).map(|locality| first(&peers, locality)).collect();
    for peer in [P, Q, 103] {
        assert!(homes.iter().filter(|&&home| home == peer).count() > 10, "{homes:?}");
    }
    for (locality, &home) in (0..).zip(&homes) {
        let without: Vec<_> = peers.into_iter().filter(|load| load.peer.0 != home).collect();
        let busy = PeerLoad { running: 1, ..idle(home, 1) };
        let with_busy: Vec<_> = without.iter().copied().chain([busy]).collect();
        assert_eq!(first(&with_busy, locality), first(&without, locality));
        let (other, third) = (without[0].peer.0, without[1].peer.0);
        assert_eq!(first(&[idle(home, 9), idle(other, 1)], locality), home);
        assert_eq!(first(&[idle(home, 9), idle(third, 1)], locality), home);
    }
}

#[test]
fn where_no_slot_is_free_the_less_loaded_of_two_is_asked() {
    for locality in 0..20 {
        let mut bench = Bench::new(CONFIG);
        bench.submit(1, A);
        let full = PeerLoad { running: 4, queued: 3, ..idle(P, 4) };
        let fuller = PeerLoad { running: 2, queued: 2, ..idle(Q, 2) };
        bench.peers(&[full, fuller]);
        assert_eq!(receivers(&bench.near(2, B, locality)), [P]);
    }
}

#[test]
fn a_peer_that_declines_is_left_alone_for_a_while_and_it_counts_for_nothing() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.peers(&[idle(P, 2)]);
    bench.submit(2, B);
    bench.submit(3, C);
    for attempt in [3, 4, 5, 6, 7, 8] {
        assert_eq!(bench.declined(attempt), []);
        assert_eq!(bench.scheduler.snapshot().queued, 1);
        assert_eq!(bench.tick_after(COOL_DOWN - Duration::from_nanos(1)), []);
        let again = bench.tick_after(Duration::from_nanos(1));
        assert_eq!(again, [send(attempt + 1, 3, C, P)]);
    }
    assert_eq!(bench.declined(9), []);
    assert_eq!(bench.peers(&[idle(P, 2)]), [send(10, 3, C, P)], "or until it is heard of");
    assert_eq!(bench.declined(10), []);
    assert_eq!(bench.submit(4, D), [publish(4, Queued)]);
    assert_eq!(bench.finished(2), [complete(2), send(11, 3, C, P)], "one for one");
}

#[test]
fn a_peer_that_can_not_be_asked_is_avoided_ever_longer_and_no_action_pays_for_it() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit(2, B);
    let mut time = AVOID_FIRST;
    bench.peers(&[idle(P, 1)]);
    for attempt in 2..20 {
        assert_eq!(bench.unreached(attempt), [], "{attempt}");
        assert_eq!(bench.peers(&[idle(P, 1)]), [], "news of it change nothing");
        assert_eq!(bench.tick_after(time - Duration::from_nanos(1)), [], "{attempt}");
        let again = bench.tick_after(Duration::from_nanos(1));
        assert_eq!(again, [send(attempt + 1, 2, B, P)], "{attempt}");
        time = (time * 2).min(AVOID_MAX);
    }
    let snapshot = bench.scheduler.snapshot();
    assert_eq!((snapshot.offload.unreached, snapshot.offload.taken_back), (18, 0));
    assert_eq!(bench.stage(20, Queued), [], "it answers");
    assert_eq!(bench.unreached(20), []);
    let again = bench.tick_after(AVOID_FIRST);
    assert_eq!(again, [send(21, 2, B, P)], "so that the next time is short again");
    // None of it counts as a return of the action.
    for attempt in 21..21 + u64::from(RETURNS_MAX) {
        bench.returned(attempt);
        bench.peers(&[idle(P, 1)]);
    }
    let last = 21 + u64::from(RETURNS_MAX);
    assert_eq!(bench.finished(1), [complete(1), run(last, 2, B)]);
}

#[test]
fn those_that_were_sent_together_to_a_peer_that_is_not_there_count_once() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit(2, B);
    bench.submit(3, C);
    assert_eq!(receivers(&bench.peers(&[idle(P, 1)])), [P, P]);
    assert_eq!(bench.unreached(2), []);
    assert_eq!(bench.unreached(3), []);
    assert_eq!(receivers(&bench.peers(&[idle(P, 1), idle(Q, 1)])), [Q, Q], "others are asked");
    bench.gone(Q);
    assert_eq!(receivers(&bench.tick_after(AVOID_FIRST)), [P], "one, to find out");
}

#[test]
fn a_run_that_a_peer_fails_is_tried_elsewhere_first_among_equals() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.peers(&[idle(P, 1)]);
    bench.submit(2, B);
    bench.stage(2, Executing);
    bench.submit(3, C);
    bench.submit(4, D);
    assert_eq!(bench.returned(2), [publish(2, Queued)]);
    assert_eq!(bench.finished(2), [], "that attempt is over");
    assert_eq!(bench.stage(2, Executing), []);
    assert_eq!(bench.finished(1), [complete(1), run(4, 2, B)]);
    assert_eq!(bench.scheduler.snapshot().offload.taken_back, 1);
}

#[test]
fn a_run_goes_back_to_the_peer_that_failed_it_only_if_there_is_no_other() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.peers(&[idle(P, 1)]);
    bench.submit(2, B);
    assert_eq!(bench.returned(2), []);
    let full = PeerLoad { running: 1, queued: 9, ..idle(Q, 1) };
    let sent = bench.peers(&[idle(P, 1), full]);
    assert_eq!(sent, [send(3, 2, B, Q)], "the other is tried though it is full");
    bench.declined(3);
    let returned_to_queue = bench.submit(3, C);
    assert_eq!(receivers(&returned_to_queue), [P], "it holds up nothing that may go there");
    bench.gone(Q);
    let sent = bench.peers(&[idle(P, 2)]);
    assert_eq!(sent, [], "one at a time until the peer shows that it works");
    assert_eq!(bench.stage(4, Queued), [send(5, 2, B, P)]);
}

#[test]
fn what_was_with_a_peer_that_is_gone_comes_back() {
    for by_gossip in [false, true] {
        let mut bench = Bench::new(CONFIG);
        bench.submit(1, A);
        bench.peers(&[idle(P, 2)]);
        bench.submit(2, B);
        bench.submit(3, C);
        bench.cancel(3);
        let effects = if by_gossip { bench.peers(&[]) } else { bench.gone(P) };
        assert_eq!(effects, []);
        let snapshot = bench.scheduler.snapshot();
        assert_eq!((snapshot.queued, snapshot.away), (1, 0));
        let counted = Counters { sent: 2, taken_back: 1, ..Counters::default() };
        assert_eq!(snapshot.offload, counted);
        assert_eq!(bench.finished(1), [complete(1), run(4, 2, B)]);
    }
}

#[test]
fn the_last_attempt_is_made_here() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit(2, B);
    for attempt in 0..u64::from(RETURNS_MAX) {
        assert_eq!(bench.peers(&[idle(P, 1)]), [send(2 + attempt, 2, B, P)]);
        assert_eq!(bench.gone(P), []);
    }
    assert_eq!(bench.peers(&[idle(P, 1)]), []);
    assert_eq!(bench.finished(1), [complete(1), run(5, 2, B)]);
    assert_eq!(bench.returned(5), [fail(2, WorkerFailed)]);
}

#[test]
fn a_node_without_slots_gives_everything_away_within_the_bound_of_returns() {
    let mut bench = Bench::new(Config { slots: 0, ..CONFIG });
    bench.submit(1, A);
    for attempt in 0..=u64::from(RETURNS_MAX) {
        assert_eq!(bench.peers(&[idle(P, 1)]), [send(1 + attempt, 1, A, P)]);
        let failed =
            if attempt < u64::from(RETURNS_MAX) { vec![] } else { vec![fail(1, WorkerFailed)] };
        assert_eq!(bench.returned(1 + attempt), failed);
    }
}

#[test]
fn a_run_at_a_peer_that_nobody_waits_for_is_killed_and_keeps_its_place_until_it_is_dead() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.peers(&[PeerLoad { running: 1, ..idle(P, 1) }]);
    bench.submit(2, B);
    bench.submit(3, B);
    assert_eq!(bench.cancel(2), [fail(2, Cancelled)]);
    assert_eq!(bench.cancel(3), [kill(2), fail(3, Cancelled)]);
    assert_eq!(bench.submit(4, B), [publish(4, Queued)], "neither joined nor sent");
    assert_eq!(bench.stage(2, Executing), []);
    assert_eq!(bench.finished(2), [send(3, 4, B, P)]);
    assert_eq!(bench.returned(2), []);
}

#[test]
fn the_same_action_goes_once_for_all_who_ask_here() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.peers(&[idle(P, 4)]);
    bench.submit(2, B);
    assert_eq!(bench.submit(3, B), [publish(3, Queued)]);
    assert_eq!(bench.stage(2, Executing), [publish(2, Executing), publish(3, Executing)]);
    assert_eq!(bench.submit(4, B), [publish(4, Executing)]);
    assert_eq!(bench.finished(2), [complete(2), complete(3), complete(4)]);
}

#[test]
fn what_a_peer_asks_for_is_never_given_to_another() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    assert_eq!(bench.forwarded(2, B), [publish(2, Queued)]);
    assert_eq!(bench.submit(3, B), [publish(3, Queued)]);
    assert_eq!(bench.peers(&[idle(P, 4), idle(Q, 4)]), []);
    assert_eq!(bench.cancel(2), [fail(2, Cancelled)]);
    assert_eq!(bench.peers(&[idle(P, 4)]), [], "nor once that peer has lost interest");
    assert_eq!(bench.finished(1), [complete(1), run(2, 3, B)]);
    bench.submit_as(4, C, 0, SHARED);
    assert_eq!(bench.scheduler.snapshot().away, 1, "what is this node's own goes");
    assert_eq!(bench.scheduler.snapshot().offload.received, 1);
}

#[test]
fn what_waits_here_stays_once_a_peer_asks_for_it_too() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.submit(2, B);
    assert_eq!(bench.forwarded(3, B), [publish(3, Queued)]);
    assert_eq!(bench.peers(&[idle(P, 4)]), []);
    assert_eq!(bench.finished(1), [complete(1), run(2, 2, B)]);
    assert_eq!(bench.finished(2), [complete(2), complete(3)]);
}

#[test]
fn two_nodes_that_give_each_other_the_same_action_do_not_wait_for_each_other() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.peers(&[idle(P, 4)]);
    assert_eq!(bench.submit(2, B), [publish(2, Queued), send(2, 2, B, P)]);
    assert_eq!(bench.forwarded(3, B), [publish(3, Queued)], "a run of its own");
    assert_eq!(bench.forwarded(4, B), [publish(4, Queued)], "which others share");
    assert_eq!(bench.submit(5, B), [publish(5, Queued)]);
    assert_eq!(bench.finished(1), [complete(1), run(3, 3, B)]);
    assert_eq!(bench.finished(3), [complete(3), complete(4), complete(5)]);
    assert_eq!(bench.submit(6, B), [publish(6, Queued)], "joins the one that is away");
    assert_eq!(bench.finished(2), [complete(2), complete(6)]);
}

#[test]
fn a_run_that_comes_back_joins_the_one_that_was_opened_meanwhile() {
    for come_back in [Bench::returned, Bench::declined] {
        let mut bench = Bench::new(CONFIG);
        bench.submit(1, A);
        bench.peers(&[idle(P, 4)]);
        bench.submit_as(2, B, -3, SHARED);
        bench.forwarded(3, B);
        bench.submit_as(4, C, -1, ALONE);
        assert_eq!(come_back(&mut bench, 2), []);
        assert_eq!(bench.scheduler.snapshot().queued, 1);
        bench.forwarded_as(5, D, ALONE);
        assert_eq!(bench.finished(1), [complete(1), run(4, 2, B)], "as urgent as all of them");
        assert_eq!(bench.stage(4, Executing), [publish(2, Executing), publish(3, Executing)]);
        assert_eq!(bench.finished(4)[..2], [complete(2), complete(3)]);
    }
}

#[test]
fn who_comes_back_to_a_run_that_has_begun_is_told_so() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.peers(&[idle(P, 4)]);
    bench.submit(2, B);
    bench.forwarded(3, B);
    bench.finished(1);
    bench.stage(3, Executing);
    assert_eq!(bench.gone(P), [publish(2, Executing)]);
    assert_eq!(bench.finished(3), [complete(2), complete(3)]);
    assert!(bench.scheduler.is_idle());
}

#[test]
fn a_peer_is_refused_where_its_run_would_wait_long_unless_it_joins() {
    let mut bench = Bench::new(Config { slots: 2, accept_ahead: 1, ..CONFIG });
    bench.forwarded(1, 1);
    bench.submit(2, 2);
    assert_eq!(bench.forwarded(3, 3), [publish(3, Queued)]);
    assert_eq!(bench.forwarded(4, 4), [refuse(4, RefuseReason::Overloaded)]);
    assert_eq!(bench.forwarded(5, 3), [publish(5, Queued)]);
    assert_eq!(bench.submit(6, 6), [publish(6, Queued)], "clients of this node may wait");
    bench.tell(Event::Drain);
    assert_eq!(bench.forwarded(7, 3), [refuse(7, RefuseReason::Draining)]);
}

#[test]
fn runs_at_peers_keep_their_place_in_the_queue() {
    let mut bench = Bench::new(Config { queue_max: 2, ..CONFIG });
    bench.submit(1, A);
    bench.peers(&[idle(P, 9)]);
    bench.submit(2, B);
    bench.submit(3, C);
    assert_eq!(bench.submit(4, D), [refuse(4, RefuseReason::Overloaded)]);
    bench.finished(2);
    assert_eq!(bench.submit(5, D), [publish(5, Queued), send(4, 5, D, P)]);
    bench.gone(P);
    assert_eq!(bench.scheduler.snapshot().queued, 2);
}

#[test]
fn a_draining_node_gives_what_waits_to_peers_as_far_as_they_have_room() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    bench.peers(&[PeerLoad { running: 1, ..idle(P, 1) }, PeerLoad { running: 1, ..idle(Q, 1) }]);
    let first = receivers(&bench.submit(2, B))[0];
    let second = receivers(&bench.submit(3, C))[0];
    assert_ne!(first, second);
    bench.submit(4, D);
    assert_eq!(bench.tell(Event::Drain), [fail(4, FailReason::Draining)]);
    assert_eq!(bench.finished(2), [complete(2)]);
    assert_eq!(bench.declined(3), [send(4, 3, C, first)], "to another, if that has room");
    assert!(!bench.scheduler.is_idle());
    assert_eq!(bench.gone(first), [fail(3, FailReason::Draining)]);
    assert_eq!(bench.finished(1), [complete(1)]);
    assert!(bench.scheduler.is_idle());
}

#[test]
fn more_peers_than_the_bound_are_not_known() {
    let mut bench = Bench::new(Config { queue_max: 10_000, operations_max: 10_000, ..CONFIG });
    let peers: Vec<_> = (0..PEERS_MAX as u64 + 50).map(|peer| idle(peer, 1)).collect();
    bench.peers(&peers);
    for operation in 0..PEERS_MAX as u64 * 3 {
        bench.submit_as(operation, A, 0, ALONE);
    }
    assert_eq!(bench.scheduler.snapshot().away, 2 * PEERS_MAX);
}

#[test]
fn what_names_an_unknown_peer_or_run_has_no_effect() {
    let mut bench = Bench::new(CONFIG);
    bench.submit(1, A);
    assert_eq!(bench.declined(1), [], "a worker does not decline");
    assert_eq!(bench.gone(P), []);
    assert_eq!(bench.declined(7), []);
    assert_eq!(bench.finished(1), [complete(1)]);
}
