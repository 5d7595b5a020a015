//! The printed forms: programs and people read them.

use super::*;
use crate::{
    disk::Yardstick,
    load::{options::Durability, report::tests::report},
    matrix::{figures::Figures, grid::Cell, options::tests::parse, outcome::Round},
};

fn row(size: &str, partitions: u32, records_per_second: f64) -> Row {
    let cell = Cell { durability: Durability::Fsync, size: size.parse().expect("a size"), partitions };
    let mut report = report();
    report.publish.records_per_second = records_per_second;
    let figures = Figures::of(cell, &report, None, None);
    Row::new(cell, vec![Round::Ran { report: Box::new(report), usage: None, figures }])
}

fn failed(size: &str, partitions: u32, reason: &str) -> Row {
    let cell = Cell { durability: Durability::Fsync, size: size.parse().expect("a size"), partitions };
    Row::new(cell, vec![Round::Failed { reason: reason.to_owned() }])
}

#[test]
fn flatness_is_relative_to_the_fewest_partitions_of_a_size() {
    let rows = [
        row("100", 1, 100_000.0),
        row("100", 16, 95_000.0),
        failed("100", 256, "no"),
        row("100", 1_024, 50_000.0),
        failed("1KiB", 1, "no"),
        row("1KiB", 16, 5_000.0),
        failed("16KiB", 1, "no"),
    ];
    let want = [
        "fsync, 100 B: 1 partition 100,000 records/s; 16 partitions 0.95x; 1,024 partitions 0.50x",
        "fsync, 1 KiB: 16 partitions 5,000 records/s",
    ];
    assert_eq!(flatness(&rows), want);
    assert!(flatness(&[]).is_empty());
}

#[test]
fn a_line_names_what_was_measured_and_nothing_else() {
    let want = "[2/40] fsync, 1 KiB, 16 partitions: records/s 5,000,  MB/s 61.23,  ack p50 ms 0.50,  ack p99 ms 1.50,  \
                client CPU s/GB 2.45,  ok";
    assert_eq!(line(2, 40, &row("1KiB", 16, 5_000.0)), want);
    assert_eq!(line(1, 1, &failed("100", 4_096, "why")), "[1/1] fsync, 100 B, 4,096 partitions: failed: why");
}

#[test]
fn the_document_has_a_row_a_cell_and_says_what_it_rests_on() {
    let options = parse("--producers 2 --rounds 3").expect("valid");
    let rows = [row("1KiB", 1, 5_000.0), failed("1KiB", 4_096, "a | b\nc")];
    let disk =
        Disk { name: "vda".to_owned(), stat: "/sys/block/vda/stat".into(), cache: Some("write back".to_owned()) };
    let brokers = Brokers { pids: vec![1, 2, 3], disks: vec![disk], ..Brokers::default() };
    let yardstick = Some(Yardstick { writers: 3, megabytes_per_second: 300.0, syncs_per_second: 286.1 });
    let results =
        Results { options: &options, brokers: Some(&brokers), peaks_are_of_cells: true, yardstick, rows: &rows };
    let document = results.markdown(&["p99-fsync.svg".to_owned()]);
    for part in [
        "busbar: full load, producers 2, consumers 1, records to all partitions in turn, 33,554,432 bytes under way at most",
        "each cell 5 s after 2 s of warm-up, rounds 3",
        "- 3 brokers watched",
        "- disk vda (cache: write back)",
        "- peak RSS is the largest broker's, within the cell",
        "300.0 MB/s together, 100.0 MB/s each",
        "| fsync | 1 KiB | 1 | 5,000 | 61.23 | 0.50 | 1.50 | - | 2.45 | - | - | - | - | - | - | - | ok |",
        "| fsync | 1 KiB | 4,096 | - | - | - | - | - | - | - | - | - | - | - | - | - | failed: a \\| b c |",
        "- fsync, 1 KiB: 1 partition 5,000 records/s\n",
        "![p99-fsync.svg](p99-fsync.svg)",
    ] {
        assert!(document.contains(part), "{part}\nis not in\n{document}");
    }
    let columns: Vec<usize> = document
        .lines()
        .filter(|line| line.starts_with("| ") || line.starts_with("|-"))
        .map(|line| line.replace("\\|", "").matches('|').count())
        .collect();
    assert_eq!(columns, [18; 4], "every line of the table is as wide");
    let json: serde_json::Value = serde_json::from_str(&results.json().expect("json")).expect("parses");
    assert_eq!((&json["disks"][0], &json["disk"]["writers"], &json["brokers"]), (&"vda".into(), &3.into(), &3.into()));
    assert_eq!(json["cells"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_cluster_elsewhere_is_told_to_be_one() {
    let options = parse("").expect("valid");
    let results = Results { options: &options, brokers: None, peaks_are_of_cells: false, yardstick: None, rows: &[] };
    assert!(results.markdown(&[]).contains("- the brokers' processes were not watched"));
    assert!(!results.markdown(&[]).contains("## Plots"));
}
