//! Keeps the house tidy: size, layering and forbidden calls, checked on the text of every source file, because
//! the compiler can't check them inside one crate. Plain `std`; each check is a pure function of the text with
//! tests of its own beside it. That `docs/ERRORS.md` matches the code is checked in `proto/tests/errors_doc.rs`.
//!
//! An exception list may only shrink: a new entry needs a reason in the commit, a stale one fails.

#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/shape.rs"]
mod shape;
#[path = "tidy/source.rs"]
mod source;

use std::path::Path;

use source::{Source, Violation};

/// Files at or above the limit of lines, with their size today.
const LONG_FILES: &[(&str, usize)] = &[];
/// Functions above the limit of lines: file, name, size today.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[];

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let sources = source::read_all(&root);
    assert!(sources.len() > 20, "only {} sources found in {}", sources.len(), root.display());
    sources
}

fn check(rule: impl Fn(&Source) -> Vec<Violation>) {
    fail_on(sources().iter().flat_map(rule).collect());
}

fn fail_on(violations: Vec<Violation>) {
    let lines: Vec<_> = violations.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} violations:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn files_are_short() {
    check(|source| shape::file_length(source, LONG_FILES));
}

#[test]
fn functions_are_short() {
    check(|source| shape::function_lengths(source, LONG_FUNCTIONS));
}

#[test]
fn exceptions_are_needed() {
    fail_on(shape::stale_exceptions(&sources(), LONG_FILES, LONG_FUNCTIONS));
}

#[test]
fn files_say_what_they_own() {
    check(shape::opening);
}

#[test]
fn nothing_is_left_for_later() {
    check(shape::leftovers);
}

#[test]
fn words_stay_where_they_belong() {
    check(layers::misplaced_words);
}

#[test]
fn broker_modules_look_downwards() {
    check(layers::upward_paths);
}
