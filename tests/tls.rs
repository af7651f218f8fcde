//! TLS from outside: who is let in, what a node says of those who are not, certificates that
//! change, nodes among each other. Must never rest on how soon anything happens.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod tls {
    pub(crate) mod commands;
    pub(crate) mod grpcio;
    pub(crate) mod modes;
    pub(crate) mod nodes;
    pub(crate) mod renewal;
    pub(crate) mod strangers;
}

use ringforge_tests::{Node, certificates::Certificates};
use tempfile::TempDir;

/// A place for a node and for certificates.
struct Place {
    directory: TempDir,
    certificates: Certificates,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let certificates = Certificates::new(&directory.path().join("certificates"));
        Self { directory, certificates }
    }

    fn file(&self, name: &str) -> String {
        self.certificates.path(name).to_str().unwrap().to_owned()
    }

    /// Settings of a node that shows the certificate of `name`.
    fn settings(&self, name: &str, client_auth: &str) -> Vec<(String, String)> {
        let mut settings = vec![
            ("TLS__CERTIFICATE".to_owned(), self.file(&format!("{name}.pem"))),
            ("TLS__KEY".to_owned(), self.file(&format!("{name}.key"))),
            ("TLS__CLIENT_AUTH".to_owned(), client_auth.to_owned()),
        ];
        if client_auth != "none" {
            settings.push(("TLS__CLIENT_CA".to_owned(), self.file("ca.pem")));
        }
        settings
    }

    /// A node with these settings.
    fn node(&self, settings: &[(String, String)]) -> Node {
        let settings: Vec<_> = settings.iter().map(|(key, value)| (&**key, &**value)).collect();
        Node::start_with(&self.directory.path().join("store"), &settings)
    }
}
