//! Each fault of the proxy, seen by a plain TCP client before an echo.

use ringforge_tests::{
    proxy::{Fault, FaultProxy, Towards},
    until,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

/// After so long, nothing is taken to come. Never what a test waits for when all goes well.
const QUIET: Duration = Duration::from_millis(200);
/// Longer than anything that is to come takes.
const LONG: Duration = Duration::from_secs(60);

/// Sends back what it gets. Its thread ends with the process.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            thread::spawn(move || {
                let mut other = stream.try_clone().unwrap();
                // A reset is what some tests want.
                let _ = std::io::copy(&mut stream, &mut other);
                let _ = other.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    address
}

fn connect(proxy: &FaultProxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// What comes back for these bytes.
fn echoed(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).unwrap();
    back
}

/// Reads to the end: how many bytes came, and whether it was a reset.
fn drained(stream: &mut TcpStream) -> (usize, bool) {
    let (mut len, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (len, false),
            Ok(more) => len += more,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return (len, true),
            Err(error) => panic!("{error}"),
        }
    }
}

fn is_quiet(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(QUIET)).unwrap();
    let read = stream.read(&mut [0]);
    stream.set_read_timeout(Some(LONG)).unwrap();
    matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn without_a_fault_all_bytes_pass_and_are_counted() {
    let proxy = FaultProxy::start(echo());
    let mut stream = connect(&proxy);
    let bytes: Vec<u8> = (0..100_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    assert_eq!(echoed(&mut stream, &bytes), bytes);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(drained(&mut stream), (0, false), "an end passes as an end");
    assert_eq!(proxy.connections(), 1);
    assert_eq!((proxy.bytes(Towards::Target), proxy.bytes(Towards::Client)), (100_000, 100_000));
    until("the connection is gone", || proxy.open() == 0);
}

#[test]
fn a_refusing_proxy_is_as_good_as_none_until_it_is_told_to_go_on() {
    let proxy = FaultProxy::start(echo());
    let mut before = connect(&proxy);
    assert_eq!(echoed(&mut before, b"before"), b"before");
    proxy.set(Fault::Refuse);
    let refused = TcpStream::connect(proxy.address()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(drained(&mut before), (0, true));
    proxy.set(Fault::None);
    assert_eq!(echoed(&mut connect(&proxy), b"after"), b"after");
}

#[test]
fn a_hanging_proxy_passes_nothing_and_ends_nothing() {
    let proxy = FaultProxy::start(echo());
    let mut before = connect(&proxy);
    assert_eq!(echoed(&mut before, b"before"), b"before");
    proxy.set(Fault::Hang);
    let mut during = connect(&proxy);
    for stream in [&mut before, &mut during] {
        stream.write_all(b"kept").unwrap();
        assert!(is_quiet(stream));
    }
    assert_eq!(proxy.bytes(Towards::Target), 6);
    proxy.set(Fault::None);
    for stream in [&mut before, &mut during] {
        let mut kept = [0; 4];
        stream.read_exact(&mut kept).unwrap();
        assert_eq!(&kept, b"kept", "what was held back comes afterwards");
    }
}

#[test]
fn a_reset_ends_connections_old_and_new() {
    let proxy = FaultProxy::start(echo());
    let mut before = connect(&proxy);
    assert_eq!(echoed(&mut before, b"before"), b"before");
    proxy.set(Fault::Reset);
    assert_eq!(drained(&mut before), (0, true));
    // The reset may be there before the connect has returned.
    if let Ok(mut during) = TcpStream::connect(proxy.address()) {
        assert_eq!(drained(&mut during), (0, true));
    }
    until("it was accepted", || proxy.connections() == 2);
}

#[test]
fn a_cut_comes_after_the_bytes_that_it_lets_pass() {
    let proxy = FaultProxy::start(echo());
    proxy.set(Fault::CutAfter { bytes: 20_000 });
    for _ in 0..2 {
        let mut stream = connect(&proxy);
        // The reset may come while this is still being sent.
        let _ = stream.write_all(&[7; 30_000]);
        let (len, is_reset) = drained(&mut stream);
        assert!(is_reset);
        assert!(len <= 20_000, "{len}");
    }
    assert_eq!(proxy.bytes(Towards::Client), 40_000);
}

#[test]
fn a_slow_proxy_passes_a_little_and_is_fast_again_at_once() {
    let proxy = FaultProxy::start(echo());
    proxy.set(Fault::Slow { bytes_per_second: 100 });
    let mut stream = connect(&proxy);
    let bytes = vec![7; 200_000];
    let mut writer = stream.try_clone().unwrap();
    let sent = thread::spawn(move || writer.write_all(&bytes));
    let mut first = [0];
    stream.read_exact(&mut first).unwrap();
    assert!(proxy.bytes(Towards::Client) < 20_000, "a hundred bytes a second are not so many");
    proxy.set(Fault::None);
    let mut rest = vec![0; 199_999];
    stream.read_exact(&mut rest).unwrap();
    sent.join().unwrap().unwrap();
}

#[test]
fn a_delay_holds_bytes_back_and_loses_none() {
    let proxy = FaultProxy::start(echo());
    let latency = Duration::from_millis(50);
    proxy.set(Fault::Delay { latency });
    let mut stream = connect(&proxy);
    let started = std::time::Instant::now();
    assert_eq!(echoed(&mut stream, &[7; 100_000]), [7; 100_000]);
    assert!(started.elapsed() >= 2 * latency, "there and back");
}

#[test]
fn one_way_is_one_way() {
    let proxy = FaultProxy::start(echo());
    let mut stream = connect(&proxy);
    assert_eq!(echoed(&mut stream, b"before"), b"before");
    proxy.set(Fault::OneWay { towards: Towards::Target });
    stream.write_all(b"there").unwrap();
    until("it arrived there", || proxy.bytes(Towards::Target) == 11);
    assert!(is_quiet(&mut stream));
    assert_eq!(proxy.bytes(Towards::Client), 6);
    proxy.set(Fault::None);
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"there");
}

#[test]
fn where_the_target_is_gone_the_client_is_reset() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = FaultProxy::start(nobody);
    assert_eq!(drained(&mut connect(&proxy)), (0, true));
}
