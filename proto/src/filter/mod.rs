//! What a subscription selects by: an expression over the headers of records, decided exactly on a record and as far
//! as possible on a batch's [`Digest`]. Pure; never looks at keys or values of records.
//!
//! ```text
//! ce_type = 'order.created' and (region in ('eu', 'us') or not exists(test)) and ce_source ^= '/shop/'
//! ```
//! | form | a record matches when |
//! |---|---|
//! | `name = 'text'`, `name != 'text'` | it has the header with that value; ... unless it has it |
//! | `name ^= 'text'` | it has the header, and its value begins so |
//! | `name in ('a', 'b')` | it has the header with one of the values |
//! | `exists(name)` | it has the header |
//! | `not x`, `x and y`, `x or y`, `( x )` | as they say; `not` binds closest, then `and` |
//!
//! Names are header names as they are, in `` `backquotes` `` when they have other characters than letters, digits and
//! `_ . : / -` or are words of the language. Of several headers of one name the last counts. Values are compared byte
//! by byte. Texts stand in single or double quotes; a backslash takes the next character as it is.
//!
//! Invariants: what [`Filter::matches`] says of a record is never contradicted by [`Filter::may_match`] of a digest that
//! counts the record; parsing is bounded in length and depth.

mod digest;
mod parse;
#[cfg(test)]
mod tests;

use std::{fmt, str::FromStr};

use self::digest::Known;
pub use self::{
    digest::{Digest, DigestBuilder, DigestError, DigestNameError, DigestNames},
    parse::FilterError,
};

/// See the module. Cheap to evaluate, not meant to be changed.
///
/// ```
/// use busbar_proto::filter::Filter;
///
/// let filter: Filter = "ce_type ^= 'order.' and not exists(test)".parse()?;
/// assert!(filter.matches(|name| (name == "ce_type").then_some(b"order.paid")));
/// # Ok::<(), busbar_proto::filter::FilterError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    text: String,
    root: Node,
}

/// An expression. As deep as [`parse::DEPTH_MAX`] at most.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Test { name: String, test: Test },
    Not(Box<Node>),
    All(Vec<Node>),
    Any(Vec<Node>),
}

/// What is asked of a header that is there. Without it, it fails.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    /// In this order, each once.
    OneOf(Vec<Vec<u8>>),
    Prefix(Vec<u8>),
}

/// What is known of the records of a batch: whether some may match, and whether some may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chance {
    hit: bool,
    miss: bool,
}

impl Filter {
    /// Whether a record with these headers is wanted; `header` gives the value of the last header of a name.
    pub fn matches<'a>(&self, header: impl Fn(&str) -> Option<&'a [u8]>) -> bool {
        self.root.matches(&header)
    }

    /// Whether one of the records that a digest speaks of may be wanted. `false` is certain.
    pub fn may_match(&self, digest: &Digest<'_>) -> bool {
        self.root.chance(digest).hit
    }

    /// The expression as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The names of headers that it looks at, each once.
    pub fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        self.root.names(&mut names);
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    /// # Errors
    /// What is wrong, and where.
    fn from_str(text: &str) -> Result<Self, FilterError> {
        Ok(Self { text: text.to_owned(), root: parse::parse(text)? })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Node {
    fn matches<'a>(&self, header: &impl Fn(&str) -> Option<&'a [u8]>) -> bool {
        match self {
            Self::Test { name, test } => header(name).is_some_and(|value| test.passes(value)),
            Self::Not(node) => !node.matches(header),
            Self::All(nodes) => nodes.iter().all(|node| node.matches(header)),
            Self::Any(nodes) => nodes.iter().any(|node| node.matches(header)),
        }
    }

    fn chance(&self, digest: &Digest<'_>) -> Chance {
        match self {
            Self::Test { name, test } => test.chance(digest.known(name)),
            Self::Not(node) => {
                let Chance { hit, miss } = node.chance(digest);
                Chance { hit: miss, miss: hit }
            }
            // Not exact: what two records do alone, one need not do together. Never too little.
            Self::All(nodes) => {
                nodes.iter().map(|node| node.chance(digest)).fold(Chance { hit: true, miss: false }, |all, one| {
                    Chance { hit: all.hit && one.hit, miss: all.miss || one.miss }
                })
            }
            Self::Any(nodes) => {
                nodes.iter().map(|node| node.chance(digest)).fold(Chance { hit: false, miss: true }, |any, one| {
                    Chance { hit: any.hit || one.hit, miss: any.miss && one.miss }
                })
            }
        }
    }

    fn names<'a>(&'a self, into: &mut Vec<&'a str>) {
        match self {
            Self::Test { name, .. } => into.push(name),
            Self::Not(node) => node.names(into),
            Self::All(nodes) | Self::Any(nodes) => nodes.iter().for_each(|node| node.names(into)),
        }
    }
}

impl Test {
    fn passes(&self, value: &[u8]) -> bool {
        match self {
            Self::Exists => true,
            Self::OneOf(values) => values.iter().any(|wanted| wanted == value),
            Self::Prefix(prefix) => value.starts_with(prefix),
        }
    }

    fn chance(&self, known: Known<'_, '_>) -> Chance {
        match known {
            Known::Nothing => Chance { hit: true, miss: true },
            Known::Absent => Chance { hit: false, miss: true },
            Known::Values { values, every, all_listed } => {
                // A value that is not listed passes the test for being there, and may pass or fail any other.
                let unlisted = !all_listed;
                let fails = match self {
                    Self::Exists => false,
                    Self::OneOf(_) | Self::Prefix(_) => unlisted || values.iter().any(|value| !self.passes(value)),
                };
                Chance { hit: unlisted || values.iter().any(|value| self.passes(value)), miss: !every || fails }
            }
        }
    }
}
