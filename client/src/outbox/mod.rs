//! The outbox: records handed over inside the application's own transaction, and relayed from there. "Database committed,
//! event lost" can't happen, nor "event sent, database rolled back"; and each row is stored once, in order.
//!
//! ```text
//!  the application's transaction          the relay
//!    UPDATE orders ..                      pending(after) ──▶ courier ──▶ one batch a partition ──▶ all acknowledged
//!    INSERT INTO outbox ..                                                                          │
//!    COMMIT ── notify ──────────────────▶  done(up_to)  ◀────────────────────────────────────────────┘
//! ```
//! Each record carries its row's sequence in the header `busbar-outbox-seq`. A relay that begins asks each partition, before
//! it first writes there, for the last record stored under the relay's name: all rows up to that one which go to that
//! partition are stored, none after it is. That answer also fences whoever had the name.
//!
//! | file | owns |
//! |---|---|
//! | `store`, `memory` | what the application's database must do; one in memory |
//! | `relay` | fetching, waiting, stopping |
//! | `desk` | the couriers of all topics, and what is stored where |
//! | `builder`, `error` | options, what ends a relay |

mod builder;
mod desk;
mod error;
mod memory;
mod relay;
mod store;

pub use self::{
    builder::RelayBuilder,
    error::RelayError,
    memory::{MemoryOutbox, OutboxFull},
    relay::{Relay, RelayHandle, RelayStats},
    store::{OutboxRow, OutboxStore},
};

/// The header that tells a row's sequence, in decimal.
pub const OUTBOX_SEQUENCE_HEADER: &str = "busbar-outbox-seq";
