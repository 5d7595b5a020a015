//! What Linux counts for processes and disks: the texts of `/proc` and `/sys`, read into numbers. Pure; a text that is not
//! what the kernel writes gives `None`, never a guess.

/// Bytes of a sector in a disk's counters, whatever the disk's own.
const SECTOR_BYTES: u64 = 512;

/// User and system time in ticks, from `/proc/PID/stat`.
///
/// ```text
///   1 (name, may hold spaces and brackets) S 3 ... 14: utime 15: stime
/// ```
pub(super) fn cpu_ticks(stat: &str) -> Option<u64> {
    // The last bracket: a process may call itself anything.
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

/// Bytes that a process has caused to be written to a disk, from `/proc/PID/io`.
pub(super) fn write_bytes(io: &str) -> Option<u64> {
    value_of(io, "write_bytes:")?.parse().ok()
}

/// Context switches of a thread, given up the core or taken off it, from `/proc/PID/task/TID/status`.
pub(super) fn context_switches(status: &str) -> Option<u64> {
    let voluntary: u64 = value_of(status, "voluntary_ctxt_switches:")?.parse().ok()?;
    let forced: u64 = value_of(status, "nonvoluntary_ctxt_switches:")?.parse().ok()?;
    voluntary.checked_add(forced)
}

/// The most memory that a process has had resident, in bytes, from `/proc/PID/status`.
pub(super) fn peak_bytes(status: &str) -> Option<u64> {
    let (kibibytes, unit) = value_of(status, "VmHWM:")?.split_once(' ')?;
    if unit.trim() != "kB" {
        return None;
    }
    kibibytes.parse::<u64>().ok()?.checked_mul(1_024)
}

/// The value on the line that begins with `key`.
fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
}

/// What a disk has done since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DiskCounters {
    /// Write requests that it has completed.
    pub(super) writes: u64,
    /// Bytes of them.
    pub(super) written_bytes: u64,
    /// Flushes of its cache; `None` on a kernel that does not count them (before 5.5).
    pub(super) flushes: Option<u64>,
}

impl DiskCounters {
    /// Reads `/sys/block/DISK/stat`.
    ///
    /// ```text
    ///   0 reads  1 merged  2 sectors  3 ms | 4 writes  5 merged  6 sectors  7 ms | 8..10 | 11..14 discards | 15 flushes  16 ms
    /// ```
    pub(super) fn parse(stat: &str) -> Option<Self> {
        let fields: Vec<u64> = stat.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        if fields.len() < 11 {
            return None;
        }
        Some(Self {
            writes: *fields.get(4)?,
            written_bytes: fields.get(6)?.checked_mul(SECTOR_BYTES)?,
            flushes: fields.get(15).copied(),
        })
    }

    /// What came since `earlier`. A counter that runs backwards (a disk that was exchanged) counts as nothing.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            writes: self.writes.saturating_sub(earlier.writes),
            written_bytes: self.written_bytes.saturating_sub(earlier.written_bytes),
            flushes: self.flushes.zip(earlier.flushes).map(|(now, then)| now.saturating_sub(then)),
        }
    }

    /// Both disks together; flushes only if both count them.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            writes: self.writes + other.writes,
            written_bytes: self.written_bytes + other.written_bytes,
            flushes: self.flushes.zip(other.flushes).map(|(one, two)| one + two),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "4242 (busbar) S 1 4242 4242 0 -1 4194560 20119 0 3 0 1234 567 0 0 20 0 9 0 8412 1 2 3\n";
    const IO: &str = "rchar: 6976\nwchar: 10\nsyscr: 10\nsyscw: 0\nread_bytes: 0\nwrite_bytes: 81920\n\
                      cancelled_write_bytes: 4096\n";
    const STATUS: &str = "Name:\tbusbar\nVmPeak:\t    9000 kB\nVmHWM:\t    1684 kB\nVmRSS:\t    1500 kB\n\
                          voluntary_ctxt_switches:\t70\nnonvoluntary_ctxt_switches:\t7\n";
    const DISK: &str = "   57194     8204  3460506    16609    11568    35530  7081096    23678        0     7076    40646     \
                        1965        0   725744      321     1099       36\n";

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(cpu_ticks(STAT), Some(1_801));
        assert_eq!(cpu_ticks(&STAT.replace("busbar", "a) b (c) d")), Some(1_801), "a name may look like fields");
        assert_eq!(write_bytes(IO), Some(81_920), "not the cancelled ones");
        assert_eq!(context_switches(STATUS), Some(77));
        assert_eq!(peak_bytes(STATUS), Some(1_684 << 10));
        let disk = DiskCounters { writes: 11_568, written_bytes: 7_081_096 * 512, flushes: Some(1_099) };
        assert_eq!(DiskCounters::parse(DISK), Some(disk));
    }

    #[test]
    fn an_old_kernel_counts_no_flushes() {
        let old = DISK.split_whitespace().take(11).collect::<Vec<_>>().join(" ");
        assert_eq!(DiskCounters::parse(&old).expect("eleven fields are enough").flushes, None);
    }

    #[test]
    fn anything_else_is_nothing() {
        for text in
            ["", "\n", "no numbers here", "1 2 3", "1 (a) S", "(", ")", "1 (a) S 1 1 1 0 -1 4 2 0 3 0 x 567", "\u{0}"]
        {
            assert_eq!(cpu_ticks(text), None, "{text:?}");
            assert_eq!(write_bytes(text), None, "{text:?}");
            assert_eq!(context_switches(text), None, "{text:?}");
            assert_eq!(peak_bytes(text), None, "{text:?}");
            assert_eq!(DiskCounters::parse(text), None, "{text:?}");
        }
        assert_eq!(cpu_ticks(&STAT.replace("1234", &u64::MAX.to_string())), None, "too large a sum");
        assert_eq!(write_bytes("write_bytes: -1"), None);
        assert_eq!(context_switches("voluntary_ctxt_switches:\t70\n"), None, "half of it");
        assert_eq!(peak_bytes("VmHWM:\t 12 MB"), None, "another unit");
        assert_eq!(peak_bytes(&format!("VmHWM: {} kB", u64::MAX)), None, "too many");
        assert_eq!(DiskCounters::parse(&DISK.replace("11568", "-1")), None);
        assert_eq!(DiskCounters::parse(&DISK.replace("7081096", &u64::MAX.to_string())), None, "too many bytes");
    }

    #[test]
    fn differences_never_run_backwards() {
        let (less, more) = (
            DiskCounters { writes: 1, written_bytes: 512, flushes: Some(1) },
            DiskCounters { writes: 4, written_bytes: 1_024, flushes: Some(3) },
        );
        assert_eq!(more.since(less), DiskCounters { writes: 3, written_bytes: 512, flushes: Some(2) });
        assert_eq!(less.since(more), DiskCounters { writes: 0, written_bytes: 0, flushes: Some(0) });
        assert_eq!(more.and(DiskCounters { flushes: None, ..less }).flushes, None);
        assert_eq!(more.and(less).writes, 5);
    }
}
