//! Who may use whom: modules of the engine, crates of the workspace, crates of others.

use toml::Table;

use crate::files::File;
use crate::source::{code, has_word, is_word};

/// The modules of the engine from the bottom up; each may use those of its row, which all stand
/// above it. `shard` is below `cores` and speaks the words of `blob`, which knows no shard.
const ALLOWED: &[(&str, &[&str])] = &[
    ("digest", &[]),
    ("limits", &[]),
    ("env", &["limits"]),
    ("blob", &["digest", "limits", "env"]),
    ("shard", &["digest", "limits", "env", "blob"]),
    ("cores", &["digest", "limits", "env", "blob", "shard"]),
    ("tier", &["digest", "limits", "env", "blob", "cores"]),
    ("exec", &["digest", "limits", "env", "blob", "cores", "tier"]),
    ("control", &["digest", "limits", "env", "blob", "shard", "cores", "tier", "exec"]),
];

/// Files that use a module above them, which one, and why.
const BACK_EDGES: &[(&str, &str, &str)] = &[(
    "engine/src/shard/mod.rs",
    "cores",
    "LossCounter and StoredAction are part of what crosses",
)];

/// The crates of the workspace, and which of each other they may use.
const CRATES: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("sandbox", &[]),
    ("engine", &["proto", "sandbox"]),
    ("grpc", &["engine", "proto", "sandbox"]),
    ("bench", &["proto"]),
    ("ringforge-tests", &["proto"]),
];

/// Crates of others that only some of ours may use.
const HOMES: &[(&str, &[&str])] = &[
    ("anyhow", &["bench", "grpc"]),
    ("clap", &["bench", "grpc"]),
    ("glommio", &["engine", "grpc"]),
    ("hyper", &["grpc"]),
    ("landlock", &["sandbox"]),
    ("nix", &["sandbox"]),
    ("seccompiler", &["sandbox"]),
    ("serde-saphyr", &["grpc", "ringforge-tests"]),
    ("toml", &["grpc", "ringforge-tests"]),
    ("tonic", &["bench", "grpc", "proto", "ringforge-tests"]),
];

/// Dependencies that no source file names, and why.
const UNNAMED: &[(&str, &str, &str)] =
    &[("proto", "tonic", "generated code"), ("proto", "tonic-prost", "generated code")];

/// Files of the engine that use a module which their row does not have.
pub(crate) fn modules(files: &[File]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut back_edges = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let Some(inside) = file.path.strip_prefix("engine/src/") else { continue };
        let module = inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs");
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == module) else {
            if module != "lib" {
                broken.push(format!("{}: {module} has no row in ALLOWED", file.path));
            }
            continue;
        };
        for used in modules_used(&file.text) {
            let back_edge =
                BACK_EDGES.iter().position(|edge| (edge.0, edge.1) == (&file.path, &used));
            back_edges.extend(back_edge);
            if used != module && !allowed.contains(&used.as_str()) && back_edge.is_none() {
                broken.push(format!("{}: {module} may not use {used}", file.path));
            }
        }
    }
    let stale = (0..BACK_EDGES.len()).filter(|at| !back_edges.contains(at));
    broken.extend(stale.map(|at| format!("{}: needs no exception any more", BACK_EDGES[at].0)));
    broken
}

/// The modules of the engine that a file names, by a path from the root or up to it.
fn modules_used(text: &str) -> Vec<String> {
    let code: String = code(text).split_whitespace().collect::<Vec<_>>().join(" ");
    let mut used: Vec<String> = ["crate::", "super::"]
        .iter()
        .flat_map(|from| code.match_indices(from).map(|(at, _)| at + from.len()))
        .flat_map(|at| first_names(&code[at..]))
        .filter(|name| ALLOWED.iter().any(|(module, _)| module == name))
        .collect();
    used.sort();
    used.dedup();
    used
}

/// `a` of `a::b`, and `a` and `c` of `{a::{b}, c}`.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| text.trim().chars().take_while(|&c| is_word(c)).collect::<String>();
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let mut depth = 0;
    let end = |c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth < 0 || (c == ',' && depth == 0)
    };
    let mut names = Vec::new();
    for part in group.split_inclusive(end) {
        names.push(name(part));
        if part.ends_with('}') && part.matches('}').count() > part.matches('{').count() {
            break;
        }
    }
    names
}

/// A manifest of the workspace.
struct Manifest {
    path: String,
    /// The directory with its slash; empty for the root.
    directory: String,
    package: String,
    /// Of all three kinds.
    dependencies: Vec<String>,
}

fn manifests(files: &[File]) -> Vec<Manifest> {
    let manifests = files.iter().filter_map(|file| {
        let directory = file.path.strip_suffix("Cargo.toml")?;
        let table: Table = toml::from_str(&file.text).expect("a manifest is TOML");
        let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
        let keys = |kind: &&str| table.get(*kind).and_then(toml::Value::as_table).map(Table::keys);
        let mut dependencies: Vec<_> = kinds.iter().filter_map(keys).flatten().cloned().collect();
        dependencies.sort();
        dependencies.dedup();
        let package = table.get("package")?.get("name")?.as_str()?.to_owned();
        Some(Manifest {
            path: file.path.clone(),
            directory: directory.to_owned(),
            package,
            dependencies,
        })
    });
    manifests.collect()
}

/// Manifests that name a crate which is not theirs to use.
pub(crate) fn crates(files: &[File]) -> Vec<String> {
    let mut broken = Vec::new();
    for Manifest { path, package, dependencies, .. } in manifests(files) {
        let Some((_, allowed)) = CRATES.iter().find(|(known, _)| *known == package) else {
            broken.push(format!("{path}: {package} has no row in CRATES"));
            continue;
        };
        let refused = dependencies.iter().filter(|name| {
            let ours = CRATES.iter().any(|(known, _)| known == name);
            let home = HOMES.iter().find(|(known, _)| known == name);
            ours && !allowed.contains(&name.as_str())
                || home.is_some_and(|(_, homes)| !homes.contains(&package.as_str()))
        });
        broken.extend(refused.map(|name| format!("{path}: {package} may not use {name}")));
    }
    broken
}

/// The lines of the workspace's dependencies, each with the line before it.
fn shared(files: &[File]) -> Vec<(String, String)> {
    let Some(root) = files.iter().find(|file| file.path == "Cargo.toml") else { return Vec::new() };
    let lines = root.text.lines().skip_while(|line| *line != "[workspace.dependencies]");
    let lines: Vec<_> = lines.skip(1).take_while(|line| !line.starts_with('[')).collect();
    let with_previous = lines.iter().enumerate().map(|(at, line)| {
        let previous = at.checked_sub(1).map_or("", |before| lines[before]);
        (previous.to_owned(), (*line).to_owned())
    });
    with_previous.filter(|(_, line)| line.contains('=') && !line.starts_with('#')).collect()
}

/// Dependencies of the workspace without a reason. Our own need none.
pub(crate) fn reasons(files: &[File]) -> Vec<String> {
    shared(files)
        .iter()
        .filter(|(previous, line)| {
            !line.contains(" # ") && !previous.starts_with("# ") && !line.contains("path = ")
        })
        .map(|(_, line)| format!("Cargo.toml: has no reason: {line}"))
        .collect()
}

/// Dependencies that no crate uses, or that no source file of the crate names.
pub(crate) fn users(files: &[File]) -> Vec<String> {
    let manifests = manifests(files);
    let used = |name: &str| manifests.iter().any(|m| m.dependencies.iter().any(|d| d == name));
    let mut broken: Vec<_> = shared(files)
        .iter()
        .filter_map(|(_, line)| line.split(['=', '.', ' ']).next())
        .filter(|name| !used(name))
        .map(|name| format!("Cargo.toml: no crate uses {name}"))
        .collect();
    for manifest in &manifests {
        let sources: Vec<_> = files
            .iter()
            .filter(|file| file.is_rust() && is_owner(manifest, &manifests, &file.path))
            .map(|file| code(&file.text))
            .collect();
        for name in &manifest.dependencies {
            let named = sources.iter().any(|source| has_word(source, &name.replace('-', "_")));
            let excepted = UNNAMED.iter().any(|(p, d, _)| p == &manifest.package && d == name);
            if !named && !excepted {
                broken.push(format!("{}: no source file names {name}", manifest.path));
            }
            if named && excepted {
                broken.push(format!("{}: {name} needs no exception any more", manifest.path));
            }
        }
    }
    broken
}

/// Whether the file at `path` is part of the crate of `manifest`, and not of one inside it.
fn is_owner(manifest: &Manifest, manifests: &[Manifest], path: &str) -> bool {
    let around = manifests.iter().filter(|other| path.starts_with(&other.directory));
    around.max_by_key(|other| other.directory.len()).is_some_and(|own| own.path == manifest.path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::made_up;

    #[test]
    fn the_modules_have_a_bottom_and_a_top() {
        for (at, (module, allowed)) in ALLOWED.iter().enumerate() {
            let above = |used: &&str| ALLOWED[..at].iter().any(|(known, _)| known == used);
            assert!(allowed.iter().all(above), "{module} uses a row below it");
        }
    }

    #[test]
    fn a_module_that_looks_up_is_found() {
        let check = |path: &str, text: &str, expect: &[&str]| {
            let mut broken = modules(&[made_up(path, text)]);
            broken.retain(|line| !line.ends_with("needs no exception any more"));
            assert_eq!(broken, expect, "{text}");
        };
        let (path, expect) =
            ("engine/src/digest.rs", "engine/src/digest.rs: digest may not use exec");
        check(path, "use crate::exec::Executions;", &[expect]);
        check(path, "use crate::{\n  digest::{A, B}, exec::{C},\n};", &[expect]);
        check(path, "let x = super::exec::f();", &[expect]);
        check(path, "// crate::exec\nuse crate::digest::{exec, blob};", &[]);
        check("engine/src/exec/worker.rs", "use crate::{cores::Cores, env};", &[]);
        let expect = "engine/src/extra.rs: extra has no row in ALLOWED";
        check("engine/src/extra.rs", "", &[expect]);
        check("engine/src/shard/mod.rs", "use crate::cores::LossCounter;", &[]);
    }

    #[test]
    fn a_crate_that_looks_up_is_found() {
        let check = |text: &str, expect: &[&str]| {
            assert_eq!(crates(&[made_up("x/Cargo.toml", text)]), expect, "{text}");
        };
        let package = |name: &str, dependency: &str| {
            format!("[package]\nname = \"{name}\"\n[dependencies]\n{dependency}.workspace = true\n")
        };
        check(&package("engine", "proto"), &[]);
        check(&package("engine", "tonic"), &["x/Cargo.toml: engine may not use tonic"]);
        check(&package("bench", "engine"), &["x/Cargo.toml: bench may not use engine"]);
        check(&package("extra", "proto"), &["x/Cargo.toml: extra has no row in CRATES"]);
    }

    #[test]
    fn a_dependency_without_reason_or_user_is_found() {
        let text = "[workspace.dependencies]\nbytes = \"1\" # payload\n# why\nhttp = \"1\"\n\
            uuid = \"1\"\nproto = { path = \"proto\" }\n";
        let user = "[package]\nname = \"grpc\"\n[dependencies]\nbytes.workspace = true\n\
            [dev-dependencies]\nproto.workspace = true\nuuid.workspace = true\n";
        let source = "use bytes::Bytes;\nuse proto::reapi;\n// uuid\n";
        let files = [
            made_up("Cargo.toml", text),
            made_up("grpc/Cargo.toml", user),
            made_up("grpc/src/main.rs", source),
        ];
        assert_eq!(reasons(&files), ["Cargo.toml: has no reason: uuid = \"1\""]);
        let expect =
            ["Cargo.toml: no crate uses http", "grpc/Cargo.toml: no source file names uuid"];
        assert_eq!(users(&files), expect);
    }
}
