//! Sockets: between the kernel, glommio and hyper. Must know nothing of any RPC.

mod accept;
mod complaints;
mod handshake;
mod io;
mod secured;
mod serve;
mod timer;

pub(crate) use self::{
    accept::{ConnectionCounts, Connections, accept},
    handshake::Opening,
    serve::{Accepted, Patience, ServeConfig, Timers, serve},
    timer::ControlTimer,
};
