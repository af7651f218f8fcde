//! TLS over a socket, as hyper wants it. What is sent is encrypted straight from the caller's
//! buffers; what is received is decrypted where it lies. Must never let a byte pass before the
//! handshake is over.

use super::io::{Socket, TLS_HANDSHAKE};
use rustls::{ServerConfig, ServerConnection};
use std::{
    io::{self, BufRead, IoSlice, Write},
    sync::Arc,
    task::{Context, Poll, ready},
};

/// Encrypted bytes that may wait for the kernel; the largest frame fits.
const QUEUE_BYTES_MAX: usize = 320 << 10;

/// One connection with TLS.
pub(super) struct Secured {
    socket: Socket,
    tls: ServerConnection,
    /// Whether the first byte has come.
    begun: bool,
    /// Whether nothing more is to be sent.
    ended: bool,
}

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The client speaks no TLS.
    #[error("it speaks no TLS")]
    Clear,
    /// It left, or its connection broke.
    #[error("{0}")]
    Broken(#[from] io::Error),
    /// It is not let in, or does not want in.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
}

impl Secured {
    /// With the handshake yet to come.
    pub(super) fn new(socket: Socket, config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let mut tls = ServerConnection::new(config)?;
        tls.set_buffer_limit(Some(QUEUE_BYTES_MAX));
        Ok(Self { socket, tls, begun: false, ended: false })
    }

    /// What was agreed on, once the handshake is over.
    pub(super) const fn agreed(&self) -> &ServerConnection {
        &self.tls
    }

    /// Ready once the handshake is over and its last word sent.
    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        loop {
            ready!(self.poll_flush(cx))?;
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.socket.poll_received(cx))?.first() {
                None => {
                    let left = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Poll::Ready(Err(left.into()));
                }
                // Later records of a handshake may have other types.
                Some(&TLS_HANDSHAKE) => {}
                Some(_) if self.begun => {}
                Some(_) => return Poll::Ready(Err(Refusal::Clear)),
            }
            self.begun = true;
            self.take()?;
        }
    }

    /// Decrypts what was received, up to the first byte for the reader.
    fn take(&mut self) -> Result<(), rustls::Error> {
        let mut received = self.socket.received();
        let before = received.len();
        let mut outcome = Ok(());
        while outcome.is_ok() && !received.is_empty() {
            // It takes a few KiB at a time.
            outcome = match self.tls.read_tls(&mut received) {
                // After a goodbye nothing counts.
                Ok(0) => {
                    received = &[];
                    Ok(())
                }
                Ok(_) => match self.tls.process_new_packets() {
                    Ok(state) if state.plaintext_bytes_to_read() > 0 => break,
                    processed => processed.map(|_| ()),
                },
                Err(error) => Err(rustls::Error::General(error.to_string())),
            };
        }
        let taken = before - received.len();
        self.socket.consume(taken);
        outcome
    }

    /// Sends of what waits as much as the kernel takes at once.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut kernel = Kernel { socket: &mut self.socket, cx };
        match self.tls.write_tls(&mut kernel) {
            Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(_) => Poll::Ready(Ok(())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut into: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut reader = self.tls.reader();
            match reader.fill_buf() {
                Ok(plain) => {
                    let count = into.remaining().min(plain.len());
                    into.put_slice(&plain[..count]);
                    reader.consume(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            if ready!(self.socket.poll_received(cx))?.is_empty() {
                // Without a goodbye, as many clients end: HTTP/2 knows itself what is missing.
                return Poll::Ready(Ok(()));
            }
            let taken = self.take();
            if self.tls.wants_write() {
                // New keys, or why it ends. What the kernel does not take goes with the next write.
                let _ = self.poll_send(cx);
            }
            taken.map_err(io::Error::other)?;
        }
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let taken = self.tls.writer().write_vectored(slices)?;
            if taken > 0 || slices.iter().all(|slice| slice.is_empty()) {
                return Poll::Ready(Ok(taken));
            }
            // As much waits as may.
            ready!(self.poll_send(cx))?;
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            ready!(self.poll_send(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            self.ended = true;
            self.tls.send_close_notify();
        }
        ready!(self.poll_flush(cx))?;
        self.socket.poll_end(cx)
    }

    /// Tells the client why it is not let in, and waits until it has ended: what is closed with
    /// bytes unread takes back what was sent.
    pub(super) fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        ready!(self.socket.poll_end(cx))?;
        loop {
            let count = ready!(self.socket.poll_received(cx))?.len();
            if count == 0 {
                return Poll::Ready(Ok(()));
            }
            self.socket.consume(count);
        }
    }
}

/// The socket as rustls wants it: what would wait is an error.
struct Kernel<'a, 'b> {
    socket: &'a mut Socket,
    cx: &'a mut Context<'b>,
}

impl Write for Kernel<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.socket.poll_send(self.cx, slices) {
            Poll::Ready(sent) => sent,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
