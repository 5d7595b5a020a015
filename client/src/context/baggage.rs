//! The header `baggage`: names and values that an application sends along, percent-encoded. Pure. Only its form is
//! checked.
//!
//! ```text
//!  user=42,region=eu%20west;priority=low       names = tokens, values = printable ASCII, properties behind ';'
//! ```
//! W3C Baggage.

use busbar_proto::limits;

/// Members: W3C asks for at least 64; OpenTelemetry's implementations allow so many.
const MEMBERS_MAX: usize = 180;

/// Whether it may be passed on.
pub(crate) fn is_sound(text: &str) -> bool {
    let members = || text.split(',');
    text.len() <= limits::BAGGAGE_BYTES_MAX && members().count() <= MEMBERS_MAX && members().all(is_member)
}

fn is_member(member: &str) -> bool {
    let mut parts = member.split(';');
    let pair = parts.next().and_then(|pair| pair.split_once('='));
    let named = pair.is_some_and(|(name, value)| is_token(trim(name)) && is_value(trim(value)));
    named
        && parts.all(|property| match property.split_once('=') {
            Some((name, value)) => is_token(trim(name)) && is_value(trim(value)),
            None => is_token(trim(property)),
        })
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// RFC 7230's token.
fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Printable ASCII but space, `"`, `,`, `;` and `\`.
fn is_value(value: &str) -> bool {
    value.bytes().all(|byte| matches!(byte, b'!'..=b'~') && !b"\",;\\".contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rules_of_the_format() {
        for (text, sound) in [
            ("user=42".to_owned(), true),
            ("user=42,region=eu%20west;priority=low;hot , b = 1 ".to_owned(), true),
            ("empty=".to_owned(), true),
            ("a=b=c".to_owned(), true),
            (String::new(), false),
            ("user".to_owned(), false),
            ("=42".to_owned(), false),
            ("a=1,".to_owned(), false),
            ("a b=1".to_owned(), false),
            ("a=1 2".to_owned(), false),
            ("a=\"1\"".to_owned(), false),
            ("a=1;".to_owned(), false),
            ("a=ä".to_owned(), false),
            (vec!["a=1"; 181].join(","), false),
            (format!("a={}", "x".repeat(limits::BAGGAGE_BYTES_MAX)), false),
        ] {
            assert_eq!(is_sound(&text), sound, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(text: String) {
            is_sound(&text);
        }
    }
}
