//! The machines as their callers see them: tables of rules, golden traces, and random histories against naive models.
#![allow(missing_docs, clippy::unwrap_used)]

mod catalog_model;
mod catalog_rules;
mod catalog_trace;
mod compaction_model;
mod compaction_rules;
mod compaction_space;
mod golden;
mod group_model;
mod group_rules;
mod partition_codec;
mod partition_model;
mod partition_rules;
mod partition_trace;
mod support;
