//! No spans: the feature `tracing` is off. Everything here is of size zero and compiles to nothing.

use std::future::Future;

use busbar_proto::{Offset, PartitionId};
use bytes::Bytes;

use crate::{
    consumer::ConsumedRecord,
    error::{DeliveryError, SendError},
    record::Record,
};

#[derive(Debug)]
pub(crate) struct SendSpan;

impl SendSpan {
    pub(crate) fn begin(_topic: &str, _record: &mut Record) -> Self {
        Self
    }

    pub(crate) fn take_back(self, _record: &mut Record) {}

    pub(crate) fn refused(self, _error: &SendError) {}
}

#[derive(Debug, Default)]
pub(crate) struct SendSpans;

impl SendSpans {
    pub(crate) fn add(&self, _index: u32, _span: SendSpan) {}

    pub(crate) fn end(&self, _stored: Result<(u32, u64), &DeliveryError>) {}
}

pub(crate) fn received(_topic: &str, _group: Option<&str>, _partition: PartitionId, _batch: &Bytes, _from: Offset) {}

pub(crate) fn settling<T, E>(
    _record: &ConsumedRecord,
    _group: &str,
    _operation: &'static str,
    settle: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    settle()
}

pub(crate) fn committing<T, E>(
    _topics: &[String],
    _group: &str,
    commit: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    commit
}

const _: () = assert!(size_of::<SendSpan>() == 0 && size_of::<SendSpans>() == 0);
