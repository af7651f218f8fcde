//! Connections to other nodes of the cluster by TLS, each with the certificates that count when it
//! is made. Must never fall back to a connection in the clear.

use super::TCP_KEEPALIVE;
use crate::tls::Tls;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::codegen::Service;

/// Connects to nodes.
#[derive(Clone, Debug)]
pub(super) struct NodeConnector {
    tls: Tls,
}

impl NodeConnector {
    pub(super) const fn new(tls: Tls) -> Self {
        Self { tls }
    }
}

impl Service<Uri> for NodeConnector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let loaded = self.tls.now();
        Box::pin(async move {
            let nodes = loaded.nodes.as_ref();
            let nodes =
                nodes.ok_or_else(|| io::Error::other("nobody signs nodes' certificates"))?;
            let host = uri.host().unwrap_or_default();
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let port = uri.port_u16().unwrap_or_default();
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            let keepalive = TcpKeepalive::new().with_time(TCP_KEEPALIVE);
            SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
            let name = ServerName::try_from(host).map_err(io::Error::other)?;
            let connector = TlsConnector::from(nodes.client.clone());
            Ok(TokioIo::new(connector.connect(name, stream).await?))
        })
    }
}
