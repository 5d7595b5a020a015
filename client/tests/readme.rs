//! README.md shows `examples/quickstart.rs`, which every build of the tests compiles: so what a reader pastes compiles.

const README: &str = include_str!("../../README.md");
const EXAMPLE: &str = include_str!("../examples/quickstart.rs");

#[test]
fn the_readme_shows_the_quickstart_example() {
    let (_, rest) = README.split_once("```rust\n").expect("README.md has a Rust example");
    let (shown, rest) = rest.split_once("```\n").expect("the example ends");
    let code = EXAMPLE.trim_start_matches(|c| c != '\n'); // past the first line of the file's own comment
    let (_, code) = code.split_once("\n\n").expect("an empty line after the file's own comment");
    assert_eq!(shown, code, "change README.md and client/examples/quickstart.rs together");
    assert!(!rest.contains("```rust"), "a second Rust example in README.md needs a check of its own");
}
