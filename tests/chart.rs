//! The Helm chart against the program: its `config` values, its schema, its version. Must never
//! need Helm.

use std::fs;
use std::path::Path;

use serde_json::Value;

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .expect("a file of the repository")
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&text(path)).expect("a YAML file")
}

/// `section.key` of every setting; `within` leads from a section to its keys.
fn keys(config: &Value, within: &str) -> Vec<String> {
    let mut keys = Vec::new();
    for (section, content) in config.as_object().expect("sections") {
        let settings = content.pointer(within).and_then(Value::as_object).expect("keys");
        keys.extend(settings.keys().map(|key| format!("{section}.{key}")));
    }
    keys.sort();
    keys
}

#[test]
fn the_values_mirror_config_yaml() {
    let config = yaml("config.yaml");
    let values = yaml("charts/ringforge/values.yaml");
    assert_eq!(keys(&values["config"], ""), keys(&config, ""));
    assert_eq!(values["config"], config);
}

#[test]
fn the_values_explain_themselves_as_config_yaml_does() {
    let config = text("config.yaml");
    let (_, sections) = config.split_once("\n\n").unwrap();
    let values = text("charts/ringforge/values.yaml");
    let (_, mirrored) = values.split_once("\nconfig:\n").unwrap();
    let mirrored: Vec<_> =
        mirrored.lines().map(|line| line.strip_prefix("  ").unwrap_or(line)).collect();
    assert_eq!(mirrored, sections.lines().collect::<Vec<_>>());
}

#[test]
fn the_schema_knows_every_value_and_no_other() {
    let schema: Value = serde_json::from_str(&text("charts/ringforge/values.schema.json")).unwrap();
    let values = yaml("charts/ringforge/values.yaml");
    let properties = &schema["properties"];
    let sections = &properties["config"]["properties"];
    assert_eq!(keys(sections, "/properties"), keys(&values["config"], ""));
    assert!(sections.as_object().unwrap().values().all(|s| s["additionalProperties"] == false));
    for key in values.as_object().unwrap().keys() {
        assert!(properties.get(key).is_some(), "{key}");
    }
}

#[test]
fn the_chart_installs_this_version() {
    let chart = yaml("charts/ringforge/Chart.yaml");
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_pod_has_more_time_to_stop_than_its_node_needs() {
    let values = yaml("charts/ringforge/values.yaml");
    let grace = values["config"]["server"]["grace"].as_str().unwrap();
    let grace: u64 = grace.strip_suffix('s').unwrap().parse().unwrap();
    assert!(values["terminationGracePeriodSeconds"].as_u64().unwrap() > grace);
}
