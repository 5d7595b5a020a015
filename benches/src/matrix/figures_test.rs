//! Figures from reports and usage of known values.

use super::*;
use crate::{load::report::tests::report, matrix::grid::Size};

fn cell(size: &str, durability: Durability) -> Cell {
    Cell { durability, size: size.parse::<Size>().expect(size), partitions: 4 }
}

fn usage() -> Usage {
    Usage {
        seconds: 10.0,
        cpu_seconds: 2.0,
        process_written_bytes: Some(3_061_725_000),
        context_switches: Some(50_000),
        peak_bytes: Some(vec![100_000_000, 300_000_000, 200_000_000]),
        disk_flushes: Some(4_000),
        disk_writes: Some(9_000),
        disk_written_bytes: Some(1_836_990_000),
    }
}

#[test]
fn each_figure_is_what_it_says() {
    // 612,345 records of 1,000 bytes in 10 s, 1.5 s of the tool's CPU.
    let figures = Figures::of(cell("1000", Durability::Fsync), &report(), Some(&usage()), Some(100.0));
    let near = |figure, want: f64| {
        let got = figures.get(figure).unwrap_or(f64::NAN);
        assert!((got - want).abs() <= want * 1e-4, "{figure:?}: {got}, not {want}");
    };
    near(Figure::RecordsPerSecond, 61_234.5);
    near(Figure::MegabytesPerSecond, 61.235);
    near(Figure::BrokerCpuSecondsPerGb, 2.0 / 0.61235);
    near(Figure::ClientCpuSecondsPerGb, 1.5 / 0.61235);
    near(Figure::DiskFlushesPerSecond, 400.0);
    near(Figure::DiskWritesPerSecond, 900.0);
    near(Figure::DiskBytesPerByte, 3.0);
    near(Figure::BrokerBytesPerByte, 5.0);
    near(Figure::ContextSwitchesPerSecond, 5_000.0);
    near(Figure::BrokerPeakMb, 300.0);
    assert_eq!(figures.get(Figure::DiskPercent), None, "small records are not bound by the disk");
    assert_eq!(figures.text(Figure::RecordsPerSecond), "61,234");
    assert_eq!(figures.text(Figure::AckP99Ms), "1.50");
}

#[test]
fn the_disk_is_a_measure_of_large_synced_records_only() {
    let percent = |size, durability, disk| {
        Figures::of(cell(size, durability), &report(), None, disk).get(Figure::DiskPercent).map(f64::round)
    };
    assert_eq!(percent("16KiB", Durability::Fsync, Some(122.47)), Some(50.0));
    assert_eq!(percent("16KiB", Durability::Replicated, Some(122.47)), None);
    assert_eq!(percent("16KiB", Durability::Fsync, None), None);
    assert_eq!(percent("16KiB", Durability::Fsync, Some(0.0)), None);
}

#[test]
fn a_remote_cluster_has_dashes() {
    let figures = Figures::of(cell("1KiB", Durability::Fsync), &report(), None, None);
    for figure in [Figure::BrokerCpuSecondsPerGb, Figure::DiskFlushesPerSecond, Figure::BrokerPeakMb] {
        assert_eq!(figures.text(figure), "-", "{figure:?}");
    }
    let nothing = Usage { seconds: 0.0, process_written_bytes: None, peak_bytes: None, ..usage() };
    let figures = Figures::of(cell("1KiB", Durability::Fsync), &report(), Some(&nothing), None);
    for figure in [Figure::DiskFlushesPerSecond, Figure::BrokerBytesPerByte, Figure::BrokerPeakMb] {
        assert_eq!(figures.text(figure), "-", "{figure:?}");
    }
}

#[test]
fn medians_are_taken_figure_by_figure() {
    for (values, want) in
        [(vec![], None), (vec![3.0], Some(3.0)), (vec![9.0, 1.0], Some(5.0)), (vec![9.0, 1.0, 2.0], Some(2.0))]
    {
        assert_eq!(median(values.clone()), want, "{values:?}");
    }
    let round = |value: f64, other: Option<f64>| {
        Figures([(Figure::MegabytesPerSecond, Some(value)), (Figure::DiskPercent, other)].into_iter().collect())
    };
    let all = Figures::median(&[round(1.0, None), round(30.0, Some(7.0)), round(2.0, None)]);
    assert_eq!(all.get(Figure::MegabytesPerSecond), Some(2.0));
    assert_eq!(all.get(Figure::DiskPercent), Some(7.0));
    assert_eq!(all.get(Figure::AckP50Ms), None);
}

#[test]
fn numbers_read_well() {
    for (value, digits, want) in [(1_234_567.891, 1, "1,234,567.9"), (0.0, 2, "0.00"), (-1_500.0, 0, "-1,500")] {
        assert_eq!(number(value, digits), want);
    }
}
