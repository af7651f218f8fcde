//! What a person writes, against what the node makes of it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::config::tree::Origin;

fn load(file: &str, text: &str, env: &[(&str, &str)], flags: Flags) -> Result<Config, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(file);
    fs::write(&path, text).unwrap();
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let shown = format!("{}/", directory.path().display());
    match Config::load(Some(&path), flags, env) {
        Ok(mut config) => {
            config.printed = config.printed.replace(&shown, "");
            Ok(config)
        }
        Err(error) => Err(error.to_string().replace(&shown, "")),
    }
}

fn yaml(text: &str) -> Result<Config, String> {
    load("node.yaml", text, &[], Flags::default())
}

fn variable(name: &str, value: &str) -> Result<Config, String> {
    load("node.yaml", "", &[(name, value)], Flags::default())
}

fn line(config: &Config, key: &str) -> String {
    let line = config.printed.lines().find(|line| line.trim_start().starts_with(key)).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_built_in_file_is_a_whole_configuration() {
    let config = Config::load(None, Flags::default(), std::iter::empty()).unwrap();
    assert_eq!(config.server.listen, "127.0.0.1:8980".parse().unwrap());
    assert_eq!(config.server.batch_bytes_max, (4 << 20) - (256 << 10));
    assert_eq!(config.store.directory, PathBuf::from("./data"));
    assert_eq!(config.store.segment_bytes, 64 << 20);
    assert_eq!(config.store.lease, Duration::from_secs(600));
    assert_eq!(config.cpus.data, CpuChoice::Auto);
    assert_eq!(config.execution.timeout_max, Duration::from_secs(24 * 3600));
    assert!(!config.execution.node_id.is_empty());
    assert_eq!(config.log.format, LogFormat::Text);
    assert!(config.printed.lines().all(|line| line.ends_with(':') || line.ends_with("# default")));
}

#[test]
fn the_printed_form_reads_back_as_itself() {
    let text = "execution: {node_id: '007', timeout_max: '1h 30m'}\ncpus: {data: '0,2-3'}\n\
                server: {instances: ['true', main, 'a: b', '']}\n";
    let once = yaml(text).unwrap();
    let twice = yaml(&once.printed).unwrap();
    let values = |config: &Config| {
        let lines = config.printed.lines();
        lines.map(|line| line.split("  # ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(values(&once), values(&twice));
    assert_eq!(twice.execution.node_id, "007");
    assert_eq!(twice.server.instances, ["true", "main", "a: b", ""]);
    assert_eq!(twice.cpus.data, CpuChoice::List(vec![0, 2, 3]));
}

#[test]
fn the_later_layer_wins_and_is_named() {
    let flags = Flags { listen: Some("[::1]:1".to_owned()), data: None };
    let env = [("RINGFORGE__STORE__LEASE", "2m"), ("RINGFORGE__SERVER__LISTEN", "127.0.0.1:2")];
    let text = "\nstore:\n  lease: 1m\n  durability: sync\nserver:\n  listen: 127.0.0.1:3\n";
    let config = load("node.yaml", text, &env, flags).unwrap();
    assert_eq!(config.server.listen, "[::1]:1".parse().unwrap());
    assert_eq!(config.store.lease, Duration::from_secs(120));
    assert_eq!(config.store.durability, Durability::Sync);
    assert_eq!(line(&config, "lease"), "lease: 2m # env RINGFORGE__STORE__LEASE");
    assert_eq!(line(&config, "durability"), "durability: sync # node.yaml:4");
    assert_eq!(line(&config, "listen"), "listen: \"[::1]:1\" # flag --listen");
    assert_eq!(line(&config, "blob_bytes_max"), "blob_bytes_max: 16GiB # default");
}

#[test]
fn toml_means_what_yaml_means() {
    let toml = "server.instances = ['a', 'b']\n[store]\nsegment_bytes = 0x100000\n\
                small_blob_bytes_max = '4KiB'\n[execution]\nenabled = false\n";
    let yaml = "server: {instances: [a, b]}\nstore:\n  segment_bytes: 1048576\n  \
                small_blob_bytes_max: 4KiB\nexecution: {enabled: false}\n";
    let toml = load("node.toml", toml, &[], Flags::default()).unwrap();
    let yaml = load("node.yml", yaml, &[], Flags::default()).unwrap();
    assert_eq!(toml.server, yaml.server);
    assert_eq!(toml.store, yaml.store);
    assert_eq!(toml.execution, yaml.execution);
    assert_eq!(line(&toml, "small_blob"), "small_blob_bytes_max: 4KiB # node.toml:4");
}

#[test]
fn an_empty_file_or_section_says_nothing() {
    for text in ["", "# nothing\n", "server:\n", "server: {}\n", "---\nserver:\n  # listen: x\n"] {
        assert!(yaml(text).is_ok(), "{text:?}");
    }
}

#[test]
fn a_variable_is_typed_by_its_key() {
    let config = |name, value| variable(name, value).unwrap();
    let instances = |value| config("RINGFORGE__SERVER__INSTANCES", value).server.instances;
    assert_eq!(instances("a, b"), ["a", "b"]);
    assert_eq!(instances("[a, 'b,c']"), ["a", "b,c"]);
    assert_eq!(instances(""), [""; 0]);
    let peers = |value| config("RINGFORGE__CLUSTER__PEERS", value).cluster.peers;
    assert_eq!(peers("[::1]:1, [fe80::2]:2,a:3"), ["[::1]:1", "[fe80::2]:2", "a:3"]);
    assert_eq!(peers("[::1]:1"), ["[::1]:1"]);
    assert_eq!(peers("['[::1]:1', \"a:3\"]"), ["[::1]:1", "a:3"]);
    assert_eq!(peers("[a:3]"), ["a:3"]);
    assert_eq!(config("RINGFORGE__EXECUTION__NODE_ID", "007").execution.node_id, "007");
    assert_eq!(config("RINGFORGE__EXECUTION__NODE_ID", "'8'").execution.node_id, "8");
    assert!(config("RINGFORGE__SANDBOX__NETWORK", "true").sandbox.network);
    assert_eq!(config("RINGFORGE__EXECUTION__SLOTS", "3").execution.slots, 3);
    assert_eq!(config("RINGFORGE__CPUS__DATA", "4").cpus.data, CpuChoice::List(vec![4]));
    assert_eq!(config("RINGFORGE__STORE__BYTES_MAX", "1073741824").store.bytes_max, 1 << 30);
    assert_eq!(config("RINGFORGE__SERVER__STREAMS_MAX", "7").server.streams_max, 7);
}

#[test]
fn a_name_of_a_node_is_as_long_as_the_cluster_takes_it() {
    let longest = "n".repeat(engine::control::NODE_ID_BYTES_MAX);
    assert!(variable("RINGFORGE__EXECUTION__NODE_ID", &longest).is_ok());
    assert!(variable("RINGFORGE__EXECUTION__NODE_ID", &format!("{longest}n")).is_err());
}

#[test]
fn a_variable_of_a_kubernetes_service_is_not_ours() {
    assert!(variable("RINGFORGE_PORT", "tcp://10.0.0.1:8980").is_ok());
}

#[test]
fn a_variable_that_is_no_text_is_refused_only_if_it_is_ours() {
    assert!(variable("PATH", "/bin\u{fffd}").is_ok());
    let error = variable("RINGFORGE__STORE__DIRECTORY", "/srv\u{fffd}").unwrap_err();
    let expect = "env RINGFORGE__STORE__DIRECTORY: `store.directory`: expected text in UTF-8";
    assert!(error.starts_with(expect), "{error}");
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_known_one() {
    let table = [
        (
            "server:\n  listn: x\n",
            "node.yaml:2: unknown key `server.listn`; did you mean `server.listen`?",
        ),
        ("\nsevrer:\n  a: 1\n", "node.yaml:2: unknown key `sevrer`; did you mean `server`?"),
        (
            "listen: 127.0.0.1:1\n",
            "node.yaml:1: unknown key `listen`; did you mean `server.listen`?",
        ),
        (
            "log:\n  colour: red\n",
            "node.yaml:2: unknown key `log.colour`; expected one of level, format",
        ),
    ];
    for (text, expect) in table {
        assert_eq!(yaml(text).unwrap_err(), expect);
    }
    assert_eq!(
        variable("RINGFORGE__STORE__LEESE", "1m").unwrap_err(),
        "env RINGFORGE__STORE__LEESE: unknown key `store.leese`; did you mean \
         `RINGFORGE__STORE__LEASE`?"
    );
    let toml = load("node.toml", "[store]\n\nleese = 1\n", &[], Flags::default());
    assert!(toml.unwrap_err().starts_with("node.toml:3: unknown key `store.leese`"));
}

#[test]
fn a_bad_value_is_named_with_its_place_and_what_was_expected() {
    let table = [
        ("server:\n  listen: here", "node.yaml:2: `server.listen`: expected HOST:PORT, like"),
        ("server: {listen: '::1:80'}", "node.yaml:1: `server.listen`: expected HOST:PORT, like"),
        ("server: {listen: ':80'}", "node.yaml:1: `server.listen`: expected HOST:PORT, like"),
        ("server: {listen: '1.2.3.4:99999'}", "node.yaml:1: `server.listen`: expected HOST:PORT"),
        ("server: 5", "node.yaml:1: `server`: expected a section with keys, found 5"),
        ("log: {level: {a: 1}}", "node.yaml:1: `log.level`: expected a value, found a section"),
        ("log: {level: loud}", "node.yaml:1: `log.level`: expected one of error, warn, info, "),
        ("log: {level: }", "node.yaml:1: `log.level`: expected one of error, warn, info, "),
        ("store: {lease: 5}", "node.yaml:1: `store.lease`: expected a duration: a number with a"),
        ("store: {lease: 2d}", "node.yaml:1: `store.lease`: expected 0s to 1day, found 2d"),
        ("store: {free_bytes_min: 1 parsec}", "node.yaml:1: `store.free_bytes_min`: expected a si"),
        ("store: {free_bytes_min: -1}", "node.yaml:1: `store.free_bytes_min`: expected a size"),
        ("store: {segment_bytes: 1KiB}", "node.yaml:1: `store.segment_bytes`: expected 1MiB to 1G"),
        (
            "store:\n  small_blob_bytes_max: 32MiB",
            "node.yaml:2: `store.small_blob_bytes_max`: expected at most 16MiB, a quarter of \
             store.segment_bytes, found 32MiB",
        ),
        ("store: {bytes_max: 1MiB}", "node.yaml:1: `store.bytes_max`: expected 0, or at least 4 s"),
        ("store: {directory: ''}", "node.yaml:1: `store.directory`: expected the path of a direc"),
        ("cpus: {shards: 65}", "node.yaml:1: `cpus.shards`: expected 0 to 64, found 65"),
        ("cpus: {data: 3-1}", "node.yaml:1: `cpus.data`: expected auto or a list of CPUs, like 0,"),
        ("cpus: {data: 0-64}", "node.yaml:1: `cpus.data`: expected at most 64 CPUs, the most sh"),
        ("cpus: {data: 99999999999-1}", "node.yaml:1: `cpus.data`: expected auto or a list of CP"),
        ("execution: {enabled: yes}", "node.yaml:1: `execution.enabled`: expected a boolean, foun"),
        ("execution: {slots: many}", "node.yaml:1: `execution.slots`: expected auto or a whole n"),
        ("execution: {node_id: 'a:b'}", "node.yaml:1: `execution.node_id`: expected 1 to 128 let"),
        ("execution: {node_id: 12}", "node.yaml:1: `execution.node_id`: expected a string, found"),
        ("sandbox: {toolchain: [usr]}", "node.yaml:1: `sandbox.toolchain`: expected absolute path"),
        ("sandbox: {toolchain: [/]}", "node.yaml:1: `sandbox.toolchain`: expected absolute path"),
        ("sandbox: {toolchain: [/a/../b]}", "node.yaml:1: `sandbox.toolchain`: expected absolute"),
        ("sandbox: {toolchain: /usr}", "node.yaml:1: `sandbox.toolchain`: expected a sequence, f"),
        ("sandbox: {uid_first: 0}", "node.yaml:1: `sandbox.uid_first`: expected 1000 to 4"),
        ("server: {instances: [a/blobs]}", "node.yaml:1: `server.instances`: expected at most 1"),
        ("cluster: {advertise: '0.0.0.0:7946'}", "node.yaml:1: `cluster.advertise`: expected an a"),
        ("cluster: {advertise: '[::]:7946'}", "node.yaml:1: `cluster.advertise`: expected an addr"),
        (
            "cluster: {endpoint: '[::]:8980'}",
            "node.yaml:1: `cluster.endpoint`: expected HOST:PORT,",
        ),
        (
            "cluster: {endpoint: '0.0.0.0:1'}",
            "node.yaml:1: `cluster.endpoint`: expected HOST:PORT,",
        ),
        (
            "cluster: {endpoint: '10.0.0.1'}",
            "node.yaml:1: `cluster.endpoint`: expected HOST:PORT, ",
        ),
        ("server: {streams_max: 1.5}", "node.yaml:1: `server.streams_max`: expected a whole numb"),
    ];
    for (text, expect) in table {
        let error = yaml(text).unwrap_err();
        assert!(error.starts_with(expect), "{text}\n  {error}\n  {expect}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn two_keys_that_contradict_each_other_are_refused() {
    let table = [
        (
            "server: {message_bytes_max: 3840KiB}",
            "node.yaml:1: `server.batch_bytes_max`: expected less",
        ),
        (
            "execution: {timeout_max: 1m}",
            "node.yaml:1: `execution.timeout_default`: expected at most",
        ),
        ("store: {segment_bytes: 1MiB, small_blob_bytes_max: 512KiB}", "node.yaml:1: `store.small"),
        (
            "store: {segment_bytes: 1GiB, bytes_max: 2GiB}",
            "node.yaml:1: `store.bytes_max`: expecte",
        ),
        ("execution: {operations_max: 9}", "node.yaml:1: `execution.operations_max`: expected at "),
    ];
    for (text, expect) in table {
        let error = yaml(text).unwrap_err();
        assert!(error.starts_with(expect), "{text}\n  {error}\n  {expect}");
    }
}

#[test]
fn what_is_no_yaml_or_toml_is_refused_at_its_line() {
    let table = [
        ("node.yaml", "server:\n  listen: [\n", "node.yaml:"),
        ("node.yaml", "log:\n  level: info\n  level: warn\n", "node.yaml:3: expected YAML: "),
        ("node.yaml", "- a\n", "node.yaml:1: expected sections with keys: found [a]"),
        ("node.toml", "[server]\nlisten = \n", "node.toml:2: expected TOML: "),
        ("node.json", "{}", "node.json: the name of a configuration file ends in .yaml, .yml or"),
    ];
    for (file, text, expect) in table {
        let error = load(file, text, &[], Flags::default()).unwrap_err();
        assert!(error.starts_with(expect), "{text}\n  {error}\n  {expect}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn an_absent_file_is_an_error_and_none_is_looked_for() {
    let path = PathBuf::from("/nonexistent/node.yaml");
    let error = Config::load(Some(&path), Flags::default(), std::iter::empty()).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/node.yaml: cannot be read: "), "{error}");
}

#[test]
fn sizes_and_durations_are_read_as_people_write_them() {
    let size = |text: &str| yaml(&format!("store: {{free_bytes_min: {text}}}")).unwrap();
    for (text, bytes) in
        [("0", 0), ("65536", 65536), ("64KiB", 65536), ("1.5 GiB", 3 << 29), ("1GB", 1_000_000_000)]
    {
        assert_eq!(size(text).store.free_bytes_min, bytes, "{text}");
    }
    let period = |text: &str| yaml(&format!("server: {{grace: {text}}}")).unwrap();
    for (text, millis) in [("0", 0), ("500ms", 500), ("1s", 1000), ("1h 30m", 5_400_000)] {
        assert_eq!(period(text).server.grace, Duration::from_millis(millis), "{text}");
    }
}

#[test]
fn an_origin_says_where_to_look() {
    let origin = Origin::File { path: "a.yaml".into(), line: 3 };
    assert_eq!(origin.to_string(), "a.yaml:3");
    assert_eq!(Origin::Variable("RINGFORGE__A__B".to_owned()).to_string(), "env RINGFORGE__A__B");
}

#[test]
fn tls_is_whole_or_not_there() {
    let own = "certificate: c, key: k";
    let both =
        |tls: &str, cluster: &str| yaml(&format!("tls: {{{tls}}}\ncluster: {{{cluster}}}\n"));
    for (tls, cluster, expect) in [
        ("", "", ""),
        (own, "", ""),
        (&format!("{own}, client_auth: request"), "", ""),
        (&format!("{own}, client_auth: require"), "", ""),
        (&format!("{own}, client_auth: verify, client_ca: a"), "", ""),
        (&format!("{own}, client_auth: verify, client_ca: a"), "listen: '127.0.0.1:1'", ""),
        (own, "listen: '127.0.0.1:1', ca: a", ""),
        ("certificate: c", "", "node.yaml:1: `tls.key`: expected the file of tls.certificate's"),
        ("key: k", "", "node.yaml:1: `tls.certificate`: expected the file of tls.key's"),
        ("client_ca: a", "", "`tls.client_ca`: expected nothing, or tls.certificate"),
        ("client_auth: verify", "", "`tls.client_auth`: expected none, or tls.certificate"),
        (&format!("{own}, client_ca: a"), "", "`tls.client_auth`: expected request, require or"),
        (&format!("{own}, client_auth: verify"), "", "`tls.client_ca`: expected the file of"),
        (&format!("{own}, client_auth: maybe"), "", "expected one of none, request, require"),
        ("", "ca: a", "`cluster.ca`: expected nothing, or tls.certificate"),
        (own, "listen: '127.0.0.1:1'", "`cluster.ca`: expected the file of those who sign nodes'"),
    ] {
        let error = both(tls, cluster).err().unwrap_or_default();
        assert!(error.contains(expect), "{tls} {cluster}: {error}");
        assert_eq!(error.is_empty(), expect.is_empty(), "{tls} {cluster}: {error}");
    }
    let settings = both(&format!("{own}, client_auth: verify, client_ca: a"), "listen: '[::1]:1'");
    assert_eq!(settings.unwrap().tls.unwrap().node_ca, Some("a".into()));
}
