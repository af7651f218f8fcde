//! A DNS server with a table that a test changes while it runs: A and AAAA over UDP. Must never
//! ask anybody else.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Addresses of one name: what fits into 512 bytes, the most that UDP carries without EDNS.
const ADDRESSES_MAX: usize = 12;
/// Between two looks at whether to stop.
const LOOK: Duration = Duration::from_millis(50);
/// A query, and an answer.
const MESSAGE_BYTES_MAX: usize = 512;
/// Identity, flags, four counts.
const HEADER_BYTES: usize = 12;
/// Query types.
const A: u16 = 1;
const AAAA: u16 = 28;
/// Response codes.
const NO_ERROR: u8 = 0;
const SERVER_FAILURE: u8 = 2;
const NAME_ERROR: u8 = 3;

/// How it behaves towards every query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// Answers from its table, NXDOMAIN for other names.
    #[default]
    Answers,
    /// Answers SERVFAIL.
    Fails,
    /// Does not answer.
    Silent,
}

#[derive(Default)]
struct Table {
    names: BTreeMap<String, Vec<IpAddr>>,
    asked: BTreeMap<String, u64>,
    mood: Mood,
}

/// A running server. Dropped, it ends.
pub struct Dns {
    address: SocketAddr,
    table: Arc<Mutex<Table>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// One on a port of 127.0.0.1, with an empty table.
    ///
    /// # Panics
    /// Where loopback has no port.
    #[must_use]
    pub fn start() -> Self {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// The same on an address of choice. Called inside `Space::enter`, it stays in there.
    ///
    /// # Panics
    /// Where the address can't be had.
    #[must_use]
    pub fn start_on(listen: SocketAddr) -> Self {
        let table = Arc::new(Mutex::new(Table::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (own_table, own_stop) = (Arc::clone(&table), Arc::clone(&stop));
        let (ready, address) = mpsc::channel();
        let run = move || {
            let socket = UdpSocket::bind(listen).expect("the address of the DNS server");
            socket.set_read_timeout(Some(LOOK)).expect("an option that every socket has");
            let address = socket.local_addr().expect("a bound socket");
            ready.send(address).expect("the starter waits");
            serve(&socket, &own_table, &own_stop);
        };
        let thread = thread::Builder::new().name("dns".into()).spawn(run).expect("a thread");
        let address = address.recv().expect("the address of the DNS server can be had");
        Self { address, table, stop, thread: Some(thread) }
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives a name these addresses instead of those that it had; none is NOERROR without an
    /// answer.
    ///
    /// # Panics
    /// Where they are more than an answer holds (12).
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        assert!(addresses.len() <= ADDRESSES_MAX, "too many addresses for one answer");
        self.table().names.insert(name.to_lowercase(), addresses.to_vec());
    }

    /// Takes a name away: NXDOMAIN.
    pub fn remove(&self, name: &str) {
        self.table().names.remove(&name.to_lowercase());
    }

    /// From now on.
    pub fn mood(&self, mood: Mood) {
        self.table().mood = mood;
    }

    /// How often a name was asked for, both types together, answered or not.
    #[must_use]
    pub fn asked(&self, name: &str) -> u64 {
        self.table().asked.get(&name.to_lowercase()).copied().unwrap_or_default()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the server was printed where it happened.
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, table: &Mutex<Table>, stop: &AtomicBool) {
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    while !stop.load(Ordering::Relaxed) {
        // Nothing came, or an ICMP error for an answer that nobody wanted.
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
        let Some(query) = Query::parse(&buffer[..len]) else { continue };
        let answer = {
            let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
            *table.asked.entry(query.name.clone()).or_default() += 1;
            match table.mood {
                Mood::Answers => match table.names.get(&query.name) {
                    Some(addresses) => query.answer(NO_ERROR, addresses),
                    None => query.answer(NAME_ERROR, &[]),
                },
                Mood::Fails => query.answer(SERVER_FAILURE, &[]),
                Mood::Silent => continue,
            }
        };
        // Who asked may be gone.
        let _ = socket.send_to(&answer, from);
    }
}

/// The first question of a message.
struct Query<'a> {
    header: &'a [u8],
    /// As it came: name, type and class.
    question: &'a [u8],
    /// In lower case, without the dot at its end.
    name: String,
    kind: u16,
}

impl<'a> Query<'a> {
    fn parse(message: &'a [u8]) -> Option<Self> {
        let header = message.get(..HEADER_BYTES)?;
        let is_query = header[2] & 0x80 == 0 && header[4..6] != [0, 0];
        let mut labels = Vec::new();
        let mut at = HEADER_BYTES;
        loop {
            let len = usize::from(*message.get(at)?);
            let label = message.get(at + 1..at + 1 + len)?;
            at += 1 + len;
            if len == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(label).to_lowercase());
        }
        let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
        let question = message.get(HEADER_BYTES..at + 4)?;
        is_query.then(|| Self { header, question, name: labels.join("."), kind })
    }

    fn answer(&self, code: u8, addresses: &[IpAddr]) -> Vec<u8> {
        let wanted = |address: &&IpAddr| match address {
            IpAddr::V4(_) => self.kind == A,
            IpAddr::V6(_) => self.kind == AAAA,
        };
        let addresses: Vec<&IpAddr> = addresses.iter().filter(wanted).collect();
        let count = u8::try_from(addresses.len()).expect("at most what an answer holds");
        let mut answer = self.header[..2].to_vec();
        // A response, authoritative, recursion desired as asked and available.
        answer.extend([0x84 | (self.header[2] & 1), 0x80 | code]);
        answer.extend([0, 1, 0, count, 0, 0, 0, 0]);
        answer.extend(self.question);
        for address in addresses {
            // The question's name, its type, class IN, and no time to live: nobody may keep it.
            answer.extend([0xc0, 0x0c]);
            answer.extend(self.kind.to_be_bytes());
            answer.extend([0, 1, 0, 0, 0, 0]);
            match address {
                IpAddr::V4(address) => answer.extend([&[0, 4][..], &address.octets()].concat()),
                IpAddr::V6(address) => answer.extend([&[0, 16][..], &address.octets()].concat()),
            }
        }
        answer
    }
}
