//! A load run: producers on a schedule, consumers that check every record, one report.
//!
//! ```text
//!            Timeline: | warm-up | measured ......... | drain |
//!
//!  schedule ─▶ worker_producer ──send──▶ target ──records──▶ worker_consumer
//!                    │   lanes                                    │
//!                    ▼                                            ▼
//!              meter (ack latency)        ledger (who is missing, doubled, out of order)
//!                    └───────────────▶ run ─▶ report ◀────────────┘
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`options`] | the command line |
//! | [`clock`] | the run's one clock, precise waiting, CPU time |
//! | [`schedule`] | when each record is due; which phase a time belongs to |
//! | [`payload`] | what is inside a record |
//! | [`target`] | the seam to the broker under test |
//! | [`ledger`] | exactly-once bookkeeping in two bits a record |
//! | [`meter`] | histograms and failure counts of a producer |
//! | [`worker_producer`], [`worker_consumer`] | the hot loops |
//! | [`lanes`] | records under way, until their acknowledgement |
//! | [`run`] | the phases, from the topic to the report |
//! | [`session`] | from the options to the broker that they name |
//! | [`report`] | what is printed |

pub(crate) mod clock;
pub(crate) mod lanes;
pub(crate) mod ledger;
pub(crate) mod meter;
pub(crate) mod options;
pub(crate) mod payload;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod schedule;
pub(crate) mod session;
pub(crate) mod target;
pub(crate) mod worker_consumer;
pub(crate) mod worker_producer;
