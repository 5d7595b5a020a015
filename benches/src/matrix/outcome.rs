//! What became of the cells: rounds in, rows out, and whether the matrix as a whole counts as failed. Pure.

use serde::Serialize;

use super::{figures::Figures, gauge::Usage, grid::Cell};
use crate::load::report::Report;

/// One run of one cell.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(super) enum Round {
    /// It ended; records may still have gone wrong.
    Ran {
        /// Of the run.
        report: Box<Report>,
        /// Of the brokers, if they could be watched.
        usage: Option<Usage>,
        /// Made from both.
        figures: Figures,
    },
    /// There are no figures.
    Failed {
        /// Why.
        reason: String,
    },
}

impl Round {
    /// Why it counts as failed; `None` when it does not.
    fn failure(&self) -> Option<String> {
        match self {
            Self::Failed { reason } => Some(reason.clone()),
            Self::Ran { report, .. } => report.failure().map(|_| {
                let Report { lost, duplicates, reordered, corrupt, .. } = **report;
                match lost + duplicates + reordered + corrupt {
                    0 => "no record was acknowledged".to_owned(),
                    _ => format!("{lost} lost, {duplicates} doubled, {reordered} out of order, {corrupt} corrupt"),
                }
            }),
        }
    }

    fn figures(&self) -> Option<&Figures> {
        match self {
            Self::Ran { figures, .. } => Some(figures),
            Self::Failed { .. } => None,
        }
    }

    /// What else to know: it does not fail the cell.
    fn remarks(&self) -> Option<String> {
        let Self::Ran { report, .. } = self else { return None };
        let Report { errors, unresolved, unsent, backlog, lost, .. } = **report;
        let counted = [
            (errors, "errors"),
            (unresolved, "unresolved"),
            (unsent, "unsent"),
            (backlog.saturating_sub(lost), "not read within the drain"),
        ];
        let told = counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        Some(told.collect::<Vec<_>>().join(", ")).filter(|told| !told.is_empty())
    }
}

/// A line of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// Which one.
    #[serde(flatten)]
    pub(super) cell: Cell,
    /// Medians over the rounds that ran.
    pub(super) figures: Figures,
    /// How it went: `ok`, or what went wrong.
    pub(super) verdict: String,
    /// Whether anything went wrong.
    pub(super) failed: bool,
    /// Each by itself.
    pub(super) rounds: Vec<Round>,
}

impl Row {
    /// Of a cell's rounds.
    pub(super) fn new(cell: Cell, rounds: Vec<Round>) -> Self {
        let ran: Vec<Figures> = rounds.iter().filter_map(Round::figures).cloned().collect();
        let failures: Vec<String> = rounds.iter().filter_map(Round::failure).collect();
        let remarks = rounds.iter().filter_map(Round::remarks).next_back();
        let verdict = match failures.last() {
            Some(reason) if rounds.len() == 1 => format!("failed: {reason}"),
            Some(reason) => format!("failed in {} of {} rounds: {reason}", failures.len(), rounds.len()),
            None => remarks.map_or("ok".to_owned(), |remarks| format!("ok ({remarks})")),
        };
        Self { cell, figures: Figures::median(&ran), verdict, failed: !failures.is_empty(), rounds }
    }
}

/// Why the matrix counts as failed; `None` when it does not.
pub(super) fn failure(rows: &[Row]) -> Option<String> {
    let failed: Vec<&Row> = rows.iter().filter(|row| row.failed).collect();
    let first = failed.first()?;
    Some(format!("{} of {} cells failed, first {}: {}", failed.len(), rows.len(), first.cell, first.verdict))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{options::Durability, report::tests::report};

    fn cell() -> Cell {
        Cell { durability: Durability::Fsync, size: "1KiB".parse().expect("a size"), partitions: 16 }
    }

    fn ran(change: impl FnOnce(&mut Report)) -> Round {
        let mut report = report();
        change(&mut report);
        let figures = Figures::of(cell(), &report, None, None);
        Round::Ran { report: Box::new(report), usage: None, figures }
    }

    #[test]
    fn a_row_tells_what_went_wrong() {
        let failed = || Round::Failed { reason: "not done within 9 s".to_owned() };
        for (rounds, verdict, is_failed) in [
            (vec![ran(|_| ())], "ok", false),
            (vec![ran(|report| report.errors = 2)], "ok (2 errors)", false),
            (vec![ran(|report| report.backlog = 5)], "ok (5 not read within the drain)", false),
            (vec![ran(|report| report.duplicates = 1)], "failed: 0 lost, 1 doubled, 0 out of order, 0 corrupt", true),
            (vec![ran(|report| report.publish.records = 0)], "failed: no record was acknowledged", true),
            (vec![failed()], "failed: not done within 9 s", true),
            (vec![ran(|_| ()), failed(), ran(|_| ())], "failed in 1 of 3 rounds: not done within 9 s", true),
        ] {
            let row = Row::new(cell(), rounds);
            assert_eq!((row.verdict.as_str(), row.failed), (verdict, is_failed));
        }
    }

    #[test]
    fn one_failed_cell_fails_the_matrix() {
        let good = Row::new(cell(), vec![ran(|_| ())]);
        let bad = Row::new(cell(), vec![ran(|report| report.lost = 1)]);
        assert_eq!(failure(std::slice::from_ref(&good)), None);
        assert_eq!(failure(&[]), None);
        let told = failure(&[good, bad]).expect("failed");
        assert!(told.starts_with("1 of 2 cells failed, first fsync, 1 KiB, 16 partitions: failed: 1 lost"), "{told}");
    }

    #[test]
    fn the_json_has_every_figure() {
        let row = serde_json::to_value(Row::new(cell(), vec![ran(|_| ())])).expect("json");
        assert_eq!(
            (&row["durability"], &row["size"], &row["partitions"]),
            (&"fsync".into(), &1_024.into(), &16.into())
        );
        assert_eq!(row["figures"].as_object().expect("an object").len(), super::super::figures::Figure::ALL.len());
        assert_eq!(row["figures"]["disk_flushes_per_second"], serde_json::Value::Null);
        assert_eq!(row["rounds"][0]["outcome"], "ran");
        assert_eq!(row["rounds"][0]["report"]["publish"]["records"], 612_345);
    }
}
