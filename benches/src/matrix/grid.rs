//! The cells of a matrix and their order. Pure.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

use crate::load::{
    options::Durability,
    report::{grouped, name},
};

/// Bytes of a record's value, as people write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Size(u32);

impl Size {
    /// The number of bytes.
    pub(super) const fn bytes(self) -> u32 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;

    /// Reads `100`, `100B`, `16KiB` and `1MiB`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        let factor: u32 = match unit.trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            _ => return Err(format!("{unit:?} is no unit; give bytes (100) or KiB, MiB (16KiB)")),
        };
        let bytes = digits.parse::<u32>().ok().and_then(|number| number.checked_mul(factor));
        bytes.map(Self).ok_or_else(|| format!("{text:?} is no size; give bytes (100) or KiB, MiB (16KiB)"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => write!(f, "{} MiB", bytes >> 20),
            bytes if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => write!(f, "{} KiB", bytes >> 10),
            bytes => write!(f, "{bytes} B"),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

/// One combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Cell {
    /// When a record counts as acknowledged.
    pub(super) durability: Durability,
    /// Of each record's value.
    pub(super) size: Size,
    /// Of the topic.
    pub(super) partitions: u32,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {}", name(self.durability), self.size, partitions(self.partitions))
    }
}

/// For people.
pub(super) fn partitions(count: u32) -> String {
    format!("{} partition{}", grouped(count.into()), if count == 1 { "" } else { "s" })
}

/// Every combination once: durabilities in the order given, then sizes and partitions from small to large, so that cells
/// that are compared with each other are near in time.
pub(super) fn cells(durabilities: &[Durability], sizes: &[Size], partitions: &[u32]) -> Vec<Cell> {
    let (mut sizes, mut partitions) = (sizes.to_vec(), partitions.to_vec());
    sizes.sort_unstable();
    sizes.dedup();
    partitions.sort_unstable();
    partitions.dedup();
    let mut cells = Vec::new();
    for &durability in durabilities {
        for &size in &sizes {
            cells.extend(partitions.iter().map(|&partitions| Cell { durability, size, partitions }));
        }
    }
    let mut seen = Vec::new();
    cells.retain(|cell| {
        let first = !seen.contains(cell);
        seen.push(*cell);
        first
    });
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Size {
        text.parse().expect(text)
    }

    #[test]
    fn sizes_read_and_print_as_people_write_them() {
        for (text, bytes, shown) in [
            ("100", 100, "100 B"),
            ("100B", 100, "100 B"),
            ("1KiB", 1_024, "1 KiB"),
            ("1024", 1_024, "1 KiB"),
            ("1000", 1_000, "1000 B"),
            ("256 KiB", 262_144, "256 KiB"),
            ("1MiB", 1 << 20, "1 MiB"),
        ] {
            assert_eq!((size(text).bytes(), size(text).to_string().as_str()), (bytes, shown), "{text}");
        }
        for wrong in ["", "KiB", "1kb", "1.5KiB", "-1", "4096MiB", "99999999999"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_combination_comes_once_and_in_order() {
        let both = [Durability::Fsync, Durability::Replicated, Durability::Fsync];
        let cells = cells(&both, &[size("1KiB"), size("100")], &[16, 1, 16]);
        let shown: Vec<String> = cells.iter().map(ToString::to_string).collect();
        assert_eq!(cells.len(), 8);
        assert_eq!(
            shown[..3],
            ["fsync, 100 B, 1 partition", "fsync, 100 B, 16 partitions", "fsync, 1 KiB, 1 partition"]
        );
        assert_eq!(shown[7], "replicated, 1 KiB, 16 partitions");
    }
}
