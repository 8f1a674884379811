//! The process's caches: blocks, anchors, and open files of segments that are no longer written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::File;
use crate::anchors::{self, Anchor};

/// The size of a block of an uncompressed segment.
pub(crate) const BLOCK: u64 = 16 << 10;

/// The most open files of segments that are no longer written.
const MOST_FILES: usize = 256;

/// A segment of an open log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SegmentKey {
    pub(crate) log: u64,
    pub(crate) number: u64,
    pub(crate) generation: u32,
}

/// The key of the anchors, in place of a block number.
const ANCHORS: u64 = u64::MAX;

#[derive(Clone)]
enum Value {
    Block(Bytes),
    Anchors(Arc<Vec<Anchor>>),
}

#[derive(Clone)]
struct Bytewise;

impl Weighter<(SegmentKey, u64), Value> for Bytewise {
    fn weight(&self, _: &(SegmentKey, u64), value: &Value) -> u64 {
        let len = match value {
            Value::Block(block) => block.len(),
            Value::Anchors(anchors) => anchors.len() * anchors::LEN,
        };
        len as u64 + 64
    }
}

static BLOCKS: LazyLock<Cache<(SegmentKey, u64), Value, Bytewise>> =
    LazyLock::new(|| Cache::with_weighter(8192, 0, Bytewise));

static FILES: LazyLock<Cache<SegmentKey, Arc<dyn File>>> = LazyLock::new(|| Cache::new(MOST_FILES));

static SIZE: Mutex<u64> = Mutex::new(0);

static NEXT_LOG: AtomicU64 = AtomicU64::new(0);

/// A number that is unique to this log in the process.
pub(crate) fn next_log() -> u64 {
    NEXT_LOG.fetch_add(1, Ordering::Relaxed)
}

/// Sets the minimum size of the cache.
pub(crate) fn grow(size: usize) {
    let mut current = SIZE.lock().unwrap_or_else(PoisonError::into_inner);
    if size as u64 > *current {
        *current = size as u64;
        BLOCKS.set_capacity(size as u64);
    }
}

pub(crate) fn block(key: SegmentKey, number: u64) -> Option<Bytes> {
    match BLOCKS.get(&(key, number)) {
        Some(Value::Block(block)) => Some(block),
        _ => None,
    }
}

pub(crate) fn put_block(key: SegmentKey, number: u64, block: Bytes) {
    BLOCKS.insert((key, number), Value::Block(block));
}

/// Drops a block that turned out to be damaged: the file may be intact.
pub(crate) fn forget_block(key: SegmentKey, number: u64) {
    BLOCKS.remove(&(key, number));
}

pub(crate) fn anchors(key: SegmentKey) -> Option<Arc<Vec<Anchor>>> {
    match BLOCKS.get(&(key, ANCHORS)) {
        Some(Value::Anchors(anchors)) => Some(anchors),
        _ => None,
    }
}

pub(crate) fn put_anchors(key: SegmentKey, anchors: Arc<Vec<Anchor>>) {
    BLOCKS.insert((key, ANCHORS), Value::Anchors(anchors));
}

pub(crate) fn file(key: SegmentKey) -> Option<Arc<dyn File>> {
    FILES.get(&key)
}

pub(crate) fn put_file(key: SegmentKey, file: Arc<dyn File>) {
    FILES.insert(key, file);
}

/// Closes the file as soon as nobody reads it.
pub(crate) fn close_file(key: SegmentKey) {
    FILES.remove(&key);
}
