//! Kafka's variable-length integers: zig-zag, seven bits a byte, least significant first. Each number has one
//! accepted spelling, the shortest: an overlong one and one that overflows its type are refused.

/// Bytes of the longest 32-bit varint.
pub(super) const I32_BYTES_MAX: usize = 5;
/// Bytes of the longest 64-bit varint.
pub(super) const I64_BYTES_MAX: usize = 10;

/// Why bytes are no varint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VarintError {
    /// The bytes end inside the number.
    #[error("the bytes end inside a number")]
    Truncated,
    /// More bits than the type has.
    #[error("a number overflows its type")]
    Overflow,
    /// A longer spelling than needed.
    #[error("a number is spelt with more bytes than it needs")]
    Overlong,
}

/// Bytes that `value` takes as a varint; the same for both widths.
pub(super) const fn encoded_bytes(value: i64) -> usize {
    let bits = u64::BITS as usize - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Writes `value` at `at` and returns the position after it.
///
/// # Panics
/// When fewer bytes than [`encoded_bytes`] are left in `out`.
pub(super) fn put(out: &mut [u8], mut at: usize, value: i64) -> usize {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out[at] = rest as u8 | 0x80;
        rest >>= 7;
        at += 1;
    }
    out[at] = rest as u8;
    at + 1
}

/// Reads a 32-bit number at the start of `bytes`: the value and the bytes it took.
pub(super) fn get_i32(bytes: &[u8]) -> Result<(i32, usize), VarintError> {
    let (raw, taken) = get_raw::<I32_BYTES_MAX>(bytes)?;
    let raw = u32::try_from(raw).map_err(|_| VarintError::Overflow)?;
    Ok(((raw >> 1) as i32 ^ -((raw & 1) as i32), taken))
}

/// Reads a 64-bit number at the start of `bytes`: the value and the bytes it took.
pub(super) fn get_i64(bytes: &[u8]) -> Result<(i64, usize), VarintError> {
    let (raw, taken) = get_raw::<I64_BYTES_MAX>(bytes)?;
    Ok(((raw >> 1) as i64 ^ -((raw & 1) as i64), taken))
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn get_raw<const BYTES_MAX: usize>(bytes: &[u8]) -> Result<(u64, usize), VarintError> {
    let mut raw = 0u64;
    for (at, &byte) in bytes.iter().take(BYTES_MAX).enumerate() {
        let shift = 7 * at as u32;
        let bits = u64::from(byte & 0x7f);
        // Bits pushed out on the left are an overflow, not to be lost silently.
        if (bits << shift) >> shift != bits {
            return Err(VarintError::Overflow);
        }
        raw |= bits << shift;
        if byte < 0x80 {
            let overlong = byte == 0 && at > 0;
            return if overlong { Err(VarintError::Overlong) } else { Ok((raw, at + 1)) };
        }
    }
    Err(if bytes.len() < BYTES_MAX { VarintError::Truncated } else { VarintError::Overflow })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(value: i64) -> Vec<u8> {
        let mut out = [0; I64_BYTES_MAX];
        let end = put(&mut out, 0, value);
        out[..end].to_vec()
    }

    #[test]
    fn known_spellings() {
        for (value, bytes) in [
            (0, &[0x00][..]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i64::from(i32::MIN), &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ] {
            assert_eq!(encode(value), bytes, "{value}");
            assert_eq!(get_i32(bytes).map(|(read, taken)| (i64::from(read), taken)), Ok((value, bytes.len())));
        }
        assert_eq!(encode(i64::MIN), [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
    }

    #[test]
    fn bad_spellings() {
        for (bytes, fault) in [
            (&[][..], VarintError::Truncated),
            (&[0x80], VarintError::Truncated),
            (&[0x80, 0x00], VarintError::Overlong),
            (&[0xff, 0x80, 0x00], VarintError::Overlong),
            (&[0xff, 0xff, 0xff, 0xff, 0x1f], VarintError::Overflow),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0x01], VarintError::Overflow),
        ] {
            assert_eq!(get_i32(bytes), Err(fault), "{bytes:x?}");
        }
        let eleven = [0xff; 11];
        assert_eq!(get_i64(&eleven), Err(VarintError::Overflow));
        assert_eq!(get_i64(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), Err(VarintError::Overflow));
    }

    proptest! {
        #[test]
        fn round_trip(value: i64) {
            let bytes = encode(value);
            prop_assert_eq!(bytes.len(), encoded_bytes(value));
            prop_assert_eq!(get_i64(&bytes), Ok((value, bytes.len())));
            let narrow = get_i32(&bytes).map(|(read, _)| i64::from(read));
            prop_assert_eq!(narrow, i32::try_from(value).map(i64::from).map_err(|_| VarintError::Overflow));
        }

        #[test]
        fn what_is_read_is_spelt_the_same(bytes: [u8; 12]) {
            if let Ok((value, taken)) = get_i64(&bytes) {
                prop_assert_eq!(&encode(value), &bytes[..taken]);
            }
        }
    }
}
