//! Rules about every Rust file: its size, its first line, and what only some files may hold.

use crate::files::File;
use crate::source::{code, has_word, is_word, lines_where, lines_without_tests};

const LINES_MAX: usize = 400;
const COLUMNS_MAX: usize = 100;

/// Files that may be longer than [`LINES_MAX`], and why.
const LONG_FILES: &[(&str, &str)] = &[];

/// The one home of unsafe code.
const UNSAFE_HOME: &str = "engine/sandbox/src/sys.rs";

/// Where glommio may be named.
const GLOMMIO_HOMES: [&str; 3] = ["engine/src/env/", "engine/src/cores/", "grpc/src/transport/"];

/// Files elsewhere that name glommio, and why.
const GLOMMIO_EXCEPTIONS: &[(&str, &str)] =
    &[("engine/src/shard/tests.rs", "a shard on a real disk needs an executor of its own")];

/// What a person leaves behind for later; in two parts, so that this file has none.
const REMINDERS: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX"), concat!("HA", "CK")];

fn rust(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| file.is_rust())
}

/// Whether all of a file is a test: there the size is as large as the cases are many.
fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// `path:line: what` for every such line.
fn at_lines(file: &File, lines: &[usize], what: &str) -> Vec<String> {
    lines.iter().map(|line| format!("{}:{line}: {what}", file.path)).collect()
}

/// Exceptions that nothing needs.
fn stale(exceptions: &[(&str, &str)], needed: impl Fn(&str) -> bool) -> Vec<String> {
    let stale = exceptions.iter().filter(|(path, _)| !needed(path));
    stale.map(|(path, _)| format!("{path}: needs no exception any more")).collect()
}

/// Files of more than [`LINES_MAX`] without their tests.
pub(crate) fn sizes(files: &[File]) -> Vec<String> {
    let long: Vec<_> = rust(files)
        .filter(|file| !is_test(&file.path))
        .map(|file| (file.path.as_str(), lines_without_tests(&file.text)))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .collect();
    let excepted = |path: &str| LONG_FILES.iter().any(|(known, _)| *known == path);
    let mut broken = stale(LONG_FILES, |path| long.iter().any(|(found, _)| *found == path));
    broken.extend(long.iter().filter(|(path, _)| !excepted(path)).map(|(path, lines)| {
        format!("{path}: {lines} lines without its tests, at most {LINES_MAX}")
    }));
    broken
}

/// Lines of more than [`COLUMNS_MAX`]: rustfmt breaks neither comments nor literals.
pub(crate) fn columns(files: &[File]) -> Vec<String> {
    let long = |line: &str| line.chars().count() > COLUMNS_MAX;
    let what = format!("more than {COLUMNS_MAX} columns");
    rust(files).flat_map(|file| at_lines(file, &lines_where(&file.text, long), &what)).collect()
}

/// Files that do not start with what they own.
pub(crate) fn preface(files: &[File]) -> Vec<String> {
    rust(files)
        .filter(|file| !file.text.starts_with("//! "))
        .map(|file| {
            format!("{}: must start with `//!`: what it owns, what it must never do", file.path)
        })
        .collect()
}

/// Unsafe code away from its home.
pub(crate) fn unsafe_home(files: &[File]) -> Vec<String> {
    let word = |line: &str| has_word(line, "unsafe");
    let what = format!("unsafe code lives in {UNSAFE_HOME} alone");
    rust(files)
        .filter(|file| file.path != UNSAFE_HOME)
        .flat_map(|file| at_lines(file, &lines_where(&code(&file.text), word), &what))
        .collect()
}

/// Files that name glommio without being its home.
pub(crate) fn glommio_homes(files: &[File]) -> Vec<String> {
    let word = |line: &str| has_word(line, "glommio");
    let named = |path: &str| {
        rust(files).any(|file| file.path == path && has_word(&code(&file.text), "glommio"))
    };
    let excepted = |path: &str| GLOMMIO_EXCEPTIONS.iter().any(|(known, _)| *known == path);
    let mut broken = stale(GLOMMIO_EXCEPTIONS, named);
    broken.extend(
        rust(files)
            .filter(|file| !GLOMMIO_HOMES.iter().any(|home| file.path.starts_with(home)))
            .filter(|file| !excepted(&file.path))
            .flat_map(|file| {
                let lines = lines_where(&code(&file.text), word);
                at_lines(file, &lines, "glommio is not named here")
            }),
    );
    broken
}

/// Lints switched off: an expectation ends when it is met, an allowance never.
pub(crate) fn allows(files: &[File]) -> Vec<String> {
    let allow = |line: &str| {
        let line: String = line.split_whitespace().collect();
        line.match_indices("allow(").any(|(at, _)| {
            let before = &line[..at];
            before.ends_with("#[") || before.ends_with("#![") || before.contains("cfg_attr(")
        })
    };
    let what = "say #[expect(…, reason = \"…\")]";
    rust(files)
        .flat_map(|file| at_lines(file, &lines_where(&code(&file.text), allow), what))
        .collect()
}

/// Notes to oneself, in any file.
pub(crate) fn reminders(files: &[File]) -> Vec<String> {
    let reminder = |line: &str| REMINDERS.iter().any(|word| has_word(line, word));
    let debug =
        |line: &str| line.match_indices("dbg!").any(|(at, _)| !line[..at].ends_with(is_word));
    let mut broken = Vec::new();
    for file in files {
        broken.extend(at_lines(file, &lines_where(&file.text, reminder), "finish it, or leave it"));
        if file.is_rust() {
            let lines = lines_where(&code(&file.text), debug);
            broken.extend(at_lines(file, &lines, "prints for its author"));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::made_up;

    /// Runs `rule` on one file with `text`.
    fn check(rule: fn(&[File]) -> Vec<String>, path: &str, text: &str, expect: &[&str]) {
        let mut broken = rule(&[made_up(path, text)]);
        broken.retain(|line| !line.ends_with("needs no exception any more"));
        assert_eq!(broken, expect, "{path}: {text}");
    }

    #[test]
    fn a_long_file_is_found() {
        let long = "x\n".repeat(LINES_MAX + 1);
        let tested = format!("{}#[cfg(test)]\nmod tests {{\n{long}}}\n", "x\n".repeat(LINES_MAX));
        check(sizes, "a.rs", &long, &["a.rs: 401 lines without its tests, at most 400"]);
        check(sizes, "a.rs", &tested, &[]);
        check(sizes, "a/tests.rs", &long, &[]);
    }

    #[test]
    fn a_long_line_is_found() {
        check(columns, "a.rs", &"→".repeat(COLUMNS_MAX), &[]);
        let long = format!("\n{}", "→".repeat(COLUMNS_MAX + 1));
        check(columns, "a.rs", &long, &["a.rs:2: more than 100 columns"]);
    }

    #[test]
    fn a_file_without_a_preface_is_found() {
        check(preface, "a.rs", "//! Owns nothing.\n", &[]);
        let expect = "a.rs: must start with `//!`: what it owns, what it must never do";
        check(preface, "a.rs", "use std::fs;\n", &[expect]);
    }

    #[test]
    fn unsafe_code_away_from_home_is_found() {
        let expect = "a.rs:2: unsafe code lives in engine/sandbox/src/sys.rs alone";
        check(unsafe_home, "a.rs", "// unsafe\nunsafe { f() }\n", &[expect]);
        check(unsafe_home, "a.rs", "#![forbid(unsafe_code)]\n", &[]);
        check(unsafe_home, UNSAFE_HOME, "unsafe { f() }\n", &[]);
    }

    #[test]
    fn glommio_away_from_home_is_found() {
        let text = "//! On glommio.\nuse glommio::io;\n";
        check(glommio_homes, "engine/src/env/disk.rs", text, &[]);
        let expect = "engine/src/blob/mod.rs:2: glommio is not named here";
        check(glommio_homes, "engine/src/blob/mod.rs", text, &[expect]);
    }

    #[test]
    fn an_exception_without_need_is_found() {
        let expect = ["engine/src/shard/tests.rs: needs no exception any more"];
        assert_eq!(glommio_homes(&[made_up("engine/src/shard/tests.rs", "")]), expect);
    }

    #[test]
    fn a_silenced_lint_is_found() {
        let expect = "a.rs:1: say #[expect(…, reason = \"…\")]";
        check(allows, "a.rs", "#[allow(dead_code)]\n", &[expect]);
        check(allows, "a.rs", "#![ allow(dead_code)]\n", &[expect]);
        check(allows, "a.rs", "#[cfg_attr(test, allow(dead_code))]\n", &[expect]);
        check(allows, "a.rs", "#[expect(dead_code, reason = \"…\")]\nif allow(x) {}\n", &[]);
    }

    #[test]
    fn a_reminder_is_found() {
        let text = format!("a\n# {}: b\n", REMINDERS[0]);
        check(reminders, "a.yaml", &text, &["a.yaml:2: finish it, or leave it"]);
        check(reminders, "a.rs", "dbg!(x);\n", &["a.rs:1: prints for its author"]);
        check(reminders, "a.rs", "// dbg! is refused\n", &[]);
    }
}
