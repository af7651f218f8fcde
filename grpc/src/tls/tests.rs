//! Files that are of no use, and whose certificates count for what.

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer,
    KeyPair, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, UnixTime, pem::PemObject};
use std::{fs, path::PathBuf, time::Duration};
use tempfile::TempDir;

const BOTH: [Usage; 2] = [Usage::ServerAuth, Usage::ClientAuth];

/// Files in one directory, and who signs them.
struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = Self { directory: TempDir::new().unwrap(), issuer: Issuer::new(params, key) };
        let certificate = own.issuer.key();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        own.file("ca.pem", &params.self_signed(certificate).unwrap().pem());
        own
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `NAME.pem` and `NAME.key` for this host, from one year's beginning to another's.
    fn issue(&self, name: &str, host: &str, years: (i32, i32), usages: &[Usage]) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        params.extended_key_usages = usages.to_vec();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        self.file(&format!("{name}.pem"), &certificate.pem());
        self.file(&format!("{name}.key"), &key.serialize_pem());
    }

    fn settings(&self, name: &str, client_auth: ClientAuth) -> TlsSettings {
        TlsSettings {
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
            client_ca: None,
            client_auth,
            node_ca: None,
        }
    }

    fn chain(&self, name: &str) -> Vec<CertificateDer<'static>> {
        let text = fs::read(self.path(&format!("{name}.pem"))).unwrap();
        CertificateDer::pem_slice_iter(&text).map(Result::unwrap).collect()
    }
}

/// Some that load, and the files.
pub(crate) fn opened() -> (Tls, TempDir) {
    let ours = Authority::new("ours");
    ours.issue("good", "localhost", (2020, 2100), &BOTH);
    let (tls, _) = Tls::open(&ours.settings("good", ClientAuth::None)).unwrap();
    (tls, ours.directory)
}

#[test]
fn files_that_are_of_no_use_are_named_with_what_is_wrong() {
    let ours = Authority::new("ours");
    ours.issue("good", "localhost", (2020, 2100), &BOTH);
    ours.issue("other", "localhost", (2020, 2100), &BOTH);
    ours.issue("over", "localhost", (2019, 2020), &BOTH);
    ours.issue("early", "localhost", (2099, 2100), &BOTH);
    ours.file("empty", "");
    ours.file("text", "not what it should be\n");
    ours.file("cut", "-----BEGIN CERTIFICATE-----\nAAAA");
    ours.file("damaged", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    ours.file("no-base64", "-----BEGIN PRIVATE KEY-----\n?\n-----END PRIVATE KEY-----\n");
    ours.file("no-key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let locked =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    ours.file("locked", locked);
    ours.file("large", &"x".repeat((1 << 20) + 1));
    for (certificate, key, ca, expect) in [
        ("good.pem", "good.key", None, ""),
        ("good.pem", "good.key", Some("ca.pem"), ""),
        ("absent", "good.key", None, "can't read absent: No such file"),
        ("empty", "good.key", None, "empty is empty"),
        ("text", "good.key", None, "text has no certificate in PEM"),
        ("good.key", "good.key", None, "good.key has no certificate in PEM"),
        ("cut", "good.key", None, "cut: the certificate can't be read: its -----END line"),
        ("damaged", "good.key", None, "damaged: the certificate can't be read"),
        ("large", "good.key", None, "large is larger than"),
        ("over.pem", "over.key", None, "over.pem: the certificate ended at 2020-01-01T00:00:00Z"),
        ("early.pem", "early.key", None, "early.pem: the certificate begins only at 2099-01-01"),
        ("good.pem", "absent", None, "can't read absent"),
        ("good.pem", "empty", None, "empty is empty"),
        ("good.pem", "good.pem", None, "good.pem has no private key in PEM"),
        ("good.pem", "no-base64", None, "no-base64: the key can't be read: it is no base64"),
        ("good.pem", "no-key", None, "no-key: the key can't be read"),
        ("good.pem", "locked", None, "locked: the key is encrypted"),
        ("good.pem", "other.key", None, "other.key is not the key of good.pem"),
        ("good.pem", "good.key", Some("absent"), "can't read absent"),
        ("good.pem", "good.key", Some("good.key"), "good.key has no certificate in PEM"),
        ("good.pem", "good.key", Some("damaged"), "damaged: a certificate can't be read"),
    ] {
        let settings = TlsSettings {
            certificate: ours.path(certificate),
            key: ours.path(key),
            client_ca: ca.map(|ca| ours.path(ca)),
            client_auth: if ca.is_some() { ClientAuth::Verify } else { ClientAuth::None },
            node_ca: None,
        };
        let error = Tls::open(&settings).err().map(|error| error.to_string()).unwrap_or_default();
        let error = error.replace(&format!("{}/", ours.directory.path().display()), "");
        assert!(error.starts_with(expect) && error.is_empty() == expect.is_empty(), "{error}");
        assert!(!error.contains("AAAA"), "{error}");
    }
}

#[test]
fn the_end_of_a_certificate_is_known() {
    let ours = Authority::new("ours");
    ours.issue("good", "localhost", (2020, 2030), &BOTH);
    let (tls, _) = Tls::open(&ours.settings("good", ClientAuth::None)).unwrap();
    let expect = SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000);
    assert_eq!(tls.now().ends, expect);
}

#[test]
fn a_certificate_counts_for_what_its_authority_says() {
    let [clients, nodes, strangers] = ["clients", "nodes", "strangers"].map(Authority::new);
    clients.issue("server", "localhost", (2020, 2100), &BOTH);
    clients.issue("one", "10.0.0.1", (2020, 2100), &[Usage::ClientAuth]);
    clients.issue("over", "10.0.0.1", (2019, 2020), &[Usage::ClientAuth]);
    clients.issue("no-client", "10.0.0.1", (2020, 2100), &[Usage::ServerAuth]);
    nodes.issue("one", "10.0.0.1", (2020, 2100), &BOTH);
    strangers.issue("one", "10.0.0.1", (2020, 2100), &BOTH);
    use ClientAuth::{None as Unasked, Request, Require, Verify};
    for (chain, lets_in, counts, is_node) in [
        (Vec::new(), &[Unasked, Request][..], false, false),
        (clients.chain("one"), &[Unasked, Request, Require, Verify], true, false),
        (nodes.chain("one"), &[Unasked, Request, Require, Verify], true, true),
        (clients.chain("over"), &[Unasked, Request, Require], false, false),
        (clients.chain("no-client"), &[Unasked, Request, Require], false, false),
        (strangers.chain("one"), &[Unasked, Request, Require], false, false),
    ] {
        for mode in [Unasked, Request, Require, Verify] {
            let settings = TlsSettings {
                client_ca: Some(clients.path("ca.pem")),
                node_ca: Some(nodes.path("ca.pem")),
                ..clients.settings("server", mode)
            };
            let (tls, _) = Tls::open(&settings).unwrap();
            let judged = tls.now().judge.judge(&chain, UnixTime::now());
            assert_eq!(judged.is_ok(), lets_in.contains(&mode), "{mode:?} {judged:?}");
            let certificate = judged.ok().flatten();
            assert_eq!(certificate.is_some(), counts && lets_in.contains(&mode), "{mode:?}");
            for (host, stands) in [("10.0.0.1", is_node), ("10.0.0.2", false), ("", false)] {
                let is = certificate.as_ref().is_some_and(|of| of.is_of_node(host));
                assert_eq!(is, stands, "{mode:?} {host}");
            }
        }
    }
}

#[test]
fn a_node_knows_whether_others_will_believe_it() {
    let [ours, theirs] = ["ours", "theirs"].map(Authority::new);
    ours.issue("good", "10.0.0.1", (2020, 2100), &BOTH);
    ours.issue("server", "10.0.0.1", (2020, 2100), &[Usage::ServerAuth]);
    ours.issue("client", "10.0.0.1", (2020, 2100), &[Usage::ClientAuth]);
    use ClientAuth::{None as Unasked, Verify};
    for (name, by, mode, host, expect) in [
        ("good", &ours, Verify, "10.0.0.1", ""),
        ("server", &ours, Unasked, "10.0.0.1", ""),
        ("server", &ours, Verify, "10.0.0.1", "as a client"),
        ("client", &ours, Unasked, "10.0.0.1", "refuse it"),
        ("good", &ours, Verify, "10.0.0.2", "10.0.0.2"),
        ("good", &ours, Verify, "node-1", "node-1"),
        ("good", &theirs, Verify, "10.0.0.1", "nknown"),
    ] {
        let settings = TlsSettings {
            client_ca: Some(ours.path("ca.pem")),
            node_ca: Some(by.path("ca.pem")),
            ..ours.settings(name, mode)
        };
        let (tls, _) = Tls::open(&settings).unwrap();
        let why = tls.check_as_node(host).err().map(|error| error.to_string());
        assert_eq!(why.is_some(), !expect.is_empty(), "{name} {host}: {why:?}");
        assert!(why.unwrap_or_default().contains(expect), "{name} {host}");
    }
}

#[tokio::test]
async fn what_does_not_load_takes_nothing_away() {
    let ours = Authority::new("ours");
    ours.issue("good", "localhost", (2020, 2100), &BOTH);
    let (tls, mut renewal) = Tls::open(&ours.settings("good", ClientAuth::None)).unwrap();
    let first = tls.now();
    ours.file("good.pem", "");
    renewal.read(SystemTime::now());
    assert!(Arc::ptr_eq(&first, &tls.now()));
    ours.issue("good", "localhost", (2020, 2090), &BOTH);
    renewal.read(SystemTime::now());
    assert!(tls.now().ends < first.ends);
}
