//! From an accepted socket to a connection that may be served: in the clear, or by TLS. Must never
//! let those who do not get on with it stand in the way of those who do.

use super::{
    accept::Connections,
    complaints::Complaint,
    io::{FirstByte, Socket, Wire},
    secured::{Refusal, Secured},
};
use crate::tls::{ALPN, ClientCertificate, Loaded, Tls};
use engine::env::alarms::Alarms;
use futures_util::future::{Either, select};
use rustls::{Error, pki_types::UnixTime};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::poll_fn,
    net::{SocketAddr, TcpStream},
    pin::pin,
    rc::Rc,
    time::Duration,
};
use tokio::sync::oneshot;

/// How long a client that is not let in may take to hear why.
const FAREWELL: Duration = Duration::from_secs(1);

/// How connections begin: what all cores share.
#[derive(Clone)]
pub(crate) struct Opening {
    /// `None`: in the clear.
    pub(crate) tls: Option<Tls>,
    /// Handshakes that one core has at once; beyond it the oldest is given up.
    pub(crate) handshakes_max: usize,
}

/// A connection that may be served.
pub(super) struct Opened {
    pub(super) wire: Wire,
    /// Who is at the other end, if that is proven.
    pub(super) certificate: Option<ClientCertificate>,
    /// What it began with, in the clear.
    pub(super) first: Rc<FirstByte>,
}

/// The handshakes of one core.
pub(super) struct Handshakes {
    opening: Opening,
    connections: Connections,
    alarms: Alarms,
    /// Those under way, by age; each ends when its sender is gone.
    open: RefCell<BTreeMap<u64, oneshot::Sender<()>>>,
    next: Cell<u64>,
}

impl Handshakes {
    pub(super) fn new(opening: Opening, connections: Connections, alarms: Alarms) -> Self {
        Self { opening, connections, alarms, open: RefCell::default(), next: Cell::new(0) }
    }

    /// Makes a connection of a socket, within `patience`; `None` where it comes to nothing.
    pub(super) async fn open(&self, stream: TcpStream, patience: Duration) -> Option<Opened> {
        let client = stream.peer_addr().ok();
        let stream = glommio::net::TcpStream::from(socket2::Socket::from(stream));
        let first = Rc::new(FirstByte::default());
        let Some(tls) = &self.opening.tls else {
            let wire = Wire::Clear(Socket::in_the_clear(stream, first.clone()));
            return Some(Opened { wire, certificate: None, first });
        };
        let loaded = tls.now();
        let secured = Secured::new(Socket::new(stream), loaded.server.clone());
        let mut secured = Box::new(secured.ok()?);
        let refusal = match self.within(&mut secured, patience).await? {
            Ok(()) => match judge(&secured, &loaded) {
                Ok(certificate) => {
                    return Some(Opened { wire: Wire::Secured(secured), certificate, first });
                }
                Err(error) => Refusal::Tls(error),
            },
            Err(refusal) => refusal,
        };
        self.refuse(secured, client, &refusal).await;
        None
    }

    /// What became of a handshake; `None` where it was given up.
    async fn within(&self, secured: &mut Secured, patience: Duration) -> Option<Handshake> {
        let (id, given_up) = self.begin();
        let done = poll_fn(|cx| secured.poll_handshake(cx));
        let late = pin!(self.alarms.sleep(patience));
        let outcome = match select(pin!(done), select(given_up, late)).await {
            Either::Left((outcome, _)) => Some(outcome),
            Either::Right(_) => {
                tracing::debug!("a TLS handshake was given up");
                None
            }
        };
        self.open.borrow_mut().remove(&id);
        outcome
    }

    /// Takes a place among the handshakes; the oldest gives up its own where there is none.
    fn begin(&self) -> (u64, oneshot::Receiver<()>) {
        let (keep, given_up) = oneshot::channel();
        let id = self.next.replace(self.next.get() + 1);
        let mut open = self.open.borrow_mut();
        open.insert(id, keep);
        if open.len() > self.opening.handshakes_max {
            open.pop_first();
        }
        (id, given_up)
    }

    /// Says why to the client, and to the log.
    async fn refuse(&self, mut secured: Box<Secured>, client: Option<SocketAddr>, why: &Refusal) {
        let complaints = self.connections.complaints();
        match why {
            // One that only looked whether somebody listens.
            Refusal::Broken(error) => return tracing::debug!(%error, "a TLS handshake broke off"),
            Refusal::Clear => return complaints.say(Complaint::ClearOnTls, client, ""),
            Refusal::Tls(error) => complaints.say(Complaint::Refused, client, &error.to_string()),
        }
        let farewell = poll_fn(|cx| secured.poll_farewell(cx));
        select(pin!(farewell), pin!(self.alarms.sleep(FAREWELL))).await;
    }

    /// Says of a connection in the clear that has ended that it was TLS, if it was.
    pub(super) fn look_back(&self, first: &FirstByte, client: Option<SocketAddr>) {
        if first.is_tls.get() {
            self.connections.complaints().say(Complaint::TlsOnClear, client, "");
        }
    }
}

type Handshake = Result<(), Refusal>;

/// Who is at the other end of a handshake that is over.
fn judge(secured: &Secured, loaded: &Loaded) -> Result<Option<ClientCertificate>, Error> {
    let agreed = secured.agreed();
    if agreed.alpn_protocol() != Some(ALPN) {
        return Err(Error::NoApplicationProtocol);
    }
    let chain = agreed.peer_certificates().unwrap_or_default();
    loaded.judge.judge(chain, UnixTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::env::Env;
    use glommio::LocalExecutorBuilder;
    use tokio::sync::oneshot::error::TryRecvError;

    #[test]
    fn the_oldest_handshake_makes_room_for_a_new_one() {
        let core = LocalExecutorBuilder::default().spawn(|| async {
            let (connections, _queues) = Connections::new(1, 10);
            let opening = Opening { tls: None, handshakes_max: 2 };
            let handshakes = Handshakes::new(opening, connections, Env::real().alarms.clone());
            let mut begun: Vec<_> = (0..3).map(|_| handshakes.begin()).collect();
            let mut state = |at: usize| begun[at].1.try_recv();
            assert_eq!(state(0), Err(TryRecvError::Closed));
            assert_eq!(state(1), Err(TryRecvError::Empty));
            assert_eq!(state(2), Err(TryRecvError::Empty));
            // One that is over makes room as well.
            handshakes.open.borrow_mut().remove(&1);
            begun.push(handshakes.begin());
            assert_eq!(begun[2].1.try_recv(), Err(TryRecvError::Empty));
        });
        core.unwrap().join().unwrap();
    }
}
