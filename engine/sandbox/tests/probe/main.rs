//! The program of the escape tests: it is the spawner, and inside of the sandbox it is the one
//! that tries to get out. Prints what happened, one line an attempt; never decides whether that
//! is good.

mod attempts;

use std::fs;
use std::io::Write;
use std::process::Command;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let rest: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match rest[..] {
        [sandbox::SPAWNER_ARGUMENT] => sandbox::spawner_main(),
        ["attempts", port] => attempts::all(port.parse().expect("a port")),
        ["denied"] => {
            for (name, errno) in sandbox::denied_errno() {
                println!("{name} {errno}");
            }
        }
        ["descriptors"] => descriptors(),
        ["environment"] => {
            for (name, value) in std::env::vars() {
                println!("{name}={value}");
            }
        }
        ["processes"] => processes(),
        ["bomb"] => bomb(),
        ["flood"] => flood("/dev/stdout"),
        ["fill", path] => flood(path),
        ["sleep"] => std::thread::sleep(std::time::Duration::from_secs(600)),
        ["tree"] => tree(),
        ["daemon"] => daemon(),
        ref other => panic!("what is {other:?}?"),
    }
}

/// Its descriptors; the one of the listing itself is the highest.
fn descriptors() {
    let mut names: Vec<u32> = fs::read_dir("/proc/self/fd")
        .expect("a listing")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    names.sort_unstable();
    names.pop();
    println!("{names:?}");
}

fn processes() {
    let mut names: Vec<u32> = fs::read_dir("/proc")
        .expect("a listing")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    names.sort_unstable();
    println!("{names:?} self {}", std::process::id());
}

fn again(mode: &str) -> std::io::Result<std::process::Child> {
    Command::new("/proc/self/exe").arg(mode).spawn()
}

/// Starts children until it may not; they stay.
fn bomb() {
    for count in 0..1000 {
        if let Err(error) = again("sleep") {
            println!("{count} {}", error.raw_os_error().unwrap_or(0));
            return;
        }
    }
    println!("1000 0");
}

/// Writes for ever.
fn flood(path: &str) {
    let mut file = fs::File::options().append(true).create(true).open(path).expect("a file");
    let block = [b'x'; 64 * 1024];
    let mut total = 0_usize;
    loop {
        match file.write(&block) {
            Ok(written) => total += written,
            Err(error) => {
                println!("{total} {}", error.raw_os_error().unwrap_or(0));
                return;
            }
        }
    }
}

/// Children and grandchildren, and none of them ends.
fn tree() {
    for _ in 0..3 {
        let _ = again("daemon");
    }
    println!("grown");
    std::thread::sleep(std::time::Duration::from_secs(600));
}

/// Leaves a process behind that has a session of its own and deaf ears.
fn daemon() {
    let script = "trap '' TERM HUP INT; sleep 600";
    let _ = Command::new("setsid").args(["sh", "-c", script]).spawn();
    println!("gone");
}
