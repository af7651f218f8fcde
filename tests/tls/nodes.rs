//! Nodes that know each other by certificates.

use crate::Place;
use ringforge_tests::{
    action::{Folder, Job},
    client::Client,
    cluster::{
        Cluster, Settings, begin_elsewhere, eventually, runs_on, succeeded, until_spread, worker,
        workers,
    },
    command, is_root,
};
use std::{collections::BTreeSet, fs};
use tonic::{Code, Request};

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// One that shows the certificate of `name`, to others and to clients.
fn member(place: &Place, name: &str, client_auth: &str) -> Settings {
    let mut settings = place.settings(name, client_auth);
    settings.push(("CLUSTER__KEYS".to_owned(), KEY.to_owned()));
    settings.push(("CLUSTER__CA".to_owned(), place.file("ca.pem")));
    settings
}

fn client(place: &Place, cluster: &Cluster, i: usize) -> Client {
    let tls = place.certificates.client("ca", Some("client"));
    Client::secured(&cluster.node(i).address(), tls)
}

fn set(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(ToString::to_string).collect()
}

fn jobs() -> Vec<Job> {
    (0..9).map(|_| Job::shell("sleep 0.2")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_certificates_share_work_and_a_stranger_gets_none() {
    if !is_root("nodes_with_certificates_share_work_and_a_stranger_gets_none") {
        return;
    }
    let place = Place::new();
    // In gossip the third is a member like the others; its authority is another.
    let cluster = Cluster::start_each(3, |i| {
        let mut settings = member(&place, if i == 3 { "other-node" } else { "node" }, "verify");
        if i == 3 {
            // To itself it is right.
            settings.push(("CLUSTER__CA".to_owned(), place.file("other-ca.pem")));
        }
        settings
    });
    let (one, two) = (client(&place, &cluster, 1), client(&place, &cluster, 2));
    until_spread(&one, 2).await;
    // Inputs from the one that was asked, outputs back to it.
    let inputs = Folder::new().file("in", vec![b'x'; 300_000]);
    let job = Job::shell("cat in in > out").with(inputs).outputs(&["out"]);
    let (_here, there) = begin_elsewhere(&one, &job, "5").await;
    assert_eq!(runs_on(&there), "n2");
    let response = there.end().await.unwrap();
    assert_eq!(worker(succeeded(&response)), "n2");
    let output = response.result.unwrap().output_files[0].digest.clone().unwrap();
    assert_eq!(one.read(&output).await.unwrap(), vec![b'x'; 600_000]);

    let other = place.certificates.client("other-ca", Some("client"));
    let three = Client::secured(&cluster.node(3).address(), other);
    eventually("the stranger is a member, and was tried", async || {
        assert_eq!(workers(&three, &jobs()).await, set(&["n3"]));
        assert!(!workers(&two, &jobs()).await.contains("n3"));
        cluster.node(3).log().contains("a TLS handshake failed")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_no_node_by_saying_so() {
    let place = Place::new();
    let cluster = Cluster::start_each(2, |_| member(&place, "node", "request"));
    let shows = |name| {
        let tls = place.certificates.client("ca", name);
        Client::secured(&cluster.node(1).address(), tls)
    };
    let job = Job::new(&["true"]);
    shows(None).put(job.blobs()).await;
    let asked = async |client: &Client, name: &str| {
        let mut request = Request::new(job.request());
        let header = format!("v1 {name} 0 -");
        request.metadata_mut().insert("ringforge-peer", header.parse().unwrap());
        client.execution.clone().execute(request).await.err().map(|status| status.code())
    };
    // It is known when its own certificate, which is for its host, makes a node of who says so.
    let node = shows(Some("node"));
    eventually("the second is known", async || {
        let code = asked(&node, "n2").await;
        assert!(code.is_none_or(|code| code == Code::Unavailable), "{code:?}");
        code.is_none()
    })
    .await;
    assert_eq!(asked(&node, "n3").await, Some(Code::Unavailable));
    for shown in [None, Some("person"), Some("expired-client"), Some("other-node")] {
        let code = asked(&shows(shown), "n2").await;
        assert_eq!(code, Some(Code::PermissionDenied), "{shown:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_a_secret_need_certificates_as_servers_alone() {
    if !is_root("nodes_with_a_secret_need_certificates_as_servers_alone") {
        return;
    }
    let place = Place::new();
    let cluster = Cluster::start_each(2, |_| {
        let mut settings = member(&place, "server", "none");
        settings.push(("CLUSTER__SECRET".to_owned(), "what these nodes know".to_owned()));
        settings
    });
    until_spread(&client(&place, &cluster, 1), 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_certificates_are_used_between_nodes() {
    if !is_root("renewed_certificates_are_used_between_nodes") {
        return;
    }
    let place = Place::new();
    let both = [place.certificates.text("ca.pem"), place.certificates.text("other-ca.pem")];
    fs::write(place.file("both.pem"), both.concat()).unwrap();
    let cluster = Cluster::start_each(2, |_| {
        let mut settings = member(&place, "node", "verify");
        settings.retain(|(key, _)| key != "CLUSTER__CA" && key != "TLS__CLIENT_CA");
        settings.push(("TLS__CLIENT_CA".to_owned(), place.file("both.pem")));
        settings
    });
    let one = client(&place, &cluster, 1);
    until_spread(&one, 2).await;
    place.certificates.put_in_place("other-node", "node");
    eventually("both have read it", async || {
        (1..=2).all(|i| cluster.node(i).log().contains("certificates were read again"))
    })
    .await;
    // Nobody believes the old ones any more, so that a new connection shows new ones.
    fs::copy(place.file("other-ca.pem"), place.file("both.pem")).unwrap();
    eventually("both have read it", async || {
        let twice = |i| cluster.node(i).log().matches("certificates were read again").count() == 2;
        (1..=2).all(twice)
    })
    .await;
    let other = place.certificates.client("other-ca", Some("other-client"));
    let one = Client::secured(&cluster.node(1).address(), other);
    until_spread(&one, 2).await;
}

#[test]
fn a_node_whose_certificate_others_would_refuse_does_not_start() {
    let place = Place::new();
    let store = place.directory.path().join("store");
    for (name, client_auth, more, expect) in [
        ("server", "verify", ("CLUSTER__ENDPOINT", "127.0.0.1:1"), "as a client: "),
        ("other-node", "verify", ("CLUSTER__ENDPOINT", "127.0.0.1:1"), "UnknownIssuer"),
        ("node", "verify", ("CLUSTER__ENDPOINT", "192.0.2.1:1"), "192.0.2.1"),
        ("node", "none", ("CLUSTER__ENDPOINT", "10.77.0.1:1"), "cluster.secret is needed"),
        ("node", "verify", ("CLUSTER__KEYS", ""), "cluster.keys is needed"),
    ] {
        let mut settings = member(&place, name, client_auth);
        settings.push(("CLUSTER__LISTEN".to_owned(), "127.0.0.1:0".to_owned()));
        settings.push(("CLUSTER__ENDPOINT".to_owned(), "10.77.0.1:1".to_owned()));
        settings.push((more.0.to_owned(), more.1.to_owned()));
        let settings: Vec<_> = settings.iter().map(|(key, value)| (&**key, &**value)).collect();
        let output = command(&store, 0, &settings).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expect), "{expect}: {said}");
    }
}
