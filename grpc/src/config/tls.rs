//! TLS of this node's port: which files, and what clients have to show. Raw and checked. Must never
//! read a file: `tls/` does.

use std::path::PathBuf;

use serde::Deserialize;

use super::around::ClusterSettings;
use super::checked::{Checked, fault};
use super::error::Fault;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    certificate: String,
    key: String,
    client_ca: String,
    client_auth: ClientAuth,
}

/// What clients have to show. Whatever comes counts for something only if an authority of the
/// configuration has signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ClientAuth {
    /// They are not asked.
    None,
    /// They are asked, and let in whatever they answer.
    Request,
    /// Some certificate, whoever signed it.
    Require,
    /// One that an authority of the configuration has signed.
    Verify,
}

/// TLS of a port.
#[derive(Debug, Clone)]
pub(crate) struct TlsSettings {
    /// This node's certificate with its chain, and its key.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Who signs clients' certificates.
    pub(crate) client_ca: Option<PathBuf>,
    /// What clients have to show.
    pub(crate) client_auth: ClientAuth,
    /// Who signs nodes' certificates; `None` = this node works alone.
    pub(crate) node_ca: Option<PathBuf>,
}

/// `None` where the port is in the clear.
pub(super) fn tls(raw: RawTls) -> Checked<Option<TlsSettings>> {
    let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
    let client_ca = path(raw.client_ca);
    let (certificate, key) = match (path(raw.certificate), path(raw.key)) {
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => {
            let expected = "the file of tls.certificate's key";
            return Err(fault("key", expected).against("tls.certificate"));
        }
        (None, Some(_)) => {
            let expected = "the file of tls.key's certificate";
            return Err(fault("certificate", expected).against("tls.key"));
        }
        // What looks like protection must not be none.
        (None, None) if client_ca.is_some() => {
            return Err(fault("client_ca", "nothing, or tls.certificate and tls.key too"));
        }
        (None, None) if raw.client_auth != ClientAuth::None => {
            return Err(fault("client_auth", "none, or tls.certificate and tls.key too"));
        }
        (None, None) => return Ok(None),
    };
    match (raw.client_auth, &client_ca) {
        (ClientAuth::None, Some(_)) => {
            let expected = "request, require or verify, for tls.client_ca is set";
            return Err(fault("client_auth", expected).against("tls.client_ca"));
        }
        (ClientAuth::Verify, None) => {
            let expected = "the file of those who sign clients' certificates (tls.client_auth: \
                            verify)";
            return Err(fault("client_ca", expected).against("tls.client_auth"));
        }
        _ => {}
    }
    let client_auth = raw.client_auth;
    Ok(Some(TlsSettings { certificate, key, client_ca, client_auth, node_ca: None }))
}

/// The same, with those who sign nodes' certificates where there are other nodes.
pub(super) fn with_nodes(
    tls: Option<TlsSettings>,
    cluster: &ClusterSettings,
) -> Result<Option<TlsSettings>, Fault> {
    let Some(mut tls) = tls else {
        return match &cluster.ca {
            Some(_) => {
                let expected = "nothing, or tls.certificate and tls.key too";
                Err(fault("ca", expected).under("cluster"))
            }
            None => Ok(None),
        };
    };
    if cluster.listen.is_some() {
        tls.node_ca = cluster.ca.clone().or_else(|| tls.client_ca.clone());
        if tls.node_ca.is_none() {
            let expected =
                "the file of those who sign nodes' certificates (tls.certificate is set)";
            return Err(fault("ca", expected).under("cluster").against("tls.certificate"));
        }
    }
    Ok(Some(tls))
}
