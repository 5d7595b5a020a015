//! The primitives of the machines' own binary formats: variable-length integers, and a reader that takes nothing on
//! trust.
//!
//! Invariants: an integer has one encoding only (over-long forms are refused), so equal values are equal bytes; a
//! declared count is compared with the bytes that are there before anything is allocated for it.

use bytes::{BufMut, BytesMut};

/// Bytes that are not what they should be: damaged, or of a version that this build doesn't know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("{what} ends within its {field}")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// The field that is cut.
        field: &'static str,
    },
    /// Another version wrote them.
    #[error("{what} has format version {found}, this build reads version {known}: upgrade this node")]
    UnknownVersion {
        /// What was being read.
        what: &'static str,
        /// The version found.
        found: u32,
        /// The version that this build reads.
        known: u32,
    },
    /// The bytes changed since they were written.
    #[error("{what} has checksum {found:#010x}, its bytes give {computed:#010x}")]
    Checksum {
        /// What was being read.
        what: &'static str,
        /// As written.
        found: u32,
        /// As computed over the bytes.
        computed: u32,
    },
    /// A field holds what it can't hold.
    #[error("{what} has a {field} that can't be: {found}")]
    Invalid {
        /// What was being read.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// What is there, or what is wrong with it.
        found: String,
    },
    /// More bytes than the value has.
    #[error("{what} is followed by {bytes} bytes that don't belong to it")]
    Trailing {
        /// What was being read.
        what: &'static str,
        /// How many.
        bytes: usize,
    },
}

/// Appends `value` in 1 to 10 bytes, seven bits each, low bits first.
pub(crate) fn put_unsigned(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Appends `value` so that small magnitudes of either sign are short.
pub(crate) fn put_signed(out: &mut BytesMut, value: i64) {
    put_unsigned(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends `bytes` behind their length.
pub(crate) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_unsigned(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Reads fields from front to back.
pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`, which should be a `what`.
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    pub(crate) fn byte(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        let (&first, rest) = self.rest.split_first().ok_or(DecodeError::Truncated { what: self.what, field })?;
        self.rest = rest;
        Ok(first)
    }

    /// The version byte, which must be `known`.
    pub(crate) fn version(&mut self, known: u8) -> Result<(), DecodeError> {
        match self.byte("version")? {
            found if found == known => Ok(()),
            found => Err(DecodeError::UnknownVersion { what: self.what, found: found.into(), known: known.into() }),
        }
    }

    pub(crate) fn unsigned(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(field)?;
            let bits = u64::from(byte & 0x7f);
            let overlong = byte == 0 && shift > 0;
            if overlong || (bits << shift) >> shift != bits {
                return Err(self.invalid(field, "an integer that is over-long or over 64 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.invalid(field, "an integer of more than 10 bytes"))
    }

    pub(crate) fn signed(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        let raw = self.unsigned(field)?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// An unsigned field that must fit a narrower type.
    pub(crate) fn narrow<T: TryFrom<u64>>(&mut self, field: &'static str) -> Result<T, DecodeError> {
        let raw = self.unsigned(field)?;
        T::try_from(raw).map_err(|_| self.invalid(field, raw))
    }

    /// A signed field that must fit a narrower type.
    pub(crate) fn narrow_signed<T: TryFrom<i64>>(&mut self, field: &'static str) -> Result<T, DecodeError> {
        let raw = self.signed(field)?;
        T::try_from(raw).map_err(|_| self.invalid(field, raw))
    }

    /// A count of elements of at least `bytes_each`; refused when that many can't be in what is left.
    pub(crate) fn count(&mut self, field: &'static str, bytes_each: usize) -> Result<usize, DecodeError> {
        let declared = self.unsigned(field)?;
        let possible = self.rest.len() / bytes_each.max(1);
        match usize::try_from(declared) {
            Ok(count) if count <= possible => Ok(count),
            _ => Err(self.invalid(field, format_args!("{declared}, where {possible} fit"))),
        }
    }

    /// Bytes behind their length, `most` of them at most.
    pub(crate) fn bytes(&mut self, field: &'static str, most: usize) -> Result<&'a [u8], DecodeError> {
        let len = self.count(field, 1)?;
        if len > most {
            return Err(self.invalid(field, format_args!("{len} bytes, where {most} are allowed")));
        }
        let (bytes, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(bytes)
    }

    /// The same, as text that parses.
    pub(crate) fn text<T: std::str::FromStr>(&mut self, field: &'static str, most: usize) -> Result<T, DecodeError> {
        let bytes = self.bytes(field, most)?;
        let text = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
        text.ok_or_else(|| self.invalid(field, String::from_utf8_lossy(bytes)))
    }

    /// Exactly `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (bytes, rest) =
            self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated { what: self.what, field })?;
        self.rest = rest;
        Ok(*bytes)
    }

    /// A byte that is 0 or 1.
    pub(crate) fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.byte(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.invalid(field, other)),
        }
    }

    /// Ends the reading: nothing may be left.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(DecodeError::Trailing { what: self.what, bytes }),
        }
    }

    /// The error that says `found` can't be in `field`.
    pub(crate) fn invalid(&self, field: &'static str, found: impl ToString) -> DecodeError {
        DecodeError::Invalid { what: self.what, field, found: found.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reader(bytes: &[u8]) -> Reader<'_> {
        Reader::new("test value", bytes)
    }

    proptest! {
        #[test]
        fn integers_round_trip(unsigned: u64, signed: i64) {
            let mut out = BytesMut::new();
            put_unsigned(&mut out, unsigned);
            put_signed(&mut out, signed);
            let mut reader = reader(&out);
            prop_assert_eq!(reader.unsigned("u"), Ok(unsigned));
            prop_assert_eq!(reader.signed("s"), Ok(signed));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn an_integer_has_one_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut reader = reader(&bytes);
            if let Ok(value) = reader.unsigned("u") {
                let taken = bytes.len() - reader.rest.len();
                let mut out = BytesMut::new();
                put_unsigned(&mut out, value);
                prop_assert_eq!(&out[..], &bytes[..taken]);
            }
        }
    }

    #[test]
    fn refuses_what_is_not_there() {
        assert!(matches!(reader(&[0x80]).unsigned("u"), Err(DecodeError::Truncated { .. })));
        assert!(matches!(reader(&[0x80, 0]).unsigned("u"), Err(DecodeError::Invalid { .. })));
        assert!(matches!(reader(&[0xff; 11]).unsigned("u"), Err(DecodeError::Invalid { .. })));
        assert!(matches!(reader(&[0xff, 0xff, 0x03, 0]).count("n", 1), Err(DecodeError::Invalid { .. })));
        assert_eq!(reader(&[2, 0, 0]).count("n", 1), Ok(2));
        assert!(matches!(reader(&[2, 0, 0]).count("n", 2), Err(DecodeError::Invalid { .. })));
        assert!(matches!(reader(&[1]).finish(), Err(DecodeError::Trailing { bytes: 1, .. })));
    }
}
