//! Golden traces: a file of commands, each followed by what it gave (lines that begin with `>`). A test runs the
//! commands again and compares. To accept changed answers, run the test with `BUSBAR_BLESS=1` and read the diff.

use std::{env, fs, path::Path};

/// Replays `name` through `step`, which gives the answer to one command.
pub(crate) fn replay(name: &str, mut step: impl FnMut(&str) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machine/golden").join(name);
    let recorded = fs::read_to_string(&path).unwrap_or_else(|error| panic!("can't read {}: {error}", path.display()));
    let mut replayed = String::new();
    for line in recorded.lines().filter(|line| !line.starts_with('>')) {
        replayed += line;
        replayed.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        for answer in step(line).lines() {
            replayed += &format!("> {answer}\n");
        }
    }
    if env::var_os("BUSBAR_BLESS").is_some() {
        fs::write(&path, &replayed).unwrap();
        return;
    }
    for (number, (want, got)) in recorded.lines().zip(replayed.lines()).enumerate() {
        assert_eq!(got, want, "{name}, line {}", number + 1);
    }
    assert_eq!(replayed, recorded, "{name}: one is longer");
}
