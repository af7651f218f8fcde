//! Debian's Bazel builds through one node of three while another one dies. Must never build in the
//! checked-in workspace, nor need a network.

use ringforge_tests::{
    cluster::{Cluster, until_spread},
    is_root,
};
use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// Actions of the build.
const ACTIONS: usize = 40;
/// A Bazel command that takes longer than this many seconds hangs, and is ended.
const COMMAND_SECONDS_MAX: &str = "240";
/// What the checked-in workspace takes from the machine.
const RULES: [&str; 2] = ["/usr/share/bazel/rules/java", "/usr/share/bazel/rules/proto"];

fn bazel(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", COMMAND_SECONDS_MAX, "bazel", "--nohome_rc"]);
    command.arg(format!("--output_user_root={}", directory.join("root").display()));
    command.args(arguments).current_dir(directory.join("workspace")).stdin(Stdio::null());
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", directory);
    command
}

/// The checked-in workspace without its packages, and one package of many actions.
fn lay_out(workspace: &Path) {
    let checked_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bazel");
    fs::create_dir_all(workspace.join("many")).unwrap();
    for name in ["WORKSPACE", ".bazelrc", "BUILD"] {
        fs::copy(checked_in.join(name), workspace.join(name)).unwrap();
    }
    let copied = Command::new("cp").arg("-r").arg(checked_in.join("deps")).arg(workspace).status();
    assert!(copied.unwrap().success());
    let mut rules = String::new();
    for number in 0..ACTIONS {
        let command = format!("sleep 0.3; cat $< > $@; echo {number} >> $@");
        let (name, out) = (format!("rule-{number}"), format!("out-{number}"));
        writeln!(
            rules,
            "genrule(name = {name:?}, srcs = [\"in\"], outs = [{out:?}], cmd = {command:?})"
        )
        .unwrap();
    }
    fs::write(workspace.join("many/BUILD"), rules).unwrap();
    fs::write(workspace.join("many/in"), "what all are given\n").unwrap();
}

/// Ends Bazel's server, which must not outlive its directory.
struct Shutdown<'a>(&'a Path);

impl Drop for Shutdown<'_> {
    fn drop(&mut self) {
        // Where it never started there is nothing to end.
        let _ = bazel(self.0, &["shutdown"]).output();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_does_not_notice_that_a_node_dies() {
    if !is_root("a_build_does_not_notice_that_a_node_dies") {
        return;
    }
    if RULES.iter().chain(&["/usr/bin/bazel"]).any(|path| !Path::new(path).exists()) {
        let skip = std::env::var("RINGFORGE_TEST_UNPRIVILEGED").is_ok_and(|said| said == "1");
        assert!(skip, "Bazel is missing: run scripts/install-bazel");
        println!("SKIPPED a_build_does_not_notice_that_a_node_dies: needs Bazel");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    lay_out(&directory.path().join("workspace"));
    let _shutdown = Shutdown(directory.path());
    let mut cluster = Cluster::start(3, &[]);
    until_spread(&cluster.client(1), 3).await;
    let executor = format!("--remote_executor=grpc://{}", cluster.node(1).address());
    let arguments = ["build", "--config=execute", &executor, "//many/..."];
    let mut build = bazel(directory.path(), &arguments);
    let mut build = build.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    for i in 1..=3 {
        cluster.until_works(i).await;
    }
    cluster.kill(2);
    assert!(build.try_wait().unwrap().is_none(), "the build was over before the node died");
    let output = build.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{}", output.status, cluster.node(1).log());
    let counted = said.lines().find(|line| line.contains(" processes: ")).unwrap_or_default();
    assert!(counted.ends_with(&format!(": 1 internal, {ACTIONS} remote.")), "{said}");
    for number in 0..ACTIONS {
        let out = directory.path().join(format!("workspace/bazel-bin/many/out-{number}"));
        let text = fs::read_to_string(out).unwrap();
        assert_eq!(text, format!("what all are given\n{number}\n"));
    }
}
