use eventstore_api::{Durability, Error, Result};

use crate::url::UrlOptions;

/// How a store queues and groups appends: the same for every engine.
///
/// The defaults are right for most programs. In a URL they have the names of the fields, such as
/// `lmdb:./data?durability=buffered&queue_bytes=16MiB`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoreOptions {
    /// The durability of appends that do not choose one. Default: [`Durability::Sync`].
    pub durability: Durability,
    /// At most this many appends wait in the queue; more wait outside, without memory of the store's. Default: 1,024,
    /// at least 1.
    pub queue_requests: usize,
    /// At most this many bytes of events wait in the queue. One larger batch alone is let in. Default: 64 MiB, at least
    /// 64 KiB, at most 2 GiB.
    pub queue_bytes: usize,
    /// A group that is committed together takes no more requests once it has this many events. Default: 4,096, at
    /// least 1.
    pub group_events: usize,
    /// A group that is committed together takes no more requests once it has this many bytes. Default: 4 MiB, at least
    /// 1.
    pub group_bytes: usize,
    /// What leads to so many of the newest events, by id and by aggregate, is kept in memory before it begins to go into
    /// the index tables. More of them are faster to append and slower to open: opening reads up to
    /// four times so many events, usually none after closing. Default: 32,768, at least 1, at most 1,048,576.
    pub index_events: usize,
    /// The same, in bytes of records. Default: 16 MiB, at least 1, at most 1 GiB.
    pub index_bytes: usize,
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
        }
    }
}

impl StoreOptions {
    /// Takes the options of a URL that are about the store, and leaves the rest.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] for a value that cannot be read.
    pub fn take_from(&mut self, url: &mut UrlOptions) -> Result<()> {
        url.take_parsed("durability", &mut self.durability)?;
        url.take_number("queue_requests", &mut self.queue_requests)?;
        url.take_bytes("queue_bytes", &mut self.queue_bytes)?;
        url.take_number("group_events", &mut self.group_events)?;
        url.take_bytes("group_bytes", &mut self.group_bytes)?;
        url.take_number("index_events", &mut self.index_events)?;
        url.take_bytes("index_bytes", &mut self.index_bytes)?;
        Ok(())
    }

    /// Checks that every value is in its range.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] names the first that is not.
    pub fn validate(&self) -> Result<()> {
        check_range("queue_requests", self.queue_requests, 1, 1 << 20)?;
        check_range("queue_bytes", self.queue_bytes, 64 << 10, 2 << 30)?;
        check_range("group_events", self.group_events, 1, 1 << 20)?;
        check_range("group_bytes", self.group_bytes, 1, 1 << 30)?;
        check_range("index_events", self.index_events, 1, 1 << 20)?;
        check_range("index_bytes", self.index_bytes, 1, 1 << 30)
    }
}

/// Checks that an option's value lies between two bounds, both included.
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
