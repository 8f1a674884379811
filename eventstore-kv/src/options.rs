use std::fmt;
use std::str::FromStr;

use eventstore_api::{Durability, Error, Result};

use crate::url::UrlOptions;

/// The options common to all engines: queue, group commit, log, index, caches.
///
/// The defaults suit most programs. In a URL, each option has the name of its field, such as
/// `lmdb:./data?durability=buffered&queue_bytes=16MiB`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoreOptions {
    /// The durability of appends that do not set one. Default: [`Durability::Sync`].
    pub durability: Durability,
    /// At most this many appends wait in the queue. Further callers wait outside and use no memory of the store.
    /// Default: 1,024, at least 1.
    pub queue_requests: usize,
    /// At most this many bytes of events wait in the queue. A single larger batch is accepted alone. Default: 64 MiB, at least
    /// 64 KiB, at most 2 GiB.
    pub queue_bytes: usize,
    /// A group commit takes no more requests once it has this many events. Default: 4,096, at
    /// least 1.
    pub group_events: usize,
    /// A group commit takes no more requests once it has this many bytes. Default: 4 MiB, at least
    /// 1.
    pub group_bytes: usize,
    /// The number of newest events whose index entries stay in memory before they are written to the engine. A larger
    /// value makes appends faster and opening slower: after a kill, opening reads up to four times as many events;
    /// after closing, usually none. Default: 32,768, at least 1, at most 1,048,576.
    pub index_events: usize,
    /// The same, in bytes of records. Default: 16 MiB, at least 1, at most 1 GiB.
    pub index_bytes: usize,
    /// Bytes of memory for the filter that recognises new event ids. When it has less than about ten bits per id, more ids are
    /// looked up in the index. Default: 16 MiB, at least 64 KiB, at most 16 GiB.
    pub id_filter: usize,
    /// The largest size of a log segment, in bytes. The first has 64 KiB; each next one is twice as large, up to this size.
    /// Default: 64 MiB, at least 64 KiB, at most 2 GiB.
    pub segment_size: usize,
    /// Bytes of log space that are preallocated, so that no append has to extend the file. Never more than the size of the log.
    /// Closing the store frees them. Default: 128 MiB, at most 1 GiB; 0 for none.
    pub space_ahead: usize,
    /// Bytes of the cache of log blocks, for events that are read one by one. All stores of a process share it; the largest
    /// value applies. Default: 128 MiB, at most 1 TiB.
    pub log_cache: usize,
    /// Bytes of the cache of aggregates' versions, so that loading one again does not read the engine: about 100 bytes per
    /// aggregate and 8 per event. Default: 16 MiB, at most 1 TiB.
    pub aggregate_cache: usize,
    /// Bytes of the cache of aggregates' newest revisions, so that an append does not read the engine: 25 to 60 bytes per
    /// aggregate. The aggregates with the oldest appends are evicted first. Default: 32 MiB, at most 16 GiB.
    pub revision_cache: usize,
    /// Whether full log segments are compressed in the background. Default: [`Compression::None`]. Compressed segments are
    /// readable with any value.
    pub compression: Compression,
    /// The value of the label `store` in this store's metrics. Default: empty, which stands for the name of its directory,
    /// without the path; `memory` without a directory. At most 255 bytes.
    pub metrics_label: String,
}

/// How full log segments are compressed. In a URL: `none`, `zstd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// No compression.
    #[default]
    None,
    /// Zstandard, in blocks of 64 KiB. Needs the feature `zstd`.
    Zstd,
}

impl FromStr for Compression {
    type Err = Error;

    /// Reads `none` or `zstd`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Compression::None),
            "zstd" => Ok(Compression::Zstd),
            _ => Err(Error::InvalidOption {
                option: "compression".to_owned(),
                reason: format!("{text:?} is not one of none, zstd"),
            }),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::None => "none",
            Compression::Zstd => "zstd",
        })
    }
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            durability: Durability::Sync,
            queue_requests: 1024,
            queue_bytes: 64 << 20,
            group_events: 4096,
            group_bytes: 4 << 20,
            index_events: 32_768,
            index_bytes: 16 << 20,
            id_filter: 16 << 20,
            segment_size: 64 << 20,
            space_ahead: 128 << 20,
            log_cache: 128 << 20,
            aggregate_cache: 16 << 20,
            revision_cache: 32 << 20,
            compression: Compression::None,
            metrics_label: String::new(),
        }
    }
}

impl StoreOptions {
    /// Takes the options of the store from a URL and leaves the rest.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] if a value cannot be parsed.
    pub fn take_from(&mut self, url: &mut UrlOptions) -> Result<()> {
        url.take_parsed("durability", &mut self.durability)?;
        url.take_number("queue_requests", &mut self.queue_requests)?;
        url.take_bytes("queue_bytes", &mut self.queue_bytes)?;
        url.take_number("group_events", &mut self.group_events)?;
        url.take_bytes("group_bytes", &mut self.group_bytes)?;
        url.take_number("index_events", &mut self.index_events)?;
        url.take_bytes("index_bytes", &mut self.index_bytes)?;
        url.take_bytes("id_filter", &mut self.id_filter)?;
        url.take_bytes("segment_size", &mut self.segment_size)?;
        url.take_bytes("space_ahead", &mut self.space_ahead)?;
        url.take_bytes("log_cache", &mut self.log_cache)?;
        url.take_bytes("aggregate_cache", &mut self.aggregate_cache)?;
        url.take_bytes("revision_cache", &mut self.revision_cache)?;
        url.take_parsed("compression", &mut self.compression)?;
        url.take_text("metrics_label", &mut self.metrics_label)?;
        Ok(())
    }

    /// Checks that every value is in its range.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] names the first option that is out of range.
    pub fn validate(&self) -> Result<()> {
        check_range("queue_requests", self.queue_requests, 1, 1 << 20)?;
        check_range("queue_bytes", self.queue_bytes, 64 << 10, 2 << 30)?;
        check_range("group_events", self.group_events, 1, 1 << 20)?;
        check_range("group_bytes", self.group_bytes, 1, 1 << 30)?;
        check_range("index_events", self.index_events, 1, 1 << 20)?;
        check_range("index_bytes", self.index_bytes, 1, 1 << 30)?;
        check_range("id_filter", self.id_filter, 64 << 10, 16 << 30)?;
        check_range("segment_size", self.segment_size, 64 << 10, 2 << 30)?;
        check_range("space_ahead", self.space_ahead, 0, 1 << 30)?;
        check_range("log_cache", self.log_cache, 0, 1 << 40)?;
        check_range("aggregate_cache", self.aggregate_cache, 0, 1 << 40)?;
        check_range("revision_cache", self.revision_cache, 0, 16 << 30)?;
        match self.metrics_label.len() {
            ..=255 => Ok(()),
            len => Err(Error::InvalidOption {
                option: "metrics_label".to_owned(),
                reason: format!("it has {len} bytes, more than 255"),
            }),
        }
    }

    /// The options of the log.
    pub(crate) fn log(&self) -> eventstore_log::Options {
        eventstore_log::Options {
            segment_size: self.segment_size as u64,
            space_ahead: self.space_ahead as u64,
            cache_size: self.log_cache,
            compression: match self.compression {
                Compression::None => eventstore_log::Compression::None,
                Compression::Zstd => eventstore_log::Compression::Zstd,
            },
        }
    }
}

/// Checks that an option's value is between two bounds, both included.
///
/// # Errors
///
/// [`Error::InvalidOption`] with the bounds.
pub fn check_range(option: &str, value: usize, least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::InvalidOption {
        option: option.to_owned(),
        reason: format!("{value} is not between {least} and {most}"),
    })
}
