//! Writes that cannot hang.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use sled::{Batch, Db};

use crate::error::{Failure, guard};

/// The first time to wait for sled; each wait is twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The number of waits: about a minute in total.
const WAITS: u32 = 6;

/// Applies the batches and makes sled write everything to its file.
///
/// When a write fails in one of sled's threads, sled (0.34.7) records the error, but does not always wake those who
/// wait for that write. The next flush sees the error and wakes everybody. So long operations are accompanied by
/// further flushes, and everything runs on separate threads, because one of sled's threads may have ended as well.
pub(crate) fn write(db: &Db, batches: Vec<Batch>) -> Result<(), Failure> {
    let (sender, results) = mpsc::channel();
    let work = {
        let (db, sender) = (db.clone(), sender.clone());
        move || {
            let written =
                guard(|| batches.into_iter().try_for_each(|batch| db.apply_batch(batch)).and_then(|()| db.flush()));
            drop(db); // before the caller continues and closes it
            let _ = sender.send((true, written)); // fails if nobody waits for it any more
        }
    };
    start(work)?;
    for wait in 0..WAITS {
        let until = FIRST_WAIT * 2_u32.pow(wait);
        // An accompanying flush that succeeds says nothing about the work.
        while let Ok((is_work, result)) = results.recv_timeout(until) {
            if is_work || result.is_err() {
                return result.map(drop);
            }
        }
        let (db, sender) = (db.clone(), sender.clone());
        start(move || {
            let flushed = guard(|| db.flush());
            drop(db);
            let _ = sender.send((false, flushed));
        })?;
    }
    Err(Failure::Panic("it has waited for its own threads for a minute".to_owned()))
}

/// Closes sled, if nobody else has a handle to it.
pub(crate) fn close(db: Db) -> Result<(), Failure> {
    guard(|| {
        drop(db);
        Ok(())
    })
}

fn start(work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let started = thread::Builder::new().name("eventstore-sled".to_owned()).spawn(work);
    started.map(drop).map_err(|error| Failure::Error(error.into()))
}
