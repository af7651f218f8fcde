//! Owns the few files of /etc that libraries insist on. Never copies one of the host's, save the
//! resolver's addresses for an action that may use the network.

use std::fs;
use std::io;

const PASSWD: &str = "root:x:0:0:root:/nonexistent:/bin/false\n\
    action:x:1000:1000:action:/tmp:/bin/sh\n\
    nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\naction:x:1000:\nnogroup:x:65534:\n";
const HOSTS: &str = "127.0.0.1 localhost sandbox\n::1 localhost\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// Longest resolv.conf taken from the host, in bytes.
const RESOLVER_BYTES_MAX: usize = 16 * 1024;

/// What will be written.
pub(crate) struct Texts {
    resolver: String,
}

impl Texts {
    /// Reads what comes from the host, while it can be reached.
    pub(crate) fn gather(network: bool) -> Texts {
        let found =
            if network { fs::read_to_string("/etc/resolv.conf") } else { Ok(String::new()) };
        let resolver = found.ok().filter(|text| text.len() <= RESOLVER_BYTES_MAX);
        Texts { resolver: resolver.unwrap_or_default() }
    }

    /// Writes them into the new root, before a toolchain can cover /etc.
    pub(crate) fn write(&self) -> io::Result<()> {
        fs::create_dir("/etc")?;
        fs::write("/etc/passwd", PASSWD)?;
        fs::write("/etc/group", GROUP)?;
        fs::write("/etc/hosts", HOSTS)?;
        fs::write("/etc/hostname", "sandbox\n")?;
        fs::write("/etc/nsswitch.conf", NSSWITCH)?;
        fs::write("/etc/resolv.conf", &self.resolver)
    }
}
