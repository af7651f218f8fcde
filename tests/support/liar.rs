//! A small REAPI cache in memory that is right in everything, until a test tells it to lie, to
//! fail or to be slow. SHA-256, no compression, any instance. Must never lie unasked.

use super::client::digest;
use bytes::Bytes;
use prost::Message;
use proto::{
    any::any,
    bytestream::byte_stream_server::ByteStreamServer,
    reapi::{
        ActionResult, Digest, OutputFile, action_cache_server::ActionCacheServer,
        capabilities_server::CapabilitiesServer,
        content_addressable_storage_server::ContentAddressableStorageServer,
    },
    rpc,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{net::TcpListener, sync::oneshot};
use tonic::{
    Code, Status,
    metadata::MetadataMap,
    transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

mod services;

/// What it asks of its clients, and where it listens.
#[derive(Clone, Debug)]
pub struct Options {
    /// By default a port of 127.0.0.1.
    pub listen: SocketAddr,
    /// A header (name in lower case, value) without which every call is UNAUTHENTICATED.
    pub header: Option<(&'static str, String)>,
    /// Its certificate and key: TLS instead of plain text.
    pub tls: Option<Identity>,
    /// With TLS: the CA from which every client needs a certificate.
    pub client_ca: Option<Certificate>,
}

impl Default for Options {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { listen, header: None, tls: None, client_ca: None }
    }
}

/// Everything that may be wrong, all at once if need be. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Lies {
    /// Wrong bytes for every blob that is read, by Read or by BatchReadBlobs.
    pub all_bytes: Option<WrongBytes>,
    /// Wrong bytes for some blobs, by hash; goes before `all_bytes`.
    pub bytes: BTreeMap<String, WrongBytes>,
    /// What FindMissingBlobs says.
    pub missing: Option<WrongMissing>,
    /// What GetActionResult answers for every action, known or not.
    pub result: Option<WrongResult>,
    /// Calls that fail before anything else is looked at.
    pub failing: Option<Failing>,
    /// Before the first byte of a Read, and before the answer to any other call.
    pub first_byte: Duration,
    /// Ends a Read with UNAVAILABLE after so many bytes.
    pub break_reads: Option<BreakReads>,
}

/// Bytes that are not those that the digest names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrongBytes {
    /// As many, all different.
    SameLength,
    /// One fewer.
    Shorter,
    /// One more.
    Longer,
    /// As many, the last one different in one bit.
    LastByte,
}

/// An untrue answer to FindMissingBlobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrongMissing {
    /// It has everything.
    Nothing,
    /// It has nothing.
    Everything,
}

/// An answer to GetActionResult: what is stored, or an empty result, made wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrongResult {
    /// Names an output file that it does not have.
    AbsentBlob,
    /// Names an output directory whose tree it does not have.
    AbsentTree,
    /// An output file without a digest.
    NoDigest,
    /// An output file whose hash is no hash.
    BadHash,
    /// An output file of -1 bytes.
    NegativeSize,
    /// An output file at `../escape`.
    PathUp,
    /// An output file at `/absolute`.
    AbsolutePath,
    /// An output file without a path.
    EmptyPath,
}

/// Calls that fail.
#[derive(Clone, Debug)]
pub struct Failing {
    /// With what.
    pub code: Code,
    /// RetryInfo beside it.
    pub retry_after: Option<Duration>,
    /// Which of them.
    pub when: When,
    /// Only those of one method, as `Read`; else of all.
    pub method: Option<&'static str>,
}

/// Which of many calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// All.
    Always,
    /// So many from now on; then no more.
    Next(u32),
    /// One in two, by a sequence that follows from the seed.
    Half {
        /// Any number.
        seed: u64,
    },
}

impl Failing {
    /// All calls, of any method, with this code and no RetryInfo.
    #[must_use]
    pub const fn always(code: Code) -> Self {
        Self { code, retry_after: None, when: When::Always, method: None }
    }

    /// UNAVAILABLE for the next calls, with RetryInfo.
    #[must_use]
    pub const fn unavailable(calls: u32, retry_after: Duration) -> Self {
        let retry_after = Some(retry_after);
        Self { code: Code::Unavailable, retry_after, when: When::Next(calls), method: None }
    }

    /// UNAVAILABLE for one call in two.
    #[must_use]
    pub const fn half(seed: u64) -> Self {
        let when = When::Half { seed };
        Self { code: Code::Unavailable, retry_after: None, when, method: None }
    }
}

/// Reads that break off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakReads {
    /// So many bytes arrive before.
    pub after_bytes: usize,
    /// So many reads; then no more.
    pub times: u32,
}

#[derive(Default)]
struct State {
    blobs: BTreeMap<String, Bytes>,
    results: BTreeMap<String, ActionResult>,
    lies: Lies,
    calls: BTreeMap<&'static str, u64>,
    instances: BTreeSet<String>,
}

/// What the services share with the test.
#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    header: Option<(&'static str, String)>,
}

/// A running cache. Dropped, it ends, and its connections with it.
pub struct Liar {
    address: SocketAddr,
    shared: Shared,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    /// One on a port of 127.0.0.1, in plain text, for everybody.
    ///
    /// # Panics
    /// Where loopback has no port.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    /// One that asks for something. Called inside `Space::enter`, it stays in there.
    ///
    /// # Panics
    /// Where the address can't be had, or certificate and key are none.
    #[must_use]
    pub fn start_with(options: Options) -> Self {
        let shared = Shared { state: Arc::default(), header: options.header.clone() };
        let own = shared.clone();
        let (ready, address) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::bind(options.listen).await;
                let listener = listener.expect("the address of the liar");
                let address = listener.local_addr().expect("a bound socket");
                let server = serve(own, &options, listener);
                ready.send(address).expect("the starter waits");
                tokio::select! {
                    served = server => served.expect("the liar serves"),
                    // Dropped by the test, or told: the same.
                    _ = stopped => {}
                }
            });
            // Connections are tasks: they end with the runtime.
            drop(runtime);
        };
        let thread = thread::Builder::new().name("liar".into()).spawn(run).expect("a thread");
        let address = address.recv().expect("the address of the liar can be had");
        Self { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what it lies about, for calls from now on: `liar.lie(|lies| lies.missing = …)`.
    pub fn lie(&self, change: impl FnOnce(&mut Lies)) {
        change(&mut self.shared.state().lies);
    }

    /// No lies any more, no failures, no delay.
    pub fn honest(&self) {
        self.lie(|lies| *lies = Lies::default());
    }

    /// Calls so far of one method, as REAPI names it (`Read`, `FindMissingBlobs`), answered or
    /// not. A call without the header that it asks for counts too.
    #[must_use]
    pub fn calls(&self, method: &str) -> u64 {
        self.shared.state().calls.get(method).copied().unwrap_or_default()
    }

    /// Calls so far of all methods.
    #[must_use]
    pub fn all_calls(&self) -> BTreeMap<&'static str, u64> {
        self.shared.state().calls.clone()
    }

    /// The instance names that were asked for.
    #[must_use]
    pub fn instances(&self) -> BTreeSet<String> {
        self.shared.state().instances.clone()
    }

    /// The blobs that it has, by hash. The empty one is there without being listed.
    #[must_use]
    pub fn blobs(&self) -> BTreeMap<String, Bytes> {
        self.shared.state().blobs.clone()
    }

    /// The results that it has, by the hash of their action.
    #[must_use]
    pub fn results(&self) -> BTreeMap<String, ActionResult> {
        self.shared.state().results.clone()
    }

    /// Puts a blob there, past all services.
    pub fn put(&self, blob: impl Into<Bytes>) -> Digest {
        let blob = blob.into();
        let digest = digest(&blob);
        self.shared.state().blobs.insert(digest.hash.clone(), blob);
        digest
    }

    /// Puts a result there, past all services.
    pub fn put_result(&self, action: &Digest, result: ActionResult) {
        self.shared.state().results.insert(action.hash.clone(), result);
    }

    /// Forgets a blob; whether it was there.
    #[must_use]
    pub fn forget(&self, digest: &Digest) -> bool {
        self.shared.state().blobs.remove(&digest.hash).is_some()
    }

    /// Forgets all blobs and results.
    pub fn forget_all(&self) {
        let mut state = self.shared.state();
        state.blobs.clear();
        state.results.clear();
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the liar was printed where it happened.
            let _ = thread.join();
        }
    }
}

async fn serve(
    shared: Shared,
    options: &Options,
    listener: TcpListener,
) -> Result<(), tonic::transport::Error> {
    let mut server = Server::builder();
    if let Some(identity) = &options.tls {
        let mut tls = ServerTlsConfig::new().identity(identity.clone());
        if let Some(ca) = &options.client_ca {
            tls = tls.client_ca_root(ca.clone());
        }
        server = server.tls_config(tls)?;
    }
    server
        .add_service(ContentAddressableStorageServer::new(shared.clone()))
        .add_service(ByteStreamServer::new(shared.clone()))
        .add_service(ActionCacheServer::new(shared.clone()))
        .add_service(CapabilitiesServer::new(shared))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What every call goes through: it is counted, and may end here. How long it has to wait
    /// for its answer.
    fn begin(
        &self,
        method: &'static str,
        instance: &str,
        metadata: &MetadataMap,
    ) -> Result<Duration, Status> {
        let mut state = self.state();
        *state.calls.entry(method).or_default() += 1;
        if let Some((name, value)) = &self.header {
            let given = metadata.get(*name).and_then(|given| given.to_str().ok());
            if given != Some(value) {
                return Err(Status::unauthenticated(format!("{name} is missing or wrong")));
            }
        }
        state.instances.insert(instance.to_owned());
        if let Some(failing) = &mut state.lies.failing
            && failing.method.is_none_or(|only| only == method)
            && failing.when.is_now()
        {
            return Err(failing.status());
        }
        Ok(state.lies.first_byte)
    }

    /// The bytes that are sent for a digest: those that it names, unless told otherwise.
    fn blob(&self, wanted: &Digest) -> Result<Bytes, Status> {
        let state = self.state();
        let blob = match state.blobs.get(&wanted.hash) {
            Some(blob) => blob.clone(),
            None if *wanted == digest(b"") => Bytes::new(),
            None => return Err(Status::not_found(format!("no blob {}", wanted.hash))),
        };
        let wrong = state.lies.bytes.get(&wanted.hash).copied().or(state.lies.all_bytes);
        Ok(wrong.map_or(blob.clone(), |wrong| wrong.made_of(&blob)))
    }
}

impl When {
    fn is_now(&mut self) -> bool {
        match self {
            Self::Always => true,
            Self::Next(left) => {
                let now = *left > 0;
                *left = left.saturating_sub(1);
                now
            }
            Self::Half { seed } => {
                // SplitMix64: a step, and the highest bit of its mix.
                *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                mixed >> 63 == 1
            }
        }
    }
}

impl Failing {
    fn status(&self) -> Status {
        let message = "as the test wants it";
        let Some(delay) = self.retry_after else { return Status::new(self.code, message) };
        let retry = rpc::RetryInfo { retry_delay: delay.try_into().ok() };
        let details = vec![any(&retry)];
        let status = rpc::Status { code: self.code as i32, message: message.into(), details };
        Status::with_details(self.code, message, status.encode_to_vec().into())
    }
}

impl WrongBytes {
    fn made_of(self, blob: &[u8]) -> Bytes {
        let mut wrong = blob.to_vec();
        match self {
            Self::SameLength => wrong.iter_mut().for_each(|byte| *byte = !*byte),
            Self::Shorter => drop(wrong.pop()),
            Self::Longer => wrong.push(0),
            Self::LastByte => wrong.iter_mut().next_back().into_iter().for_each(|byte| *byte ^= 1),
        }
        wrong.into()
    }
}

impl WrongResult {
    fn made_of(self, mut result: ActionResult) -> ActionResult {
        let absent = digest(b"a blob that nobody has");
        let mut file = OutputFile { path: "out".into(), ..Default::default() };
        file.digest = Some(absent.clone());
        match self {
            Self::AbsentBlob => {}
            Self::AbsentTree => {
                result.output_directories.push(proto::reapi::OutputDirectory {
                    path: "tree".into(),
                    tree_digest: Some(absent),
                    ..Default::default()
                });
                return result;
            }
            Self::NoDigest => file.digest = None,
            Self::BadHash => file.digest = Some(Digest { hash: "no hash".into(), size_bytes: 1 }),
            Self::NegativeSize => file.digest = Some(Digest { size_bytes: -1, ..absent }),
            // These name a blob that is always there, so that only the path is wrong.
            Self::PathUp | Self::AbsolutePath | Self::EmptyPath => {
                file.digest = Some(digest(b""));
                file.path = match self {
                    Self::PathUp => "../escape",
                    Self::AbsolutePath => "/absolute",
                    _ => "",
                }
                .into();
            }
        }
        result.output_files.push(file);
        result
    }
}
