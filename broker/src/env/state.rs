//! The state store seam: a small ordered key-value store for what must survive a restart but is not the log:
//! checkpoints of the replicated state machines. Never payloads. Losing it costs a rebuild, never data.

use std::{collections::BTreeMap, ops::RangeInclusive};

use parking_lot::Mutex;

/// The store failed; the text says how. There is no partial effect.
#[derive(Debug, thiserror::Error)]
#[error("state store: {0}")]
pub struct StateError(pub String);

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// An ordered key-value store. Calls block; writes are durable when they return.
pub trait StateStore: Send + Sync + 'static {
    /// The value under `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;
    /// Stores and syncs one value.
    fn put(&self, key: &[u8], value: &[u8]) -> Result<(), StateError>;
    /// Deletes the keys in the range, both ends included.
    fn delete_range(&self, range: RangeInclusive<Vec<u8>>) -> Result<(), StateError>;
    /// Pairs in the range in key order.
    fn scan(&self, range: RangeInclusive<Vec<u8>>) -> Result<Vec<Pair>, StateError>;
}

/// A store in memory, for tests and simulation.
#[derive(Debug, Default)]
pub struct MemoryState(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

impl StateStore for MemoryState {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.0.lock().get(key).cloned())
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.0.lock().insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    fn delete_range(&self, range: RangeInclusive<Vec<u8>>) -> Result<(), StateError> {
        self.0.lock().retain(|key, _| !range.contains(key));
        Ok(())
    }

    fn scan(&self, range: RangeInclusive<Vec<u8>>) -> Result<Vec<Pair>, StateError> {
        Ok(self.0.lock().range(range).map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
