//! Owns what the node, the spawner and an action's init say to one another: one datagram a
//! message, descriptors beside it. Never blocks the spawner: an action's spec travels in a memfd
//! and is read by its init alone.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::spec::{Report, Spec};
use crate::step::StepFailure;

/// Largest spec, in bytes. execve(2) takes 6 MiB of arguments and environment at most.
pub(crate) const SPEC_BYTES_MAX: u64 = 16 << 20;

/// Descriptors beside one message: spec, stdout, stderr, report socket.
pub(crate) const DESCRIPTORS_MAX: usize = 4;

/// Largest message: a [`StepFailure`] with the longest subject, and room.
const MESSAGE_BYTES_MAX: usize = 4096;

/// What the spawner itself must know of a spec: it never parses the rest.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) network: bool,
}

/// From the node to the spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// First message. `from_main_thread`: whether the death of the spawner's creator, a thread as
    /// the kernel sees it, is the death of the node.
    Hello { from_main_thread: bool },
    /// With [`DESCRIPTORS_MAX`] descriptors in the order given there.
    Spawn(Order),
}

/// From the spawner or an init to the node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Notice {
    /// The spawner serves.
    Ready,
    /// The spawner cannot serve.
    Unfit(String),
    /// With the pidfd of the init.
    Started,
    Failed(StepFailure),
    Ended(Report),
}

/// A connected pair that keeps message boundaries and tells of the other end's death.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (near, far) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok((near, far))
}

/// Sends one message; blocks while the other end has too many unread.
pub(crate) fn send<M: Serialize>(
    socket: BorrowedFd<'_>,
    message: &M,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let parts = [IoSlice::new(&bytes)];
    retry_on_intr(|| rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Waits for one message; None when the other end is gone.
pub(crate) fn receive<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    receive_with(socket, RecvFlags::empty())
}

/// Takes one message that is already there; None when there is none and will be none.
pub(crate) fn receive_waiting<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    match receive_with(socket, RecvFlags::DONTWAIT) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        outcome => outcome,
    }
}

fn receive_with<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    flags: RecvFlags,
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut bytes = [0_u8; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let outcome = retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)
    });
    let length = match outcome {
        Ok(received) => received.bytes,
        Err(Errno::CONNRESET) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    if length == 0 {
        return Ok(None);
    }
    let message = postcard::from_bytes(&bytes[..length]).map_err(io::Error::other)?;
    Ok(Some((message, descriptors)))
}

/// Writes a spec into an anonymous file.
pub(crate) fn spec_to_file(spec: &Spec) -> io::Result<OwnedFd> {
    let bytes = postcard::to_stdvec(spec).map_err(io::Error::other)?;
    if bytes.len() as u64 > SPEC_BYTES_MAX {
        return Err(Errno::TOOBIG.into());
    }
    let mut file = File::from(rustix::fs::memfd_create("sandbox-spec", MemfdFlags::CLOEXEC)?);
    file.write_all(&bytes)?;
    Ok(file.into())
}

/// Reads a spec back.
pub(crate) fn spec_from_file(file: BorrowedFd<'_>) -> io::Result<Spec> {
    let mut file = File::from(file.as_fd().try_clone_to_owned()?);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(SPEC_BYTES_MAX).read_to_end(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}
