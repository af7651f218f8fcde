//! What can be connected to, and over TLS with whom.

use super::*;
use crate::backing::remote::tests::server::{Fake, connect};
use engine::tier::{Below, BelowError};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tonic::transport::ServerTlsConfig;

#[test]
fn urls_have_two_forms() {
    for (url, expect) in [
        ("grpc://host:1", Some((false, "host:1"))),
        ("grpcs://host.example:443", Some((true, "host.example:443"))),
        ("grpc://127.0.0.1:8980/", Some((false, "127.0.0.1:8980"))),
        ("grpc://[::1]:8980", Some((false, "[::1]:8980"))),
        ("grpcs://[2001:db8::1]:443", Some((true, "[2001:db8::1]:443"))),
        ("", None),
        ("host:1", None),
        ("http://host:1", None),
        ("https://host:1", None),
        ("GRPC://host:1", None),
        ("grpc://", None),
        ("grpc://host", None),
        ("grpc://host:", None),
        ("grpc://host:0", None),
        ("grpc://host:+1", None),
        ("grpc://host:65536", None),
        ("grpc://:1", None),
        ("grpc://::1:1", None),
        ("grpc://[::1]", None),
        ("grpc://[host]:1", None),
        ("grpc://[::1:1", None),
        ("grpc://user:secret@host:1", None),
        ("grpc://host:1/instance", None),
        ("grpc://host:1?x", None),
        ("grpc://host:1#x", None),
    ] {
        let split = split_url(url);
        assert_eq!(split.as_ref().ok(), expect.as_ref(), "{url}");
        if let Err(error) = split {
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
    for url in ["grpc://ho st:1", "grpc://ho\"st:1", "grpc://ho[st:1"] {
        let connect = Connect { url: url.to_owned(), ..connect(1) };
        assert!(matches!(Target::new(&connect), Err(BadConnect::Url(..))), "{url}");
    }
}

#[test]
fn headers_are_checked_and_never_shown() {
    let long = "x".repeat(HEADER_BYTES_MAX + 1);
    for (name, value, good) in [
        ("authorization", "Bearer secret", true),
        ("X-Token", "secret", true),
        ("x-empty", "", true),
        ("", "secret", false),
        ("two words", "secret", false),
        ("x-token", "secret\r\nx-other: 1", false),
        ("x-token", "sécret", false),
        ("x-token", &long, false),
        ("x-token-bin", "c2VjcmV0", false),
        ("grpc-timeout", "1S", false),
        ("Content-Type", "text/plain", false),
        ("te", "trailers", false),
        (":path", "/secret", false),
    ] {
        let headers = vec![(name.to_owned(), value.to_owned())];
        let connect = Connect { headers, ..connect(1) };
        let target = Target::new(&connect);
        assert_eq!(target.is_ok(), good, "{name}");
        for shown in [format!("{target:?}"), format!("{connect:?}")] {
            assert!(value.is_empty() || !shown.contains(value), "{shown}");
        }
        if let Err(error) = target {
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
    let headers = vec![("x".to_owned(), String::new()); HEADERS_MAX + 1];
    let connect = Connect { headers, ..connect(1) };
    assert!(matches!(Target::new(&connect), Err(BadConnect::Headers(17))));
}

#[tokio::test]
async fn headers_are_sent_with_each_request() {
    let server = Fake::start().await;
    let headers = vec![("X-Token".to_owned(), "secret".to_owned())];
    let remote = remote(&Connect { headers, ..connect(server.port) });
    remote.probe().await.unwrap();
    remote.probe().await.unwrap();
    assert_eq!(*server.state.tokens.lock().unwrap(), ["secret", "secret"]);
    assert!(!format!("{remote:?}").contains("secret"));
}

/// Certificates for one test, in files.
struct Authority {
    directory: TempDir,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { directory: TempDir::new().unwrap(), certificate, issuer }
    }

    /// A certificate for `name` that ends with the year, and its key.
    fn issue(&self, name: &str, year: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 12, 31);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn file(&self, name: &str, text: &str) -> Option<PathBuf> {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    }

    fn ca(&self) -> Option<PathBuf> {
        self.file("ca.pem", &self.certificate)
    }

    /// A server with this certificate; where `clients` is set it takes only those of this
    /// authority.
    async fn server(&self, (certificate, key): (String, String), clients: bool) -> Fake {
        let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
        if clients {
            tls = tls.client_ca_root(Certificate::from_pem(&self.certificate));
        }
        Fake::start_at(0, Some(tls)).await
    }
}

fn connect_tls(port: u16, ca: Option<PathBuf>) -> Connect {
    Connect { url: format!("grpcs://127.0.0.1:{port}"), ca, ..connect(port) }
}

fn remote(connect: &Connect) -> crate::backing::remote::Remote {
    let settings = crate::backing::remote::RemoteSettings {
        instance: String::new(),
        compression: false,
        call_deadline: Duration::from_secs(20),
        idle_deadline: Duration::from_secs(20),
    };
    crate::backing::remote::Remote::new(&Target::new(connect).unwrap(), settings)
}

/// Why it is not reached, if it is not.
async fn probed(connect: &Connect) -> Option<String> {
    match remote(connect).probe().await {
        Ok(()) => None,
        Err(BelowError::Unreachable(why)) => Some(why),
        Err(error) => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn a_server_is_believed_only_by_a_certificate_that_holds() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    for (server, ca, expect) in [
        (ours.server(ours.issue("127.0.0.1", 2100), false).await, ours.ca(), None),
        (ours.server(ours.issue("127.0.0.1", 2100), false).await, theirs.ca(), Some("nknown")),
        (ours.server(ours.issue("127.0.0.1", 2020), false).await, ours.ca(), Some("xpired")),
        (ours.server(ours.issue("example.com", 2100), false).await, ours.ca(), Some("name")),
        (Fake::start().await, ours.ca(), Some("")),
    ] {
        let why = probed(&connect_tls(server.port, ca)).await;
        assert_eq!(why.is_some(), expect.is_some(), "{expect:?}: {why:?}");
        let (why, expect) = (why.unwrap_or_default(), expect.unwrap_or_default());
        assert!(why.contains(expect), "{expect}: {why}");
    }
    // Without TLS to a server that wants it.
    let server = ours.server(ours.issue("127.0.0.1", 2100), false).await;
    assert!(probed(&connect(server.port)).await.is_some());
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_it() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let server = ours.server(ours.issue("127.0.0.1", 2100), true).await;
    let mut connect = connect_tls(server.port, ours.ca());
    assert!(probed(&connect).await.is_some(), "none is shown");
    for (authority, good) in [(&ours, true), (&theirs, false)] {
        let (certificate, key) = authority.issue("node", 2100);
        connect.certificate = ours.file("node.pem", &certificate);
        connect.key = ours.file("node.key", &key);
        let why = probed(&connect).await;
        assert_eq!(why.is_none(), good, "{why:?}");
    }
}

#[test]
fn files_that_are_of_no_use_are_named_at_start() {
    let ours = Authority::new("ours");
    let (certificate, key) = ours.issue("node", 2100);
    let certificate = ours.file("node.pem", &certificate);
    let key = ours.file("node.key", &key);
    let empty = ours.file("empty.pem", "");
    let cut = ours.file("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA");
    let absent = Some(ours.directory.path().join("absent.pem"));
    let files = |ca: &Option<PathBuf>, certificate: &Option<PathBuf>, key: &Option<PathBuf>| {
        Connect { certificate: certificate.clone(), key: key.clone(), ..connect_tls(1, ca.clone()) }
    };
    let ca = ours.ca();
    for (connect, expect) in [
        (files(&absent, &None, &None), "can't read"),
        (files(&empty, &None, &None), "no certificate"),
        (files(&key, &None, &None), "no certificate"),
        (files(&cut, &None, &None), "certificate"),
        (files(&ca, &certificate, &None), "go together"),
        (files(&ca, &None, &key), "go together"),
        (files(&ca, &certificate, &certificate), "no private key"),
        (files(&ca, &ca, &key), "TLS for"),
        (Connect { ca: ca.clone(), ..connect(1) }, "no TLS"),
    ] {
        let error = Target::new(&connect).unwrap_err().to_string();
        assert!(error.contains(expect), "{expect}: {error}");
    }
}
