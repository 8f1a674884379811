//! The engines themselves, with three puts an event, by the code that the benchmarks of the root have for their floors.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Appended, Batches, Contestant, Scan, Store, Work, fjall};
use crate::events::Sample;
use crate::raw::Raw;
use crate::raw_lmdb::RawLmdb;
use crate::raw_rocksdb::RawRocksDb;
use crate::raw_sled::RawSled;

/// What all engines have in common when nothing is around them.
pub(super) const ENGINE: Contestant = Contestant {
    name: "",
    guarantees: "durable when acknowledged; atomic batches",
    lacks: "checks no ids and no conditions, no checksums but the engine's; numbers events from memory; of many appenders one takes all \
            that wait into one commit, without handing anything over",
    settings: "",
    floor: None,
    by_default: true,
    index: None,
    open: |_| Err(anyhow::anyhow!("it has a name to be opened by")),
    open_small: None,
};

/// sled has one tree for all: this prefix stands for the ids in it.
const SLED_IDS: &[u8] = &[2];

pub(super) fn floors() -> [Contestant; 4] {
    [
        Contestant {
            name: "raw-lmdb",
            settings: "heed's defaults, three databases; version keys appended with MDB_APPEND",
            open: |path| Ok(Engine::new(RawLmdb::open(path))),
            ..ENGINE
        },
        Contestant {
            name: "raw-rocksdb",
            settings: "three column families with memtables of 32 MiB, 128 MiB of cache, LZ4, filters of ids; WriteOptions::sync",
            open: |path| Ok(Engine::new(RawRocksDb::open(path))),
            ..ENGINE
        },
        fjall::CONTESTANT,
        Contestant {
            name: "raw-sled",
            by_default: false,
            settings: "one tree with three prefixes, 128 MiB of cache; flush, then fdatasync of its file, as flush does no sync",
            open: |path| Ok(Engine::with_prefix(RawSled::open(path), SLED_IDS)),
            ..ENGINE
        },
    ]
}

/// An engine as a contestant.
pub(super) struct Engine<R> {
    raw: Mutex<R>,
    /// What stands before the 16 bytes of an id in a key.
    prefix: &'static [u8],
}

impl<R: Raw + Send + 'static> Engine<R> {
    #[expect(clippy::new_ret_no_self, reason = "it is only ever used as a store")]
    pub(super) fn new(raw: R) -> Box<dyn Store> {
        Self::with_prefix(raw, &[])
    }

    fn with_prefix(raw: R, prefix: &'static [u8]) -> Box<dyn Store> {
        Box::new(Engine { raw: Mutex::new(raw), prefix })
    }

    fn raw(&self) -> MutexGuard<'_, R> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Raw + Send + 'static> Store for Engine<R> {
    /// One batch of each appender in each commit: the best that sharing a commit can be.
    fn append(&self, work: Work) -> Result<Appended> {
        let raw = self.raw();
        let mut groups = Groups(work.appenders.into());
        let groups: Box<dyn Iterator<Item = _>> =
            if work.prepared { Box::new(groups.by_ref().collect::<Vec<_>>().into_iter()) } else { Box::new(groups) };
        let mut took = Duration::ZERO;
        let mut latencies = Vec::new();
        for (batches, events) in groups {
            let began = Instant::now();
            raw.append(&events);
            let append = began.elapsed();
            // Without the making of the events, which is other threads' work when appenders are real.
            took += append;
            latencies.extend(std::iter::repeat_n(append, batches));
        }
        Ok(Appended { took, latencies })
    }

    fn scan(&self, _: Scan) -> Result<u64> {
        Ok(self.raw().scan())
    }

    fn load_aggregates(&self, aggregates: &[String]) -> Result<u64> {
        let raw = self.raw();
        Ok(aggregates.iter().map(|aggregate| raw.load_aggregate(aggregate)).sum())
    }

    fn get(&self, wanted: &Arc<[Sample]>) -> Result<()> {
        let raw = self.raw();
        let mut key = self.prefix.to_vec();
        wanted.iter().try_for_each(|sample| {
            key.truncate(self.prefix.len());
            key.extend_from_slice(sample.uuid.as_bytes());
            let found = raw.get(&key);
            sample.check(&found)
        })
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// The batches that are committed together, and how many they are.
struct Groups(VecDeque<Batches>);

impl Iterator for Groups {
    type Item = (usize, Vec<eventstore::backend::Event>);

    fn next(&mut self) -> Option<Self::Item> {
        let batches: Vec<_> = self.0.iter_mut().filter_map(Iterator::next).collect();
        (!batches.is_empty()).then(|| (batches.len(), batches.into_iter().flatten().collect()))
    }
}
