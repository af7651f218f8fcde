//! Commands that ask a node with TLS.

use crate::Place;
use ringforge_tests::binary;
use std::process::Command;

#[test]
fn the_view_of_a_node_with_tls_is_shown_to_who_has_what_it_asks_for() {
    let place = Place::new();
    let node = place.node(&place.settings("server", "verify"));
    let url = format!("grpcs://{}", node.address());
    let [ca, cert, key, other] =
        ["ca.pem", "client.pem", "client.key", "other-ca.pem"].map(|name| place.file(name));
    let identity = ["--cert", &cert, "--key", &key];
    for (arguments, expect) in [
        (&[&["--address", &url, "--ca", &ca][..], &identity].concat()[..], Ok("NODE")),
        (&["--address", &url, "--ca", &ca], Err("CertificateRequired")),
        (&[&["--address", &url, "--ca", &other][..], &identity].concat(), Err("UnknownIssuer")),
        (&["--address", &node.address()], Err("can't be asked")),
        (&["--address", &node.address(), "--ca", &ca], Err("has no TLS")),
        (&["--address", &url, "--cert", &cert], Err("--key")),
        (&["--address", &url, "--ca", "absent.pem"], Err("can't read absent.pem")),
    ] {
        let output = Command::new(binary()).arg("cluster").args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let printed = String::from_utf8_lossy(&output.stdout);
        match expect {
            Ok(expect) => assert!(printed.starts_with(expect), "{arguments:?}: {said}"),
            Err(expect) => assert!(said.contains(expect), "{arguments:?}: {said}"),
        }
        assert_eq!(output.status.success(), expect.is_ok(), "{arguments:?}: {said}");
    }
}

#[test]
fn settings_are_checked_without_a_start() {
    let place = Place::new();
    let cluster = ["CLUSTER__LISTEN", "CLUSTER__SECRET"].map(str::to_owned);
    let clustered = |host: &str| {
        let settings = ["127.0.0.1:7946", "a secret of the nodes"].map(str::to_owned);
        let endpoint = ("CLUSTER__ENDPOINT".to_owned(), format!("{host}:8980"));
        let mut all: Vec<_> = cluster.clone().into_iter().zip(settings).collect();
        all.extend(place.settings("node", "verify"));
        all.push(endpoint);
        all
    };
    let backed = |file: &str| {
        let url = ("BACKING__URL".to_owned(), "grpcs://127.0.0.1:1".to_owned());
        vec![url, ("BACKING__CA".to_owned(), place.file(file))]
    };
    for (settings, expect) in [
        (Vec::new(), Ok("serving  grpc://127.0.0.1:8980\n")),
        (place.settings("server", "verify"), Ok("have to show a certificate that verifies")),
        (clustered("127.0.0.1"), Ok("others reach this node as 127.0.0.1:8980")),
        (backed("ca.pem"), Ok("backing  grpcs://127.0.0.1:1\n")),
        (place.settings("expired", "none"), Err("expired.pem: the certificate ended at 2020")),
        (place.settings("server", "perhaps"), Err("none, request, require, verify")),
        (clustered("192.0.2.1"), Err("other nodes, which reach this one as \"192.0.2.1\"")),
        (backed("ca.key"), Err("can't read ")),
    ] {
        let settings = settings.iter().map(|(key, value)| (format!("RINGFORGE__{key}"), value));
        let output = Command::new(binary()).arg("check").envs(settings).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let printed = String::from_utf8_lossy(&output.stdout);
        match expect {
            Ok(expect) => assert!(printed.contains(expect), "{expect}: {printed}{said}"),
            Err(expect) => assert!(said.contains(expect), "{expect}: {said}"),
        }
        assert_eq!(output.status.success(), expect.is_ok(), "{printed}{said}");
    }
}
