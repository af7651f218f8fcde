//! The sockets of gossip, and the guard before them: what is no gossip of this cluster goes no
//! further, and nobody without the key makes this node reserve memory. Must never change what is
//! in order.
//!
//! `memberlist` alone would take a length of 4 GiB from the first bytes of any TCP connection and
//! reserve it, encrypted or not, and write a line of log for each packet it can't read.

use super::{gossip::Heard, log::Remark, peers::ClusterCounters};
use bytes::BytesMut;
use memberlist::{
    agnostic::RuntimeLite,
    net::{NetTransport, NetTransportOptions, error::NetTransportError, stream_layer::tcp::Tcp},
    proto::{EncryptionAlgorithm, Payload, ProtoDecoder, ProtoReader, SecretKey},
    tokio::{TokioRuntime, TokioSocketAddrResolver},
    transport::{
        Connection, Packet, PacketProducer, PacketSubscriber, StreamSubscriber, Transport,
        packet_stream,
    },
};
use std::{io, net::SocketAddr, sync::Arc};
use tokio::time::Instant;

/// Bytes of one message by TCP: a thousand states of a kilobyte, and as many members.
const STREAM_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Bytes of a packet. 1280 is what every IPv6 path carries, less its headers; `memberlist`'s own
/// 1472 fits IPv4 on a bare Ethernet, and no overlay network.
const PACKET_BYTES_MAX: usize = 1232;

/// Packets that wait to be looked at, and then to be handled.
const PACKETS_LEN_MAX: usize = 1024;

// The first byte of a message, by `memberlist-proto`, where they are private.
const COMPOUND: u8 = 1;
const LABELED: u8 = 12;
const CHECKSUMED: u8 = 13;
const COMPRESSED: u8 = 14;
const ENCRYPTED: u8 = 15;

type Sockets = NetTransport<Arc<str>, TokioSocketAddrResolver, Tcp<TokioRuntime>, TokioRuntime>;
type Packets = PacketSubscriber<SocketAddr, Instant>;

/// What the guard needs to know.
#[derive(Clone)]
pub(super) struct Guard {
    /// None of them means plain text.
    pub(super) keys: Arc<[SecretKey]>,
    pub(super) heard: async_channel::Sender<Heard>,
    pub(super) counters: Arc<ClusterCounters>,
}

/// TCP and UDP sockets, guarded.
pub(super) struct Guarded {
    sockets: Sockets,
    packets: Packets,
    guard: Guard,
}

/// What a transport is made of: sockets and a guard.
pub(super) struct GuardedOptions {
    pub(super) id: Arc<str>,
    pub(super) listen: SocketAddr,
    pub(super) advertise: Option<SocketAddr>,
    pub(super) guard: Guard,
}

impl Guard {
    fn refuse(&self, from: SocketAddr, why: String) {
        ClusterCounters::count(&self.counters.foreign);
        // The port is another one for each connection, and the line is to be one.
        let from = SocketAddr::new(from.ip(), 0);
        let _ = self.heard.try_send(Heard::Remark(Remark::Foreign { from, why }));
    }

    /// Passes on what the keys open. Reads every packet once more than needed: they are few and
    /// small, and only so those that can't be read are counted.
    async fn sift(self, from: Packets, to: PacketProducer<SocketAddr, Instant>) {
        while let Ok(packet) = from.recv().await {
            let (address, at, bytes) = packet.into_components();
            match self.opens(&bytes).await {
                Ok(()) => {
                    if to.send(Packet::new(address, at, bytes)).await.is_err() {
                        return;
                    }
                }
                Err(why) => self.refuse(address, why),
            }
        }
    }

    /// Whether a message is one, and by a key of ours if there is any.
    async fn opens(&self, bytes: &[u8]) -> Result<(), String> {
        let mut decoder = ProtoDecoder::new();
        decoder.with_offload_size(usize::MAX);
        if !self.keys.is_empty() {
            decoder.with_encryption(self.keys.to_vec()).with_verify_incoming(true);
        }
        let opened = decoder.decode::<TokioRuntime>(BytesMut::from(bytes)).await;
        opened.map(drop).map_err(|error| error.to_string())
    }

    /// Looks at a message that comes by TCP and takes nothing of it.
    async fn look(&self, reader: &mut impl ProtoReader) -> io::Result<()> {
        let mut header = [0; 6];
        reader.peek_exact(&mut header[..1]).await?;
        let encrypted = header[0] == ENCRYPTED;
        if encrypted == self.keys.is_empty() {
            return refuse(if encrypted { "encrypted" } else { "not encrypted" });
        }
        let length = match header[0] {
            LABELED | COMPRESSED => return refuse("a kind that this cluster does not use"),
            COMPOUND | CHECKSUMED | ENCRYPTED => {
                reader.peek_exact(&mut header).await?;
                let [_, _, length @ ..] = header;
                u64::from(u32::from_be_bytes(length))
            }
            _ => {
                let mut end = 2;
                loop {
                    reader.peek_exact(&mut header[..end]).await?;
                    if header[end - 1] & 0x80 == 0 {
                        break;
                    }
                    end += 1;
                    if end > header.len() {
                        return refuse("a length that is none");
                    }
                }
                let bytes = header[1..end].iter().rev();
                bytes.fold(0_u64, |length, byte| length << 7 | u64::from(byte & 0x7f))
            }
        };
        if length > STREAM_BYTES_MAX {
            return refuse("too long");
        }
        if encrypted {
            let (kind, length) = (EncryptionAlgorithm::from(header[1]), length as usize);
            let around = header.len() + kind.nonce_size() + kind.encrypted_suffix_len(length);
            let mut whole = vec![0; around + length];
            reader.peek_exact(&mut whole).await?;
            return self.opens(&whole).await.or_else(refuse);
        }
        Ok(())
    }
}

fn refuse(why: impl Into<String>) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::InvalidData, why.into()))
}

impl Transport for Guarded {
    type Error = NetTransportError<TokioSocketAddrResolver>;
    type Id = Arc<str>;
    type Address = SocketAddr;
    type ResolvedAddress = SocketAddr;
    type Resolver = TokioSocketAddrResolver;
    type Connection = <Sockets as Transport>::Connection;
    type Runtime = TokioRuntime;
    type Options = GuardedOptions;

    async fn new(options: GuardedOptions) -> Result<Self, Self::Error> {
        let GuardedOptions { id, listen, advertise, guard } = options;
        let mut options = NetTransportOptions::new(id)
            .with_max_packet_size(PACKET_BYTES_MAX)
            .with_packet_buffer_size(PACKETS_LEN_MAX)
            .maybe_advertise_address(advertise);
        options.add_bind_address(listen);
        let sockets = Sockets::new(options).await?;
        let (to, packets) = packet_stream::<Self>(PACKETS_LEN_MAX);
        // Ends with the sockets.
        tokio::spawn(guard.clone().sift(sockets.packet(), to));
        Ok(Self { sockets, packets, guard })
    }

    async fn resolve(&self, address: &SocketAddr) -> Result<SocketAddr, Self::Error> {
        Ok(*address)
    }

    fn local_id(&self) -> &Arc<str> {
        self.sockets.local_id()
    }

    fn local_address(&self) -> &SocketAddr {
        self.sockets.local_address()
    }

    fn advertise_address(&self) -> &SocketAddr {
        self.sockets.advertise_address()
    }

    fn max_packet_size(&self) -> usize {
        self.sockets.max_packet_size()
    }

    fn header_overhead(&self) -> usize {
        self.sockets.header_overhead()
    }

    fn blocked_address(&self, address: &SocketAddr) -> Result<(), Self::Error> {
        self.sockets.blocked_address(address)
    }

    async fn read(
        &self,
        from: &SocketAddr,
        reader: &mut <Self::Connection as Connection>::Reader,
    ) -> Result<usize, Self::Error> {
        if let Err(error) = self.guard.look(reader).await {
            if error.kind() == io::ErrorKind::InvalidData {
                self.guard.refuse(*from, error.to_string());
            }
            return Err(error.into());
        }
        Ok(0)
    }

    /// What can't be sent is lost, as it would be on its way. `memberlist` would give up a probe
    /// that it can't send (no route, a firewall), and a node that is cut off would never find out.
    async fn send_to(
        &self,
        address: &SocketAddr,
        packet: Payload,
    ) -> Result<(usize, Instant), Self::Error> {
        let length = packet.as_slice().len();
        let sent = self.sockets.send_to(address, packet).await;
        Ok(sent.unwrap_or_else(|_| (length, TokioRuntime::now())))
    }

    async fn open(
        &self,
        address: &SocketAddr,
        deadline: Instant,
    ) -> Result<Self::Connection, Self::Error> {
        self.sockets.open(address, deadline).await
    }

    fn packet(&self) -> Packets {
        self.packets.clone()
    }

    fn stream(&self) -> StreamSubscriber<SocketAddr, Self::Connection> {
        self.sockets.stream()
    }

    fn packet_reliable(&self) -> bool {
        false
    }

    fn packet_secure(&self) -> bool {
        false
    }

    fn stream_secure(&self) -> bool {
        false
    }

    async fn shutdown(&self) -> Result<(), Self::Error> {
        self.sockets.shutdown().await
    }
}
