//! Owns every system call that neither `rustix`, `nix`, `landlock` nor `seccompiler` offers as a
//! safe function: the only unsafe code of the repository. Never keeps state and decides nothing:
//! one call, its arguments checked, its errno returned.
#![expect(unsafe_code, reason = "the one place where the repository talks to the kernel directly")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::{ForkResult, Pid};

/// Which side of [`clone_into`] returned.
pub(crate) enum Cloned {
    Parent { pid: Pid, pidfd: OwnedFd },
    Child,
}

/// Forks the calling process into new namespaces (`CLONE_NEW*`). The caller must have one thread.
pub(crate) fn clone_into(namespaces: u64) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let mut arguments = clone_arguments(namespaces, &mut pidfd);
    let size = size_of::<libc::clone_args>();
    // SAFETY: `arguments` is a live clone_args of `size` bytes and its `pidfd` points to a live
    // RawFd. Without CLONE_VM and with no stack given, the child runs on its own copy of ours.
    let outcome = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size) };
    match outcome {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: clone3 succeeded with CLONE_PIDFD, so it stored a new descriptor that
            // nothing else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid: Pid::from_raw(pid as libc::pid_t), pidfd })
        }
    }
}

fn clone_arguments(namespaces: u64, pidfd: &mut RawFd) -> libc::clone_args {
    libc::clone_args {
        flags: namespaces | libc::CLONE_PIDFD as u64,
        pidfd: std::ptr::from_mut(pidfd).addr() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    }
}

/// Forks. The caller must have one thread. None in the child.
pub(crate) fn fork() -> nix::Result<Option<Pid>> {
    // SAFETY: the callers descend from the spawner, which never starts a thread, so the child
    // inherits no lock that another thread holds.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Ends the process at once: a forked copy must not run the destructors of the original.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: _exit takes any integer and reads no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Adds mount attributes (`MOUNT_ATTR_*`) to `mount`, and to all below it if `recursive`.
pub(crate) fn add_mount_attributes(
    mount: BorrowedFd<'_>,
    attributes: u64,
    recursive: bool,
) -> io::Result<()> {
    let change =
        libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (call, size) = (libc::SYS_mount_setattr, size_of::<libc::mount_attr>());
    let fd = mount.as_raw_fd();
    // SAFETY: the path is an empty C string and `change` a live mount_attr of `size` bytes; the
    // kernel only reads both.
    let outcome = unsafe { libc::syscall(call, fd, c"".as_ptr(), flags, &raw const change, size) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from `first` to `last`. The caller must not use an owner of one again.
pub(crate) fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: touches no memory; that no owner of a closed descriptor is used again is what the
    // callers, all at the start of a process of their own, see to.
    let outcome = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes every descriptor from `first` on vanish at exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: touches no memory and, with this flag, closes nothing by itself.
    let outcome = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Brings the loopback interface up in the network namespace of `socket`.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut name = [0; libc::IFNAMSIZ];
    (name[0], name[1]) = (b'l' as libc::c_char, b'o' as libc::c_char);
    let flags = libc::__c_anonymous_ifr_ifru { ifru_flags: libc::IFF_UP as libc::c_short };
    let request = libc::ifreq { ifr_name: name, ifr_ifru: flags };
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which `request` is, with the flags field set.
    let outcome =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives every signal its default disposition: an ignored one would stay ignored after exec.
pub(crate) fn default_signals() -> nix::Result<()> {
    for signal in Signal::iterator() {
        if signal != Signal::SIGKILL && signal != Signal::SIGSTOP {
            // SAFETY: SIG_DFL installs no code of ours, so nothing can run at a bad moment.
            unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
        }
    }
    Ok(())
}

/// The version of Landlock that the kernel speaks; None without Landlock.
pub(crate) fn landlock_version() -> Option<u32> {
    const VERSION_FLAG: u32 = 1;
    let call = libc::SYS_landlock_create_ruleset;
    // SAFETY: with this flag and no attributes the call reads no memory and makes nothing.
    let outcome =
        unsafe { libc::syscall(call, std::ptr::null::<libc::c_void>(), 0_usize, VERSION_FLAG) };
    u32::try_from(outcome).ok().filter(|version| *version > 0)
}

/// The errno of a system call of the deny list, called with arguments that can do nothing.
pub(crate) fn errno_of_denied(number: libc::c_long) -> i32 {
    const NOTHING: libc::c_long = -1;
    let n = NOTHING;
    // SAFETY: the caller passes numbers of the deny list only. -1 is neither a descriptor nor an
    // address nor a command to any of them, so even if one is let through, it changes nothing.
    let outcome = unsafe { libc::syscall(number, n, n, n, n, n, n) };
    if outcome == -1 { nix::errno::Errno::last_raw() } else { 0 }
}

/// Takes or drops (`F_RDLCK`, `F_UNLCK`) a lease on an open file.
pub(crate) fn set_lease(file: BorrowedFd<'_>, kind: i32) -> io::Result<()> {
    // SAFETY: F_SETLEASE takes an int and reads no memory; the descriptor is open for the call.
    let outcome = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    if outcome == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
