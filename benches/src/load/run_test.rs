//! Whole runs against a broker in memory, sound and faulty.

use clap::Parser as _;

use super::*;
use crate::load::{
    payload::Header,
    target::loopback::{Fault, Loopback},
};

fn options(line: &str) -> Options {
    Options::try_parse_from(["busbar-bench"].into_iter().chain(line.split_whitespace())).expect("valid options")
}

async fn run_quietly(target: &Loopback, line: &str) -> anyhow::Result<(Report, Vec<String>)> {
    let (mut printed, mut marks) = (Vec::new(), Vec::new());
    let audience = Audience { print: &mut |text| printed.push(text.to_owned()), mark: &mut |mark| marks.push(mark) };
    let report = run(target, &options(line), audience).await?;
    assert_eq!(marks, [Mark::Begin, Mark::End]);
    Ok((report, printed))
}

/// 1,000 records/s for 0.4 s, 0.1 s of which are warm-up.
const PACED: &str = "--rate 1000 --warmup 0.1 --duration 0.3 --drain 0.5 --size 64";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sound_broker_gets_a_clean_report() {
    for more in [
        "",
        "--keyed",
        "--even",
        "--even --producers 3",
        "--producers 3 --consumers 2",
        "--consumers 9 --producers 2 --keyed",
    ] {
        let target = Loopback::new(4, None);
        // Records of others, before and (from another run) with the right header.
        target.store(0, "not a header".into());
        let (report, printed) = run_quietly(&target, &format!("{PACED} {more}")).await.expect("runs");
        assert_eq!(report.failure(), None, "{more}: {report:?}");
        assert_eq!((report.errors, report.unresolved, report.unsent, report.backlog), (0, 0, 0, 0), "{more}");
        assert_eq!(report.retries, 3 * u64::from(report.setup.producers));
        assert!(report.verified && report.publish.records > 0 && report.end_to_end_ms.is_some());
        assert!(printed[0].starts_with("busbar: durability replicated, replicas 1, partitions 4"), "{printed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_shows_in_its_own_figure() {
    let nothing = (0, 0, 0, 0, 0, 0);
    for (at, fault, want) in [
        (204, Fault::Lose, (1, 0, 0, 0, 0, 0)),
        (204, Fault::Double, (0, 1, 0, 0, 0, 0)),
        // The last one, when all has long been consumed.
        (399, Fault::DoubleLate(Duration::from_millis(50)), (0, 1, 0, 0, 0, 0)),
        (204, Fault::Swap, (0, 0, 1, 0, 0, 0)),
        // The original is gone as well: the cut record is both corrupt and missing.
        (204, Fault::Cut, (1, 0, 0, 1, 0, 0)),
        (204, Fault::Refuse, (0, 0, 0, 0, 1, 0)),
        // The last one: a client that keeps the order tells nothing of what comes behind it.
        (399, Fault::Silence, (0, 0, 0, 0, 0, 1)),
        (204, Fault::Stall(Duration::from_millis(20)), nothing),
    ] {
        let target = Loopback::new(2, Some((at, fault)));
        let (report, _) = run_quietly(&target, PACED).await.expect("runs");
        let Report { lost, duplicates, reordered, corrupt, errors, unresolved, .. } = report;
        assert_eq!((lost, duplicates, reordered, corrupt, errors, unresolved), want, "{fault:?}");
        assert_eq!(report.failure().is_some(), lost + duplicates + reordered + corrupt > 0, "{fault:?}");
    }
}

/// A tool that waits for the broker before it schedules the next record would show one slow record here, at p99.9
/// at most. The schedule goes on: every record that was due during the stall was late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_is_charged_to_every_record_that_was_due() {
    let stall = Duration::from_millis(150);
    let target = Loopback::new(1, Some((150, Fault::Stall(stall))));
    let (report, _) = run_quietly(&target, PACED).await.expect("runs");
    assert_eq!((report.unsent, report.lost), (0, 0));
    let ack = report.ack_ms.expect("measured");
    assert!(ack.max >= 149.0, "{ack:?}");
    // Half of the measured records fell into the stall; a fifth waited for 90 ms or more.
    assert!(ack.p95 >= 100.0, "{ack:?}");
}

/// Where partitions are not known, one slow acknowledgement is not charged to those that came before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_acknowledgement_is_charged_to_its_own_record_only() {
    let target = Loopback::new(2, Some((150, Fault::AckLate(Duration::from_millis(200)))));
    let (report, _) = run_quietly(&target, PACED).await.expect("runs");
    assert_eq!((report.failure(), report.unresolved, report.backlog), (None, 0, 0));
    let ack = report.ack_ms.expect("measured");
    assert!(ack.max >= 199.0 && ack.p95 < 100.0, "{ack:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_that_is_not_reached_is_told() {
    let target = Loopback::new(1, Some((150, Fault::Stall(Duration::from_secs(3)))));
    let (report, _) = run_quietly(&target, PACED).await.expect("runs");
    // 400 were scheduled; 150 were sent, the next one was given up, the others never tried.
    assert_eq!((report.unsent, report.unresolved, report.lost), (250, 0, 0));
    assert!(report.text().contains("the rate was not reached"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_load_sends_more_than_a_schedule_would() {
    let target = Loopback::new(2, None);
    let (report, printed) =
        run_quietly(&target, "--warmup 0 --duration 0.3 --size 100 --compression lz4").await.expect("runs");
    assert_eq!(report.failure(), None, "{report:?}");
    assert_eq!((report.backlog, report.unsent, report.unresolved), (0, 0, 0));
    assert!(report.publish.records > 300, "{report:?}");
    assert!(report.client_cpu_seconds > 0.0);
    assert!(printed[0].contains("full load"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_consumers_nothing_is_claimed() {
    let target = Loopback::new(1, Some((5, Fault::Lose)));
    let (report, _) = run_quietly(&target, &format!("{PACED} --consumers 0")).await.expect("runs");
    assert_eq!((report.verified, report.lost, report.backlog), (false, 0, 0));
    assert_eq!(report.end_to_end_ms, None);
    assert!(report.text().contains("no consumer read the records"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_consumer_fails_the_run_at_once() {
    let target = Loopback::new(1, Some((5, Fault::EndSubscriptions)));
    let started = std::time::Instant::now();
    let error = run_quietly(&target, "--rate 1000 --duration 60").await.expect_err("fails");
    assert!(format!("{error:#}").contains("its subscription ended"), "{error:#}");
    assert!(started.elapsed() < Duration::from_secs(30), "the failure waited for the end of the run");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_not_what_was_asked_for_is_told() {
    let target = Loopback::new(1, None);
    let line = "--rate 100 --warmup 0 --duration 0.1 --drain 0.2 --partitions 8";
    let (report, printed) = run_quietly(&target, line).await.expect("runs");
    assert_eq!(report.setup.partitions, 1);
    assert!(printed[1].starts_with("note: topic bench exists and is used as it is"), "{printed:?}");
}

#[test]
fn a_header_fits_the_smallest_record() {
    assert_eq!(Header::read(&[0; 31]), None);
}
