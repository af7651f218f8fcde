//! Sockets: between the kernel, glommio and hyper. Must know nothing of any RPC.

mod accept;
mod io;
mod serve;
mod timer;

pub(crate) use self::{
    accept::{ConnectionCounts, Connections, accept},
    serve::{Accepted, Patience, ServeConfig, Timers, serve},
    timer::ControlTimer,
};
