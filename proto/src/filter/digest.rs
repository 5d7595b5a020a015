//! A digest: which values the headers of a batch's records have, in a few bytes beside the batch, so that a broker can
//! tell that a filter wants none of them without opening the batch.
//!
//! ```text
//!  version u8 = 1 | flags u8 (1 = closed) | count, attribute*
//!  attribute = length, name | flags u8 (1 = every record has it, 2 = there are more values) | count, (length, value)*
//! ```
//! Numbers are LEB128 of at most two bytes. In a closed digest a name that is not listed occurs in no record; in one
//! that is not closed, nothing is known of it. A listed name without a value and without "more" occurs in no record.
//!
//! Invariants: decoding is total, allocates nothing by a declared number, and refuses what is longer than
//! [`limits::DIGEST_BYTES_MAX`]; what a builder makes is not longer.

use std::sync::Arc;

use bytes::Bytes;

use crate::limits;

const VERSION: u8 = 1;
const CLOSED: u8 = 1;
const EVERY: u8 = 1;
const MORE: u8 = 2;
/// Names that a producer may put into its digests.
const NAMES_MAX: usize = 16;
/// Bytes of such a name.
const NAME_BYTES_MAX: usize = 64;
/// Values of one name that are listed.
const VALUES_MAX: usize = 16;
/// Bytes of a value that is listed.
const VALUE_BYTES_MAX: usize = 256;
/// A length and two flag bytes, a count.
const NAME_FRAMING_BYTES: usize = 5;

/// Names alone always fit.
const _: () = assert!(4 + NAMES_MAX * (NAME_BYTES_MAX + NAME_FRAMING_BYTES) <= limits::DIGEST_BYTES_MAX);
/// Two bytes of LEB128 are enough for every number.
const _: () = assert!(limits::DIGEST_BYTES_MAX < 1 << 14);

/// Bytes that are no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Over [`limits::DIGEST_BYTES_MAX`].
    #[error("it has {0} bytes, at most {max} are allowed", max = limits::DIGEST_BYTES_MAX)]
    TooLong(usize),
    /// Of another version.
    #[error("version {0} is not known here")]
    Version(u8),
    /// Cut off, or followed by something.
    #[error("the bytes end too early, or are too many")]
    Length,
    /// A name that is no UTF-8.
    #[error("a name is no UTF-8")]
    Name,
}

/// What a batch's records carry, as its producer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest<'a> {
    closed: bool,
    attributes: Vec<Attribute<'a>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Attribute<'a> {
    name: &'a str,
    every: bool,
    more: bool,
    values: Vec<&'a [u8]>,
}

/// What is known of one name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Known<'d, 'a> {
    Nothing,
    /// No record has it.
    Absent,
    Values {
        values: &'d [&'a [u8]],
        /// Every record has it.
        every: bool,
        /// There are no other values.
        all_listed: bool,
    },
}

impl<'a> Digest<'a> {
    /// The digest that these bytes, all of them, are.
    ///
    /// # Errors
    /// [`DigestError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DigestError> {
        if bytes.len() > limits::DIGEST_BYTES_MAX {
            return Err(DigestError::TooLong(bytes.len()));
        }
        let mut rest = bytes;
        let version = byte(&mut rest)?;
        if version != VERSION {
            return Err(DigestError::Version(version));
        }
        let closed = byte(&mut rest)? & CLOSED != 0;
        let mut attributes = Vec::new();
        for _ in 0..number(&mut rest)? {
            let name = std::str::from_utf8(run(&mut rest)?).map_err(|_| DigestError::Name)?;
            let flags = byte(&mut rest)?;
            let mut values = Vec::new();
            for _ in 0..number(&mut rest)? {
                values.push(run(&mut rest)?);
            }
            attributes.push(Attribute { name, every: flags & EVERY != 0, more: flags & MORE != 0, values });
        }
        if rest.is_empty() { Ok(Self { closed, attributes }) } else { Err(DigestError::Length) }
    }

    pub(super) fn known(&self, name: &str) -> Known<'_, 'a> {
        match self.attributes.iter().find(|attribute| attribute.name == name) {
            Some(Attribute { more: false, values, .. }) if values.is_empty() => Known::Absent,
            Some(Attribute { every, more, values, .. }) => Known::Values { values, every: *every, all_listed: !more },
            None if self.closed => Known::Absent,
            None => Known::Nothing,
        }
    }
}

fn byte(from: &mut &[u8]) -> Result<u8, DigestError> {
    let (&first, rest) = from.split_first().ok_or(DigestError::Length)?;
    *from = rest;
    Ok(first)
}

fn number(from: &mut &[u8]) -> Result<usize, DigestError> {
    let low = byte(from)?;
    if low < 0x80 {
        return Ok(low.into());
    }
    let high = byte(from)?;
    if high >= 0x80 {
        return Err(DigestError::Length);
    }
    Ok(usize::from(low & 0x7f) | usize::from(high) << 7)
}

fn run<'a>(from: &mut &'a [u8]) -> Result<&'a [u8], DigestError> {
    let length = number(from)?;
    let (taken, rest) = from.split_at_checked(length).ok_or(DigestError::Length)?;
    *from = rest;
    Ok(taken)
}

/// The names of headers that a producer puts into its digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestNames(Arc<[Box<str>]>);

/// Names that can't be put into digests.
///
/// ```
/// use busbar_proto::filter::{DigestNameError, DigestNames};
///
/// assert_eq!(DigestNames::new([""]), Err(DigestNameError::Length(String::new())));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestNameError {
    /// Too many.
    #[error("{0} names of headers for the digest, at most {NAMES_MAX} are allowed")]
    TooMany(usize),
    /// Empty, or too long.
    #[error("{0:?} in the digest: the name of a header there has 1 to {NAME_BYTES_MAX} bytes")]
    Length(String),
}

impl DigestNames {
    /// The attributes of CloudEvents that events are told apart by, as Kafka's binding names them.
    pub const EVENTS: [&'static str; 3] = ["ce_type", "ce_source", "ce_subject"];

    /// These names, each once.
    ///
    /// # Errors
    /// [`DigestNameError`].
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Result<Self, DigestNameError> {
        let mut kept: Vec<Box<str>> = Vec::new();
        for name in names {
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(DigestNameError::Length(name.to_owned()));
            }
            if !kept.iter().any(|known| **known == *name) {
                kept.push(name.into());
            }
        }
        if kept.len() > NAMES_MAX {
            return Err(DigestNameError::TooMany(kept.len()));
        }
        Ok(Self(kept.into()))
    }
}

impl Default for DigestNames {
    fn default() -> Self {
        Self(Self::EVENTS.map(Box::from).into())
    }
}

/// Gathers the digest of a batch, record by record.
#[derive(Clone, Debug)]
pub struct DigestBuilder {
    names: DigestNames,
    records: u32,
    /// A record had a header that is not among the names.
    others: bool,
    /// Of the names, in their order; empty until a record has headers.
    gathered: Vec<Gathered>,
}

#[derive(Clone, Debug, Default)]
struct Gathered {
    records: u32,
    more: bool,
    values: Vec<Bytes>,
}

impl DigestBuilder {
    /// Of no record so far.
    pub fn new(names: DigestNames) -> Self {
        Self { names, records: 0, others: false, gathered: Vec::new() }
    }

    /// Counts a record with these headers.
    pub fn push<N: AsRef<str>>(&mut self, headers: &[(N, Bytes)]) {
        self.records += 1;
        if headers.is_empty() {
            return;
        }
        let Self { names: DigestNames(names), others, gathered, .. } = self;
        if gathered.is_empty() {
            gathered.resize(names.len(), Gathered::default());
        }
        *others |= headers.iter().any(|(name, _)| !names.iter().any(|known| **known == *name.as_ref()));
        for (name, gathered) in names.iter().zip(gathered) {
            if let Some((_, value)) = headers.iter().rfind(|(header, _)| *header.as_ref() == **name) {
                gathered.records += 1;
                gathered.add(value);
            }
        }
    }

    /// The digest's bytes.
    pub fn build(&self) -> Bytes {
        let closed = !self.others;
        let mut out = vec![VERSION, if closed { CLOSED } else { 0 }];
        let listed = |gathered: &&Gathered| !closed || gathered.records > 0;
        put(&mut out, self.gathered.iter().filter(listed).count());
        let DigestNames(names) = &self.names;
        // What the names still to come take at least.
        let mut reserved: usize = names.iter().map(|name| name.len() + NAME_FRAMING_BYTES).sum();
        for (name, gathered) in names.iter().zip(&self.gathered).filter(|(_, gathered)| listed(gathered)) {
            reserved -= name.len() + NAME_FRAMING_BYTES;
            put(&mut out, name.len());
            out.extend_from_slice(name.as_bytes());
            let values_bytes: usize = gathered.values.iter().map(|value| value.len() + 2).sum();
            let fit = out.len() + NAME_FRAMING_BYTES + values_bytes + reserved <= limits::DIGEST_BYTES_MAX;
            let more = gathered.more || !fit;
            let every = gathered.records == self.records;
            out.push(if every { EVERY } else { 0 } | if more { MORE } else { 0 });
            let values = if more { &[][..] } else { &gathered.values };
            put(&mut out, values.len());
            for value in values {
                put(&mut out, value.len());
                out.extend_from_slice(value);
            }
        }
        debug_assert!(out.len() <= limits::DIGEST_BYTES_MAX, "a digest of {} bytes", out.len());
        out.into()
    }
}

impl Gathered {
    fn add(&mut self, value: &Bytes) {
        if self.more || self.values.contains(value) {
            return;
        }
        if self.values.len() >= VALUES_MAX || value.len() > VALUE_BYTES_MAX {
            // What is listed would save nothing any more.
            self.more = true;
            self.values = Vec::new();
            return;
        }
        self.values.push(value.clone());
    }
}

fn put(out: &mut Vec<u8>, number: usize) {
    if number >= 0x80 {
        out.push(number as u8 | 0x80);
    }
    out.push(if number >= 0x80 { (number >> 7) as u8 } else { number as u8 });
}
