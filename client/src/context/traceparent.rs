//! The header `traceparent`: which trace, and which span of it caused the record. Pure.
//!
//! ```text
//!  00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
//!  |  |                                |                '- flags: bit 0 = sampled
//!  |  '- trace id, not all zeros       '- parent id, not all zeros
//!  '- version; ff is forbidden, a later one may have more behind another '-'
//! ```
//! W3C Trace Context, Level 1; lower-case hexadecimal digits only.

use std::{fmt, str::FromStr};

/// Which trace a record belongs to, and the span that caused it.
///
/// ```
/// use busbar_client::TraceParent;
///
/// let parent: TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
/// assert!(parent.is_sampled());
/// assert_eq!(parent.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace_id: [u8; 16],
    parent_id: [u8; 8],
    flags: u8,
}

/// A text that is no `traceparent`.
///
/// ```
/// use busbar_client::TraceParent;
///
/// assert!("00-0-0-00".parse::<TraceParent>().unwrap_err().to_string().starts_with("no traceparent"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no traceparent: write 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, neither id all zeros")]
pub struct MalformedTraceParent;

impl TraceParent {
    /// Bytes of the text of version 00.
    const BYTES: usize = 55;
    /// Of the flags, version 00 knows this one.
    const SAMPLED: u8 = 1;

    /// Of these ids; `None` when one of them is all zeros.
    pub fn new(trace_id: [u8; 16], parent_id: [u8; 8], sampled: bool) -> Option<Self> {
        Self { trace_id, parent_id, flags: u8::from(sampled) }.checked()
    }

    /// The trace.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The span that caused the record.
    pub fn parent_id(&self) -> [u8; 8] {
        self.parent_id
    }

    /// Whether the trace is recorded.
    pub fn is_sampled(&self) -> bool {
        self.flags & Self::SAMPLED != 0
    }

    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let mut rest = text;
        let [version] = field(&mut rest)?;
        dash(&mut rest)?;
        let trace_id = field(&mut rest)?;
        dash(&mut rest)?;
        let parent_id = field(&mut rest)?;
        dash(&mut rest)?;
        let [flags] = field(&mut rest)?;
        let ends = match version {
            0xff => false,
            0 => rest.is_empty(),
            // What a later version has behind is not ours to understand.
            _ => rest.is_empty() || rest[0] == b'-',
        };
        // A later version's flags may mean something else, but for the one we know.
        let flags = if version == 0 { flags } else { flags & Self::SAMPLED };
        Self { trace_id, parent_id, flags }.checked().filter(|_| ends)
    }

    fn checked(self) -> Option<Self> {
        (self.trace_id != [0; 16] && self.parent_id != [0; 8]).then_some(self)
    }
}

impl FromStr for TraceParent {
    type Err = MalformedTraceParent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text.as_bytes()).ok_or(MalformedTraceParent)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(Self::BYTES);
        text.push_str("00-");
        push_hex(&mut text, &self.trace_id);
        text.push('-');
        push_hex(&mut text, &self.parent_id);
        text.push('-');
        push_hex(&mut text, &[self.flags]);
        f.write_str(&text)
    }
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for digit in bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]) {
        text.push(char::from(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }));
    }
}

/// The next `N` bytes, two digits each.
fn field<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (digits, behind) = rest.split_at_checked(2 * N)?;
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    *rest = behind;
    Some(bytes)
}

fn digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn dash(rest: &mut &[u8]) -> Option<()> {
    *rest = rest.strip_prefix(b"-")?;
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    #[test]
    fn the_rules_of_the_format() {
        let zeros = "0".repeat(32);
        for (text, sound) in [
            (format!("00-{TRACE}-{PARENT}-01"), true),
            (format!("00-{TRACE}-{PARENT}-ff"), true),
            (format!("00-{TRACE}-{PARENT}-01-"), false),
            (format!("00-{TRACE}-{PARENT}-01-what"), false),
            (format!("01-{TRACE}-{PARENT}-01"), true),
            (format!("cc-{TRACE}-{PARENT}-01-what-comes-later"), true),
            (format!("cc-{TRACE}-{PARENT}-01.later"), false),
            (format!("ff-{TRACE}-{PARENT}-01"), false),
            (format!("00-{zeros}-{PARENT}-01"), false),
            (format!("00-{TRACE}-{}-01", &zeros[..16]), false),
            (format!("00-{}-{PARENT}-01", TRACE.to_uppercase()), false),
            (format!(" 00-{TRACE}-{PARENT}-01"), false),
            (format!("00-{TRACE}-{PARENT}-0"), false),
            (format!("00_{TRACE}-{PARENT}-01"), false),
            (String::new(), false),
        ] {
            assert_eq!(TraceParent::parse(text.as_bytes()).is_some(), sound, "{text}");
        }
        let later = TraceParent::parse(format!("cc-{TRACE}-{PARENT}-ff").as_bytes()).expect("sound");
        assert_eq!(later.to_string(), format!("00-{TRACE}-{PARENT}-01"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace_id: [u8; 16], parent_id: [u8; 8], sampled: bool) {
            let Some(parent) = TraceParent::new(trace_id, parent_id, sampled) else { return Ok(()) };
            let text = parent.to_string();
            prop_assert_eq!(text.len(), TraceParent::BYTES);
            prop_assert_eq!(text.parse(), Ok(parent));
            prop_assert_eq!((parent.trace_id(), parent.parent_id(), parent.is_sampled()), (trace_id, parent_id, sampled));
        }

        #[test]
        fn one_wrong_byte_is_noticed_or_another_sound_text(at in 0_usize..55, byte: u8) {
            let mut text = format!("00-{TRACE}-{PARENT}-01").into_bytes();
            text[at] = byte;
            if let Some(read) = TraceParent::parse(&text) {
                prop_assert!(byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte) || byte == b'-');
                let written = read.to_string();
                prop_assert_eq!(&written.as_bytes()[3..53], &text[3..53]);
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = TraceParent::parse(&bytes);
        }
    }
}
