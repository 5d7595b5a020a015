//! `docs/ERRORS.md` lists every [`Reason`], in order, with the answers that the code gives.

use busbar_proto::Reason;

const DOCUMENT: &str = include_str!("../../docs/ERRORS.md");

/// `ResourceExhausted` as gRPC spells it: `RESOURCE_EXHAUSTED`.
fn screaming(name: &str) -> String {
    let mut text = String::new();
    for (at, c) in name.char_indices() {
        if at > 0 && c.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text
}

fn expected_row(reason: Reason) -> [String; 4] {
    [
        format!("`{}`", reason.as_str()),
        format!("`{}`", screaming(&format!("{:?}", reason.code()))),
        if reason.is_retryable() { "yes" } else { "no" }.to_owned(),
        if reason.has_no_side_effects() { "no" } else { "perhaps" }.to_owned(),
    ]
}

#[test]
fn errors_md_matches_the_code() {
    let rows = DOCUMENT.lines().filter(|line| line.starts_with("| `"));
    let mut documented = Vec::new();
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [reason, code, retry, stored, advice] = cells[..] else {
            panic!("five columns, not {}: {row}", cells.len())
        };
        assert!(advice.len() > 20 && advice.ends_with('.'), "{reason} says too little: {advice:?}");
        documented.push([reason, code, retry, stored].map(str::to_owned));
    }
    let expected: Vec<_> = Reason::ALL.iter().map(|&reason| expected_row(reason)).collect();
    for (documented, expected) in documented.iter().zip(&expected) {
        assert_eq!(documented, expected);
    }
    assert_eq!(documented.len(), expected.len(), "docs/ERRORS.md lists every reason once");
}
