//! A glommio socket as hyper wants it. Must never block, and never copy what is sent.

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

/// Bytes taken from the kernel at once. hyper asks for a few KiB at a time; one system call for
/// many of its reads is worth the copy, which stays in the CPU's cache.
const RECEIVE_BYTES: usize = 64 * 1024;

/// One accepted connection.
pub(super) struct Socket {
    stream: TcpStream,
    received: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, received: vec![0; RECEIVE_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }
}

impl hyper::rt::Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.start == this.end {
            match Pin::new(&mut this.stream).poll_read(cx, &mut this.received) {
                Poll::Ready(Ok(count)) => (this.start, this.end) = (0, count),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        let count = into.remaining().min(this.end - this.start);
        into.put_slice(&this.received[this.start..this.start + count]);
        this.start += count;
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
