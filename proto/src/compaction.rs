//! A key digest: which keys the records of a batch have, as hashes beside the batch, so that a broker can tell which
//! records are superseded without opening it.
//!
//! ```text
//!  version u8 = 1 | count u16 | tombstones, one bit a record, low bits first, the rest zero | count x hash, 16 bytes
//! ```
//! Numbers are big-endian; bits and hashes stand in the order of the batch's records. A tombstone is a record whose value
//! is null: its key is deleted.
//!
//! The hash is XXH3 with 128 bits: among a trillion keys of one partition the chance that any two share one is below
//! 10^-14. It is no defence against somebody who makes keys that collide on purpose, who could as well write over any
//! key outright.
//!
//! Invariants: decoding is total, allocates nothing, and refuses what is longer than
//! [`limits::KEY_DIGEST_BYTES_MAX`]; there is one way to write each digest.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::limits;

const VERSION: u8 = 1;
/// Version and count.
const HEAD_BYTES: usize = 3;
const HASH_BYTES: usize = 16;

/// Bytes of a digest of so many records.
pub const fn key_digest_bytes(records: usize) -> usize {
    HEAD_BYTES + records.div_ceil(8) + records * HASH_BYTES
}

const _: () = assert!(key_digest_bytes(limits::COMPACTED_BATCH_RECORDS_MAX as usize) == limits::KEY_DIGEST_BYTES_MAX);
const _: () = assert!(limits::COMPACTED_BATCH_RECORDS_MAX <= u16::MAX as u32);

/// What stands for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(u128);

impl KeyHash {
    /// Of this key.
    pub fn of(key: &[u8]) -> Self {
        Self(twox_hash::XxHash3_128::oneshot(key))
    }

    /// The number itself.
    pub const fn get(self) -> u128 {
        self.0
    }
}

/// Bytes that are no key digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyDigestError {
    /// Over [`limits::KEY_DIGEST_BYTES_MAX`].
    #[error("it has {0} bytes, at most {max} are allowed", max = limits::KEY_DIGEST_BYTES_MAX)]
    TooLong(usize),
    /// Of another version.
    #[error("version {0} is not known here")]
    Version(u8),
    /// Not as long as a digest of that many records is.
    #[error("{bytes} bytes are no digest of {records} records")]
    Length {
        /// Records that it claims to be of.
        records: usize,
        /// Its length.
        bytes: usize,
    },
    /// Bits for records that there are not.
    #[error("it has bits beyond its records")]
    Bits,
}

/// A record's key and whether the record deletes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keyed {
    /// Of the key.
    pub hash: KeyHash,
    /// Its value is null.
    pub tombstone: bool,
}

/// The keys of a batch's records, in order, as its producer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyDigest<'a> {
    tombstones: &'a [u8],
    hashes: &'a [[u8; HASH_BYTES]],
}

impl<'a> KeyDigest<'a> {
    /// The digest that these bytes, all of them, are.
    ///
    /// # Errors
    /// [`KeyDigestError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, KeyDigestError> {
        if bytes.len() > limits::KEY_DIGEST_BYTES_MAX {
            return Err(KeyDigestError::TooLong(bytes.len()));
        }
        let Some((&[version, high, low], rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
            return Err(KeyDigestError::Length { records: 0, bytes: bytes.len() });
        };
        if version != VERSION {
            return Err(KeyDigestError::Version(version));
        }
        let records = usize::from(u16::from_be_bytes([high, low]));
        let wrong = KeyDigestError::Length { records, bytes: bytes.len() };
        let (tombstones, hashes) = rest.split_at_checked(records.div_ceil(8)).ok_or(wrong)?;
        let (hashes, odd) = hashes.as_chunks::<HASH_BYTES>();
        if hashes.len() != records || !odd.is_empty() {
            return Err(wrong);
        }
        let spare = tombstones.len() * 8 - records;
        if tombstones.last().is_some_and(|last| last.leading_zeros() < spare as u32) {
            return Err(KeyDigestError::Bits);
        }
        Ok(Self { tombstones, hashes })
    }

    /// Records that it is of.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether it is of none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Its records, in the batch's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Keyed> + use<'a> {
        let Self { tombstones, hashes } = *self;
        hashes.iter().enumerate().map(move |(at, hash)| Keyed {
            hash: KeyHash(u128::from_be_bytes(*hash)),
            tombstone: tombstones[at / 8] & (1 << (at % 8)) != 0,
        })
    }
}

/// Gathers the key digest of a batch, record by record.
#[derive(Clone, Debug, Default)]
pub struct KeyDigestBuilder {
    records: Vec<Keyed>,
}

impl KeyDigestBuilder {
    /// Of no record so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a record.
    pub fn push(&mut self, key: &[u8], tombstone: bool) {
        self.records.push(Keyed { hash: KeyHash::of(key), tombstone });
    }

    /// Records counted.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether none was counted.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The digest's bytes.
    ///
    /// # Panics
    /// When there are more records than a batch of a compacted topic may have.
    pub fn build(&self) -> Bytes {
        let count = self.records.len();
        assert!(count <= limits::COMPACTED_BATCH_RECORDS_MAX as usize, "{count} records in a key digest");
        let mut out = BytesMut::with_capacity(key_digest_bytes(count));
        out.put_u8(VERSION);
        out.put_u16(count as u16);
        for eight in self.records.chunks(8) {
            out.put_u8(eight.iter().rev().fold(0, |bits, record| bits << 1 | u8::from(record.tombstone)));
        }
        self.records.iter().for_each(|record| out.put_u128(record.hash.get()));
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn builder(records: &[(Vec<u8>, bool)]) -> KeyDigestBuilder {
        let mut builder = KeyDigestBuilder::new();
        records.iter().for_each(|(key, tombstone)| builder.push(key, *tombstone));
        builder
    }

    #[test]
    fn golden() {
        // The hash of the empty input, from the reference implementation's own test vectors.
        assert_eq!(KeyHash::of(b"").get(), 0x99aa_06d3_0147_98d8_6001_c324_468d_497f);
        let bytes = builder(&[(b"".to_vec(), false), (b"".to_vec(), true)]).build();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let hash = "99aa06d3014798d86001c324468d497f";
        assert_eq!(hex, format!("01000202{hash}{hash}"));
    }

    #[test]
    fn faults_are_named() {
        let sound = builder(&[(b"a".to_vec(), true)]).build();
        let with = |patch: fn(&mut Vec<u8>)| {
            let mut bytes = sound.to_vec();
            patch(&mut bytes);
            KeyDigest::decode(&bytes).unwrap_err()
        };
        assert_eq!(with(|b| b[0] = 2), KeyDigestError::Version(2));
        assert_eq!(with(|b| b[2] = 2), KeyDigestError::Length { records: 2, bytes: 20 });
        assert_eq!(with(|b| b.push(0)), KeyDigestError::Length { records: 1, bytes: 21 });
        assert_eq!(with(|b| b.truncate(2)), KeyDigestError::Length { records: 0, bytes: 2 });
        assert_eq!(with(|b| b[3] = 3), KeyDigestError::Bits);
        let long = limits::KEY_DIGEST_BYTES_MAX + 1;
        assert_eq!(KeyDigest::decode(&vec![1; long]), Err(KeyDigestError::TooLong(long)));
    }

    proptest! {
        #[test]
        fn round_trip(records in vec((vec(any::<u8>(), 0..20), any::<bool>()), 0..17)) {
            let bytes = builder(&records).build();
            prop_assert_eq!(bytes.len(), key_digest_bytes(records.len()));
            let digest = KeyDigest::decode(&bytes).expect("what was built");
            let want: Vec<Keyed> = records
                .iter()
                .map(|(key, tombstone)| Keyed { hash: KeyHash::of(key), tombstone: *tombstone })
                .collect();
            prop_assert_eq!(digest.iter().collect::<Vec<_>>(), want);
        }

        #[test]
        fn any_bytes_are_a_digest_or_an_error(bytes in vec(any::<u8>(), 0..80), count in 0..5_u8) {
            let mut bytes = bytes;
            if let Some(head) = bytes.first_chunk_mut::<3>() {
                *head = [1, 0, count];
            }
            if let Ok(digest) = KeyDigest::decode(&bytes) {
                let mut again = KeyDigestBuilder::new();
                again.records.extend(digest.iter());
                prop_assert_eq!(&again.build()[..], &bytes[..]);
            }
        }
    }
}
