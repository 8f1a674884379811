//! Appenders as threads.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow};
use eventstore::backend::Event;

use super::{Appended, Work};

/// A store whose append blocks the calling thread until the batch is durable.
pub(super) trait Blocking: Sync {
    /// A batch in the form that the store takes.
    type Batch: Send;

    fn prepare(&self, events: Vec<Event>) -> Result<Self::Batch>;

    fn append_batch(&self, batch: Self::Batch) -> Result<()>;
}

/// Runs each appender on a thread of its own.
pub(super) fn append<S: Blocking>(store: &S, work: Work) -> Result<Appended> {
    let appenders: Vec<_> = work
        .appenders
        .into_iter()
        .map(|batches| {
            let batches = batches.map(|events| store.prepare(events));
            let batches: Box<dyn Iterator<Item = _> + Send + '_> =
                if work.prepared { Box::new(batches.collect::<Vec<_>>().into_iter()) } else { Box::new(batches) };
            batches
        })
        .collect();
    let start = Barrier::new(appenders.len() + 1);
    thread::scope(|scope| {
        let threads: Vec<_> = appenders
            .into_iter()
            .map(|batches| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    let mut latencies = Vec::new();
                    for batch in batches {
                        let batch = batch?;
                        let began = Instant::now();
                        store.append_batch(batch)?;
                        latencies.push(began.elapsed());
                    }
                    anyhow::Ok(latencies)
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        let mut latencies = Vec::new();
        for thread in threads {
            latencies.extend(thread.join().map_err(|_| anyhow!("an appender panicked"))??);
        }
        Ok(Appended { took: began.elapsed(), latencies })
    })
}
