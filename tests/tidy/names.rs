//! Names that put off deciding what a thing is, in items and in paths. Must never judge a name
//! that the protocol or another crate chose.

use crate::files::File;
use crate::source::{code, is_word, words};

/// Banned anywhere in a name, in the plural too.
const ANYWHERE: [&str; 12] = [
    "manager",
    "helper",
    "util",
    "common",
    "misc",
    "base",
    "handler",
    "wrapper",
    "processor",
    "data",
    "info",
    "legacy",
];
/// Banned before another word: what is done is the name.
const FIRST: [&str; 2] = ["do", "inner"];
/// Banned after another word.
const LAST: [&str; 2] = ["impl", "new2"];

/// The next word is the name of an item. A `type` may be another crate's: an associated one.
const ITEMS: [&str; 5] = ["fn", "struct", "enum", "trait", "mod"];

/// Items that may have a banned name, and why.
const ITEM_EXCEPTIONS: &[(&str, &str)] = &[
    ("data_len", "the wire calls a blob's bytes `data`: this counts that field"),
    ("do_not_cache", "REAPI's word: a field of an Action"),
];

/// The word for which `name` is banned.
fn banned(name: &str) -> Option<String> {
    let words = words(name);
    let listed = |word: &str| ANYWHERE.contains(&word);
    let anywhere = |word: &&String| listed(word) || word.strip_suffix('s').is_some_and(listed);
    let (first, last) = (words.first()?, words.last()?);
    let several = words.len() > 1;
    words
        .iter()
        .find(anywhere)
        .or_else(|| Some(first).filter(|word| several && FIRST.contains(&word.as_str())))
        .or_else(|| Some(last).filter(|word| several && LAST.contains(&word.as_str())))
        .cloned()
}

/// The items that `text` declares.
fn declared(text: &str) -> Vec<String> {
    let code = code(text);
    let tokens: Vec<_> = code.split_whitespace().collect();
    let items = tokens.windows(2).filter(|pair| ITEMS.contains(&pair[0]));
    items.map(|pair| pair[1].chars().take_while(|&c| is_word(c)).collect()).collect()
}

/// Items with a banned name, and exceptions that no item needs.
pub(crate) fn items(files: &[File]) -> Vec<String> {
    let mut unused: Vec<_> = ITEM_EXCEPTIONS.iter().map(|(name, _)| *name).collect();
    let mut broken = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        for name in declared(&file.text) {
            if ITEM_EXCEPTIONS.iter().any(|(known, _)| *known == name) {
                unused.retain(|known| *known != name);
            } else if let Some(word) = banned(&name) {
                broken.push(format!("{}: {name}: what is a \"{word}\"?", file.path));
            }
        }
    }
    broken.extend(unused.iter().map(|name| format!("{name}: needs no exception any more")));
    broken
}

/// Files and directories with a banned name.
pub(crate) fn paths(files: &[File]) -> Vec<String> {
    let named = |file: &File| file.path.split('/').find_map(banned);
    let broken = files.iter().filter_map(|file| Some((file, named(file)?)));
    broken.map(|(file, word)| format!("{}: what is a \"{word}\"?", file.path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::made_up;

    #[test]
    fn a_name_that_says_nothing_is_banned() {
        let check = |name: &str, expect: Option<&str>| assert_eq!(banned(name).as_deref(), expect);
        check("BlobManager", Some("manager"));
        check("string_utils", Some("utils"));
        check("do_execute", Some("do"));
        check("inner_execute", Some("inner"));
        check("StoreImpl", Some("impl"));
        check("info", Some("info"));
        check("metadata", None);
        check("database", None);
        check("inner", None);
        check("process", None);
    }

    #[test]
    fn an_item_with_a_banned_name_is_found() {
        let text = "// struct Helper\npub(crate) struct NodeInfo;\nlet f: fn(data: u8);\n";
        let mut broken = items(&[made_up("a.rs", text)]);
        broken.retain(|line| !line.ends_with("needs no exception any more"));
        assert_eq!(broken, ["a.rs: NodeInfo: what is a \"info\"?"]);
    }

    #[test]
    fn a_path_with_a_banned_name_is_found() {
        let files = [made_up("grpc/src/common/mod.rs", ""), made_up("grpc/src/status.rs", "")];
        assert_eq!(paths(&files), ["grpc/src/common/mod.rs: what is a \"common\"?"]);
    }
}
