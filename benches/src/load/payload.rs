//! What is inside a record of a run: a header that lets a consumer judge it alone, then filler.
//!
//! ```text
//!   0      4          8        16         24                   32           size
//!   | magic | producer | run id | sequence | scheduled (ns)      | filler ... |      big-endian
//! ```
//! The filler comes from a pool of pseudo-random bytes made once a run and copied from, never generated a record
//! at a time: a load tool must not spend its CPU on dice. The pool is longer than a batch, so that compression
//! finds nothing to fold between the records of one.

use bytes::{BufMut, Bytes, BytesMut};

use super::clock::Nanos;

/// Bytes of the header, and so the smallest record of a run.
pub(crate) const HEADER_BYTES: usize = 32;

const MAGIC: u32 = u32::from_be_bytes(*b"BBLD");
const POOL_BYTES: usize = 4 << 20;
/// Records are cut from blocks of this many bytes, so that small records do not cost an allocation each.
const BLOCK_BYTES: usize = 256 << 10;
/// Keys in rotation with `--keyed`: enough to reach every partition of a wide topic.
const KEYS: u64 = 16_384;

/// Names one run, so that a consumer tells its records from those of other runs in the same topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunId(pub(crate) u64);

impl RunId {
    /// An id that no other run has, but for a chance in 2^64.
    pub(crate) fn random() -> Self {
        use std::hash::{BuildHasher, Hasher};
        Self(std::collections::hash_map::RandomState::new().build_hasher().finish())
    }
}

/// The head of each record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The run it was sent in.
    pub(crate) run: RunId,
    /// Index of the producer that sent it.
    pub(crate) producer: u32,
    /// Its place among that producer's records.
    pub(crate) sequence: u64,
    /// When it was due; at full load, when it was handed to the client.
    pub(crate) scheduled: Nanos,
}

impl Header {
    /// Reads the header of a record; `None` when it was not written by a load run. Never trusts a length.
    pub(crate) fn read(value: &[u8]) -> Option<Self> {
        let (head, _) = value.split_first_chunk::<HEADER_BYTES>()?;
        let (magic, rest) = head.split_first_chunk::<4>()?;
        let (producer, rest) = rest.split_first_chunk::<4>()?;
        let (run, rest) = rest.split_first_chunk::<8>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (scheduled, _) = rest.split_first_chunk::<8>()?;
        (u32::from_be_bytes(*magic) == MAGIC).then(|| Self {
            run: RunId(u64::from_be_bytes(*run)),
            producer: u32::from_be_bytes(*producer),
            sequence: u64::from_be_bytes(*sequence),
            scheduled: Nanos::new(u64::from_be_bytes(*scheduled)),
        })
    }

    fn write(&self, into: &mut BytesMut) {
        into.put_u32(MAGIC);
        into.put_u32(self.producer);
        into.put_u64(self.run.0);
        into.put_u64(self.sequence);
        into.put_u64(self.scheduled.get());
    }
}

/// The run's pool of incompressible bytes; clones share it.
#[derive(Clone)]
pub(crate) struct Filler(Bytes);

impl Filler {
    /// The pool of this seed, long enough for records of `size` bytes.
    pub(crate) fn new(seed: u64, size: usize) -> Self {
        let mut pool = BytesMut::with_capacity(POOL_BYTES + size + 8);
        let mut state = seed;
        while pool.len() < POOL_BYTES + size {
            pool.put_u64(splitmix64(&mut state));
        }
        Self(pool.freeze())
    }

    /// The pool itself: at least 4 MiB.
    pub(crate) fn bytes(&self) -> Bytes {
        self.0.clone()
    }
}

/// One step of SplitMix64 (Steele, Lea and Flood, 2014): passes for noise, costs three multiplications.
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Builds one producer's records.
pub(crate) struct PayloadBuilder {
    filler: Filler,
    cursor: usize,
    size: usize,
    block: BytesMut,
}

impl PayloadBuilder {
    /// Records of `size` bytes. Starts at another place of the pool for each producer.
    ///
    /// # Panics
    /// When `size` is below [`HEADER_BYTES`]; the command line refuses that.
    pub(crate) fn new(filler: Filler, size: usize, producer: u32) -> Self {
        assert!(size >= HEADER_BYTES, "a record of {size} bytes has no room for its header of {HEADER_BYTES}");
        let cursor = (producer as usize).wrapping_mul(POOL_BYTES / 7) % POOL_BYTES;
        Self { filler, cursor, size, block: BytesMut::new() }
    }

    /// The record that `header` describes.
    pub(crate) fn build(&mut self, header: &Header) -> Bytes {
        if self.block.capacity() < self.size {
            self.block = BytesMut::with_capacity(self.size.max(BLOCK_BYTES));
        }
        header.write(&mut self.block);
        let rest = self.size - HEADER_BYTES;
        // Invariant: cursor < POOL_BYTES, and the pool is POOL_BYTES + size long.
        self.block.extend_from_slice(&self.filler.0[self.cursor..self.cursor + rest]);
        self.cursor = (self.cursor + rest) % POOL_BYTES;
        self.block.split().freeze()
    }
}

/// The rotating keys of `--keyed`: 16 hexadecimal digits, spread over the partitions by the client's hash.
pub(crate) struct Keys {
    all: Vec<Bytes>,
}

impl Keys {
    /// Makes the keys once; handing one out is a reference count.
    pub(crate) fn new() -> Self {
        Self { all: (0..KEYS).map(|key| Bytes::from(format!("{key:016x}"))).collect() }
    }

    /// The key of a sequence.
    pub(crate) fn of(&self, sequence: u64) -> Bytes {
        self.all[(sequence % KEYS) as usize].clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn header(sequence: u64) -> Header {
        Header { run: RunId(0xFEED), producer: 7, sequence, scheduled: Nanos::new(123_456_789) }
    }

    #[test]
    fn records_have_their_size_and_carry_their_header() {
        for size in [HEADER_BYTES, HEADER_BYTES + 1, 100, 1024, 3 * BLOCK_BYTES] {
            let mut builder = PayloadBuilder::new(Filler::new(1, size), size, 3);
            for sequence in 0..20 {
                let record = builder.build(&header(sequence));
                assert_eq!(record.len(), size);
                assert_eq!(Header::read(&record), Some(header(sequence)));
            }
        }
    }

    #[test]
    fn filler_never_repeats_within_a_batch() {
        let size = 1024;
        let mut builder = PayloadBuilder::new(Filler::new(1, size), size, 0);
        let mut seen = HashSet::new();
        for sequence in 0..4_000 {
            let record = builder.build(&header(sequence));
            assert!(seen.insert(record.slice(HEADER_BYTES..)), "record {sequence} repeats an earlier one's filler");
        }
    }

    #[test]
    fn what_others_wrote_is_not_ours() {
        assert_eq!(Header::read(b""), None);
        assert_eq!(Header::read(&[0u8; HEADER_BYTES]), None);
        assert_eq!(Header::read(b"BBLD, but too short"), None);
    }

    #[test]
    fn runs_differ() {
        assert_ne!(RunId::random(), RunId::random());
    }

    proptest! {
        #[test]
        fn reading_never_fails_on_noise(noise in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(found) = Header::read(&noise) {
                prop_assert!(noise.len() >= HEADER_BYTES && noise.starts_with(b"BBLD"));
                let mut again = BytesMut::new();
                found.write(&mut again);
                prop_assert_eq!(&again[..], &noise[..HEADER_BYTES]);
            }
        }
    }
}
