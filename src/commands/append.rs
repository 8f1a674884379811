//! `append`: appends events from JSON lines, and prints each one once it is durable.

use std::collections::BTreeMap;
use std::time::Duration;

use eventstore::backend::limits::MAX_BATCH_BYTES;
use eventstore::backend::{CancellationToken, Context, Durability, Expected, Stored};
use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::{Ending, Store, with_store};
use crate::batches::{BatchSize, Batches, Form, Gathered, refused};
use crate::cli::AppendArgs;
use crate::failure::{Failure, tell};
use crate::input::Input;
use crate::output::Output;
use crate::records::Wanted;
use crate::{interrupt, json};

pub(crate) async fn run(url: &str, args: &AppendArgs) -> Result<Ending, Failure> {
    let options = Options {
        expected: args.expect.parse()?,
        durability: args.durability.as_deref().map(str::parse).transpose()?,
        timeout: args.timeout,
    };
    // A batch over the size limit is passed on at once, and the store refuses it.
    let size = BatchSize { events: args.batch, bytes: MAX_BATCH_BYTES + 1 };
    let input = Input::open(&args.file)?;
    let interrupted = interrupt::token_of_work();
    with_store(url, async |store| {
        let batches = Batches::new(input.into_records(Wanted::Lines)?, size, Form::default());
        append(store, batches, &options, args.concurrency, &interrupted).await
    })
    .await
}

/// How each batch is appended.
struct Options {
    expected: Expected,
    durability: Option<Durability>,
    timeout: Option<Duration>,
}

/// Reads batches and keeps up to `concurrency` of them in flight, until the input ends, an append fails or the user
/// interrupts. After that, only appends in flight are finished.
async fn append(
    store: &Store,
    mut batches: Batches,
    options: &Options,
    concurrency: usize,
    interrupted: &CancellationToken,
) -> Result<Ending, Failure> {
    let mut in_flight = FuturesUnordered::new();
    let mut answers = Answers::new();
    let mut is_reading = true;
    while is_reading || !in_flight.is_empty() {
        tokio::select! {
            // In this order, an append is started by polling it before the next one is read, so appends are queued in
            // the order of the input.
            biased;
            () = interrupted.cancelled(), if is_reading => is_reading = false,
            Some(appended) = in_flight.next(), if !in_flight.is_empty() => {
                answers.add(appended);
                // What became durable together is printed together.
                while let Some(Some(appended)) = in_flight.next().now_or_never() {
                    answers.add(appended);
                }
                answers.flush();
                is_reading &= !answers.has_failed();
            }
            batch = batches.next(), if is_reading && in_flight.len() < concurrency => match batch {
                Ok(Some(gathered)) => in_flight.push(append_batch(store, gathered, options)),
                Ok(None) => is_reading = false,
                Err(failure) => {
                    answers.fail(failure);
                    is_reading = false;
                }
            },
        }
    }
    answers.finish()?;
    if interrupted.is_cancelled() {
        tell("interrupted: what was answered is stored, and nothing else");
        return Ok(Ending::Interrupted);
    }
    Ok(Ending::Finished)
}

type Appended = (Gathered, Vec<Stored>);

async fn append_batch(store: &Store, gathered: Gathered, options: &Options) -> Result<Appended, Failure> {
    let mut ctx = Context::background();
    if let Some(timeout) = options.timeout {
        ctx = ctx.with_timeout(timeout);
    }
    let mut batch = gathered.batch().expected(options.expected);
    batch.durability = options.durability;
    match store.store_batch(&ctx, batch).await {
        Ok(stored) => Ok((gathered, stored)),
        Err(error) => Err(refused(store, &gathered.items, error).await),
    }
}

/// The note for answers that could not be printed.
const UNTOLD: &str = "what has no answer may be stored: append it again to learn its place";

const FENCED: &str = "fenced";
const OUTCOME_UNKNOWN: &str = "outcome_unknown";

/// The output for the user: the positions of appended events, and the first failure.
struct Answers {
    output: Output,
    failure: Option<Failure>,
    /// The number of failed appends after the first one, by the code of the failure.
    further: BTreeMap<&'static str, usize>,
}

impl Answers {
    fn new() -> Self {
        Answers { output: Output::of_work(), failure: None, further: BTreeMap::new() }
    }

    fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    fn add(&mut self, appended: Result<Appended, Failure>) {
        let written = appended.and_then(|(gathered, stored)| {
            let mut places = gathered.items.iter().zip(&stored);
            places
                .try_for_each(|(item, stored)| self.output.line(|out| json::write_place(out, item.event.id(), stored)))
        });
        written.unwrap_or_else(|failure| self.fail(failure));
    }

    fn flush(&mut self) {
        self.output.flush().unwrap_or_else(|failure| self.fail(failure.note(UNTOLD)));
    }

    fn fail(&mut self, failure: Failure) {
        let further = match &self.failure {
            None => {
                self.failure = Some(failure);
                return;
            }
            // The failed commit is the cause of the fence, whichever is reported first.
            Some(first) if first.code() == FENCED && failure.code() == OUTCOME_UNKNOWN => {
                self.failure.replace(failure).map_or(FENCED, |first| first.code())
            }
            Some(_) => failure.code(),
        };
        *self.further.entry(further).or_default() += 1;
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.flush();
        match self.failure {
            None => Ok(()),
            Some(failure) if self.further.is_empty() => Err(failure),
            Some(failure) => {
                let further: Vec<_> = self.further.iter().map(|(code, count)| format!("{count} {code}")).collect();
                Err(failure.note(format_args!("appends in flight failed too: {}", further.join(", "))))
            }
        }
    }
}
