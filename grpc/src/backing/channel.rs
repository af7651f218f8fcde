//! Connections to other gRPC servers, made when they are first used and made anew when they broke.
//! Must never know what is asked over them, nor print what a header holds.

pub(crate) mod details;
mod node_connector;
#[cfg(test)]
mod tests;

use self::{details::Readable, node_connector::NodeConnector};
use crate::peer::proof::{HEADER, Secret};
use crate::tls::Tls;
use http::Uri;
use std::{
    fmt, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataKey, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// Bytes that one stream may have on their way to us: 10 Gbit/s over 3 ms, or 1 Gbit/s over 30.
const STREAM_WINDOW: u32 = 4 << 20;
/// Largest frame taken, of those who send frames that large: a frame is passed on when it is whole,
/// so it must not take long; each costs a system call and some bookkeeping, so it must not be
/// small. HTTP/2 allows no less than 16 KiB.
const FRAME_BYTES_MAX: u32 = 64 << 10;
/// Streams that may stand still with full windows before a connection does. A reader that does
/// not read keeps its stream's window out of the connection's, so that must be as large as all
/// streams' together (then nobody waits for another). It is a promise, not memory: what is held is
/// bounded by the streams there are, which whoever asks bounds.
const STALLED_STREAMS_MAX: u32 = 256;
/// At most 2^31-1 (RFC 9113, 6.9.1).
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STALLED_STREAMS_MAX;
/// A connection that brought nothing for so long, with a request open, is asked for a sign of
/// life. Servers on grpc-go close a connection after the fourth such question without a byte of
/// answer in between, so the deadlines of what is asked over it should be below four of these.
const PING_AFTER: Duration = Duration::from_secs(4);
/// And is given up so long after, requests with it.
const PING_ANSWER: Duration = Duration::from_secs(3);
/// Idle connections are not pinged over HTTP/2 (servers punish it); the kernels do among
/// themselves, so that firewalls between them do not forget the connection.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);
/// Custom headers of one target.
const HEADERS_MAX: usize = 16;
/// Bytes of one header's value: servers refuse header lists above 8 or 16 KiB.
const HEADER_BYTES_MAX: usize = 8 << 10;
/// Largest file of certificates read: all public roots together are a quarter of it.
const PEM_BYTES_MAX: u64 = 1 << 20;
/// Headers that gRPC or HTTP/2 set themselves.
const OWN_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "te",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// A connection to a target. Cheap to clone; a clone is the same connection.
pub(crate) type Connection = Readable<InterceptedService<Channel, Headers>>;

/// Where to connect, and as whom.
#[derive(Clone)]
pub(crate) struct Connect {
    /// `grpc://host:port`, or `grpcs://host:port` for TLS; an IPv6 address in brackets.
    pub(crate) url: String,
    /// Certificates (PEM) of those who may vouch for the server, instead of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// This node's own certificate (PEM), where the server asks for one; with `key`.
    pub(crate) certificate: Option<PathBuf>,
    /// The key (PEM) of `certificate`.
    pub(crate) key: Option<PathBuf>,
    /// Sent with each request. The values are secrets.
    pub(crate) headers: Vec<(String, String)>,
    /// How long TCP and TLS together may take.
    pub(crate) connect_timeout: Duration,
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Connect")
            .field("url", &without_user(&self.url))
            .field("ca", &self.ca)
            .field("certificate", &self.certificate)
            .field("key", &self.key)
            .field("headers", &names)
            .field("connect_timeout", &self.connect_timeout)
            .finish()
    }
}

/// Why nothing can be connected with these settings. Found at start, never later.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadConnect {
    /// Not a URL of the two forms.
    #[error("{0:?} is not grpc://HOST:PORT or grpcs://HOST:PORT: {1}")]
    Url(String, &'static str),
    /// Certificates or keys for a connection that has no use for them.
    #[error("{0:?} has no TLS (grpcs:// has); certificates and keys are of no use there")]
    NoTls(String),
    /// A certificate without its key, or a key alone.
    #[error("a client certificate and its key go together; one of them is missing")]
    HalfIdentity,
    /// A file that can't be read.
    #[error("can't read {0}: {1}")]
    Unreadable(PathBuf, io::Error),
    /// A file that holds no certificate, or no key.
    #[error("{0} has no {1} in PEM (-----BEGIN …)")]
    NotPem(PathBuf, &'static str),
    /// TLS can't be set up with what was read.
    #[error("TLS for {0:?}: {1}")]
    Tls(String, String),
    /// A header that may not be set, or can't be sent. Its value is not shown.
    #[error("header {0:?}: {1}")]
    Header(String, &'static str),
    /// More headers than anybody needs.
    #[error("{0} headers; at most {HEADERS_MAX} can be set")]
    Headers(usize),
}

/// A place to connect to: settings that were checked.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    name: String,
    endpoint: Endpoint,
    headers: Headers,
    /// Where this node's own TLS is spoken.
    connector: Option<NodeConnector>,
}

/// What a node of a cluster proves with each call to another.
#[derive(Clone, Debug)]
pub(crate) struct Proof {
    /// What both know.
    pub(crate) secret: Secret,
    /// Who calls.
    pub(crate) from: Arc<str>,
    /// Who is called.
    pub(crate) to: Arc<str>,
}

impl Target {
    /// Reads the files and checks all else. Certificates are read here alone: a renewed one counts
    /// from the next start.
    ///
    /// # Errors
    /// [`BadConnect`].
    pub(crate) fn new(connect: &Connect) -> Result<Self, BadConnect> {
        let (tls, authority) = split_url(&connect.url)?;
        let scheme = if tls { "https" } else { "http" };
        let bad_url = |why| BadConnect::Url(without_user(&connect.url), why);
        let uri: Uri = format!("{scheme}://{authority}")
            .parse()
            .map_err(|_| bad_url("the host is not one"))?;
        let mut endpoint = Endpoint::from(uri)
            .user_agent(concat!("ringforge/", env!("CARGO_PKG_VERSION")))
            .map_err(|_| bad_url("no user agent"))?
            .connect_timeout(connect.connect_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES_MAX)
            .http2_keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_ANSWER)
            .keep_alive_while_idle(false);
        let files = [&connect.ca, &connect.certificate, &connect.key];
        if tls {
            endpoint = endpoint
                .tls_config(tls_config(connect)?)
                .map_err(|error| BadConnect::Tls(connect.url.clone(), causes(&error)))?;
        } else if files.iter().any(|file| file.is_some()) {
            return Err(BadConnect::NoTls(connect.url.clone()));
        }
        let headers = Headers::new(&connect.headers)?;
        Ok(Self { name: connect.url.clone(), endpoint, headers, connector: None })
    }

    /// The same, where each call proves who makes it.
    pub(crate) fn proving(mut self, proof: Proof) -> Self {
        self.headers.proof = Some(proof);
        self
    }

    /// The same by this node's own TLS, as it is whenever a connection is made; made of a URL
    /// without any.
    pub(crate) fn secured(mut self, tls: Tls) -> Self {
        self.name = self.name.replacen("grpc:", "grpcs:", 1);
        self.connector = Some(NodeConnector::new(tls));
        self
    }

    /// Its URL, which holds no secret.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A further connection, made when it is first used. Within a tokio runtime only: a task of
    /// it owns the connection.
    pub(crate) fn open(&self) -> Connection {
        let channel = match &self.connector {
            Some(connector) => self.endpoint.connect_with_connector_lazy(connector.clone()),
            None => self.endpoint.connect_lazy(),
        };
        Readable(InterceptedService::new(channel, self.headers.clone()))
    }
}

/// Sets custom headers on each request.
#[derive(Clone)]
pub(crate) struct Headers {
    headers: Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>,
    proof: Option<Proof>,
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.headers.iter().map(|(name, _)| name.as_str())).finish()
    }
}

impl Headers {
    fn new(headers: &[(String, String)]) -> Result<Self, BadConnect> {
        if headers.len() > HEADERS_MAX {
            return Err(BadConnect::Headers(headers.len()));
        }
        let headers = headers.iter().map(|(name, value)| {
            let bad = |why| BadConnect::Header(crate::status::short(name.clone()), why);
            let key = name.to_ascii_lowercase();
            if OWN_HEADERS.contains(&key.as_str()) || key.starts_with("grpc-") {
                return Err(bad("gRPC sets it itself"));
            }
            if key.ends_with("-bin") {
                return Err(bad("binary headers are not sent"));
            }
            let key = MetadataKey::from_bytes(key.as_bytes());
            let key = key.map_err(|_| bad("the name is not one of a header"))?;
            if value.len() > HEADER_BYTES_MAX {
                return Err(bad("the value is too long"));
            }
            let printable = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
            let value = MetadataValue::try_from(value.as_str()).ok().filter(|_| printable);
            let mut value = value.ok_or_else(|| bad("the value is not printable ASCII"))?;
            // Not shown by anybody's Debug, and kept out of HPACK's table.
            value.set_sensitive(true);
            Ok((key, value))
        });
        Ok(Self { headers: headers.collect::<Result<_, _>>()?, proof: None })
    }
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for (name, value) in &self.headers {
            request.metadata_mut().insert(name.clone(), value.clone());
        }
        if let Some(Proof { secret, from, to }) = &self.proof {
            let header = secret.sign(from, to, SystemTime::now());
            // Names of nodes are letters, digits and dots.
            let mut header = MetadataValue::try_from(header)
                .map_err(|_| Status::internal("a node's name is no header"))?;
            header.set_sensitive(true);
            request.metadata_mut().insert(HEADER, header);
        }
        Ok(request)
    }
}

/// Whether the URL asks for TLS, and its `host:port`.
fn split_url(url: &str) -> Result<(bool, &str), BadConnect> {
    let bad = |why| BadConnect::Url(without_user(url), why);
    let (tls, authority) = match url.split_once("://") {
        Some(("grpc", rest)) => (false, rest),
        Some(("grpcs", rest)) => (true, rest),
        _ => return Err(bad("the scheme is another")),
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.contains('@') {
        return Err(bad("names and passwords go into headers"));
    }
    if authority.contains(['/', '?', '#']) {
        return Err(bad("something follows the port (an instance is a setting of its own)"));
    }
    let (host, port) = authority.rsplit_once(':').ok_or_else(|| bad("the port is missing"))?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bracketed {
        Some(host) if host.parse::<std::net::Ipv6Addr>().is_err() => {
            return Err(bad("in the brackets is no IPv6 address"));
        }
        None if host.contains(':') => return Err(bad("an IPv6 address stands in brackets")),
        None if host.is_empty() => return Err(bad("the host is missing")),
        _ => {}
    }
    let plain = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if !plain || port.parse::<u16>().unwrap_or(0) == 0 {
        return Err(bad("the port is none"));
    }
    Ok((tls, authority))
}

/// The URL, without what stands before an `@`.
fn without_user(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    match url.rfind('@') {
        Some(at) if at >= start => format!("{}…{}", &url[..start], &url[at..]),
        _ => url.to_owned(),
    }
}

/// Whom to trust and who to be. Without a CA of its own it is the system's roots: there an
/// operator's own authority is installed already, and they are renewed without a release of ours,
/// which roots compiled in would not be.
fn tls_config(connect: &Connect) -> Result<ClientTlsConfig, BadConnect> {
    // With a bound of its own, because the endpoint's is for TCP and TLS together.
    let config = ClientTlsConfig::new().timeout(connect.connect_timeout);
    let config = match &connect.ca {
        Some(path) => {
            let pem = read_pem(path, "certificate", &["CERTIFICATE-----"])?;
            config.ca_certificate(Certificate::from_pem(pem))
        }
        None => config.with_native_roots(),
    };
    match (&connect.certificate, &connect.key) {
        (Some(certificate), Some(key)) => {
            let certificate = read_pem(certificate, "certificate", &["CERTIFICATE-----"])?;
            let key = read_pem(key, "private key", &["PRIVATE KEY-----"])?;
            Ok(config.identity(Identity::from_pem(certificate, key)))
        }
        (None, None) => Ok(config),
        _ => Err(BadConnect::HalfIdentity),
    }
}

/// A file that must hold something of this kind.
fn read_pem(path: &PathBuf, what: &'static str, marks: &[&str]) -> Result<String, BadConnect> {
    use io::Read;
    let unreadable = |error| BadConnect::Unreadable(path.clone(), error);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let read = file.take(PEM_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| BadConnect::Unreadable(path.clone(), error))?;
    if !marks.iter().any(|mark| text.contains(mark)) {
        return Err(BadConnect::NotPem(path.clone(), what));
    }
    Ok(text)
}

/// An error with what caused it, in one line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some repeat their cause's text as their own.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    crate::status::short(text)
}
