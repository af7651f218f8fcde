//! Every way out that is tried, by name. Each gives what the kernel answered.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Pid, chroot, pivot_root, setgid, setuid};
use rustix::net::{AddressFamily, Protocol, SocketType, netlink};

const INPUT: &str = "/exec/input";

/// Tries all; a line each: name, then `ok` or the errno's name.
pub(crate) fn all(port: u16) {
    inputs();
    host();
    processes();
    namespaces();
    devices();
    network(port);
    rank();
}

fn say(name: &str, outcome: io::Result<()>) {
    let text = match outcome {
        Ok(()) => "ok".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(number) => format!("{:?}", Errno::from_raw(number)),
            None => format!("{error:?}"),
        },
    };
    println!("{name} {text}");
}

fn writing(path: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path).map(drop)
}

fn reading(path: &str) -> io::Result<()> {
    fs::read(path).map(drop)
}

fn inputs() {
    say("write-input", writing(INPUT));
    say("append-input", OpenOptions::new().append(true).open(INPUT).map(drop));
    say("truncate-open-input", {
        OpenOptions::new().read(true).custom_flags(nix::libc::O_TRUNC).open(INPUT).map(drop)
    });
    say("truncate-input", nix::unistd::truncate(INPUT, 0).map_err(io::Error::from));
    say("chmod-input", fs::set_permissions(INPUT, fs::Permissions::from_mode(0o777)));
    say("chown-input", chown(INPUT, Some(1000), Some(1000)));
    say("utimes-input", {
        let opened = File::open(INPUT).expect("a readable input");
        opened.set_modified(std::time::UNIX_EPOCH)
    });
    say("xattr-input", {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(INPUT, "user.mark", b"x", flags).map_err(io::Error::from)
    });
    say("reopen-input", {
        let opened = File::open(INPUT).expect("a readable input");
        writing(&format!("/proc/self/fd/{}", opened.as_raw_fd()))
    });
    say("link-input", fs::hard_link(INPUT, "/exec/linked"));
}

fn host() {
    say("read-shadow", reading("/etc/shadow"));
    say("list-root-home", fs::read_dir("/root").map(drop));
    say("list-home", fs::read_dir("/home").map(drop));
    say("list-sys", fs::read_dir("/sys").map(drop));
    say("list-run", fs::read_dir("/run").map(drop));
    say("climb", fs::read_dir("/exec/../../../root").map(drop));
    say("climb-by-link", {
        symlink("/proc/1/root/root", "/exec/up").and_then(|()| fs::read_dir("/exec/up").map(drop))
    });
    say("make-in-root", fs::create_dir("/made"));
    say("make-in-etc", fs::write("/etc/hosts", "x"));
    say("make-in-toolchain", fs::write("/usr/made", "x"));
    say("write-core-pattern", writing("/proc/sys/kernel/core_pattern"));
    say("write-hostname", writing("/proc/sys/kernel/hostname"));
    let flags = rustix::fs::statvfs("/proc/sys").expect("a mount").f_flag;
    println!("proc-sys-read-only {}", flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    say("write-own-user-map", writing("/proc/self/uid_map"));
    println!("kcore-bytes {}", fs::read("/proc/kcore").map_or(0, |bytes| bytes.len()));
    say("write-exec-root", fs::write("/exec/made", "x"));
    say("write-tmp", fs::write("/tmp/made", "x"));
    say("write-var-tmp", fs::write("/var/tmp/made", "x"));
    say("write-shm", fs::write("/dev/shm/made", "x"));
    say("write-null", fs::write("/dev/null", "x"));
}

fn processes() {
    let init = Pid::from_raw(1);
    say("kill-init", kill(init, Signal::SIGKILL).map_err(io::Error::from));
    say("ptrace-init", nix::sys::ptrace::attach(init).map_err(io::Error::from));
    say("read-init-environment", reading("/proc/1/environ"));
    say("open-init-memory", File::open("/proc/1/mem").map(drop));
    say("list-init-descriptors", fs::read_dir("/proc/1/fd").map(drop));
    say("enter-init-root", fs::read_dir("/proc/1/root").map(drop));
}

fn namespaces() {
    let all = [
        ("unshare-user", CloneFlags::CLONE_NEWUSER),
        ("unshare-mount", CloneFlags::CLONE_NEWNS),
        ("unshare-network", CloneFlags::CLONE_NEWNET),
        ("unshare-pid", CloneFlags::CLONE_NEWPID),
    ];
    for (name, flag) in all {
        say(name, unshare(flag).map_err(io::Error::from));
    }
    say("setns", {
        let own = File::open("/proc/self/ns/net").expect("its own namespace");
        setns(own, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    });
    let none = None::<&str>;
    let tmpfs = nix::mount::mount(none, "/tmp", Some("tmpfs"), MsFlags::empty(), none);
    say("mount", tmpfs.map_err(io::Error::from));
    let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    let writable = nix::mount::mount(none, "/usr", none, remount, none);
    say("remount-writable", writable.map_err(io::Error::from));
    let off = nix::mount::umount2("/proc/sys", MntFlags::MNT_DETACH);
    say("umount", off.map_err(io::Error::from));
    say("chroot", chroot("/exec").map_err(io::Error::from));
    say("pivot-root", pivot_root("/exec", "/exec").map_err(io::Error::from));
}

fn devices() {
    let mode = Mode::from_bits_truncate(0o666);
    for (name, kind) in [("mknod-character", SFlag::S_IFCHR), ("mknod-block", SFlag::S_IFBLK)] {
        say(name, mknod("/exec/device", kind, mode, makedev(1, 3)).map_err(io::Error::from));
    }
    say("mknod-fifo", mknod("/exec/fifo", SFlag::S_IFIFO, mode, 0).map_err(io::Error::from));
    for name in ["kvm", "mem", "fuse", "tty", "ptmx", "loop-control"] {
        say(&format!("open-{name}"), File::open(format!("/dev/{name}")).map(drop));
    }
}

fn network(port: u16) {
    let socket = |family, kind, protocol| {
        rustix::net::socket(family, kind, protocol).map(drop).map_err(io::Error::from)
    };
    let icmp = Some(rustix::net::ipproto::ICMP);
    say("raw-socket", socket(AddressFamily::INET, SocketType::RAW, icmp));
    for (name, family) in [("packet", 17), ("algorithm", 38), ("vsock", 40)] {
        let family = AddressFamily::from_raw(family);
        say(&format!("{name}-socket"), socket(family, SocketType::DGRAM, None));
    }
    let audit: Protocol = netlink::AUDIT;
    say("netlink-route", socket(AddressFamily::NETLINK, SocketType::RAW, None));
    say("netlink-audit", socket(AddressFamily::NETLINK, SocketType::RAW, Some(audit)));
    let patience = Duration::from_secs(5);
    let connect = |address: SocketAddr| TcpStream::connect_timeout(&address, patience).map(drop);
    say("connect-host", connect(SocketAddr::from(([127, 0, 0, 1], port))));
    say("connect-outside", connect(SocketAddr::from(([192, 0, 2, 1], 80))));
    say("loopback", {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port of its own");
        connect(listener.local_addr().expect("an address"))
    });
    let lines = |path| fs::read_to_string(path).expect("a table").lines().count();
    println!("interfaces {}", lines("/proc/net/dev") - 2);
    println!("routes {}", lines("/proc/net/route") - 1);
}

fn rank() {
    say("setuid-0", setuid(0.into()).map_err(io::Error::from));
    say("setgid-0", setgid(0.into()).map_err(io::Error::from));
    say("setgroups", nix::unistd::setgroups(&[]).map_err(io::Error::from));
    say("personality", {
        let fixed = nix::sys::personality::Persona::ADDR_NO_RANDOMIZE;
        nix::sys::personality::set(fixed).map(drop).map_err(io::Error::from)
    });
    let status = fs::read_to_string("/proc/self/status").expect("its own status");
    for field in ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        field_of(&status, field);
    }
    field_of(&status, "NoNewPrivs");
    field_of(&status, "Seccomp");
}

fn field_of(status: &str, field: &str) {
    let prefix = format!("{field}:");
    let line = status.lines().find(|line| line.starts_with(&prefix)).unwrap_or_default();
    println!("{field} {}", line[prefix.len()..].split_whitespace().collect::<Vec<_>>().join(" "));
}
