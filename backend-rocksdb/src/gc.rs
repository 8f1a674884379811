//! Collection: what is in memory is flushed, and tables are merged, a slice of the keys at a time so that it can end soon.

use eventstore_api::{Error, Gc, Result};
use eventstore_kv::{Table, Task};
use rocksdb::{BottommostLevelCompaction, ColumnFamily, CompactOptions};

use crate::RocksDbEngine;
use crate::engine::{family_name, tables};
use crate::error::engine_error;

/// A slice ends with the table that makes it this long.
const SLICE_BYTES: u64 = 32 << 20;

const AGE_CUTOFF: &str = "blob_garbage_collection_age_cutoff";

pub(crate) fn run(engine: &RocksDbEngine, gc: Gc, task: &Task<'_>) -> Result<Vec<String>> {
    let errors_before = engine.background_errors()?;
    task.check()?;
    engine.flush_synced()?;
    let mut actions = vec!["flushed what was in memory to tables".to_owned()];
    let is_full = gc == Gc::Full;
    let with_blobs = is_full && engine.options().blob_threshold > 0;
    let slices = slices(engine)?;
    let total: u64 = slices.iter().map(|slice| slice.bytes).sum();
    let mut compaction = CompactOptions::default();
    compaction.set_exclusive_manual_compaction(false);
    if is_full {
        compaction.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
    }
    let families = tables(engine.db())?;
    let _cutoff = with_blobs.then(|| EveryBlobFile::new(engine, families[Table::Events.index()])).transpose()?;
    let mut done = 0;
    for slice in &slices {
        task.check()?;
        task.report(done, total);
        let family = families[slice.table.index()];
        engine.db().compact_range_cf_opt(family, slice.first.as_deref(), slice.last.as_deref(), &compaction);
        done += slice.bytes;
        // Merging tells of no errors itself.
        if engine.background_errors()? > errors_before {
            return Err(Error::engine(
                "merge tables",
                "RocksDB has failed at it and appends may be refused; its log says why, and verify finds damage",
            ));
        }
    }
    task.report(total, total);
    actions.push(match is_full {
        true => {
            format!("merged all levels and rewrote the last one, {total} bytes of tables in {} steps", slices.len())
        }
        false => {
            format!("merged the upper levels into the last one, {total} bytes of tables in {} steps", slices.len())
        }
    });
    if with_blobs {
        actions.push("moved what is needed of every blob file into new ones".to_owned());
    }
    Ok(actions)
}

/// A part of a table's keys: from `first`, or the begin, to `last`, or the end, both included.
struct Slice {
    table: Table,
    first: Option<Vec<u8>>,
    last: Option<Vec<u8>>,
    bytes: u64,
}

/// All keys, cut where tables of the largest level end.
fn slices(engine: &RocksDbEngine) -> Result<Vec<Slice>> {
    let files = engine.db().live_files().map_err(|error| engine_error("list the tables", error))?;
    let mut slices = Vec::new();
    for table in Table::ALL {
        let mut files: Vec<_> = files.iter().filter(|file| file.column_family_name == family_name(table)).collect();
        let Some(last_level) = files.iter().map(|file| file.level).max() else { continue };
        let mut bytes: u64 = files.iter().map(|file| file.size as u64).sum();
        files.retain(|file| file.level == last_level && last_level > 0);
        bytes -= files.iter().map(|file| file.size as u64).sum::<u64>();
        files.sort_by(|one, other| one.start_key.cmp(&other.start_key));
        let mut first = None;
        let last_file = files.pop();
        for file in files {
            bytes += file.size as u64;
            if bytes >= SLICE_BYTES {
                let last = file.end_key.clone();
                let behind = last.clone().map(|mut key| {
                    key.push(0); // the smallest key behind it
                    key
                });
                slices.push(Slice { table, first, last, bytes });
                (first, bytes) = (behind, 0);
            }
        }
        bytes += last_file.map_or(0, |file| file.size as u64);
        slices.push(Slice { table, first, last: None, bytes });
    }
    Ok(slices)
}

/// As long as it lives, merging collects garbage in all blob files, not only in the oldest.
struct EveryBlobFile<'a> {
    engine: &'a RocksDbEngine,
    family: &'a ColumnFamily,
}

impl<'a> EveryBlobFile<'a> {
    fn new(engine: &'a RocksDbEngine, family: &'a ColumnFamily) -> Result<Self> {
        let this = EveryBlobFile { engine, family };
        this.set_cutoff(1.0)?;
        Ok(this)
    }

    fn set_cutoff(&self, cutoff: f64) -> Result<()> {
        let set = self.engine.db().set_options_cf(self.family, &[(AGE_CUTOFF, &cutoff.to_string())]);
        set.map_err(|error| engine_error("set how blobs are collected", error))
    }
}

impl Drop for EveryBlobFile<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.set_cutoff(self.engine.options().blob_gc_age_cutoff) {
            tracing::warn!(%error, "blobs are collected from every file until the store is reopened");
        }
    }
}
