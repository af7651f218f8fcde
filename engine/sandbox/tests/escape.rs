//! What an action must not be able to do, tried for real. Each attempt must see a named errno, or
//! leave no trace. Never skips by itself: without root, set SANDBOX_TESTS_WITHOUT_ROOT.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use sandbox::{Ended, Mount, Step};
use support::{Scene, is_root, lines, processes_of, spawner};

const EXIT_BY_SIGXFSZ: i32 = 128 + 25;
const EAGAIN: i32 = 11;
const ENOSPC: i32 = 28;

fn attempts(scene: &Scene, port: u16) -> BTreeMap<String, String> {
    let output = scene.run(&["./probe", "attempts", &port.to_string()]);
    assert_eq!(output.exit_code(), 0, "{output:?}");
    let pairs = output.stdout.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(name, answer)| (name.to_owned(), answer.to_owned())).collect()
}

fn check(scene: &Scene, expected: &[(&str, &str)]) {
    let seen = attempts(scene, 9);
    let wrong: Vec<_> = expected
        .iter()
        .filter(|(name, answer)| seen.get(*name).map(String::as_str) != Some(*answer))
        .map(|(name, answer)| format!("{name}: wanted {answer}, saw {:?}", seen.get(*name)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_hard_linked_input_cannot_be_changed() {
    let scene = Scene::new();
    if !is_root() {
        return; // One user only: the node copies inputs then, see README.md.
    }
    let original = scene.stored_input();
    let before = fs::metadata(&original).unwrap();
    check(
        &scene,
        &[
            ("write-input", "EACCES"),
            ("append-input", "EACCES"),
            ("truncate-open-input", "EACCES"),
            ("truncate-input", "EACCES"),
            ("chmod-input", "EPERM"),
            ("chown-input", "EPERM"),
            ("utimes-input", "EPERM"),
            ("xattr-input", "EACCES"),
            ("reopen-input", "EACCES"),
        ],
    );
    let after = fs::metadata(&original).unwrap();
    assert_eq!(fs::read(&original).unwrap(), support::INPUT);
    assert_eq!(
        (before.mode(), before.uid(), before.mtime(), before.mtime_nsec(), before.size()),
        (after.mode(), after.uid(), after.mtime(), after.mtime_nsec(), after.size())
    );
}

#[test]
fn the_host_cannot_be_seen_or_written() {
    let scene = Scene::new();
    check(
        &scene,
        &[
            ("read-shadow", "ENOENT"),
            ("list-root-home", "ENOENT"),
            ("list-home", "ENOENT"),
            ("list-sys", "ENOENT"),
            ("list-run", "ENOENT"),
            ("climb", "ENOENT"),
            ("climb-by-link", "EACCES"),
            ("make-in-root", "EROFS"),
            ("make-in-etc", "EROFS"),
            ("make-in-toolchain", "EROFS"),
            ("kcore-bytes", "0"),
        ],
    );
    let outside = scene.directory().to_str().unwrap().to_owned();
    let output = scene.run(&["ls", &outside]);
    assert_eq!(output.exit_code(), 2, "{output:?}");
}

#[test]
fn the_kernels_settings_cannot_be_written() {
    check(
        &Scene::new(),
        &[
            ("write-core-pattern", "EACCES"),
            ("write-hostname", "EACCES"),
            ("proc-sys-read-only", "true"),
            ("write-own-user-map", "EACCES"),
        ],
    );
}

#[test]
fn its_own_places_can_be_written() {
    check(
        &Scene::new(),
        &[
            ("write-exec-root", "ok"),
            ("write-tmp", "ok"),
            ("write-var-tmp", "ok"),
            ("write-shm", "ok"),
            ("write-null", "ok"),
            ("mknod-fifo", "ok"),
        ],
    );
}

#[test]
fn its_init_cannot_be_touched() {
    check(
        &Scene::new(),
        &[
            ("kill-init", "EPERM"),
            ("ptrace-init", "EPERM"),
            ("read-init-environment", "EACCES"),
            ("open-init-memory", "EACCES"),
            ("list-init-descriptors", "EACCES"),
            ("enter-init-root", "EACCES"),
        ],
    );
}

#[test]
fn namespaces_and_mounts_cannot_be_changed() {
    let names = [
        "unshare-user",
        "unshare-mount",
        "unshare-network",
        "unshare-pid",
        "setns",
        "mount",
        "remount-writable",
        "umount",
        "chroot",
        "pivot-root",
    ];
    check(&Scene::new(), &names.map(|name| (name, "EPERM")));
}

#[test]
fn devices_cannot_be_made_or_reached() {
    check(
        &Scene::new(),
        &[
            ("mknod-character", "EPERM"),
            ("mknod-block", "EPERM"),
            ("open-kvm", "ENOENT"),
            ("open-mem", "ENOENT"),
            ("open-fuse", "ENOENT"),
            ("open-tty", "ENOENT"),
            ("open-ptmx", "ENOENT"),
            ("open-loop-control", "ENOENT"),
        ],
    );
}

#[test]
fn the_network_is_loopback_of_its_own() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = attempts(&Scene::new(), port);
    let expected = [
        ("raw-socket", "EPERM"),
        ("packet-socket", "EPERM"),
        ("algorithm-socket", "EPERM"),
        ("vsock-socket", "EPERM"),
        ("netlink-route", "ok"),
        ("netlink-audit", "EPERM"),
        ("connect-host", "ECONNREFUSED"),
        ("connect-outside", "ENETUNREACH"),
        ("loopback", "ok"),
        ("interfaces", "1"),
        ("routes", "0"),
    ];
    for (name, answer) in expected {
        assert_eq!(seen.get(name).map(String::as_str), Some(answer), "{name}");
    }
}

#[test]
fn an_action_with_network_has_the_hosts_and_no_more_rank() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut scene = Scene::new();
    scene.spec.network = true;
    let seen = attempts(&scene, listener.local_addr().unwrap().port());
    let expected = [("connect-host", "ok"), ("raw-socket", "EPERM"), ("packet-socket", "EPERM")];
    for (name, answer) in expected {
        assert_eq!(seen.get(name).map(String::as_str), Some(answer), "{name}");
    }
}

#[test]
fn no_rank_is_held_and_none_can_be_gained() {
    let none = "0000000000000000";
    check(
        &Scene::new(),
        &[
            ("setuid-0", "EINVAL"),
            ("setgid-0", "EINVAL"),
            ("setgroups", "EPERM"),
            ("personality", "EPERM"),
            ("Uid", "1000 1000 1000 1000"),
            ("Gid", "1000 1000 1000 1000"),
            ("CapInh", none),
            ("CapPrm", none),
            ("CapEff", none),
            ("CapBnd", none),
            ("CapAmb", none),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
        ],
    );
}

#[test]
fn a_set_user_id_program_runs_as_the_action() {
    let scene = Scene::new();
    let program = scene.root().join("raised");
    fs::copy("/usr/bin/id", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
    assert_eq!(scene.run(&["./raised", "-u"]).stdout, "1000\n");
}

#[test]
fn every_call_of_the_policy_answers_eperm() {
    let output = Scene::new().run(&["./probe", "denied"]);
    assert!(lines(&output.stdout).len() > 50, "{output:?}");
    for line in lines(&output.stdout) {
        assert!(line.ends_with(" 1"), "{line}");
    }
}

#[test]
fn only_the_three_standard_descriptors_are_open() {
    assert_eq!(Scene::new().run(&["./probe", "descriptors"]).stdout, "[0, 1, 2]\n");
}

#[test]
fn the_environment_is_the_declared_one_and_a_path() {
    let mut scene = Scene::new();
    scene.spec.environment = vec![("A".to_owned(), "1 2".to_owned())];
    let output = scene.run(&["./probe", "environment"]);
    assert_eq!(output.stdout, "A=1 2\nPATH=/usr/local/bin:/usr/bin:/bin\n");
}

#[test]
fn only_its_own_processes_are_seen() {
    assert_eq!(Scene::new().run(&["./probe", "processes"]).stdout, "[1, 2] self 2\n");
}

#[test]
fn a_daemon_is_dead_when_the_wait_returns() {
    let scene = Scene::new();
    let output = scene.run(&["./probe", "daemon"]);
    assert_eq!(output.exit_code(), 0, "{output:?}");
    assert_eq!(processes_of(&scene), 0);
}

#[test]
fn the_deadline_kills_the_whole_tree() {
    let scene = Scene::new();
    let output = scene.run_for(&["./probe", "tree"], Some(Duration::from_millis(300)), None);
    assert_eq!(output.ended, Ended::TimedOut);
    assert_eq!(processes_of(&scene), 0);
}

#[test]
fn a_cancelled_action_is_dead_when_the_wait_returns() {
    let scene = Scene::new();
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"x").unwrap();
    let output = scene.run_for(&["./probe", "tree"], None, Some(reader.as_fd()));
    assert_eq!(output.ended, Ended::Cancelled);
    assert_eq!(processes_of(&scene), 0);
}

#[test]
fn a_fork_bomb_is_bounded() {
    let mut scene = Scene::new();
    scene.spec.limits.processes_max = 20;
    let output = scene.run(&["./probe", "bomb"]);
    let (count, errno) = output.stdout.trim().split_once(' ').unwrap();
    assert_eq!(errno.parse::<i32>().unwrap(), EAGAIN, "{output:?}");
    assert!(count.parse::<u64>().unwrap() <= 20, "{output:?}");
    assert_eq!(processes_of(&scene), 0);
}

#[test]
fn output_is_bounded() {
    let mut scene = Scene::new();
    scene.spec.limits.file_bytes_max = 1 << 20;
    let output = scene.run(&["sh", "-c", "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxx; done"]);
    assert_eq!(output.exit_code(), EXIT_BY_SIGXFSZ);
    assert_eq!(output.stdout.len(), 1 << 20);
}

#[test]
fn scratch_space_is_bounded() {
    let mut scene = Scene::new();
    scene.spec.limits.tmp_bytes_max = 4 << 20;
    for directory in ["/tmp", "/var/tmp", "/dev/shm"] {
        let output = scene.run(&["./probe", "fill", &format!("{directory}/big")]);
        let (bytes, errno) = output.stdout.trim().split_once(' ').unwrap();
        assert_eq!(errno.parse::<i32>().unwrap(), ENOSPC, "{output:?}");
        assert!(bytes.parse::<u64>().unwrap() <= 6 << 20, "{output:?}");
    }
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    let cases: [(&[&str], i32); 8] = [
        (&["true"], 0),
        (&["false"], 1),
        (&["sh", "-c", "exit 7"], 7),
        (&["no-such-program"], 127),
        (&["./no-such-program"], 127),
        (&["./input"], 126),
        (&["sh", "-c", "kill -KILL $$"], 137),
        // Ignored in a Rust program, which an action must not inherit.
        (&["sh", "-c", "kill -PIPE $$"], 141),
    ];
    let scene = Scene::new();
    for (arguments, code) in cases {
        let output = scene.run(arguments);
        assert_eq!(output.exit_code(), code, "{arguments:?} {output:?}");
    }
    let output = scene.run(&["no-such-program"]);
    assert_eq!(lines(&output.stderr).len(), 1, "{output:?}");
    assert!(output.stderr.contains("no-such-program"), "{output:?}");
}

#[test]
fn the_working_directory_is_honoured() {
    let mut scene = Scene::new();
    fs::create_dir_all(scene.root().join("a/b")).unwrap();
    scene.spec.working_directory = "a/b".to_owned();
    assert_eq!(scene.run(&["pwd"]).stdout, "/exec/a/b\n");
    scene.spec.working_directory = "a/missing".to_owned();
    match scene.run(&["pwd"]).ended {
        Ended::Failed(failure) => {
            assert_eq!((failure.step, failure.errno), (Step::WorkingDirectory, 2))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stream_can_be_opened_anew_by_its_device_name() {
    let output = Scene::new().run(&["sh", "-c", "echo out >>/dev/stdout; echo err >>/dev/stderr"]);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn an_action_dies_first_when_memory_runs_out() {
    assert_eq!(Scene::new().run(&["cat", "/proc/self/oom_score_adj"]).stdout, "900\n");
}

#[test]
fn standard_input_is_empty_and_the_umask_is_fixed() {
    assert_eq!(Scene::new().run(&["sh", "-c", "cat; umask"]).stdout, "0022\n");
}

#[test]
fn a_missing_mount_fails_unless_it_is_optional() {
    let mut scene = Scene::new();
    let source = "/no/such/toolchain".into();
    scene.spec.mounts.push(Mount { source, optional: true });
    assert_eq!(scene.run(&["true"]).exit_code(), 0);
    scene.spec.mounts.last_mut().unwrap().optional = false;
    match scene.run(&["true"]).ended {
        Ended::Failed(failure) => {
            assert_eq!((failure.step, failure.errno), (Step::OpenSources, 2));
            assert_eq!(failure.subject, "/no/such/toolchain");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn dropping_the_spawner_ends_its_actions() {
    let scene = Scene::new();
    let own = support::new_spawner();
    let null = fs::File::options().write(true).open("/dev/null").unwrap();
    let spec = scene.spec_of(&["./probe", "sleep"]);
    let mut child = own.spawn(&spec, null.as_fd(), null.as_fd()).unwrap();
    drop(own);
    assert!(
        matches!(child.wait(None, None).unwrap(), Ended::Failed(f) if f.step == Step::Vanished)
    );
    assert_eq!(processes_of(&scene), 0);
}

#[test]
fn many_actions_at_once_leave_nothing_behind() {
    const WORKERS: usize = 4;
    const ACTIONS_OF_EACH: usize = 10;
    let before = support::descriptors_of_spawner();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            scope.spawn(move || {
                let scene = Scene::new();
                for action in 0..ACTIONS_OF_EACH {
                    let text = format!("{worker} {action}");
                    assert_eq!(scene.run(&["echo", &text]).stdout, format!("{text}\n"));
                    assert_eq!(processes_of(&scene), 0);
                }
            });
        }
    });
    // Other tests run beside this one, so a few may be in flight; a leak would be one an action.
    assert!(support::descriptors_of_spawner() < before + WORKERS * ACTIONS_OF_EACH);
}

#[test]
fn the_report_counts_what_was_used() {
    let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    match Scene::new().run(&["sh", "-c", script]).ended {
        Ended::Exited(report) => {
            assert!(report.user_microseconds > 0, "{report:?}");
            assert!(report.memory_bytes_max > 100_000, "{report:?}");
            assert!(report.ended_unix_nanoseconds > report.started_unix_nanoseconds, "{report:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_probe_of_the_start_finds_the_sandbox_fit() {
    let scene = Scene::new();
    let spec = &scene.spec;
    let mounts = spec.mounts.clone();
    sandbox::probe(spawner(), scene.directory(), spec.uid, spec.gid, mounts).unwrap();
    assert!(sandbox::landlock_abi().is_some());
    assert!(sandbox::user_namespaces_max().is_none_or(|count| count > 0));
}
