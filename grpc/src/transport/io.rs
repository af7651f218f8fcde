//! A glommio socket as hyper wants it, in the clear or below TLS. Must never block, and never copy
//! what is sent in the clear.

use super::secured::Secured;
use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

/// Bytes taken from the kernel at once. hyper asks for a few KiB at a time; one system call for
/// many of its reads is worth the copy, which stays in the CPU's cache.
const RECEIVE_BYTES: usize = 64 * 1024;

/// The first byte of whoever speaks TLS: a handshake's record. No request begins by it.
pub(super) const TLS_HANDSHAKE: u8 = 0x16;

/// One accepted connection.
pub(super) enum Wire {
    /// Whoever listens in can read it.
    Clear(Socket),
    /// By TLS.
    Secured(Box<Secured>),
}

/// What came by a socket that speaks no TLS.
#[derive(Default)]
pub(super) struct FirstByte {
    /// Whether it was the first of TLS.
    pub(super) is_tls: Cell<bool>,
}

/// A socket, and what was received from it at once.
pub(super) struct Socket {
    stream: TcpStream,
    received: Box<[u8]>,
    start: usize,
    end: usize,
    /// Until the first byte, in the clear.
    first: Option<Rc<FirstByte>>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        let received = vec![0; RECEIVE_BYTES].into_boxed_slice();
        Self { stream, received, start: 0, end: 0, first: None }
    }

    /// One that ends with an error where its first byte is of TLS.
    pub(super) fn in_the_clear(stream: TcpStream, first: Rc<FirstByte>) -> Self {
        Self { first: Some(first), ..Self::new(stream) }
    }

    /// What has been received; nothing where the peer has ended.
    pub(super) fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        if self.start == self.end {
            let count = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut self.received))?;
            (self.start, self.end) = (0, count);
            if let Some(first) = self.first.take()
                && self.received[..count].first() == Some(&TLS_HANDSHAKE)
            {
                first.is_tls.set(true);
                return Poll::Ready(Err(io::Error::other("TLS, where none is spoken")));
            }
        }
        Poll::Ready(Ok(self.received()))
    }

    /// The same, as far as it is here.
    pub(super) fn received(&self) -> &[u8] {
        &self.received[self.start..self.end]
    }

    /// Forgets the first of what was received.
    pub(super) const fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// Sends from several buffers, as many bytes as the kernel takes.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    /// Says that nothing more is sent.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut into: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let received = ready!(self.poll_received(cx))?;
        let count = into.remaining().min(received.len());
        into.put_slice(&received[..count]);
        self.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Read for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(socket) => socket.poll_read(cx, into),
            Self::Secured(secured) => secured.poll_read(cx, into),
        }
    }
}

impl hyper::rt::Write for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(socket) => Pin::new(&mut socket.stream).poll_write(cx, bytes),
            Self::Secured(secured) => secured.poll_write(cx, &[IoSlice::new(bytes)]),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(socket) => socket.poll_send(cx, slices),
            Self::Secured(secured) => secured.poll_write(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(socket) => Pin::new(&mut socket.stream).poll_flush(cx),
            Self::Secured(secured) => secured.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(socket) => socket.poll_end(cx),
            Self::Secured(secured) => secured.poll_shutdown(cx),
        }
    }
}
