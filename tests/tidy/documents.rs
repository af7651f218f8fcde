//! Rules about documents that claim something of the code: decision records, and the sandbox's
//! table of threats.

use crate::files::File;
use crate::source::has_word;

const RECORDS: &str = "docs/plan/";
const RECORD_PARTS: [&str; 4] = ["Context", "Options", "Decision", "Consequences"];

const THREATS: &str = "engine/sandbox/README.md";
const SANDBOX: &str = "engine/sandbox/";

/// Decision records that lack a part, or have no number of their own.
pub(crate) fn decisions(files: &[File]) -> Vec<String> {
    let records: Vec<_> = files.iter().filter(|file| file.path.starts_with(RECORDS)).collect();
    let mut broken = Vec::new();
    if records.is_empty() {
        broken.push(format!("{RECORDS}: holds no decision"));
    }
    let number =
        |file: &File| file.path[RECORDS.len()..].split_once('-').map(|(n, _)| n.to_owned());
    for (at, record) in records.iter().enumerate() {
        let found = number(record);
        let counts = found.as_ref().is_some_and(|n| n.len() == 4 && n.parse::<u16>().is_ok());
        if !counts || !record.path.ends_with(".md") {
            broken.push(format!("{}: is called NNNN-what.md", record.path));
        }
        if records[..at].iter().any(|other| number(other) == found) {
            broken.push(format!("{}: its number is taken", record.path));
        }
        let has = |part: &str| {
            let mut titles = record.text.lines().filter_map(|line| line.strip_prefix('#'));
            titles.any(|title| title.trim_start_matches('#').trim().starts_with(part))
        };
        let lacking = RECORD_PARTS.iter().filter(|part| !has(part));
        broken.extend(lacking.map(|part| format!("{}: has no part \"{part}\"", record.path)));
    }
    broken
}

/// Rows of the table of threats that name a file or a test which does not exist, or none.
pub(crate) fn threats(files: &[File]) -> Vec<String> {
    let Some(argument) = files.iter().find(|file| file.path == THREATS) else { return Vec::new() };
    let mut broken = Vec::new();
    let mut columns = None;
    for (at, line) in argument.text.lines().enumerate() {
        let cells: Vec<_> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let column = |title: &str| cells.iter().position(|cell| cell.eq_ignore_ascii_case(title));
        if !line.trim_start().starts_with('|') {
            columns = None;
        } else if let (Some(_), Some(file), Some(test)) =
            (column("threat"), column("file"), column("test"))
        {
            columns = Some((file, test));
        } else if let Some((file, test)) = columns
            && !cells[0].starts_with(['-', ':'])
        {
            let mut row = |cell: usize, exists: &dyn Fn(&str) -> bool| {
                let names = quoted(cells.get(cell).copied().unwrap_or_default());
                if names.is_empty() || !names.iter().all(|name| exists(name)) {
                    broken.push(format!("{THREATS}:{}: does not exist: {names:?}", at + 1));
                }
            };
            row(file, &|name| is_barrier(files, name));
            row(test, &|name| is_function(files, name) || is_barrier(files, name));
        }
    }
    broken
}

/// What a cell has between backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn is_barrier(files: &[File], name: &str) -> bool {
    let places = ["", SANDBOX, "engine/sandbox/src/"].map(|place| format!("{place}{name}"));
    files.iter().any(|file| places.contains(&file.path))
}

fn is_function(files: &[File], name: &str) -> bool {
    let name = format!("fn {}", name.rsplit("::").next().unwrap_or(name));
    files.iter().any(|file| {
        let tests = file.path.starts_with(SANDBOX) || file.path.starts_with("tests/");
        tests && file.is_rust() && has_word(&file.text, &name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::made_up;

    #[test]
    fn a_record_without_a_decision_is_found() {
        let whole = "# 1. A\n## Context\n## Options\n## Decision\n## Consequences\n";
        let check = |records: &[(&str, &str)], expect: &[&str]| {
            let files: Vec<_> = records.iter().map(|(path, text)| made_up(path, text)).collect();
            assert_eq!(decisions(&files), expect);
        };
        check(&[("docs/plan/0001-a.md", whole)], &[]);
        check(&[], &["docs/plan/: holds no decision"]);
        let (part, _) = whole.split_once("## Decision").unwrap();
        let expect = [
            "docs/plan/0001-b.md: its number is taken",
            "docs/plan/0001-b.md: has no part \"Decision\"",
            "docs/plan/0001-b.md: has no part \"Consequences\"",
        ];
        check(&[("docs/plan/0001-a.md", whole), ("docs/plan/0001-b.md", part)], &expect);
        let expect = ["docs/plan/notes.md: is called NNNN-what.md"];
        check(&[("docs/plan/notes.md", whole)], &expect);
    }

    #[test]
    fn a_threat_that_no_test_tries_is_found() {
        let text = "| Threat | Barrier | File | Test |\n|---|---|---|---|\n\
            | forks | rlimit | `limits.rs` | `a_bomb_ends` in `tests/escape.rs` |\n\
            | reads | pivot | `mounts.rs` | `nothing_is_seen` |\n\
            | waits | none | `limits.rs` | soon |\n";
        let files = [
            made_up(THREATS, text),
            made_up("engine/sandbox/src/limits.rs", ""),
            made_up("engine/sandbox/tests/escape.rs", "fn a_bomb_ends() {}\n"),
        ];
        let expect = [
            "engine/sandbox/README.md:4: does not exist: [\"mounts.rs\"]",
            "engine/sandbox/README.md:4: does not exist: [\"nothing_is_seen\"]",
            "engine/sandbox/README.md:5: does not exist: []",
        ];
        assert_eq!(threats(&files), expect);
    }
}
