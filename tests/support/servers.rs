//! Caches that others wrote, as processes of their own: buildbox-casd, and an S3 server (moto).
//! `scripts/dev-setup` installs both. Must never leave a process behind.

use super::{LOOK, START_WAIT, free_port};
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Instant,
};
use tempfile::TempDir;

/// The bucket that an S3 server has.
pub const BUCKET: &str = "cache";

/// A server on loopback, and the directory of its data. Dropped, it is killed.
pub struct Server {
    child: Child,
    port: u16,
    _directory: TempDir,
}

impl Server {
    /// A REAPI cache: buildbox-casd.
    ///
    /// # Panics
    /// Where it is not installed, or does not come up.
    #[must_use]
    pub fn casd() -> Self {
        let mut server = Command::new(program("casd", "buildbox-casd"));
        let (port, directory) = (free_port(), tempfile::tempdir().expect("a directory"));
        server.args(["--bind", &format!("127.0.0.1:{port}"), "--reserved", "1M"]);
        server.arg(directory.path());
        Self::up(server, port, directory)
    }

    /// An S3 server with one bucket.
    ///
    /// # Panics
    /// Where it is not installed, or does not come up.
    #[must_use]
    pub fn s3() -> Self {
        let mut server = Command::new(program("s3", "moto_server"));
        let (port, directory) = (free_port(), tempfile::tempdir().expect("a directory"));
        server.args(["-H", "127.0.0.1", "-p", &port.to_string()]).current_dir(directory.path());
        let s3 = Self::up(server, port, directory);
        let made = s3.ask(&format!("PUT /{BUCKET}"));
        assert!(made.starts_with("HTTP/1.1 200"), "{made}");
        s3
    }

    fn up(mut command: Command, port: u16, directory: TempDir) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("it can be started");
        let server = Self { child, port, _directory: directory };
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < START_WAIT, "{command:?} does not listen");
            thread::sleep(LOOK);
        }
        server
    }

    /// Where it listens, as HOST:PORT.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The settings of a node that has an S3 server below it: `BACKING__URL`, `BACKING__OPTIONS`.
    #[must_use]
    pub fn s3_settings(&self) -> [(&'static str, String); 2] {
        let options = format!(
            "aws_endpoint=http://{},aws_region=us-east-1,aws_access_key_id=key,\
             aws_secret_access_key=secret,allow_http=true",
            self.address()
        );
        [("BACKING__URL", format!("s3://{BUCKET}/of/tests")), ("BACKING__OPTIONS", options)]
    }

    /// One HTTP request without a body, in the fewest words: its method and path.
    ///
    /// # Panics
    /// Where it is not there.
    #[must_use]
    pub fn ask(&self, what: &str) -> String {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        let host = self.address();
        let rest = format!("Host: {host}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        write!(connection, "{what} HTTP/1.1\r\n{rest}").expect("it reads");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("it answers");
        answer
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program: where its script puts it, or in PATH.
fn program(place: &str, name: &str) -> PathBuf {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = home.join(".local/share/ringforge").join(place).join("bin");
    let directories = std::iter::once(installed).chain(std::env::split_paths(&path));
    let mut programs = directories.map(|directory| directory.join(name));
    let found = programs.find(|program| program.is_file());
    found.unwrap_or_else(|| panic!("no {name}: run scripts/install-{place}"))
}
