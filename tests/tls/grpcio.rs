//! A client that is not ours: gRPC's own, with BoringSSL.

use crate::Place;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

const MODES: [&str; 4] = ["none", "request", "require", "verify"];

fn python() -> PathBuf {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let python = Path::new(&home).join(".local/share/ringforge/grpcio/bin/python");
    assert!(python.exists(), "{} is missing: run scripts/install-grpcio", python.display());
    python
}

#[test]
fn grpcs_own_client_is_let_in_by_each_mode_and_keeps_its_bytes() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls/grpcio.py");
    for mode in MODES {
        let place = Place::new();
        let node = place.node(&place.settings("server", mode));
        for (shown, lets_in) in [
            (None, &["none", "request"][..]),
            (Some("client"), &MODES),
            // It chooses by the names of authorities; what it has of another it may keep back.
            (Some("expired-client"), &MODES[..3]),
        ] {
            let mut files = vec!["ca.pem".to_owned()];
            files.extend(shown.iter().flat_map(|of| [format!("{of}.pem"), format!("{of}.key")]));
            let files = files.iter().map(|file| place.file(file));
            let mut command = Command::new(python());
            command.arg(&script).arg(node.address()).args(files);
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let expect = if lets_in.contains(&mode) { "same" } else { "UNAVAILABLE" };
            let why = String::from_utf8_lossy(&output.stderr);
            assert_eq!(said.trim(), expect, "{mode} {shown:?}: {why}");
        }
    }
}
