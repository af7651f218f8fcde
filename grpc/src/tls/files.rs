//! From files in PEM to what TLS is made of. Must never take what would fail at the first client:
//! whatever is wrong with a file is found when it is read.

use super::{
    ALPN, Loaded, Nodes,
    believed::{self, Asking, Judge},
};
use crate::config::{ClientAuth, TlsSettings};
use rustls::{
    CertificateError, CipherSuite, ClientConfig, Error, InconsistentKeys, RootCertStore,
    ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    server::{NoServerSessionStorage, danger::ClientCertVerifier},
};
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Largest file read: all public authorities together are a quarter of it.
const PEM_BYTES_MAX: u64 = 1 << 20;
/// A time at which every certificate is over, to learn when that began: the year 9999 is what
/// "for ever" is in certificates.
const FAR: Duration = Duration::from_secs(253_402_300_800);

/// Why certificates are of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadTls {
    /// A file that can't be read.
    #[error("can't read {0}: {1}")]
    Unreadable(PathBuf, io::Error),
    /// A file of nothing.
    #[error("{0} is empty")]
    Empty(PathBuf),
    /// A file that is too large to be one.
    #[error("{0} is larger than {PEM_BYTES_MAX} bytes")]
    TooLarge(PathBuf),
    /// A file that holds no certificate, or no key.
    #[error("{0} has no {1} in PEM (-----BEGIN …)")]
    NotPem(PathBuf, &'static str),
    /// A file with damaged contents.
    #[error("{0}: {1} can't be read: {2}")]
    Malformed(PathBuf, &'static str, String),
    /// A key with a password.
    #[error("{0}: the key is encrypted; a node takes one without a password")]
    Encrypted(PathBuf),
    /// Two files that do not belong together.
    #[error("{key} is not the key of {certificate}")]
    OtherKey {
        /// The key's file.
        key: PathBuf,
        /// The certificate's.
        certificate: PathBuf,
    },
    /// A certificate that is over.
    #[error("{0}: the certificate ended at {when}", when = shown(*.1))]
    Expired(PathBuf, SystemTime),
    /// A certificate that has yet to begin.
    #[error("{0}: the certificate begins only at {when}", when = shown(*.1))]
    NotYet(PathBuf, SystemTime),
    /// A certificate that other nodes would refuse.
    #[error("{0}: other nodes, which reach this one as {1:?}, would refuse it: {2}")]
    AsNode(PathBuf, String, String),
    /// TLS can't be set up with it.
    #[error("{0}: {1}")]
    Tls(PathBuf, String),
}

/// A time as people read it.
pub(super) fn shown(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// The one implementation of TLS's cryptography.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    // Of two that nobody breaks, the one that costs less: it decides between nodes. Clients have
    // an order of their own, which is heeded: they know what their machines are good at.
    provider.cipher_suites.sort_by_key(|suite| !is_aes_128(suite.suite()));
    Arc::new(provider)
}

fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

/// The files, and what is asked of clients.
pub(super) struct Sources(TlsSettings);

/// What the files look like from outside; another one where one was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp(Vec<Option<[i64; 6]>>);

impl Sources {
    pub(super) fn new(settings: &TlsSettings) -> Self {
        Self(settings.clone())
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let TlsSettings { certificate, key, client_ca, node_ca, .. } = &self.0;
        [certificate, key].into_iter().chain(client_ca).chain(node_ca)
    }

    /// What they look like now, what symbolic links lead to included.
    pub(super) fn stamp(&self) -> Stamp {
        let stamp = |file: &PathBuf| {
            let of = std::fs::metadata(file).ok()?;
            let [device, inode, size] = [of.dev(), of.ino(), of.size()].map(u64::cast_signed);
            let changed = of.mtime().wrapping_mul(1_000_000_000).wrapping_add(of.mtime_nsec());
            Some([device, inode, size, changed, of.ctime(), of.ctime_nsec()])
        };
        Stamp(self.files().map(stamp).collect())
    }

    /// Reads them.
    pub(super) fn load(&self, now: SystemTime) -> Result<Loaded, BadTls> {
        let TlsSettings { certificate, key, client_ca, client_auth, node_ca } = &self.0;
        let chain = chain(certificate)?;
        let ends = ends(certificate, &chain, now)?;
        let own = Own { file: certificate, key_file: key, key: private_key(key)?, chain };
        let roots = |file: &Option<PathBuf>| file.as_deref().map(authorities).transpose();
        let (clients, nodes) = (roots(client_ca)?, roots(node_ca)?);
        let server = own.server(*client_auth, clients.as_ref(), nodes.as_ref())?;
        let judge = Judge::new(*client_auth, clients.as_ref(), nodes.as_ref());
        let judge = judge.map_err(|error| own.error(&error))?;
        let nodes = nodes.map(|roots| own.nodes(&roots)).transpose()?;
        Ok(Loaded { server: Arc::new(server), judge, nodes, ends })
    }
}

/// What this node shows.
struct Own<'a> {
    file: &'a Path,
    key_file: &'a Path,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Own<'_> {
    fn server(
        &self,
        mode: ClientAuth,
        clients: Option<&Arc<RootCertStore>>,
        nodes: Option<&Arc<RootCertStore>>,
    ) -> Result<ServerConfig, BadTls> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| self.error(&error))?;
        let builder = match mode {
            ClientAuth::None => builder.with_no_client_auth(),
            _ => {
                let believed = self.believed(clients, nodes)?;
                builder.with_client_cert_verifier(Arc::new(Asking::new(mode, believed)))
            }
        };
        let server = builder.with_single_cert(self.chain.clone(), self.key.clone_key());
        let mut server = server.map_err(|error| self.error(&error))?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        // A client may resume its session on any core, so that the session is the client's to
        // keep. Tickets are sealed by a key that ends with these files.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.ticketer = ring::Ticketer::new().map_err(|error| self.error(&error))?;
        Ok(server)
    }

    /// Whoever is signed by either.
    fn believed(
        &self,
        clients: Option<&Arc<RootCertStore>>,
        nodes: Option<&Arc<RootCertStore>>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, BadTls> {
        let stores = clients.into_iter().chain(nodes);
        let roots: Vec<_> = stores.flat_map(|store| store.roots.iter().cloned()).collect();
        if roots.is_empty() {
            return Ok(None);
        }
        let verifier = believed::verifier(Arc::new(RootCertStore { roots }));
        verifier.map(Some).map_err(|error| self.error(&error))
    }

    fn nodes(&self, roots: &Arc<RootCertStore>) -> Result<Nodes, BadTls> {
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| self.error(&error))?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| self.error(&error))?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        let check = OwnCheck {
            file: self.file.to_owned(),
            chain: self.chain.clone(),
            roots: roots.clone(),
        };
        Ok(Nodes { client: Arc::new(client), check })
    }

    fn error(&self, error: &Error) -> BadTls {
        match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => BadTls::OtherKey {
                key: self.key_file.to_owned(),
                certificate: self.file.to_owned(),
            },
            // The certificates have been read before; what is left is the key.
            Error::General(why) => {
                BadTls::Malformed(self.key_file.to_owned(), "the key", why.clone())
            }
            other => BadTls::Tls(self.file.to_owned(), other.to_string()),
        }
    }
}

/// Whether other nodes will believe this one.
pub(super) struct OwnCheck {
    file: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
}

impl OwnCheck {
    /// As the server `host`, and where `as_client` is set as a client too.
    pub(super) fn run(&self, host: &str, as_client: bool, now: SystemTime) -> Result<(), BadTls> {
        let refused = |why: String| BadTls::AsNode(self.file.clone(), host.to_owned(), why);
        let Some((certificate, rest)) = self.chain.split_first() else { return Ok(()) };
        let name = ServerName::try_from(host).map_err(|error| refused(error.to_string()))?;
        let now = unix(now);
        let server = WebPkiServerVerifier::builder_with_provider(self.roots.clone(), provider());
        let server = server.build().map_err(|error| refused(error.to_string()))?;
        let checked = server.verify_server_cert(certificate, rest, &name, &[], now);
        checked.map_err(|error| refused(error.to_string()))?;
        if as_client {
            let client = believed::verifier(self.roots.clone());
            let checked = client.and_then(|by| by.verify_client_cert(certificate, rest, now));
            checked.map_err(|error| refused(format!("as a client: {error}")))?;
        }
        Ok(())
    }
}

fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn system(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

/// When the first certificate of a chain ends; it has to be good now.
fn ends(
    file: &Path,
    chain: &[CertificateDer<'static>],
    now: SystemTime,
) -> Result<SystemTime, BadTls> {
    use CertificateError::{ExpiredContext, NotValidYetContext};
    let malformed = |why: String| BadTls::Malformed(file.to_owned(), "the certificate", why);
    let Some(certificate) = chain.first() else {
        return Err(BadTls::NotPem(file.to_owned(), "certificate"));
    };
    // Its dates are the first that a verifier looks at; whom it would believe does not matter.
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).map_err(|error| malformed(error.to_string()))?;
    let verifier = believed::verifier(Arc::new(roots));
    let verifier = verifier.map_err(|error| malformed(error.to_string()))?;
    let at = |time| match verifier.verify_client_cert(certificate, &[], unix(time)) {
        Err(Error::InvalidCertificate(fault)) => Some(fault),
        Err(_) | Ok(_) => None,
    };
    match at(now) {
        Some(ExpiredContext { not_after, .. }) => {
            return Err(BadTls::Expired(file.to_owned(), system(not_after)));
        }
        Some(NotValidYetContext { not_before, .. }) => {
            return Err(BadTls::NotYet(file.to_owned(), system(not_before)));
        }
        Some(CertificateError::BadEncoding) => return Err(malformed("it is damaged".to_owned())),
        _ => {}
    }
    match at(SystemTime::UNIX_EPOCH + FAR) {
        Some(ExpiredContext { not_after, .. }) => Ok(system(not_after)),
        _ => Ok(SystemTime::UNIX_EPOCH + FAR),
    }
}

fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, BadTls> {
    let text = read(file)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(BadTls::NotPem(file.to_owned(), "certificate")),
        Ok(chain) => Ok(chain),
        Err(why) => Err(BadTls::Malformed(file.to_owned(), "the certificate", pem_fault(&why))),
    }
}

fn authorities(file: &Path) -> Result<Arc<RootCertStore>, BadTls> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(file)? {
        roots.add(certificate).map_err(|error| {
            BadTls::Malformed(file.to_owned(), "a certificate", error.to_string())
        })?;
    }
    Ok(Arc::new(roots))
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, BadTls> {
    let text = read(file)?;
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) if has(&text, "BEGIN ENCRYPTED PRIVATE KEY") => {
            Err(BadTls::Encrypted(file.to_owned()))
        }
        Err(pem::Error::NoItemsFound) => Err(BadTls::NotPem(file.to_owned(), "private key")),
        Err(why) => Err(BadTls::Malformed(file.to_owned(), "the key", pem_fault(&why))),
    }
}

/// What is wrong, without what was read: that may be a key.
fn pem_fault(why: &pem::Error) -> String {
    let why = match why {
        pem::Error::MissingSectionEnd { .. } => "its -----END line is missing",
        pem::Error::IllegalSectionStart { .. } => "its -----BEGIN line is damaged",
        pem::Error::Base64Decode(_) => "it is no base64",
        _ => "it is damaged",
    };
    why.to_owned()
}

fn has(text: &[u8], mark: &str) -> bool {
    text.windows(mark.len()).any(|window| window == mark.as_bytes())
}

fn read(file: &Path) -> Result<Vec<u8>, BadTls> {
    let unreadable = |error| BadTls::Unreadable(file.to_owned(), error);
    let mut text = Vec::new();
    let open = File::open(file).map_err(unreadable)?;
    open.take(PEM_BYTES_MAX + 1).read_to_end(&mut text).map_err(unreadable)?;
    match text.len() {
        0 => Err(BadTls::Empty(file.to_owned())),
        len if len as u64 > PEM_BYTES_MAX => Err(BadTls::TooLarge(file.to_owned())),
        _ => Ok(text),
    }
}
