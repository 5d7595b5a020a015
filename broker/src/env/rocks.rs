//! The state store on RocksDB: the only file that names it. Every write is synced (RocksDB's default is not).

use std::{ops::RangeInclusive, path::Path};

use rocksdb::{DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions};

use super::state::{Pair, StateError, StateStore};

/// A RocksDB instance in its own folder.
pub struct RocksState {
    db: DB,
}

impl RocksState {
    /// Opens or creates the store in `folder`.
    ///
    /// # Errors
    /// When RocksDB can't open it; the folder may be deleted then: the state is rebuilt from the log.
    pub fn open(folder: &Path) -> Result<Self, StateError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        // Small state: bounded memory, few files, no background threads to speak of.
        options.set_write_buffer_size(4 << 20);
        options.set_max_write_buffer_number(2);
        options.set_max_open_files(64);
        options.set_max_total_wal_size(16 << 20);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_max_background_jobs(2);
        let db = DB::open(&options, folder)
            .map_err(|error| StateError(format!("can't open {}: {error}", folder.display())))?;
        Ok(Self { db })
    }
}

fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

fn failed(error: rocksdb::Error) -> StateError {
    StateError(error.into_string())
}

impl StateStore for RocksState {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.db.get(key).map_err(failed)
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.db.put_opt(key, value, &synced()).map_err(failed)
    }

    fn delete_range(&self, range: RangeInclusive<Vec<u8>>) -> Result<(), StateError> {
        let mut batch = WriteBatch::default();
        for (key, _) in self.scan(range)? {
            batch.delete(key);
        }
        self.db.write_opt(batch, &synced()).map_err(failed)
    }

    fn scan(&self, range: RangeInclusive<Vec<u8>>) -> Result<Vec<Pair>, StateError> {
        let (first, last) = range.into_inner();
        let mut pairs = Vec::new();
        for pair in self.db.iterator(IteratorMode::From(&first, Direction::Forward)) {
            let (key, value) = pair.map_err(failed)?;
            if key.as_ref() > last.as_slice() {
                break;
            }
            pairs.push((key.into_vec(), value.into_vec()));
        }
        Ok(pairs)
    }
}
