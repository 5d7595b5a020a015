//! The header `tracestate`: what tracing systems add to a trace, one member each. Pure. Only its form is checked; the
//! members mean something to their systems alone.
//!
//! ```text
//!  vendor=value,tenant@vendor=value       up to 32 members, each key once
//! ```
//! W3C Trace Context, Level 1 and 2.

use std::collections::BTreeSet;

use busbar_proto::limits;

const MEMBERS_MAX: usize = 32;
const KEY_BYTES_MAX: usize = 256;
const VALUE_BYTES_MAX: usize = 256;

/// Whether it may be passed on.
pub(crate) fn is_sound(text: &str) -> bool {
    if text.len() > limits::TRACESTATE_BYTES_MAX {
        return false;
    }
    let mut keys = BTreeSet::new();
    let members = text.split(',').map(|member| member.trim_matches([' ', '\t']));
    for member in members.filter(|member| !member.is_empty()) {
        let sound =
            member.split_once('=').is_some_and(|(key, value)| is_key(key) && is_value(value) && keys.insert(key));
        if !sound || keys.len() > MEMBERS_MAX {
            return false;
        }
    }
    true
}

/// Lower-case letters, digits and `_-*/`, beginning with a letter or digit; a tenant before the system's name, with `@`.
fn is_key(key: &str) -> bool {
    let part = |part: &str| {
        let begins = part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let follows = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-' | '*' | '/');
        begins && part.chars().all(follows)
    };
    let parts = match key.split_once('@') {
        None => part(key),
        Some((tenant, system)) => part(tenant) && part(system),
    };
    key.len() <= KEY_BYTES_MAX && parts
}

/// Printable ASCII without `,` and `=`, not ending in a space.
fn is_value(value: &str) -> bool {
    let printable = |c: char| matches!(c, ' '..='~') && c != ',' && c != '=';
    !value.is_empty() && value.len() <= VALUE_BYTES_MAX && value.chars().all(printable) && !value.ends_with(' ')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rules_of_the_format() {
        let many = |count: usize| (0..count).map(|number| format!("v{number}=x")).collect::<Vec<_>>().join(",");
        for (text, sound) in [
            ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE".to_owned(), true),
            ("fw529a3039@dt=FfAQj, \t a=1".to_owned(), true),
            ("a=1,,b=2,".to_owned(), true),
            (String::new(), true),
            (many(32), true),
            (many(33), false),
            ("a=1,a=2".to_owned(), false),
            ("A=1".to_owned(), false),
            ("a".to_owned(), false),
            ("a=".to_owned(), false),
            ("=1".to_owned(), false),
            ("a=1=2".to_owned(), false),
            ("a@=1".to_owned(), false),
            ("a=ä".to_owned(), false),
            ("a b=1".to_owned(), false),
            (format!("a={}", "x".repeat(257)), false),
            (format!("{}=1", "a".repeat(257)), false),
            (" ".repeat(limits::TRACESTATE_BYTES_MAX + 1), false),
        ] {
            assert_eq!(is_sound(&text), sound, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn distinct_members_of_the_alphabet_are_sound(
            members in prop::collection::btree_map("[a-z0-9][a-z0-9_*/-]{0,20}(@[a-z][a-z0-9]{0,10})?", "[!-+.-<>-~]{1,20}", 0..32),
        ) {
            let text = members.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
            prop_assert!(is_sound(&text), "{}", text);
        }

        #[test]
        fn any_text_is_read_without_harm(text: String) {
            is_sound(&text);
        }
    }
}
