//! The house rules, as tests. A rule is a function from the files of the repository to what breaks
//! it, with a test on files made up for it beside it; one test here runs it on the real ones.
//! Must never judge taste: what can't be said as a rule is said in a review.
//!
//! Sizes of functions, counts of parameters, formatting and `unwrap` are clippy's and rustfmt's.
//! An exception stands in a list beside its rule, with its reason. The lists may only shrink: an
//! exception that nothing needs any more breaks the rule too.

#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/dependencies.rs"]
mod dependencies;
#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/files.rs"]
mod files;
#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/scripts.rs"]
mod scripts;
#[path = "tidy/source.rs"]
mod source;

use std::sync::LazyLock;

use files::File;

static REPOSITORY: LazyLock<Vec<File>> = LazyLock::new(files::repository);

/// Fails with everything that breaks a rule, one line each.
fn none(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn the_top_level_is_what_is_agreed_and_nothing_else() {
    none(&files::top_level(&files::root_names()));
}

#[test]
fn no_file_is_heavy() {
    none(&files::weight(&REPOSITORY));
}

#[test]
fn every_source_file_can_be_seen_whole() {
    none(&code::sizes(&REPOSITORY));
    none(&code::columns(&REPOSITORY));
}

#[test]
fn every_source_file_says_what_it_owns() {
    none(&code::preface(&REPOSITORY));
}

#[test]
fn unsafe_code_has_one_address() {
    none(&code::unsafe_home(&REPOSITORY));
}

#[test]
fn glommio_can_be_replaced() {
    none(&code::glommio_homes(&REPOSITORY));
}

#[test]
fn lints_are_not_silenced() {
    none(&code::allows(&REPOSITORY));
}

#[test]
fn nothing_is_left_for_later() {
    none(&code::reminders(&REPOSITORY));
}

#[test]
fn names_say_what_a_thing_is() {
    none(&names::items(&REPOSITORY));
    none(&names::paths(&REPOSITORY));
}

#[test]
fn the_modules_of_the_engine_depend_one_way() {
    none(&dependencies::modules(&REPOSITORY));
}

#[test]
fn the_crates_depend_one_way() {
    none(&dependencies::crates(&REPOSITORY));
}

#[test]
fn every_dependency_has_a_reason_and_a_user() {
    none(&dependencies::reasons(&REPOSITORY));
    none(&dependencies::users(&REPOSITORY));
}

#[test]
fn every_decision_record_has_its_four_parts() {
    none(&documents::decisions(&REPOSITORY));
}

#[test]
fn every_threat_to_the_sandbox_is_tried_by_a_test() {
    none(&documents::threats(&REPOSITORY));
}

#[test]
fn scripts_are_short_and_at_home_anywhere() {
    none(&scripts::form(&REPOSITORY));
    none(&scripts::machine_paths(&REPOSITORY));
}

#[test]
fn nothing_but_prose_names_a_host() {
    none(&scripts::hosts(&REPOSITORY));
}
