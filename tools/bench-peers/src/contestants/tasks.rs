//! Appenders, and readers, as Tokio tasks.

use std::future::Future;
use std::time::Instant;

use anyhow::Result;
use eventstore::backend::Event;
use tokio::runtime::Runtime;

use super::{Appended, Work};

/// Runs each appender as a task of its own.
pub(super) fn append<B, F, A>(
    runtime: &Runtime,
    work: Work,
    prepare: fn(Vec<Event>) -> Result<B>,
    append_batch: F,
) -> Result<Appended>
where
    B: Send + 'static,
    F: Fn(B) -> A + Clone + Send + 'static,
    A: Future<Output = Result<()>> + Send,
{
    let appenders: Vec<_> = work
        .appenders
        .into_iter()
        .map(|batches| {
            let batches = batches.map(prepare);
            let batches: Box<dyn Iterator<Item = _> + Send> =
                if work.prepared { Box::new(batches.collect::<Vec<_>>().into_iter()) } else { Box::new(batches) };
            batches
        })
        .collect();
    let appender = |batches: Box<dyn Iterator<Item = Result<B>> + Send>| {
        let append_batch = append_batch.clone();
        async move {
            let mut latencies = Vec::new();
            for batch in batches {
                let batch = batch?;
                let began = Instant::now();
                append_batch(batch).await?;
                latencies.push(began.elapsed());
            }
            anyhow::Ok(latencies)
        }
    };
    runtime.block_on(async {
        let began = Instant::now();
        let tasks: Vec<_> = appenders.into_iter().map(|batches| tokio::spawn(appender(batches))).collect();
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await??);
        }
        Ok(Appended { took: began.elapsed(), latencies })
    })
}

/// Runs a reader as a task, as programs have it: on a thread outside of the runtime, each answer of a server has to wake it.
pub(super) fn run<T: Send + 'static>(
    runtime: &Runtime,
    reader: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    runtime.block_on(runtime.spawn(reader))?
}
