//! A node as a process of its own, for the tests from outside, and a client for it. Must never
//! leave a process behind.

use bytes::Bytes;
use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

pub mod action;
pub mod certificates;
pub mod client;
pub mod cluster;
pub mod dns;
pub mod liar;
pub mod netns;
pub mod proxy;
pub mod servers;

use netns::Space;

/// Where a node on a host of a net listens.
pub const PORT: u16 = 8980;
/// How long a node may take to accept its first connection.
const START_WAIT: Duration = Duration::from_secs(60);
/// How long a node may take to end after a signal.
const STOP_WAIT: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// The program under test: `RINGFORGE_BINARY`, or what cargo built beside this test.
///
/// # Panics
/// Where it was not built.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("RINGFORGE_BINARY") {
        return named.into();
    }
    let test = std::env::current_exe().expect("a test knows its own path");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/test");
    let binary = profile.join("ringforge");
    assert!(
        binary.exists(),
        "{} was not built: run cargo build --workspace first",
        binary.display()
    );
    binary
}

/// Whether this test can be root's; without root it fails with one line, or is skipped where the
/// environment says so.
///
/// # Panics
/// Without root, unless `RINGFORGE_TEST_UNPRIVILEGED=1`.
#[must_use]
pub fn is_root(test: &str) -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|own| {
        use std::os::unix::fs::MetadataExt;
        own.uid() == 0
    });
    if !root {
        let skip = std::env::var("RINGFORGE_TEST_UNPRIVILEGED").is_ok_and(|said| said == "1");
        assert!(skip, "{test} needs root (or RINGFORGE_TEST_UNPRIVILEGED=1 to skip it)");
        println!("SKIPPED {test}: needs root");
    }
    root
}

/// A running node. Dropped, it is killed.
pub struct Node {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Node {
    /// Starts a node with its data in `directory`, and waits until it takes connections.
    ///
    /// # Panics
    /// Where it does not come up; its log is printed.
    #[must_use]
    pub fn start(directory: &Path) -> Self {
        Self::start_with(directory, &[])
    }

    /// The same with settings: pairs of `SECTION__KEY` and value.
    ///
    /// # Panics
    /// Where it does not come up; its log is printed.
    #[must_use]
    pub fn start_with(directory: &Path, settings: &[(&str, &str)]) -> Self {
        let port = free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let command = command(directory, port, settings);
        Self::up(command, directory, address, || TcpStream::connect(address).is_ok())
    }

    /// The same on a host of a net, on port [`PORT`] of all its addresses, IPv4 and IPv6. Its
    /// address is of that host: reach it from another one, as by `net.client().run(…)`.
    ///
    /// # Panics
    /// Where it does not come up; its log is printed.
    #[must_use]
    pub fn start_in(space: &Space, directory: &Path, settings: &[(&str, &str)]) -> Self {
        let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        let command = serve(space.command(binary()), directory, listen, settings);
        let address = SocketAddr::from((IpAddr::from(space.v4()), PORT));
        Self::up(command, directory, address, || space.listens(PORT))
    }

    /// Starts it and waits until it takes connections.
    fn up(
        mut command: Command,
        directory: &Path,
        address: SocketAddr,
        listens: impl Fn() -> bool,
    ) -> Self {
        let log = directory.with_extension("log");
        let output = File::options().create(true).append(true).open(&log).expect("a log file");
        command.stdout(output.try_clone().expect("a second handle")).stderr(output);
        let child = command.spawn().expect("the node can be started");
        let mut node = Self { child, address, log };
        let started = Instant::now();
        while !listens() {
            let ended = node.child.try_wait().expect("it is our child");
            let late = started.elapsed() > START_WAIT;
            assert!(ended.is_none() && !late, "the node did not come up:\n{}", node.log());
            thread::sleep(LOOK);
        }
        node
    }

    /// Where it listens, as HOST:PORT.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The port on which it listens.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.address.port()
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has said.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal by its name, as kill(1) has it.
    ///
    /// # Panics
    /// Where there is no kill(1).
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.expect("kill(1)").success());
    }

    /// SIGTERM, and how it ended.
    ///
    /// # Panics
    /// Where it does not end.
    pub fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ends by itself.
    ///
    /// # Panics
    /// Where it does not end.
    pub fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(started.elapsed() < STOP_WAIT, "the node does not end:\n{}", self.log());
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("---- the node said:\n{}", self.log());
        }
    }
}

/// The command that starts a node, for tests of how it refuses to.
#[must_use]
pub fn command(directory: &Path, port: u16, settings: &[(&str, &str)]) -> Command {
    serve(Command::new(binary()), directory, SocketAddr::from(([127, 0, 0, 1], port)), settings)
}

fn serve(
    mut command: Command,
    directory: &Path,
    listen: SocketAddr,
    settings: &[(&str, &str)],
) -> Command {
    command.arg("serve").args(["--listen", &listen.to_string()]);
    command.arg("--data").arg(directory).stdin(Stdio::null());
    // A test's file system may be small.
    command.env("RINGFORGE__STORE__FREE_BYTES_MIN", "0");
    for (key, value) in settings {
        command.env(format!("RINGFORGE__{key}"), value);
    }
    command
}

/// Looks again and again until it holds; `what` says what was waited for.
///
/// # Panics
/// Where it does not come to hold: the limit is generous, and no test may depend on it.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < START_WAIT, "waited in vain: {what}");
        thread::sleep(LOOK);
    }
}

/// Bytes that no other seed has, `length` of them, never all alike.
#[must_use]
pub fn noise(seed: &str, length: usize) -> Bytes {
    let mut state = seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 16).to_be_bytes()[2..]);
    }
    bytes.truncate(length);
    bytes.into()
}

/// A port of loopback that nobody listens on.
///
/// # Panics
/// Where there is none.
#[must_use]
pub fn free_port() -> u16 {
    let bound: io::Result<TcpListener> = TcpListener::bind("127.0.0.1:0");
    let address = bound.and_then(|listener| listener.local_addr());
    address.expect("loopback has a free port").port()
}
