//! The stores that are compared, behind one trait.
//!
//! | file | contestants |
//! |---|---|
//! | `store.rs` | the trait |
//! | `eventstore.rs` | eventstore on each of its engines; `handle.rs` calls it |
//! | `raw.rs` | the engines themselves: the floors, `fjall.rs` among them, and redb in the same way (`redb.rs`) |
//! | `tephra.rs`, `umadb.rs`, `sqlite.rs` | the peers |
//! | `blocking.rs`, `tasks.rs` | appenders as threads, for those whose calls block, and as tasks |

mod blocking;
mod eventstore;
mod fjall;
mod handle;
mod raw;
mod redb;
mod sqlite;
mod store;
mod tasks;
mod tephra;
mod umadb;

use std::path::{Path, PathBuf};

pub(crate) use store::{Appended, Batches, Contestant, Lacks, Reader, Scan, Store, Work};

/// Every contestant, floors before what stands on them.
pub(crate) fn all() -> Vec<Contestant> {
    let mut all = raw::floors().to_vec();
    all.extend(eventstore::all());
    all.extend([tephra::BLOCKING, tephra::ASYNC, umadb::CONTESTANT, sqlite::CONTESTANT]);
    all.push(redb::CONTESTANT);
    all
}

/// The file of an engine that takes no directory.
fn file(directory: &Path) -> PathBuf {
    directory.join("data")
}
