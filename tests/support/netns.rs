//! Hosts of a small network as network namespaces, joined by a bridge in a namespace of its own,
//! and links between them that can be cut. Needs root and iproute2. Must never touch the network
//! of the host, nor leave a namespace behind.
//!
//! Whatever starts a thread or a program inside [`Space::enter`] starts it in there: a thread
//! inherits its namespace. So a `FaultProxy`, a `Liar`, a `Dns` or a runtime can be put anywhere.

use std::{
    fmt::Write as _,
    fs::{self, File},
    future::Future,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Names of our namespaces start with it; then come process, net and host: `rftest-17-0-b`.
const PREFIX: &str = "rftest-";
/// Where iproute2 keeps namespaces.
const NAMED: &str = "/run/netns";
/// Where `ip netns exec` finds what it lays over /etc, by namespace.
const OVER_ETC: &str = "/etc/netns";
/// The last byte of the client's addresses.
const CLIENT: u8 = 254;
/// A last byte of a hardware address that no host has.
const NOBODY: u8 = 255;

/// Tells the nets of one process apart.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network of hosts 1 to n, and the client's. Dropped, all of it goes, with the programs in it.
pub struct Net {
    nodes: Vec<Space>,
    client: Space,
    bridge: String,
}

/// One host: a network namespace with loopback and one interface, `eth0`.
#[derive(Clone, Debug)]
pub struct Space {
    name: String,
    number: u8,
}

/// The kernel can't do it.
#[derive(Clone, Debug)]
pub struct Unsupported(pub String);

impl Net {
    /// Hosts 1 to `nodes` (10.77.0.i, fd77::i) and the client (10.77.0.254, fd77::fe). Removes
    /// first what processes that have died have left.
    ///
    /// # Panics
    /// Without root or iproute2, with more than 99 hosts, or where the kernel has no namespaces,
    /// veth or bridge.
    #[must_use]
    pub fn new(nodes: u8) -> Self {
        assert!(nodes < 100, "a net of at most 99 hosts");
        remove_left_behind();
        let stem = format!("{PREFIX}{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let space = |number| Space { name: format!("{stem}-{number}"), number };
        // Made first, so that a panic below removes what is there.
        let net = Self {
            nodes: (1..=nodes).map(space).collect(),
            client: space(CLIENT),
            bridge: format!("{stem}-b"),
        };
        ip(&["netns", "add", &net.bridge]);
        ip_batch(&net.bridge, "link set lo up\nlink add br0 type bridge\nlink set br0 up\n");
        for space in net.spaces() {
            net.join(space);
        }
        net
    }

    fn spaces(&self) -> impl Iterator<Item = &Space> {
        self.nodes.iter().chain([&self.client])
    }

    /// Makes a host and its link.
    fn join(&self, space: &Space) {
        ip(&["netns", "add", &space.name]);
        let (name, port) = (&space.name, space.port());
        let link = format!(
            "link add {port} type veth peer name eth0 address {} netns {name}\n\
             link set {port} master br0 up\n",
            hardware(space.number),
        );
        ip_batch(&self.bridge, &link);
        let mut host = format!(
            "link set lo up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
             link set eth0 up\n",
            space.v4(),
            space.v6(),
        );
        // All know all from the start. So a cut of one direction can be an entry here, and no
        // question of ARP or neighbour discovery has to cross it.
        for other in self.spaces().filter(|other| other.number != space.number) {
            host.push_str(&neighbour(other, other.number));
        }
        ip_batch(name, &host);
    }

    /// Host `i`, counted from 1 like its address.
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    pub fn node(&self, i: u8) -> &Space {
        let at = usize::from(i).checked_sub(1).expect("hosts are counted from 1");
        self.nodes.get(at).expect("a host of this net")
    }

    /// The host from which a test asks.
    #[must_use]
    pub const fn client(&self) -> &Space {
        &self.client
    }

    /// Takes host `i` off the bridge: nobody reaches it and it reaches nobody, in silence.
    /// Connections stay as they are. What is cut already may be cut again.
    ///
    /// # Panics
    /// Where there is no such host.
    pub fn cut(&self, i: u8) {
        let port = self.node(i).port();
        ip_batch(&self.bridge, &format!("link set {port} nomaster\n"));
    }

    /// Undoes [`Self::cut`], and nothing else.
    ///
    /// # Panics
    /// Where there is no such host.
    pub fn heal(&self, i: u8) {
        let port = self.node(i).port();
        ip_batch(&self.bridge, &format!("link set {port} master br0\n"));
    }

    /// Both directions between two hosts, in silence; everybody else reaches both.
    ///
    /// # Panics
    /// Where there is no such host.
    pub fn cut_pair(&self, i: u8, j: u8) {
        self.cut_one_way(i, j);
        self.cut_one_way(j, i);
    }

    /// Undoes [`Self::cut_pair`].
    ///
    /// # Panics
    /// Where there is no such host.
    pub fn heal_pair(&self, i: u8, j: u8) {
        self.heal_one_way(i, j);
        self.heal_one_way(j, i);
    }

    /// What `from` sends to `to` is lost, with no error for the sender; the other way goes on.
    /// TCP between the two stops both ways, as acknowledgements are lost too.
    ///
    /// # Panics
    /// Where there is no such host.
    pub fn cut_one_way(&self, from: u8, to: u8) {
        ip_batch(&self.node(from).name, &neighbour(self.node(to), NOBODY));
    }

    /// Undoes [`Self::cut_one_way`].
    ///
    /// # Panics
    /// Where there is no such host.
    pub fn heal_one_way(&self, from: u8, to: u8) {
        ip_batch(&self.node(from).name, &neighbour(self.node(to), to));
    }

    /// Whatever host `i` sends takes so much longer; 0 ends it.
    ///
    /// # Errors
    /// Where the kernel has no netem: a `FaultProxy` with `Fault::Delay` does it anywhere.
    ///
    /// # Panics
    /// Where there is no such host, or no tc(8).
    pub fn delay(&self, i: u8, milliseconds: u32) -> Result<(), Unsupported> {
        let mut tc = Command::new("tc");
        tc.args(["-n", &self.node(i).name, "qdisc", "replace", "dev", "eth0", "root"]);
        if milliseconds == 0 {
            tc.arg("noqueue");
        } else {
            tc.args(["netem", "delay", &format!("{milliseconds}ms")]);
        }
        let output = tc.output().expect("tc(8) of iproute2");
        if output.status.success() {
            return Ok(());
        }
        Err(Unsupported(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for space in self.spaces() {
            remove(&space.name);
        }
        remove(&self.bridge);
    }
}

impl Space {
    /// Its IPv4 address.
    #[must_use]
    pub const fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(self.number))
    }

    /// Its name, as `ip netns` has it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs a program in here; the process is the program's own.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.as_ref());
        command
    }

    /// Runs `inside` on a thread that is in here, and waits for it. Sockets that it makes, threads
    /// and programs that it starts stay in here, also after its end.
    ///
    /// # Panics
    /// Where `inside` does.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let file = File::open(Path::new(NAMED).join(&self.name)).expect("the namespace is there");
        let run = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a namespace");
            inside()
        };
        let ended = thread::scope(|scope| scope.spawn(run).join());
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a future on a runtime in here, to its end: `net.client().run(async || …)`. Name hosts
    /// by address: names are resolved as on the host.
    ///
    /// # Panics
    /// Where the future does.
    pub fn run<T: Send, F: Future<Output = T>>(&self, make: impl FnOnce() -> F + Send) -> T {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async { make().await })
        })
    }

    /// Whether somebody in here takes connections at an address, asked from in here.
    #[must_use]
    pub fn listens(&self, port: u16) -> bool {
        self.enter(|| TcpStream::connect((self.v4(), port)).is_ok())
    }

    /// Programs that [`Self::command`] starts from now on resolve names at this server, port 53.
    ///
    /// # Panics
    /// Where /etc can't be written.
    pub fn resolve_at(&self, server: IpAddr) {
        let directory = over_etc(&self.name);
        fs::create_dir_all(&directory).expect("/etc can be written");
        let text = format!("nameserver {server}\noptions timeout:1 attempts:2\n");
        fs::write(directory.join("resolv.conf"), text).expect("/etc can be written");
    }

    /// Its interface on the bridge.
    fn port(&self) -> String {
        format!("port{}", self.number)
    }
}

/// The hardware address of a host; locally administered.
fn hardware(number: u8) -> String {
    format!("02:77:00:00:00:{number:02x}")
}

/// Says where packets for a host go, from the next one on.
fn neighbour(host: &Space, hardware_of: u8) -> String {
    let mut lines = String::new();
    for address in [IpAddr::from(host.v4()), IpAddr::from(host.v6())] {
        let lladdr = hardware(hardware_of);
        writeln!(lines, "neigh replace {address} lladdr {lladdr} dev eth0 nud permanent")
            .expect("a string takes all");
    }
    lines
}

fn over_etc(name: &str) -> PathBuf {
    Path::new(OVER_ETC).join(name)
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip(8) of iproute2");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {said}");
}

/// Many commands to one namespace, as one process.
fn ip_batch(name: &str, lines: &str) {
    let mut ip = Command::new("ip");
    ip.args(["-n", name, "-batch", "-"]).stdin(Stdio::piped());
    ip.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut ip = ip.spawn().expect("ip(8) of iproute2");
    let mut stdin = ip.stdin.take().expect("it is piped");
    // Where ip has ended before, its status says so.
    let _ = stdin.write_all(lines.as_bytes());
    drop(stdin);
    let output = ip.wait_with_output().expect("it is our child");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip -n {name}:\n{lines}{said}");
}

/// Removes a namespace and ends what runs in it. Never panics: it is called by drops.
fn remove(name: &str) {
    if !Path::new(NAMED).join(name).exists() {
        return;
    }
    if let Ok(listed) = Command::new("ip").args(["netns", "pids", name]).output() {
        let pids = String::from_utf8_lossy(&listed.stdout).into_owned();
        let own = process::id().to_string();
        for pid in pids.split_whitespace().filter(|pid| *pid != own) {
            let _ = Command::new("kill").args(["-s", "KILL", pid]).stderr(Stdio::null()).status();
        }
    }
    match Command::new("ip").args(["netns", "delete", name]).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => {}
        // Another test may have removed the same leftover meanwhile.
        _ if !Path::new(NAMED).join(name).exists() => {}
        failed => eprintln!("ip netns delete {name}: {failed:?}"),
    }
    let _ = fs::remove_dir_all(over_etc(name));
    // Not empty: somebody else's.
    let _ = fs::remove_dir(OVER_ETC);
}

/// Removes namespaces whose process is gone.
fn remove_left_behind() {
    let Ok(entries) = fs::read_dir(NAMED) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let alive = pid.is_none_or(|pid| Path::new("/proc").join(pid).exists());
        if !alive {
            remove(&name);
        }
    }
}
