//! The contract of stores, for code that implements a store or passes a [`Context`] explicitly: everything of the crate
//! `eventstore-api`, and functions over any store.
//!
//! [`Store::backend`](crate::Store::backend) converts a handle to this interface, and `Store::from` converts back.
//!
//! ```
//! use eventstore::backend::{Context, EventStore};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let store = eventstore::backend::open("memory:").await?; // Arc<dyn EventStore>
//! let latest = store.latest_version(&Context::background()).await?;
//! let store = eventstore::Store::from(store);
//! assert_eq!(store.latest_version().await?, latest);
//! # Ok::<(), eventstore::Error>(())
//! # }).unwrap();
//! ```

pub use eventstore_api::*;
pub use eventstore_kv::{Compression, HISTOGRAM_BUCKETS, MemoryStore, StoreOptions, memory};

pub use crate::copy::{CopyReport, copy};
pub use crate::digest::{digest, digest_until};
pub use crate::files::{engine_of, repair, restore};
pub use crate::open::backend::{
    check_url, is_gosync, is_postgres, is_served, open, open_existing, open_read_only, shown,
};
