//! Links between nodes that are cut while they work for each other, and heal. Whatever was asked
//! ends, and the cluster becomes whole again by itself.

use ringforge_tests::{
    action::Job,
    cluster::{Cluster, succeeded, together, until_spread},
    is_root,
    netns::Net,
};
use std::time::Duration;

/// Long enough that the others take a node for dead.
const MISSED: Duration = Duration::from_secs(6);

fn slow(count: usize) -> Vec<Job> {
    (0..count).map(|_| Job::shell("sleep 0.4; echo x > out").outputs(&["out"])).collect()
}

/// Cuts while the first node has work done by the second one; `heals` says whether its links have
/// to heal before what was asked can end.
fn cut_under_load(cut: fn(&Net), heal: fn(&Net), heals: bool) {
    let net = Net::new(3);
    let cluster = Cluster::start_on(&net, 3, None);
    net.client().run(async || {
        let client = cluster.client(1);
        until_spread(&client, 3).await;
        let jobs = slow(9);
        let cutting = async {
            cluster.until_works(2).await;
            cut(&net);
            if heals {
                tokio::time::sleep(MISSED).await;
                heal(&net);
            }
        };
        let (ends, ()) = tokio::join!(together(&client, &jobs), cutting);
        for end in ends {
            succeeded(&end.expect("the client's own link was not cut"));
        }
        heal(&net);
        cluster.until_whole().await;
    });
}

#[test]
fn a_peer_that_cannot_be_reached_any_more_is_done_without() {
    if is_root("a_peer_that_cannot_be_reached_any_more_is_done_without") {
        cut_under_load(|net| net.cut(2), |net| net.heal(2), false);
    }
}

#[test]
fn a_link_between_two_nodes_that_others_do_not_miss_is_done_without() {
    if is_root("a_link_between_two_nodes_that_others_do_not_miss_is_done_without") {
        cut_under_load(|net| net.cut_pair(1, 2), |net| net.heal_pair(1, 2), false);
    }
}

#[test]
fn a_peer_that_hears_nothing_of_the_origin_is_done_without() {
    if is_root("a_peer_that_hears_nothing_of_the_origin_is_done_without") {
        cut_under_load(|net| net.cut_one_way(1, 2), |net| net.heal_one_way(1, 2), false);
    }
}

#[test]
fn a_peer_that_is_not_heard_by_the_origin_is_done_without() {
    if is_root("a_peer_that_is_not_heard_by_the_origin_is_done_without") {
        cut_under_load(|net| net.cut_one_way(2, 1), |net| net.heal_one_way(2, 1), false);
    }
}

#[test]
fn an_origin_that_was_alone_for_a_while_ends_all_it_was_asked() {
    if is_root("an_origin_that_was_alone_for_a_while_ends_all_it_was_asked") {
        cut_under_load(|net| net.cut(1), |net| net.heal(1), true);
    }
}

#[test]
fn both_sides_of_five_nodes_go_on_and_find_each_other_again() {
    if !is_root("both_sides_of_five_nodes_go_on_and_find_each_other_again") {
        return;
    }
    let across = || [1, 2].into_iter().flat_map(|i| [3, 4, 5].map(|j| (i, j)));
    let net = Net::new(5);
    let cluster = Cluster::start_on(&net, 5, None);
    net.client().run(async || {
        until_spread(&cluster.client(1), 5).await;
        let cutting = async {
            cluster.until_works(4).await;
            across().for_each(|(i, j)| net.cut_pair(i, j));
        };
        let (one, other) = (cluster.client(1), cluster.client(5));
        let (ones, others) = (slow(10), slow(10));
        let asked = async { tokio::join!(together(&one, &ones), together(&other, &others)) };
        let ((ones, others), ()) = tokio::join!(asked, cutting);
        for end in ones.into_iter().chain(others) {
            succeeded(&end.expect("the clients' own links were not cut"));
        }
        until_spread(&one, 2).await;
        until_spread(&other, 3).await;
        across().for_each(|(i, j)| net.heal_pair(i, j));
        cluster.until_whole().await;
    });
}
