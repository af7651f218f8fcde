//! Owns the action's network: a namespace with nothing but loopback, or the host's. Never
//! connects the two.

use std::io;
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::step::{At, Step, StepFailure};
use crate::sys;

/// The name that every sandbox has: output must not depend on which machine made it.
const HOST_NAME: &str = "sandbox";

/// Names the host, and brings loopback up unless the network is the host's.
pub(crate) fn set_up(network: bool) -> Result<(), StepFailure> {
    nix::unistd::sethostname(HOST_NAME).at(Step::Network)?;
    if network { Ok(()) } else { loopback().at(Step::Network) }
}

fn loopback() -> io::Result<()> {
    let (family, kind) = (AddressFamily::INET, SocketType::DGRAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    sys::loopback_up(socket.as_fd())
}
