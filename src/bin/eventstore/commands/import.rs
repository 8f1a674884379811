//! `import`: many events from JSON lines, resumable.

use std::time::{Duration, Instant};

use eventstore::{Batch, CancellationToken, Context, StoreOutcome, Stored};
use indicatif::HumanCount;

use super::{Ending, Store, with_store};
use crate::batches::{BatchSize, Batches, Gathered};
use crate::cli::ImportArgs;
use crate::failure::{Failure, tell};
use crate::input::Input;
use crate::interrupt;
use crate::output::Output;
use crate::progress::Progress;

/// Large enough that the sync of a batch costs less than the rest; small enough that several fit in memory.
const BATCH: BatchSize = BatchSize { events: 4096, bytes: 4 << 20 };

pub(crate) async fn run(url: &str, args: &ImportArgs) -> Result<Ending, Failure> {
    let input = Input::open(&args.file)?;
    let interrupted = interrupt::token_of_work();
    with_store(url, async |store| {
        let mut import = Import { store, counts: Counts::default(), progress: Progress::of(&input) };
        let started = Instant::now();
        let result = import.run(Batches::new(input.into_lines()?, BATCH), &interrupted).await;
        let Import { counts, progress, .. } = import;
        drop(progress);
        let ending = result.map_err(|failure| failure.note(format_args!("{counts} before that")))?;
        if ending == Ending::Interrupted {
            tell("interrupted: import the same input again to go on");
        }
        let mut output = Output::of_work();
        output.text(&counts.summary(started.elapsed()))?;
        output.flush()?;
        Ok(ending)
    })
    .await
}

struct Import<'a> {
    store: &'a Store,
    counts: Counts,
    progress: Progress,
}

impl Import<'_> {
    /// Stores batch after batch, and gathers one while the other is being stored.
    ///
    /// One at a time, because with several in flight a later one could be stored although an earlier one was refused.
    /// So what is stored is a beginning of the input, in its order, whatever happens.
    async fn run(&mut self, mut batches: Batches, interrupted: &CancellationToken) -> Result<Ending, Failure> {
        let mut gathered = next(&mut batches, interrupted).await;
        loop {
            match gathered {
                Ok(Next::Batch(batch)) => {
                    // Ends early only if the batch is refused: then nobody wants the next one.
                    let following = async { Ok(next(&mut batches, interrupted).await) };
                    let stored;
                    (stored, gathered) = tokio::try_join!(self.store(batch), following)?;
                    self.count(&stored);
                }
                // What was gathered before the interrupt or the bad line is as good as any.
                Ok(Next::Ended(ending)) => return self.store_rest(&mut batches).await.map(|()| ending),
                Err(failure) => return self.store_rest(&mut batches).await.and(Err(failure)),
            }
        }
    }

    async fn store(&self, gathered: Gathered) -> Result<Vec<Stored>, Failure> {
        match self.store.store_batch(&Context::background(), Batch::new(gathered.events.clone())).await {
            Ok(stored) => Ok(stored),
            Err(error) => {
                let place = gathered.place_of(&error);
                Err(Failure::from(error).at(place))
            }
        }
    }

    async fn store_rest(&mut self, batches: &mut Batches) -> Result<(), Failure> {
        let stored = self.store(batches.rest()).await?;
        self.count(&stored);
        Ok(())
    }

    fn count(&mut self, stored: &[Stored]) {
        self.counts.add(stored);
        self.progress.show(self.counts.total());
    }
}

enum Next {
    Batch(Gathered),
    Ended(Ending),
}

async fn next(batches: &mut Batches, interrupted: &CancellationToken) -> Result<Next, Failure> {
    tokio::select! {
        biased;
        () = interrupted.cancelled() => Ok(Next::Ended(Ending::Interrupted)),
        batch = batches.next() => Ok(match batch? {
            Some(batch) => Next::Batch(batch),
            None => Next::Ended(Ending::Finished),
        }),
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    written: u64,
    already_there: u64,
}

impl Counts {
    fn add(&mut self, stored: &[Stored]) {
        let written = stored.iter().filter(|stored| stored.outcome == StoreOutcome::Written).count() as u64;
        self.written += written;
        self.already_there += stored.len() as u64 - written;
    }

    fn total(self) -> u64 {
        self.written + self.already_there
    }

    fn summary(self, elapsed: Duration) -> String {
        let seconds = elapsed.as_secs_f64();
        let rate = (self.total() as f64 / seconds.max(1e-6)).round() as u64;
        format!("{self}, in {seconds:.2} s ({} events/s)", HumanCount(rate))
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} stored, {} already there", HumanCount(self.written), HumanCount(self.already_there))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_tells_counts_time_and_rate() {
        let counts = Counts { written: 39_303, already_there: 0 };
        let summary = counts.summary(Duration::from_millis(1_230));
        assert_eq!(summary, "39,303 stored, 0 already there, in 1.23 s (31,954 events/s)");
        assert!(Counts::default().summary(Duration::ZERO).ends_with("(0 events/s)"));
    }
}
