//! Flushing without waiting for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use eventstore_api::{Error, Result};
use sled::Db;

use crate::error::{Failure, guard};

/// Flushes sled, and wakes a flush that nobody else would.
///
/// When a write fails in one of sled's own threads, sled (0.34.7) notes the error, but does not in every place wake the flush
/// that waits for that write. Whoever flushes next sees the error and wakes everybody. So a flush that takes long gets
/// company.
#[derive(Debug)]
pub(crate) struct Flusher {
    progress: Arc<Progress>,
    /// Ends the watching thread when it is dropped, together with this.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Progress {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A flush that has not come to its end at two looks is woken: after one to two of these.
const LOOK: Duration = Duration::from_secs(1);

impl Flusher {
    /// Begins to watch the flushes of this store. The thread has a handle to sled until this is dropped.
    ///
    /// # Errors
    ///
    /// `Engine` if there is no thread to be had.
    pub(crate) fn new(db: &Db) -> Result<Self> {
        let (progress, db) = (Arc::<Progress>::default(), db.clone());
        let (end, ended) = mpsc::channel::<()>();
        let watched = progress.clone();
        let watch = move || {
            let mut last = 0;
            while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let ended = watched.ended.load(Ordering::SeqCst);
                if std::mem::replace(&mut last, ended) == ended && watched.begun.load(Ordering::SeqCst) > ended {
                    let db = db.clone();
                    // On a thread of its own: if there is no error yet, it waits as well, and the next one wakes both.
                    let _ = thread::Builder::new().name("eventstore-wake".to_owned()).spawn(move || {
                        let _ = guard(|| db.flush());
                    });
                }
            }
        };
        let thread = thread::Builder::new().name("eventstore-watch".to_owned()).spawn(watch);
        let thread = thread.map_err(|error| Error::engine("start the thread that watches sled", error))?;
        Ok(Flusher { progress, end: Some(end), thread: Some(thread) })
    }

    /// Has sled write everything to its file.
    pub(crate) fn flush(&self, db: &Db) -> Result<usize, Failure> {
        self.progress.begun.fetch_add(1, Ordering::SeqCst);
        let flushed = guard(|| db.flush());
        self.progress.ended.fetch_add(1, Ordering::SeqCst);
        flushed
    }
}

impl Drop for Flusher {
    /// Waits for the thread, whose handle would keep sled open.
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
