//! The printed forms, held to golden text: programs and people read them.

use super::*;

fn percentiles(base: f64) -> Percentiles {
    Percentiles { p50: base, p95: base * 2.0, p99: base * 3.0, p999: base * 4.0, max: base * 5.0 }
}

/// A report of known values.
pub(crate) fn report() -> Report {
    let setup = Setup {
        target: TargetKind::Busbar,
        durability: Durability::Fsync,
        replicas: 3,
        topic: "t".to_owned(),
        partitions: 4,
        size: 1_000,
        batch_bytes: 262_144,
        linger_ms: 0,
        compression: Compression::Lz4,
        in_flight: 5,
        buffer_bytes: 33_554_432,
        keyed: false,
        even: false,
        producers: 2,
        consumers: 1,
        rate: None,
        warmup_seconds: 2.0,
        duration_seconds: 10.0,
    };
    Report {
        setup,
        publish: Publish::new(612_345, 1_000, Duration::from_secs(10)),
        ack_ms: Some(percentiles(0.5)),
        end_to_end_ms: Some(percentiles(1.0)),
        errors: 0,
        error_messages: BTreeMap::new(),
        unresolved: 0,
        unsent: 0,
        lost: 0,
        duplicates: 0,
        reordered: 0,
        corrupt: 0,
        verified: true,
        retries: 7,
        backlog_at_end: 1_200,
        backlog: 0,
        drain_seconds: 0.25,
        client_cpu_seconds: 1.5,
    }
}

#[test]
fn the_first_line_names_what_a_figure_depends_on() {
    let mut setup = report().setup;
    let want = "busbar: durability fsync, replicas 3, partitions 4, size 1000 B, batch 262144 B, linger 0 ms, compression lz4, \
                topic t, producers 2, consumers 1, full load";
    assert_eq!(setup.line(), want);
    setup.rate = Some(1_000);
    assert!(setup.line().ends_with(", 1,000 records/s"));
    setup.even = true;
    assert!(setup.line().contains(", partitions 4 in turn, size"));
    setup.target = TargetKind::Kafka;
    assert!(setup.line().starts_with("kafka: durability fsync (acks=all, flush.messages=1), replicas 3"));
    setup.durability = Durability::Replicated;
    assert!(setup.line().starts_with("kafka: durability replicated (acks=all, not synced before it), replicas 3"));
}

#[test]
fn the_json_keeps_its_shape() {
    let json = report().json().expect("json");
    let value: serde_json::Value = serde_json::from_str(&json).expect("parses");
    let latency = serde_json::json!({"p50": 0.5, "p95": 1.0, "p99": 1.5, "p999": 2.0, "max": 2.5});
    for (key, want) in [
        ("durability", serde_json::json!("fsync")),
        ("replicas", 3.into()),
        (
            "publish",
            serde_json::json!({"records_per_second": 61234.5, "megabytes_per_second": 61.235, "records": 612345}),
        ),
        ("ack_ms", latency),
        ("errors", 0.into()),
        ("lost", 0.into()),
        ("duplicates", 0.into()),
        ("reordered", 0.into()),
        ("retries", 7.into()),
        ("backlog", 0.into()),
        ("backlog_at_end", 1_200.into()),
        ("client_cpu_seconds", serde_json::json!(1.5)),
        ("rate", serde_json::Value::Null),
    ] {
        assert_eq!(value.get(key), Some(&want), "{key}");
    }
    assert_eq!(value["end_to_end_ms"]["p999"], 4.0);
    assert!(!json.contains('\n'));
}

#[test]
fn the_summary_reads_as_documented() {
    let want = "\
publish     61,235 records/s  61.23 MB/s  (612,345 records acknowledged in 10 s)
ack         p50 0.500 ms  p95 1.000 ms  p99 1.500 ms  p99.9 2.000 ms  max 2.500 ms
end to end  p50 1.000 ms  p95 2.000 ms  p99 3.000 ms  p99.9 4.000 ms  max 5.000 ms
backlog     1,200 at the end, 0 after 0.2 s of drain
checks      lost 0  duplicates 0  reordered 0  corrupt 0
faults      errors 0  retries 7  unresolved 0  unsent 0
client      1.50 CPU seconds  (2.45 us a record)
            1 MB = 1,000,000 bytes of record values; latencies count from the scheduled time
";
    assert_eq!(report().text(), want);
}

#[test]
fn a_run_fails_exactly_when_a_record_went_wrong_or_none_arrived() {
    assert_eq!(report().failure(), None);
    type Spoil = fn(&mut Report);
    let cases: [(Spoil, &str); 5] = [
        (|report| report.lost = 1, "1 records lost"),
        (|report| report.duplicates = 2, "2 doubled"),
        (|report| report.reordered = 3, "3 out of order"),
        (|report| report.corrupt = 4, "4 corrupt"),
        (|report| report.publish = Publish::new(0, 1, Duration::from_secs(1)), "no record was acknowledged"),
    ];
    for (spoil, say) in cases {
        let mut spoilt = report();
        spoil(&mut spoilt);
        let failure = spoilt.failure().expect(say);
        assert!(failure.contains(say), "{failure}");
    }
    let mut behind = report();
    (behind.backlog, behind.retries, behind.errors) = (5, 9, 3);
    assert_eq!(behind.failure(), None, "slow is not wrong");
    assert!(behind.text().contains("did not catch up"));
}

#[test]
fn a_second_without_acknowledgements_prints_dashes() {
    let tick = Tick {
        elapsed: Duration::from_secs(3),
        interval: Duration::from_secs(1),
        warmup: false,
        sent: 1_500,
        acknowledged: 0,
        size: 1_000,
        ack: None,
        backlog: None,
        errors: 2,
    };
    let want =
        "  3.0 s  sent     1,500/s  acked         0/s      0.00 MB/s  ack p50 - ms  p99 - ms  backlog -  errors 2";
    assert_eq!(tick.line(), want);
    let busy = Tick {
        acknowledged: 2_000,
        ack: Some(percentiles(0.5)),
        backlog: Some(12_345),
        warmup: true,
        errors: 0,
        ..tick
    };
    let want = "  3.0 s  sent     1,500/s  acked     2,000/s      2.00 MB/s  ack p50 0.500 ms  p99 1.500 ms  \
                backlog 12,345  (warm-up)";
    assert_eq!(busy.line(), want);
}

#[test]
fn thousands_are_set_apart() {
    for (count, want) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
        assert_eq!(grouped(count), want);
    }
}
