//! Rules about what runs, or is run, outside of Rust: it is short, and works on any machine.

use crate::files::File;
use crate::source::{is_word, lines_where};

const LINES_MAX: usize = 40;

/// Where a script may point: what every Linux has.
const DIRECTORIES: [&str; 8] = ["bin", "dev", "etc", "lib", "proc", "sys", "tmp", "usr"];

/// The hosts that may be named outside of prose: this one, and names that only identify.
const HOSTS: [&str; 3] = ["127.0.0.1", "json-schema.org", "www.apache.org"];

fn scripts(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| file.path.starts_with("scripts/") || file.path.starts_with(".ci/"))
}

/// Scripts that are long, do not stop at an error, or do not say what they do.
pub(crate) fn form(files: &[File]) -> Vec<String> {
    let mut broken = Vec::new();
    for script in scripts(files) {
        let lines: Vec<_> = script.text.lines().collect();
        let line = |at: usize| lines.get(at).copied().unwrap_or_default();
        let shell = line(0).starts_with("#!") && line(0).ends_with("sh");
        let mut require = |held: bool, what: &str| {
            if !held {
                broken.push(format!("{}: {what}", script.path));
            }
        };
        require(lines.len() <= LINES_MAX, "more than 40 lines");
        require(script.executable, "can't be executed");
        require(shell, "is no shell script");
        require(line(1).starts_with("# "), "must start with what it does");
        require(lines.iter().any(|line| line.starts_with("set -eu")), "lacks `set -eu`");
    }
    broken
}

/// Scripts that only work where somebody's files lie.
pub(crate) fn machine_paths(files: &[File]) -> Vec<String> {
    let foreign = |line: &str| {
        line.match_indices('/').any(|(at, _)| {
            let starts = line[..at].is_empty()
                || line[..at].ends_with([' ', '\t', '"', '\'', '=', '(', '<', '>', ':', '!']);
            let name: String = line[at + 1..].chars().take_while(|&c| is_word(c)).collect();
            starts && !name.is_empty() && !DIRECTORIES.contains(&name.as_str())
        })
    };
    let found = |file: &File| lines_where(&file.text, foreign);
    let line = |file: &File, line| format!("{}:{line}: a path of one machine", file.path);
    scripts(files).flat_map(|file| found(file).into_iter().map(|at| line(file, at))).collect()
}

/// Addresses of hosts that a build or a node might come to depend on. Prose may cite its sources,
/// and the lock file is cargo's.
pub(crate) fn hosts(files: &[File]) -> Vec<String> {
    let foreign = |line: &str| {
        line.match_indices("://").any(|(at, _)| {
            let host = |c: &char| c.is_alphanumeric() || ".-".contains(*c);
            let host: String = line[at + 3..].chars().take_while(host).collect();
            let web = line[..at].ends_with("http") || line[..at].ends_with("https");
            web && host.contains('.') && !HOSTS.contains(&host.as_str())
        })
    };
    let prose = |path: &str| path.ends_with(".md") || path == "Cargo.lock";
    let code = files.iter().filter(|file| !prose(&file.path));
    let found = |file: &File| lines_where(&file.text, foreign);
    let line = |file: &File, line| format!("{}:{line}: names a host", file.path);
    code.flat_map(|file| found(file).into_iter().map(|at| line(file, at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::made_up;

    const WHOLE: &str = "#!/usr/bin/env bash\n# Does it.\nset -eu\ndo it >/dev/null\n";

    #[test]
    fn a_script_without_form_is_found() {
        let check = |path: &str, text: &str, expect: &[&str]| {
            assert_eq!(form(&[made_up(path, text)]), expect);
        };
        check("scripts/a", WHOLE, &[]);
        check("scripts/a", &WHOLE.repeat(11), &["scripts/a: more than 40 lines"]);
        check("scripts/a", &WHOLE.replace("# ", ""), &["scripts/a: must start with what it does"]);
        check(".ci/run", &WHOLE.replace("set -eu", ""), &[".ci/run: lacks `set -eu`"]);
        check("tests/a.sh", "", &[]);
        let expect = ["scripts/a: can't be executed", "scripts/a: is no shell script"];
        check("scripts/a", &WHOLE.replace("#!", "# !"), &expect);
    }

    #[test]
    fn a_path_of_one_machine_is_found() {
        let check = |line: &str, expect: &[&str]| {
            assert_eq!(machine_paths(&[made_up("scripts/a", line)]), expect, "{line}");
        };
        check("cd /somewhere/else", &["scripts/a:1: a path of one machine"]);
        check("x=\"/srv\"", &["scripts/a:1: a path of one machine"]);
        check("cat </dev/null >/tmp/x; target/release/a; $x/y", &[]);
    }

    #[test]
    fn a_host_is_found() {
        let check = |path: &str, text: &str, expect: &[&str]| {
            assert_eq!(hosts(&[made_up(path, text)]), expect, "{text}");
        };
        let url = format!("https:{}somewhere.example/x", "//"); // in two parts: this file obeys
        check("a.rs", &format!("//! x\nget(\"{url}\")\n"), &["a.rs:2: names a host"]);
        check("a.rs", "http://127.0.0.1:8980 http://[::1]:80 http://{address} https://", &[]);
        check("docs/a.md", &url, &[]);
    }
}
