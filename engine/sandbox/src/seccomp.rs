//! Owns the last barrier: which system calls an action may not make. Allows by default, since
//! compilers and test runners use nearly everything; never lets a foreign calling convention
//! reach a number that this file has not judged.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

use crate::step::{Step, StepFailure};
use crate::sys;

/// Denied whatever the arguments: `name # reason` lines.
const POLICY: &str = include_str!("../policy/seccomp.txt");

/// Families a socket may have. Others (packet, vsock, AF_ALG, ...) widen the kernel's surface.
const SOCKET_FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Every namespace that clone(2) or unshare(2) can make. CLONE_NEWTIME is unshare's alone: to
/// clone it is part of the exit signal.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];
const CLONE_NEWTIME: i32 = 0x80;

/// Personalities as container engines allow them: Linux, 32 bits, and the question which it is.
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, u32::MAX];

/// Bit of the x32 convention, which shares an architecture with x86-64 but not its numbers.
const X32_BIT: u32 = 0x4000_0000;

/// Terminal commands that type for the user.
const TERMINAL_COMMANDS: [u64; 2] = [libc::TIOCSTI, libc::TIOCLINUX];

/// Rules that are tried one after another. When a filter is installed, the kernel walks it once
/// for every number there is: one chain of all rules costs 0.1 ms more.
const PART_RULES: usize = 8;

/// A compiled filter: made once, installed in each action.
pub(crate) struct Filter(BpfProgram);

impl Filter {
    pub(crate) fn compile() -> Result<Filter, String> {
        let mut rules = BTreeMap::new();
        for name in denied(POLICY)? {
            rules.insert(number(name).ok_or_else(|| format!("unknown call {name}"))?, Vec::new());
        }
        rules.extend(by_argument().map_err(|error| error.to_string())?);
        let rules: Vec<_> = rules.into_iter().collect();
        let parts = rules
            .chunks(PART_RULES)
            .map(|part| Ok((part[0].0, compile_part(part)?)))
            .collect::<Result<Vec<_>, String>>()?;
        Ok(Filter(assemble(&parts)))
    }

    pub(crate) fn install(&self) -> Result<(), StepFailure> {
        seccompiler::apply_filter(&self.0)
            .map_err(|error| StepFailure::new(Step::Seccomp, libc::EPERM, error.to_string()))
    }
}

/// Calls every denied system call with arguments that can do nothing; gives their errnos.
#[doc(hidden)]
pub fn denied_errno() -> Vec<(&'static str, i32)> {
    let numbered = denied(POLICY).unwrap_or_default().into_iter();
    numbered.filter_map(|name| Some((name, sys::errno_of_denied(number(name)?)))).collect()
}

/// The names of a policy; an error names the line without a reason.
fn denied(policy: &str) -> Result<Vec<&str>, String> {
    let lines = policy.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| match line.split_once('#') {
            Some((name, reason)) if !reason.trim().is_empty() => Ok(name.trim()),
            _ => Err(format!("no reason: {line}")),
        })
        .collect()
}

fn compile_part(rules: &[(i64, Vec<SeccompRule>)]) -> Result<BpfProgram, String> {
    let arch = std::env::consts::ARCH.try_into().map_err(|_| "unknown architecture")?;
    let denial = SeccompAction::Errno(libc::EPERM as u32);
    let rules = rules.iter().cloned().collect();
    SeccompFilter::new(rules, SeccompAction::Allow, denial, arch)
        .and_then(BpfProgram::try_from)
        .map_err(|error| error.to_string())
}

/// ```text
/// load number; clone3 or x32 -> ENOSYS
/// number < first of part 1 -> part 0; < first of part 2 -> part 1; ...; else -> last part
/// part 0 | part 1 | ... each checks the architecture and answers
/// ```
fn assemble(parts: &[(i64, BpfProgram)]) -> BpfProgram {
    let (load, jump, equal, at_least, answer) = (0x20, 0x05, 0x15, 0x35, 0x06);
    let absent = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    // Both answers hold on any architecture, so they may come before it is checked.
    let mut program = vec![
        step(load, 0, 0, 0),
        // Its flags lie in memory, where no filter sees them; libc falls back to clone.
        step(equal, 2, 0, libc::SYS_clone3 as u32),
        step(at_least, 1, 0, X32_BIT),
        step(jump, 0, 0, 1),
        step(answer, 0, 0, absent),
    ];
    let table_end = program.len() + 2 * parts.len() - 1;
    let mut part_start = table_end;
    for (index, (_, part)) in parts.iter().enumerate() {
        if let Some((next_first, _)) = parts.get(index + 1) {
            program.push(step(at_least, 1, 0, *next_first as u32));
        }
        let offset = part_start - (program.len() + 1);
        program.push(step(jump, 0, 0, offset as u32));
        part_start += part.len();
    }
    program.extend(parts.iter().flat_map(|(_, part)| part.iter().cloned()));
    program
}

type Rules = Vec<(i64, Vec<SeccompRule>)>;

fn by_argument() -> Result<Rules, seccompiler::BackendError> {
    let bit = |flag: &i32| SeccompCmpOp::MaskedEq(*flag as u32 as u64);
    let clone = NAMESPACES
        .iter()
        .map(|flag| SeccompRule::new(vec![argument(0, bit(flag), *flag as u32 as u64)?]))
        .collect::<Result<Vec<_>, _>>()?;
    let unshare = NAMESPACES
        .iter()
        .chain([&CLONE_NEWTIME])
        .map(|flag| SeccompRule::new(vec![argument(0, bit(flag), *flag as u32 as u64)?]))
        .collect::<Result<Vec<_>, _>>()?;
    let terminal = TERMINAL_COMMANDS
        .iter()
        .map(|command| SeccompRule::new(vec![argument(1, SeccompCmpOp::Eq, *command)?]))
        .collect::<Result<Vec<_>, _>>()?;
    let personality = PERSONALITIES
        .iter()
        .map(|known| argument(0, SeccompCmpOp::Ne, u64::from(*known)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut rules = vec![
        (libc::SYS_clone, clone),
        (libc::SYS_unshare, unshare),
        (libc::SYS_ioctl, terminal),
        (libc::SYS_personality, vec![SeccompRule::new(personality)?]),
        (libc::SYS_socket, socket()?),
        (libc::SYS_mknodat, device(2)?),
    ];
    #[cfg(target_arch = "x86_64")]
    rules.push((libc::SYS_mknod, device(1)?));
    Ok(rules)
}

fn socket() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let family = SOCKET_FAMILIES
        .iter()
        .map(|known| argument(0, SeccompCmpOp::Ne, *known as u64))
        .collect::<Result<Vec<_>, _>>()?;
    // Of netlink only routing, by which programs list interfaces.
    let netlink = vec![
        argument(0, SeccompCmpOp::Eq, libc::AF_NETLINK as u64)?,
        argument(2, SeccompCmpOp::Ne, libc::NETLINK_ROUTE as u64)?,
    ];
    Ok(vec![SeccompRule::new(family)?, SeccompRule::new(netlink)?])
}

fn device(mode_index: u8) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    [libc::S_IFCHR, libc::S_IFBLK]
        .into_iter()
        .map(|kind| {
            let kind_bits = SeccompCmpOp::MaskedEq(u64::from(libc::S_IFMT));
            SeccompRule::new(vec![argument(mode_index, kind_bits, u64::from(kind))?])
        })
        .collect()
}

fn argument(
    index: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    // The kernel itself looks at the low 32 bits only of each argument judged here.
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
}

fn number(name: &str) -> Option<i64> {
    NUMBERS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The numbers of the calls that the policy may name.
const NUMBERS: &[(&str, i64)] = &[
    ("acct", libc::SYS_acct),
    ("add_key", libc::SYS_add_key),
    ("adjtimex", libc::SYS_adjtimex),
    ("bpf", libc::SYS_bpf),
    ("chroot", libc::SYS_chroot),
    ("clock_adjtime", libc::SYS_clock_adjtime),
    ("clock_settime", libc::SYS_clock_settime),
    ("delete_module", libc::SYS_delete_module),
    ("fanotify_init", libc::SYS_fanotify_init),
    ("finit_module", libc::SYS_finit_module),
    ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount),
    ("fsopen", libc::SYS_fsopen),
    ("fspick", libc::SYS_fspick),
    ("init_module", libc::SYS_init_module),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("ioperm", libc::SYS_ioperm),
    ("iopl", libc::SYS_iopl),
    ("kcmp", libc::SYS_kcmp),
    ("kexec_file_load", libc::SYS_kexec_file_load),
    ("kexec_load", libc::SYS_kexec_load),
    ("keyctl", libc::SYS_keyctl),
    ("lookup_dcookie", libc::SYS_lookup_dcookie),
    ("memfd_secret", libc::SYS_memfd_secret),
    ("migrate_pages", libc::SYS_migrate_pages),
    ("modify_ldt", libc::SYS_modify_ldt),
    ("mount", libc::SYS_mount),
    ("mount_setattr", libc::SYS_mount_setattr),
    ("move_mount", libc::SYS_move_mount),
    ("move_pages", libc::SYS_move_pages),
    ("name_to_handle_at", libc::SYS_name_to_handle_at),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("open_tree", libc::SYS_open_tree),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("pivot_root", libc::SYS_pivot_root),
    ("process_madvise", libc::SYS_process_madvise),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("ptrace", libc::SYS_ptrace),
    ("quotactl", libc::SYS_quotactl),
    ("quotactl_fd", libc::SYS_quotactl_fd),
    ("reboot", libc::SYS_reboot),
    ("request_key", libc::SYS_request_key),
    ("setdomainname", libc::SYS_setdomainname),
    ("sethostname", libc::SYS_sethostname),
    ("setns", libc::SYS_setns),
    ("settimeofday", libc::SYS_settimeofday),
    ("swapoff", libc::SYS_swapoff),
    ("swapon", libc::SYS_swapon),
    ("sysfs", libc::SYS_sysfs),
    ("syslog", libc::SYS_syslog),
    ("umount2", libc::SYS_umount2),
    ("uselib", libc::SYS_uselib),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("ustat", libc::SYS_ustat),
    ("vhangup", libc::SYS_vhangup),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_policy_names_a_known_call_once_and_gives_a_reason() {
        let names = denied(POLICY).unwrap();
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        assert_eq!(names.len(), NUMBERS.len());
        assert!(names.iter().all(|name| number(name).is_some()));
    }

    #[test]
    fn a_line_without_a_reason_is_refused() {
        for line in ["bpf", "bpf #", "bpf # "] {
            assert!(denied(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn the_filter_fits_what_the_kernel_takes() {
        assert!(Filter::compile().unwrap().0.len() <= 4096);
    }

    const NATIVE: u32 = 0xC000_003E;
    const I386: u32 = 0x4000_0003;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    /// Runs a filter as the kernel would; knows the instructions that filters are made of.
    fn judge(filter: &Filter, arch: u32, number: i64, arguments: [u64; 6]) -> u32 {
        let mut words = vec![number as u32, arch, 0, 0];
        words.extend(arguments.iter().flat_map(|a| [*a as u32, (*a >> 32) as u32]));
        let (mut at, mut value) = (0_usize, 0_u32);
        loop {
            let step = &filter.0[at];
            at += 1;
            let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
            match step.code {
                0x20 => value = words[step.k as usize / 4],
                0x54 => value &= step.k,
                0x05 => at += step.k as usize,
                0x15 => at += jump(value == step.k),
                0x25 => at += jump(value > step.k),
                0x35 => at += jump(value >= step.k),
                0x06 => return step.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn calls_are_judged_by_number_and_argument() {
        let filter = Filter::compile().unwrap();
        let thread = (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_THREAD) as u64;
        let user = libc::CLONE_NEWUSER as u64;
        let above = 1_u64 << 32;
        let (unix, vsock, netlink) = (libc::AF_UNIX as u64, 40, libc::AF_NETLINK as u64);
        let cases = [
            (libc::SYS_read, [0; 6], ALLOW),
            (libc::SYS_bpf, [0; 6], EPERM),
            (libc::SYS_clone3, [0; 6], ENOSYS),
            (libc::SYS_clone, [thread, 0, 0, 0, 0, 0], ALLOW),
            (libc::SYS_clone, [thread | user, 0, 0, 0, 0, 0], EPERM),
            (libc::SYS_clone, [user | above, 0, 0, 0, 0, 0], EPERM),
            (libc::SYS_unshare, [libc::CLONE_FILES as u64, 0, 0, 0, 0, 0], ALLOW),
            (libc::SYS_unshare, [0x80, 0, 0, 0, 0, 0], EPERM),
            (libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0, 0, 0], EPERM),
            (libc::SYS_ioctl, [0, libc::TIOCSTI | above, 0, 0, 0, 0], EPERM),
            (libc::SYS_ioctl, [0, libc::TCGETS, 0, 0, 0, 0], ALLOW),
            (libc::SYS_socket, [unix, 1, 0, 0, 0, 0], ALLOW),
            (libc::SYS_socket, [vsock, 1, 0, 0, 0, 0], EPERM),
            (libc::SYS_socket, [netlink, 3, 0, 0, 0, 0], ALLOW),
            (libc::SYS_socket, [netlink, 3, 9, 0, 0, 0], EPERM),
            (libc::SYS_personality, [0xFFFF_FFFF, 0, 0, 0, 0, 0], ALLOW),
            (libc::SYS_personality, [0x40_0000, 0, 0, 0, 0, 0], EPERM),
            (libc::SYS_mknod, [0, u64::from(libc::S_IFIFO), 0, 0, 0, 0], ALLOW),
            (libc::SYS_mknod, [0, u64::from(libc::S_IFBLK | 0o600), 0, 0, 0, 0], EPERM),
            (libc::SYS_mknodat, [0, 0, u64::from(libc::S_IFCHR), 0, 0, 0], EPERM),
        ];
        for (number, arguments, answer) in cases {
            let judged = judge(&filter, NATIVE, number, arguments);
            assert_eq!(judged, answer, "{number} {arguments:x?}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_foreign_calling_convention_gets_nowhere() {
        let filter = Filter::compile().unwrap();
        let x32 = i64::from(X32_BIT);
        assert_eq!(judge(&filter, NATIVE, x32 | libc::SYS_read, [0; 6]), ENOSYS);
        assert_eq!(judge(&filter, NATIVE, x32 | libc::SYS_bpf, [0; 6]), ENOSYS);
        let killed = libc::SECCOMP_RET_KILL_PROCESS;
        assert_eq!(judge(&filter, I386, 3, [0; 6]), killed);
    }
}
