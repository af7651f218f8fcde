//! The configuration from outside: what `ringforge config print` says about files, environment and
//! defaults, and what it refuses. Must never start a node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `ringforge config print` in `directory`, with these variables of ours and no others.
fn print(directory: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(ringforge_tests::binary());
    command.args(["config", "print"]).args(arguments).current_dir(directory);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RINGFORGE__") {
            command.env_remove(name);
        }
    }
    command.envs(env.iter().copied()).output().expect("the program runs")
}

fn printed(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// The values of a printed configuration, without their origins.
fn values(printed: &str) -> Value {
    serde_saphyr::from_str(printed).expect("what is printed is YAML")
}

/// Asserts that the line of `key` says `value` and names `origin`.
fn assert_line(printed: &str, key: &str, value: &str, origin: &str) {
    let key = format!("{key}:");
    let line = printed
        .lines()
        .find(|line| line.trim_start().starts_with(&key))
        .expect("the key is printed");
    let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words, format!("{key} {value} # {origin}"));
}

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn with(name: &str, text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join(name), text).expect("a file");
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }
}

#[test]
fn without_a_file_every_setting_is_the_documented_default() {
    // A file of the usual name is not picked up.
    let files = Files::with("config.yaml", "log: {level: trace}\n");
    let printed = printed(&print(&files.path(), &[], &[]));
    let documented = fs::read_to_string(repository().join("config.yaml")).unwrap();
    assert_eq!(values(&printed), values(&documented));
    let is_default = |line: &str| line.ends_with(':') || line.ends_with("# default");
    assert!(printed.lines().all(is_default), "{printed}");
}

#[test]
fn config_yaml_is_equal_to_the_defaults() {
    let output = print(repository(), &["--config", "config.yaml"], &[]);
    let printed_with = printed(&output);
    let printed_without = printed(&print(repository(), &[], &[]));
    assert_eq!(values(&printed_with), values(&printed_without));
    assert!(!printed_with.contains("# default"), "{printed_with}");
}

#[test]
fn environment_wins_over_file_and_file_over_default() {
    let text = "store:\n  lease: 1m\n  durability: sync\n";
    let files = Files::with("node.yaml", text);
    let env = [
        ("RINGFORGE__STORE__LEASE", "2m"),
        ("RINGFORGE__SERVER__INSTANCES", "main, release"),
        ("RINGFORGE_PORT", "tcp://10.0.0.1:8980"),
    ];
    let printed = printed(&print(&files.path(), &["--config", "node.yaml"], &env));
    assert_line(&printed, "lease", "2m", "env RINGFORGE__STORE__LEASE");
    assert_line(&printed, "instances", "[main, release]", "env RINGFORGE__SERVER__INSTANCES");
    assert_line(&printed, "durability", "sync", "node.yaml:3");
    assert_line(&printed, "segment_bytes", "64MiB", "default");
}

#[test]
fn a_flag_wins_over_everything() {
    let env = [("RINGFORGE__SERVER__LISTEN", "127.0.0.1:1")];
    let arguments = ["--listen", "127.0.0.1:2", "--data", "/srv/blobs"];
    let printed = printed(&print(repository(), &arguments, &env));
    assert_line(&printed, "listen", "127.0.0.1:2", "flag --listen");
    assert_line(&printed, "directory", "/srv/blobs", "flag --data");
}

#[test]
fn toml_means_the_same_as_yaml() {
    let toml = "[server]\ninstances = ['a', 'b']\n[limits]\nin_flight_max = 7\n\
                [store]\nsegment_bytes = '128MiB'\n";
    let yaml = "server: {instances: [a, b]}\nlimits: {in_flight_max: 7}\n\
                store: {segment_bytes: 128MiB}\n";
    let toml = Files::with("node.toml", toml);
    let yaml = Files::with("node.yml", yaml);
    let toml = printed(&print(&toml.path(), &["--config", "node.toml"], &[]));
    let yaml = printed(&print(&yaml.path(), &["--config", "node.yml"], &[]));
    assert_eq!(values(&toml), values(&yaml));
    assert_line(&toml, "in_flight_max", "7", "node.toml:4");
}

#[test]
fn all_defaults_written_as_toml_are_the_defaults() {
    let text = fs::read_to_string(repository().join("config.yaml")).unwrap();
    let files = Files::with("all.toml", &toml::to_string(&values(&text)).unwrap());
    let printed = printed(&print(&files.path(), &["--config", "all.toml"], &[]));
    assert_eq!(values(&printed), values(&text));
    assert!(!printed.contains("# default"), "{printed}");
}

#[test]
fn what_is_wrong_is_named_with_file_line_key_and_remedy() {
    let table = [
        (
            "node.yaml",
            "server:\n  listn: x\n",
            "node.yaml:2: unknown key `server.listn`; did you mean `server.listen`?",
        ),
        (
            "node.toml",
            "[store]\nleese = '1m'\n",
            "node.toml:2: unknown key `store.leese`; did you mean `store.lease`?",
        ),
        (
            "node.yaml",
            "\n\nstore: {segment_bytes: huge}\n",
            "node.yaml:3: `store.segment_bytes`: expected a size: bytes, or a number with a unit, \
             like 64MiB, found huge",
        ),
        (
            "node.yaml",
            "store:\n  small_blob_bytes_max: 32MiB\n",
            "node.yaml:2: `store.small_blob_bytes_max`: expected at most 16MiB, a quarter of \
             store.segment_bytes, found 32MiB",
        ),
        (
            "node.json",
            "{}",
            "node.json: the name of a configuration file ends in .yaml, .yml or .toml",
        ),
    ];
    for (name, text, expect) in table {
        let output = print(&Files::with(name, text).path(), &["--config", name], &[]);
        refused(&output, expect);
    }
}

#[test]
fn a_wrong_variable_is_named_with_the_right_one() {
    let table = [
        (
            ("RINGFORGE__SERVER__LISTN", "x"),
            "env RINGFORGE__SERVER__LISTN: unknown key `server.listn`; did you mean \
             `RINGFORGE__SERVER__LISTEN`?",
        ),
        (
            ("RINGFORGE__LOG__LEVEL", "loud"),
            "env RINGFORGE__LOG__LEVEL: `log.level`: expected one of error, warn, info, debug, \
             trace, found loud",
        ),
    ];
    for (variable, expect) in table {
        refused(&print(repository(), &[], &[variable]), expect);
    }
}

fn refused(output: &Output, expect: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "accepted, but expected: {expect}");
    assert!(stderr.contains(expect), "{stderr}\n  does not say\n{expect}");
    assert!(output.stdout.is_empty());
}

#[test]
fn every_key_has_its_row_with_its_default_in_the_documentation() {
    let printed = printed(&print(repository(), &[], &[]));
    let document = fs::read_to_string(repository().join("docs/configuration.md")).unwrap();
    let rows: Vec<_> = document.lines().filter(|line| line.starts_with("| `")).collect();
    let mut section = "";
    let mut keys = 0;
    for line in printed.lines() {
        let Some(setting) = line.strip_prefix("  ") else {
            section = line.trim_end_matches(':');
            continue;
        };
        let (key, value) = setting.split_once(": ").unwrap();
        let value = value.rsplit_once("  # ").unwrap().0.trim_end();
        let row = format!("| `{section}.{key}` | `{value}` | ");
        assert_eq!(rows.iter().filter(|line| line.starts_with(&row)).count(), 1, "{row}");
        keys += 1;
    }
    assert_eq!(rows.len(), keys, "a row for a key that does not exist");
}
