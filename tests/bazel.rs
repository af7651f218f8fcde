//! Debian's Bazel 4.2.3 builds and tests the workspace in tests/bazel through a node: as a cache,
//! then as the only place where actions may run. What ran where is read from Bazel's own log of
//! spawns. Must never build in the checked-in workspace, nor need a network.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ringforge_tests::{Node, servers::Server};
use serde_json::Value;
use tempfile::TempDir;

/// With fewer C++ targets than this the test would prove little.
const CPP_TARGETS_MIN: usize = 60;

/// A Bazel command that takes longer than this many seconds hangs, and is ended.
const COMMAND_SECONDS_MAX: u32 = 300;

/// How much of Bazel's output is shown when it fails.
const LINES_SHOWN_MAX: usize = 80;

/// What a spawn's runner is called in Bazel's log.
const HIT: &str = "remote cache hit";
const LOCAL: &str = "local";
const REMOTE: &str = "remote";

/// The source that is edited, and the edit: other machine code, the same behaviour.
const EDITED: &str = "text/split.cc";
const EDIT: (&str, &str) = ("text + \" \"", "text + \"\\n\"");

/// Leaves outputs on the node, so that new actions read files which Bazel never had. This Bazel
/// can't do that with outputs that are symlinks, which //assets has.
const OUTPUTS_STAY: [&str; 4] =
    ["//grid/...", "//text/...", "//tools/...", "--remote_download_minimal"];

#[test]
fn real_bazel_runs_each_action_once_on_the_node_and_finds_all_of_them_again() {
    if let Err(missing) = prerequisites() {
        let unprivileged = std::env::var("RINGFORGE_TEST_UNPRIVILEGED").is_ok_and(|set| set == "1");
        assert!(unprivileged, "{missing}");
        say(&format!("SKIPPED the Bazel test: {missing}"));
        return;
    }
    let bazel = Bazel::new();
    let targets = bazel.query("kind('cc_(library|binary|test) rule', //...)").lines().count();
    assert!(targets >= CPP_TARGETS_MIN, "only {targets} C++ targets");
    say(&format!("workspace: {targets} C++ targets"));

    let local = cache_only(&bazel);
    before_s3(&bazel, &local);
    let remote = executed(&bazel, &local);
    say(&format!("proven: each of {remote} actions ran on the node, none fell back to Bazel"));
}

/// A node used as a cache: what one clean build puts there, the next one finds. Answers that
/// first build, whose actions ran on this machine.
fn cache_only(bazel: &Bazel) -> Build {
    let store = TempDir::new().unwrap();
    let node = Node::start(store.path());
    let target = Target { config: "cache", flag: format!("--remote_cache={}", url(&node)) };
    let first = bazel.test("cache, empty", &target, &["//..."]);
    first.expect(&[(LOCAL, first.spawns.len())]);
    bazel.clean();
    let again = bazel.test("cache, after clean", &target, &["//..."]);
    again.expect(&[(HIT, first.spawns.len())]);
    assert_eq!(again.products(), first.products(), "the cache gave back other files");
    node.stop();
    first
}

/// Two nodes, one after the other, before an S3 server: what a build leaves at the first, the
/// second finds below.
fn before_s3(bazel: &Bazel, local: &Build) {
    let s3 = Server::s3();
    let settings = s3.s3_settings();
    let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    for (what, from) in [("before S3, empty", LOCAL), ("before S3, a fresh node", HIT)] {
        let store = TempDir::new().unwrap();
        let node = Node::start_with(store.path(), &settings);
        let target = Target { config: "cache", flag: format!("--remote_cache={}", url(&node)) };
        bazel.clean();
        let build = bazel.test(what, &target, &["//..."]);
        build.expect(&[(from, local.spawns.len())]);
        assert_eq!(build.products(), local.products(), "{what}: other files");
        node.stop();
    }
}

/// A fresh node that runs everything, is restarted, and sees one source change and change back.
/// Answers how many actions the first build ran there.
fn executed(bazel: &Bazel, local: &Build) -> usize {
    let store = TempDir::new().unwrap();
    let node = Node::start(store.path());
    let target = execute_on(&node);
    bazel.clean();
    let first = bazel.test("execute, fresh node", &target, &["//..."]);
    let all = first.spawns.len();
    assert_eq!(all, local.spawns.len(), "remote and local builds differ in their actions");
    first.expect(&[(REMOTE, all)]);
    assert_eq!(first.products(), local.products(), "the node's actions made other files");
    bazel.expect_symlinks();

    bazel.clean();
    let again = bazel.test("execute, after clean", &target, &["//..."]);
    again.expect(&[(HIT, all)]);
    assert_eq!(again.products(), first.products(), "a hit gave back other files");

    bazel.clean();
    let rerun = ["//assets/...", "//text/...", "--noremote_accept_cached"];
    let rerun = bazel.test("execute, hits refused", &target, &rerun);
    rerun.expect(&[(REMOTE, rerun.spawns.len())]);
    let known = first.products();
    for (path, digest) in rerun.products() {
        assert_eq!(known.get(&path), Some(&digest), "{path} came out different the second time");
    }

    node.stop();
    let node = Node::start(store.path());
    let target = execute_on(&node);
    bazel.clean();
    bazel.test("execute, node restarted", &target, &["//..."]).expect(&[(HIT, all)]);

    one_source_changes(bazel, &target, &first);
    node.stop();
    bazel.clean();
    let orphan = bazel.run(&["build", "//tools:checksum", "--config=execute", &target.flag]);
    assert!(!orphan.status.success(), "Bazel built without the node: it can fall back");
    all
}

/// After an edit exactly the dependants of the source run, though Bazel has forgotten everything;
/// after the edit is undone the node still has what they made before.
fn one_source_changes(bazel: &Bazel, target: &Target, first: &Build) {
    let dependants = first.dependants(EDITED);
    let label = EDITED.replace('/', ":");
    let tests = bazel.query(&format!("kind(test, rdeps(//..., //{label}))"));
    assert_eq!(tests_among(&dependants), tests.lines().map(str::to_owned).collect());
    bazel.edit(EDITED, EDIT.0, EDIT.1);
    bazel.clean();
    let edited = bazel.test("execute, source edited", target, &OUTPUTS_STAY);
    let untouched = edited.spawns.len() - dependants.len();
    edited.expect(&[(REMOTE, dependants.len()), (HIT, untouched)]);
    assert_eq!(edited.ran(REMOTE), dependants, "not the dependants of {EDITED} ran");

    bazel.edit(EDITED, EDIT.1, EDIT.0);
    let undone = bazel.test("execute, edit undone", target, &OUTPUTS_STAY);
    undone.expect(&[(HIT, dependants.len())]);
    assert_eq!(undone.ran(HIT), dependants, "not the dependants of {EDITED} were asked for");
}

/// The labels of the tests among named spawns: `…/testlogs/PACKAGE/TEST/OUTPUT`.
fn tests_among(spawns: &BTreeSet<String>) -> BTreeSet<String> {
    let logs = spawns.iter().filter_map(|name| name.split_once("/testlogs/"));
    let places = logs.filter_map(|(_, place)| place.rsplit_once('/').map(|(test, _)| test));
    places.map(|place| format!("//{}", place.replace('/', ":"))).collect()
}

/// Past the capture of the test harness: what was proven, or skipped, is always seen.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// One line about what this machine lacks.
fn prerequisites() -> Result<(), String> {
    for path in ["/usr/bin/bazel", "/usr/share/bazel/rules/java", "/usr/share/bazel/rules/proto"] {
        if !Path::new(path).exists() {
            return Err(format!("{path} is missing: run scripts/install-bazel"));
        }
    }
    if fs::metadata("/proc/self").is_ok_and(|owner| owner.uid() != 0) {
        return Err("the Bazel test needs root, for the sandbox of the node".to_owned());
    }
    Ok(())
}

fn url(node: &Node) -> String {
    format!("grpc://127.0.0.1:{}", node.port())
}

fn execute_on(node: &Node) -> Target {
    Target { config: "execute", flag: format!("--remote_executor={}", url(node)) }
}

/// Which flags of .bazelrc hold, and the node's address as a flag.
struct Target {
    config: &'static str,
    flag: String,
}

/// One Bazel server with a copy of the workspace and an output root of its own, all of it gone
/// when this is dropped.
struct Bazel {
    directory: TempDir,
    builds: Cell<u32>,
}

impl Bazel {
    fn new() -> Bazel {
        let directory = TempDir::new().unwrap();
        let checked_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bazel");
        copy_tree(&checked_in, &directory.path().join("workspace"));
        Bazel { directory, builds: Cell::new(0) }
    }

    fn workspace(&self) -> PathBuf {
        self.directory.path().join("workspace")
    }

    /// Runs one command in the workspace, with nothing of this process's environment.
    fn run(&self, arguments: &[&str]) -> Output {
        Command::new("timeout")
            .args(["--kill-after=10", &COMMAND_SECONDS_MAX.to_string()])
            .args(["bazel", "--nohome_rc"])
            .arg(format!("--output_user_root={}", self.directory.path().join("root").display()))
            .args(arguments)
            .current_dir(self.workspace())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.directory.path())
            .output()
            .expect("timeout(1) is part of coreutils")
    }

    /// As `run`, but a failure ends the test with the end of what Bazel said.
    fn succeed(&self, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        if !output.status.success() {
            let text = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
            let lines: Vec<&str> = text.iter().flat_map(|said| said.lines()).collect();
            let shown = lines[lines.len().saturating_sub(LINES_SHOWN_MAX)..].join("\n");
            panic!("bazel {arguments:?}: {}\n{shown}", output.status);
        }
        output
    }

    fn query(&self, expression: &str) -> String {
        String::from_utf8(self.succeed(&["query", expression]).stdout).unwrap()
    }

    /// Forgets all outputs and the local action cache.
    fn clean(&self) {
        self.succeed(&["clean"]);
    }

    /// Builds and tests; answers what Bazel's log says of it.
    fn test(&self, phase: &str, target: &Target, extra: &[&str]) -> Build {
        self.builds.set(self.builds.get() + 1);
        let log = self.directory.path().join(format!("spawns-{}.json", self.builds.get()));
        let config = format!("--config={}", target.config);
        let log_flag = format!("--execution_log_json_file={}", log.display());
        let output = self.succeed(&[&["test", &config, &target.flag, &log_flag], extra].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let processes = said.lines().find(|line| line.contains(" process")).unwrap_or_default();
        let elapsed = said.lines().find(|line| line.contains("Elapsed time")).unwrap_or_default();
        say(&format!("{phase}: {processes} {elapsed}"));
        Build::read(phase, &log, processes)
    }

    /// Replaces a piece of a source of the copy.
    fn edit(&self, source: &str, from: &str, to: &str) {
        let path = self.workspace().join(source);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{source} does not have {from:?} once");
        fs::write(&path, text.replace(from, to)).unwrap();
    }

    /// Symlinks that an action made are symlinks here, not copies.
    fn expect_symlinks(&self) {
        let outputs = self.workspace().join("bazel-bin/assets");
        let link = fs::read_link(outputs.join("pair.link")).expect("an output that is a symlink");
        assert_eq!(link, Path::new("pair.txt"));
        let first = outputs.join("pages/first");
        let link = fs::read_link(first).expect("a symlink in an output directory");
        assert_eq!(link, Path::new("chapter-1/section-1/page-1.txt"));
    }
}

impl Drop for Bazel {
    /// Also after a panic: the server must not outlive its directory.
    fn drop(&mut self) {
        self.run(&["shutdown"]);
    }
}

/// One action that Bazel had executed, or found, by the name of the first output it may have.
struct Spawn {
    name: String,
    runner: String,
    inputs: BTreeSet<String>,
    outputs: BTreeMap<String, String>,
}

/// What one `bazel test` did.
struct Build {
    phase: String,
    spawns: Vec<Spawn>,
}

impl Build {
    /// Reads the log of spawns and checks it against the line that Bazel prints at the end.
    fn read(phase: &str, log: &Path, processes: &str) -> Build {
        let text = fs::read_to_string(log).unwrap();
        let spawns: Vec<Spawn> = serde_json::Deserializer::from_str(&text)
            .into_iter::<Value>()
            .map(|entry| spawn(&entry.expect("Bazel's log is JSON")))
            .collect();
        let build = Build { phase: phase.to_owned(), spawns };
        let printed = printed_counts(processes);
        assert_eq!(build.counts(), printed, "{phase}: log and {processes:?} differ");
        build
    }

    /// How many spawns each runner had.
    fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for spawn in &self.spawns {
            *counts.entry(spawn.runner.clone()).or_default() += 1;
        }
        counts
    }

    /// These runners had so many spawns each, and no other runner had any.
    fn expect(&self, runners: &[(&str, usize)]) {
        let expected = runners.iter().map(|(runner, count)| ((*runner).to_owned(), *count));
        assert_eq!(self.counts(), expected.collect(), "{}", self.phase);
    }

    /// Path and digest of every output but the logs of tests, which tell the time.
    fn products(&self) -> BTreeMap<String, String> {
        let outputs = self.spawns.iter().flat_map(|spawn| spawn.outputs.clone());
        outputs.filter(|(path, _)| !path.contains("/testlogs/")).collect()
    }

    /// The names of the spawns of one runner.
    fn ran(&self, runner: &str) -> BTreeSet<String> {
        let ran = self.spawns.iter().filter(|spawn| spawn.runner == runner);
        ran.map(|spawn| spawn.name.clone()).collect()
    }

    /// The spawns that a changed source reaches. Followed by digest, because Bazel itself makes
    /// symlinks between outputs, of which this log does not tell.
    fn dependants(&self, source: &str) -> BTreeSet<String> {
        let mark = |input: &&String| input.starts_with(&format!("{source} "));
        let of_source = self.spawns.iter().find_map(|spawn| spawn.inputs.iter().find(mark));
        let digest = |input: &str| input.rsplit(' ').next().unwrap_or_default().to_owned();
        let mut changed = BTreeSet::from([digest(of_source.expect("the source is an input"))]);
        let mut reached = BTreeSet::new();
        loop {
            let before = reached.len();
            for spawn in &self.spawns {
                if spawn.inputs.iter().any(|input| changed.contains(&digest(input))) {
                    reached.insert(spawn.name.clone());
                    changed.extend(spawn.outputs.values().cloned());
                }
            }
            if reached.len() == before {
                return reached;
            }
        }
    }
}

/// One entry of the log.
fn spawn(entry: &Value) -> Spawn {
    let files = |field: &str| -> Vec<(String, String)> {
        let listed = entry[field].as_array().into_iter().flatten();
        listed.map(|file| (text(&file["path"]), text(&file["digest"]["hash"]))).collect()
    };
    let listed = entry["listedOutputs"].as_array().into_iter().flatten();
    Spawn {
        name: listed.map(text).min().unwrap_or_default(),
        runner: text(&entry["runner"]),
        inputs: files("inputs").iter().map(|(path, digest)| format!("{path} {digest}")).collect(),
        outputs: files("actualOutputs").into_iter().collect(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// `INFO: 7 processes: 2 internal, 5 remote.` without the internal ones.
fn printed_counts(line: &str) -> BTreeMap<String, usize> {
    let (_, list) = line.split_once(": ").and_then(|(_, rest)| rest.split_once(": ")).unwrap();
    let counted = list.trim_end_matches('.').split(", ").filter_map(|part| part.split_once(' '));
    let named = counted.map(|(count, runner)| (runner.to_owned(), count.parse().unwrap()));
    named.filter(|(runner, _)| runner != "internal").collect()
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
