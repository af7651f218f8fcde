//! Where a node looks for others: addresses and names, and what a name means at the moment. Must
//! never remember an answer: names are asked anew each round, for pods come and go.

use std::{collections::BTreeSet, fmt, io, net::IpAddr, net::SocketAddr, str::FromStr};

/// Bytes of a host name (RFC 1035).
const NAME_BYTES_MAX: usize = 253;

/// Somebody to ask about the cluster: `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// May mean many addresses, of both families.
    Name(String),
}

/// Why a text is no seed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// As in `10.0.0.1`, where no default exists.
    #[error("`{0}` has no port: HOST:PORT, or [ADDRESS]:PORT for IPv6")]
    NoPort(String),
    /// The port is no number between 1 and 65535.
    #[error("`{0}` has no port between 1 and 65535")]
    BadPort(String),
    /// The host is neither an address nor a name.
    #[error("`{0}` has neither an address nor a host name")]
    BadHost(String),
}

impl FromStr for Seed {
    type Err = SeedError;

    fn from_str(text: &str) -> Result<Self, SeedError> {
        let whole = || text.to_owned();
        let (host, port) = text.rsplit_once(':').ok_or_else(|| SeedError::NoPort(whole()))?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        // `fe80::1` would else be the host `fe80:` with the port 1.
        if bracketed.is_none() && host.contains(':') {
            return Err(SeedError::NoPort(whole()));
        }
        let port = port.parse().ok().filter(|&port| port != 0);
        let port = port.ok_or_else(|| SeedError::BadPort(whole()))?;
        let host = match bracketed {
            Some(host) => host.parse().map(|address| Host::Address(IpAddr::V6(address))).ok(),
            None => match host.parse() {
                Ok(address) => Some(Host::Address(IpAddr::V4(address))),
                Err(_) => is_name(host).then(|| Host::Name(host.to_owned())),
            },
        };
        Ok(Self { host: host.ok_or_else(|| SeedError::BadHost(whole()))?, port })
    }
}

fn is_name(host: &str) -> bool {
    let is_label = |label: &str| {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(word)
    };
    let labels = host.strip_suffix('.').unwrap_or(host);
    // A name of digits and dots is an address that somebody got wrong.
    host.len() <= NAME_BYTES_MAX
        && labels.split('.').all(is_label)
        && labels.bytes().any(|byte| byte.is_ascii_alphabetic())
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(address) => SocketAddr::new(*address, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl Seed {
    /// Every address that it has now. By the system's resolver (/etc/hosts, /etc/resolv.conf with
    /// its search list): it is what Kubernetes sets up for a pod, it returns all A and AAAA records
    /// of a headless service, and it has no cache of its own to go stale.
    pub(super) async fn resolve(&self) -> io::Result<BTreeSet<SocketAddr>> {
        match &self.host {
            Host::Address(address) => Ok([SocketAddr::new(*address, self.port)].into()),
            Host::Name(name) => {
                Ok(tokio::net::lookup_host((name.as_str(), self.port)).await?.collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_prints_as_it_was_written() {
        for text in [
            "10.0.0.1:7946",
            "[::1]:7946",
            "[fd00::2]:1",
            "node-a:65535",
            "ringforge.default.svc.cluster.local:7946",
            "ringforge.default.svc.cluster.local.:7946",
            "_gossip.a:7946",
        ] {
            assert_eq!(text.parse::<Seed>().map(|seed| seed.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_is_no_seed_is_refused_by_name() {
        let check = |text: &str, expect: fn(String) -> SeedError| {
            assert_eq!(text.parse::<Seed>(), Err(expect(text.to_owned())), "{text}");
        };
        check("", SeedError::NoPort);
        check("node-a", SeedError::NoPort);
        check("::1", SeedError::NoPort);
        check("fe80::1:7946", SeedError::NoPort);
        check("node-a:", SeedError::BadPort);
        check("node-a:0", SeedError::BadPort);
        check("node-a:65536", SeedError::BadPort);
        check("node-a:http", SeedError::BadPort);
        check(":7946", SeedError::BadHost);
        check("10.0.0.256:7946", SeedError::BadHost);
        check("[10.0.0.1]:7946", SeedError::BadHost);
        check("[node-a]:7946", SeedError::BadHost);
        check("a..b:7946", SeedError::BadHost);
        check("a/b:7946", SeedError::BadHost);
        check(&format!("{}:1", "a".repeat(64)), SeedError::BadHost);
    }

    #[test]
    fn an_address_and_localhost_resolve() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let resolve = |text: &str| {
            let seed: Seed = text.parse().unwrap();
            runtime.block_on(seed.resolve()).unwrap()
        };
        assert_eq!(resolve("[::1]:5"), ["[::1]:5".parse().unwrap()].into());
        assert!(resolve("localhost:5").iter().all(|address| address.ip().is_loopback()));
    }
}
