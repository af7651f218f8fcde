//! Whose certificates are believed: what a handshake lets pass, and what a client has proven by it.
//! Must never count a certificate for more than an authority of the configuration says.

use super::files::provider;
use crate::config::ClientAuth;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::{danger::HandshakeSignatureValid, verify_server_name},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::{fmt, sync::Arc};

/// Checks a chain against some authorities.
type Verifier = Arc<dyn ClientCertVerifier>;

/// Whose certificates are believed, for clients and for nodes.
pub(crate) struct Judge {
    mode: ClientAuth,
    clients: Option<Verifier>,
    nodes: Option<Verifier>,
}

/// A certificate that a client has shown, signed by an authority of the configuration. Cheap to
/// clone.
#[derive(Clone)]
pub(crate) struct ClientCertificate(Arc<Shown>);

struct Shown {
    certificate: CertificateDer<'static>,
    /// Whether it is signed by who signs those of nodes.
    of_node: bool,
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ClientCertificate").field("of_node", &self.0.of_node).finish()
    }
}

impl ClientCertificate {
    /// Whether it is that of the node which others reach under `host`: a name or an address.
    pub(crate) fn is_of_node(&self, host: &str) -> bool {
        let Ok(name) = ServerName::try_from(host) else { return false };
        let parsed = ParsedCertificate::try_from(&self.0.certificate);
        self.0.of_node && parsed.is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
    }
}

impl Judge {
    /// With the authorities of clients, and those of nodes.
    pub(super) fn new(
        mode: ClientAuth,
        clients: Option<&Arc<RootCertStore>>,
        nodes: Option<&Arc<RootCertStore>>,
    ) -> Result<Self, Error> {
        let verifier = |roots: &Arc<RootCertStore>| verifier(roots.clone());
        Ok(Self {
            mode,
            clients: clients.map(verifier).transpose()?,
            nodes: nodes.map(verifier).transpose()?,
        })
    }

    /// What a client has proven that showed this chain. Asked of every connection, for one that
    /// resumes an earlier session was not looked at by the handshake.
    ///
    /// # Errors
    /// Where such a client is not let in.
    pub(crate) fn judge(
        &self,
        chain: &[CertificateDer<'static>],
        now: UnixTime,
    ) -> Result<Option<ClientCertificate>, Error> {
        let Some((certificate, intermediates)) = chain.split_first() else {
            return match self.mode {
                ClientAuth::None | ClientAuth::Request => Ok(None),
                ClientAuth::Require | ClientAuth::Verify => Err(Error::NoCertificatesPresented),
            };
        };
        let check = |verifier: &Option<Verifier>| match verifier {
            Some(by) => by.verify_client_cert(certificate, intermediates, now).map(|_| ()),
            None => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
        };
        let (client, node) = (check(&self.clients), check(&self.nodes));
        if client.is_err() && node.is_err() {
            return match self.mode {
                ClientAuth::Verify => client.map(|()| None),
                _ => Ok(None),
            };
        }
        let shown = Shown { certificate: certificate.clone(), of_node: node.is_ok() };
        Ok(Some(ClientCertificate(Arc::new(shown))))
    }
}

/// Checks chains for clients' use.
pub(super) fn verifier(roots: Arc<RootCertStore>) -> Result<Verifier, Error> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    builder.build().map_err(|error| Error::General(error.to_string()))
}

/// What a handshake asks of clients. That the client has the key of what it shows is always
/// checked.
#[derive(Debug)]
pub(super) struct Asking {
    mode: ClientAuth,
    believed: Option<Verifier>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Asking {
    /// `believed`: the authorities of clients and of nodes.
    pub(super) fn new(mode: ClientAuth, believed: Option<Verifier>) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { mode, believed, algorithms }
    }
}

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        matches!(self.mode, ClientAuth::Require | ClientAuth::Verify)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        match &self.believed {
            // By it a client with several certificates chooses; any is right for `require`.
            Some(believed) if self.mode != ClientAuth::Require => believed.root_hint_subjects(),
            _ => &[],
        }
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match (&self.believed, self.mode) {
            (Some(believed), ClientAuth::Verify) => {
                believed.verify_client_cert(certificate, intermediates, now)
            }
            (None, ClientAuth::Verify) => {
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
            }
            // What it counts for is judged when the handshake is over.
            _ => Ok(ClientCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
