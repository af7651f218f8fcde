//! Rust source as the rules read it: without comments and literals, in words. Must never be a
//! parser: what it can't tell apart, no rule may need.

/// `text` with comments and literals blanked out; every line stays where it was.
pub(crate) fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let in_word = at > 0 && is_word(chars[at - 1]);
        let blank = blank_len(&chars[at..], in_word);
        let kept = |c: char| if blank == 0 || c == '\n' { c } else { ' ' };
        let next = at + blank.max(1);
        code.extend(chars[at..next].iter().map(|&c| kept(c)));
        at = next;
    }
    code
}

/// How many characters of `rest` are one comment or literal; 0 if it starts with neither.
fn blank_len(rest: &[char], in_word: bool) -> usize {
    match rest {
        ['/', '/', ..] => rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()),
        ['/', '*', ..] => block_comment_len(rest),
        ['"', ..] => quoted_len(rest, '"'),
        ['r', ..] if !in_word => raw_string_len(rest),
        ['\'', '\\', ..] | ['\'', _, '\'', ..] => quoted_len(rest, '\''),
        _ => 0, // what else starts with an apostrophe is a lifetime
    }
}

fn block_comment_len(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] if depth == 1 => return at + 2,
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    rest.len()
}

fn quoted_len(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    rest.len().min(at + 1)
}

fn raw_string_len(rest: &[char]) -> usize {
    let hashes = rest[1..].iter().take_while(|&&c| c == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let open = hashes + 2;
    let end = |at: usize| {
        let tail = &rest[at..];
        tail[0] == '"' && tail.len() > hashes && tail[1..=hashes].iter().all(|&c| c == '#')
    };
    (open..rest.len()).find(|&at| end(at)).map_or(rest.len(), |at| at + hashes + 1)
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `line` has `word`, not as a part of a longer one.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word)
    })
}

/// The numbers of the lines, counted from 1, on which `found` holds.
pub(crate) fn lines_where(text: &str, found: impl Fn(&str) -> bool) -> Vec<usize> {
    text.lines().enumerate().filter(|(_, line)| found(line)).map(|(at, _)| at + 1).collect()
}

/// The lines before the tests at the bottom of a file.
pub(crate) fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<_> = text.lines().collect();
    let tests = lines.windows(2).position(|pair| pair == ["#[cfg(test)]", "mod tests {"]);
    tests.unwrap_or(lines.len())
}

/// The words of an identifier or file name, in lower case: `FooBar_baz` has three.
pub(crate) fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut lower_before = false;
    for c in name.chars() {
        if !c.is_alphanumeric() || (c.is_uppercase() && lower_before) {
            words.push(String::new());
        }
        if c.is_alphanumeric() {
            words.last_mut().expect("never empty").extend(c.to_lowercase());
        }
        lower_before = c.is_lowercase() || c.is_numeric();
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn comments_and_literals_are_no_code() {
    let check = |text: &str, expect: &str| assert_eq!(code(text).trim_end(), expect, "{text}");
    check("let a = 1; // unsafe", "let a = 1;");
    check("a /* x /* y */ z */ b", "a                   b");
    check(r#"f("a \" b", c)"#, "f(        , c)");
    check(r##"f(r#"a " b"#, c)"##, "f(          , c)");
    check(r"f('\'', 'x', &'a str)", "f(    ,    , &'a str)");
    check("for_r\"x\"", "for_r");
    check("r#type", "r#type");
    check("\"a\nb\" c", "  \n   c");
    check("\"never closed", "");
}

#[test]
fn a_name_falls_into_words() {
    let check = |name: &str, expect: &[&str]| assert_eq!(words(name), expect, "{name}");
    check("find_missing", &["find", "missing"]);
    check("ActionCache", &["action", "cache"]);
    check("HASH_BYTES", &["hash", "bytes"]);
    check("metadata", &["metadata"]);
    check("_names.tpl", &["names", "tpl"]);
    check("Sha256Sum", &["sha256", "sum"]);
}

#[test]
fn a_word_is_found_whole() {
    assert!(has_word("an unsafe block", "unsafe"));
    assert!(!has_word("unsafe_code", "unsafe"));
    assert!(!has_word("", "unsafe"));
}

#[test]
fn tests_at_the_bottom_do_not_count() {
    assert_eq!(lines_without_tests("a\nb\n#[cfg(test)]\nmod tests {\n}\n"), 2);
    assert_eq!(lines_without_tests("a\n#[cfg(test)]\nmod tests;\n"), 3);
}
