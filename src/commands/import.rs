//! `import`: imports many events from JSON lines; it can be resumed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use eventstore::backend::{CancellationToken, Context, Error, EventStore, StoreOutcome, Stored};
use indicatif::HumanCount;

use super::{Ending, Store, with_store};
use crate::batches::{BatchSize, Batches, Form, Gathered, Item, Rejected, Times, batch_of, culprits, reason, refused};
use crate::cli::{ImportArgs, InputFormat, KeepTimes};
use crate::failure::{Failure, tell};
use crate::input::Input;
use crate::mapping::Mapping;
use crate::output::Output;
use crate::progress::Progress;
use crate::records::Wanted;
use crate::rejects::Rejects;
use crate::{interrupt, json};

/// Large enough that the sync of a batch costs less than the rest, and small enough that several batches fit in memory.
const BATCH: BatchSize = BatchSize { events: 4096, bytes: 4 << 20 };

/// The number of events that a dry run prints.
const EXAMPLES: usize = 3;

pub(crate) async fn run(url: &str, args: &ImportArgs) -> Result<Ending, Failure> {
    let form = Form {
        mapping: (!args.map.is_empty()).then(|| Mapping::parse(&args.map)).transpose()?,
        times: match args.recorded_at {
            KeepTimes::Keep => Times::Keep,
            KeepTimes::Now => Times::Ignore,
        },
        reads_places: args.check_places,
        skips: args.skip_invalid.is_some(),
        from_rejects: args.retry_skipped,
        recognizes: true,
    };
    let wanted = match args.format {
        _ if args.retry_skipped => Wanted::Json,
        InputFormat::Auto => Wanted::Any { is_mapped: form.mapping.is_some() },
        InputFormat::Json => Wanted::Json,
        InputFormat::Csv => Wanted::Csv,
    };
    let input = Input::open(&args.file)?;
    let rejects = args.skip_invalid.as_deref().map(Rejects::create).transpose()?;
    if args.dry_run {
        return dry_run(Batches::new(input.into_records(wanted)?, BATCH, form), rejects).await;
    }
    let interrupted = interrupt::token_of_work();
    with_store(url, async |store| {
        let progress = Progress::of(&input);
        let mut import =
            Import { store, checks_places: args.check_places, rejects, counts: Counts::default(), progress };
        let started = Instant::now();
        let result = import.run(Batches::new(input.into_records(wanted)?, BATCH, form), &interrupted).await;
        let Import { counts, progress, .. } = import;
        drop(progress);
        let ending = result.map_err(|failure| failure.note(format_args!("{counts} before that")))?;
        if ending == Ending::Interrupted {
            tell("interrupted: import the same input again to go on");
        }
        let mut output = Output::of_work();
        output.text(&counts.summary(started.elapsed()))?;
        output.flush()?;
        Ok(if counts.skipped > 0 && ending == Ending::Finished { Ending::LeftOut } else { ending })
    })
    .await
}

/// Prints the first events as they would be stored, and reads all others.
async fn dry_run(mut batches: Batches, mut rejects: Option<Rejects>) -> Result<Ending, Failure> {
    let interrupted = interrupt::token_of_work();
    let mut output = Output::of_work();
    let (mut events, mut skipped) = (0_u64, 0_u64);
    let mut is_over = false;
    let mut result = Ok(());
    while !is_over {
        let next = tokio::select! {
            biased;
            () = interrupted.cancelled() => return Ok(Ending::Interrupted),
            next = batches.next() => next,
        };
        let gathered = match next {
            Ok(Some(gathered)) => gathered,
            Ok(None) => break,
            Err(failure) => {
                (is_over, result) = (true, Err(failure));
                batches.rest()
            }
        };
        let examples = EXAMPLES.saturating_sub(usize::try_from(events).unwrap_or(usize::MAX));
        for item in gathered.items.iter().take(examples) {
            output.line(|out| json::write_new(out, &item.event, item.recorded_at))?;
        }
        output.flush()?;
        events += gathered.items.len() as u64;
        for rejected in &gathered.rejected {
            if let Some(rejects) = &mut rejects {
                rejects.add(rejected)?;
                skipped += 1;
            }
        }
    }
    let mut told = format!("{} event{}", HumanCount(events), if events == 1 { "" } else { "s" });
    if skipped > 0 {
        told = format!("{told}, {} skipped", HumanCount(skipped));
    }
    result.map_err(|failure| failure.note(format_args!("{told} before that")))?;
    tell(&format!("dry run: {told}; nothing is stored"));
    Ok(if skipped > 0 { Ending::LeftOut } else { Ending::Finished })
}

struct Import<'a> {
    store: &'a Store,
    checks_places: bool,
    /// The file for skipped lines; `None` if an invalid line ends the import.
    rejects: Option<Rejects>,
    counts: Counts,
    progress: Progress,
}

/// The result of a batch.
#[derive(Debug, Default)]
struct Done {
    counts: Counts,
    rejected: Vec<Rejected>,
}

impl Import<'_> {
    /// Stores one batch after the other, and gathers the next one meanwhile.
    ///
    /// Only one batch is in flight: with several, a later one could be stored although an earlier one was refused. So
    /// what is stored is always a prefix of the input, in its order, except for skipped lines.
    async fn run(&mut self, mut batches: Batches, interrupted: &CancellationToken) -> Result<Ending, Failure> {
        let mut gathered = next(&mut batches, interrupted).await;
        loop {
            match gathered {
                Ok(Next::Batch(batch)) => {
                    // It ends early only if the batch is refused, and then the next one is not needed.
                    let following = async { Ok(next(&mut batches, interrupted).await) };
                    match tokio::try_join!(self.store(batch), following) {
                        Ok((done, following)) => {
                            self.conclude(done)?;
                            gathered = following;
                        }
                        Err(ended) => return self.end(*ended),
                    }
                }
                // Store what was gathered before the interrupt or the invalid line.
                Ok(Next::Ended(ending)) => return self.store_rest(&mut batches).await.map(|()| ending),
                Err(failure) => return self.store_rest(&mut batches).await.and(Err(failure)),
            }
        }
    }

    async fn store_rest(&mut self, batches: &mut Batches) -> Result<(), Failure> {
        match self.store(batches.rest()).await {
            Ok(done) => self.conclude(done),
            Err(ended) => self.end(*ended),
        }
    }

    /// Stores a batch. The `Done` in an error was done nevertheless.
    async fn store(&self, gathered: Gathered) -> Result<Done, Box<(Done, Failure)>> {
        let mut done = Done { rejected: gathered.rejected, ..Done::default() };
        let mut items = gathered.items;
        let misplaced = match self.checks_places {
            true => misplaced(self.store, &items).await,
            false => Ok(None),
        };
        let misplaced = match misplaced {
            Ok(None) => None,
            Ok(Some((index, failure))) => {
                // Like before any other invalid line.
                items.truncate(index);
                Some(failure)
            }
            Err(failure) => return Err(Box::new((done, failure))),
        };
        let stored = self.store_items(items, &mut done).await;
        done.rejected.sort_by_key(|rejected| rejected.place);
        match stored.err().or(misplaced) {
            None => Ok(done),
            Some(failure) => Err(Box::new((done, failure))),
        }
    }

    /// Stores these events together. If the store refuses some of them and lines may be skipped, stores the others.
    async fn store_items(&self, items: Vec<Item>, done: &mut Done) -> Result<(), Failure> {
        let mut parts = parts_of(items);
        while let Some(mut items) = parts.pop() {
            let error = match self.store.store_batch(&Context::background(), batch_of(&items)).await {
                Ok(stored) => {
                    done.counts.add(&items, &stored);
                    continue;
                }
                Err(error) => error,
            };
            let is_about_events = matches!(error, Error::DuplicateEvent { .. } | Error::InvalidEvent { .. });
            if self.rejects.is_none() || !is_about_events {
                return Err(refused(self.store, &items, error).await);
            }
            let culprits = match items.len() {
                1 => vec![0],
                _ => culprits(self.store, &items, &error).await,
            };
            if culprits.is_empty() {
                // The store does not say which event it is.
                let second = items.split_off(items.len() / 2);
                parts.extend([second, items]);
                continue;
            }
            let reason = reason(&Failure::from(error));
            for index in culprits.into_iter().rev() {
                let Item { place, input, .. } = items.remove(index);
                done.rejected.push(Rejected { place, reason: reason.clone(), input: input.unwrap_or_default() });
            }
            parts.push(items);
        }
        Ok(())
    }

    /// Counts what was done, and writes the skipped lines to the file.
    fn conclude(&mut self, done: Done) -> Result<(), Failure> {
        self.counts.written += done.counts.written;
        self.counts.already_there += done.counts.already_there;
        self.counts.times_lost += done.counts.times_lost;
        for rejected in &done.rejected {
            if let Some(rejects) = &mut self.rejects {
                rejects.add(rejected)?;
                self.counts.skipped += 1;
            }
        }
        self.progress.show(self.counts.total());
        Ok(())
    }

    fn end<T>(&mut self, (done, failure): (Done, Failure)) -> Result<T, Failure> {
        self.conclude(done)?;
        Err(failure)
    }
}

/// Splits the events into parts that the store accepts as batches, the first part last: a single record may have any
/// number of events.
fn parts_of(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for item in items {
        if bytes >= BATCH.bytes || parts[0].len() >= BATCH.events {
            parts.insert(0, Vec::new());
            bytes = 0;
        }
        bytes += item.event.len_bytes();
        parts[0].push(item);
    }
    parts
}

/// The first event that would not get the position in the input, and the failure to report.
///
/// It is detected before the event is stored, because nobody else has the store open.
async fn misplaced(store: &Store, items: &[Item]) -> Result<Option<(usize, Failure)>, Failure> {
    let ctx = Context::background();
    let mut latest = store.latest_version(&ctx).await?.get();
    let mut revisions: HashMap<&str, u64> = HashMap::new();
    let mut places: HashMap<&str, (u64, u64)> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        let (id, aggregate_id) = (item.event.id(), item.event.aggregate_id());
        let (version, revision) = match places.entry(id) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(place) => *place.insert(match store.get(&ctx, id).await {
                Ok(recorded) => (recorded.version.get(), recorded.revision.get()),
                Err(Error::EventNotFound { .. }) => {
                    let revision = match revisions.entry(aggregate_id) {
                        Entry::Occupied(revision) => revision.into_mut(),
                        Entry::Vacant(revision) => {
                            revision.insert(store.aggregate_revision(&ctx, aggregate_id).await?.get())
                        }
                    };
                    (latest, *revision) = (latest + 1, *revision + 1);
                    (latest, *revision)
                }
                Err(error) => return Err(error.into()),
            }),
        };
        let (named_version, named_revision) = (item.version.unwrap_or(version), item.revision.unwrap_or(revision));
        if (named_version, named_revision) != (version, revision) {
            let reason = format!(
                "the event has version {named_version}, revision {named_revision} in the input, and version {version}, \
                 revision {revision} in the store; from this line on nothing is stored"
            );
            return Ok(Some((index, Failure::wrong_result(reason).at(item.place))));
        }
    }
    Ok(None)
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
    skipped: u64,
    /// The number of events stored with another time than in the input.
    times_lost: u64,
}

impl Counts {
    fn add(&mut self, items: &[Item], stored: &[Stored]) {
        for (item, stored) in items.iter().zip(stored) {
            match stored.outcome {
                StoreOutcome::Written => {
                    self.written += 1;
                    self.times_lost += u64::from(item.loses_time);
                }
                StoreOutcome::AlreadyStored => self.already_there += 1,
            }
        }
    }

    fn total(self) -> u64 {
        self.written + self.already_there + self.skipped
    }

    fn summary(self, elapsed: Duration) -> String {
        let seconds = elapsed.as_secs_f64();
        let rate = (self.total() as f64 / seconds.max(1e-6)).round() as u64;
        format!("{self}, in {seconds:.2} s ({} events/s)", HumanCount(rate))
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} stored, {} already there", HumanCount(self.written), HumanCount(self.already_there))?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", HumanCount(self.skipped))?;
        }
        if self.times_lost > 0 {
            write!(f, ", {} with the time of the import instead of their own", HumanCount(self.times_lost))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use eventstore::backend::{
        Batch, Event, EventStoreExt, Gc, GcReport, LoadOptions, Page, PageSize, RecordedEvent, Revision, Stats,
        StoreOptions, Version, memory,
    };

    use super::*;
    use crate::input::Place;

    #[test]
    fn the_summary_tells_counts_time_and_rate() {
        let counts = Counts { written: 39_303, ..Counts::default() };
        let summary = counts.summary(Duration::from_millis(1_230));
        assert_eq!(summary, "39,303 stored, 0 already there, in 1.23 s (31,954 events/s)");
        assert!(Counts::default().summary(Duration::ZERO).ends_with("(0 events/s)"));
        let counts = Counts { written: 1_000, already_there: 2, skipped: 1, times_lost: 999 };
        assert_eq!(
            counts.to_string(),
            "1,000 stored, 2 already there, 1 skipped, 999 with the time of the import instead of their own"
        );
    }

    /// A store that refuses batches with an event of a certain type, without saying which event it is.
    #[derive(Debug)]
    struct Particular(Store);

    #[async_trait]
    impl EventStore for Particular {
        async fn store_batch(&self, ctx: &Context, batch: Batch) -> eventstore::backend::Result<Vec<Stored>> {
            match batch.events.iter().any(|event| event.event_type() == "Refused") {
                true => Err(Error::invalid_event("type", "I do not like it")),
                false => self.0.store_batch(ctx, batch).await,
            }
        }

        async fn load_page(
            &self,
            ctx: &Context,
            options: &LoadOptions,
            size: PageSize,
        ) -> eventstore::backend::Result<Page> {
            self.0.load_page(ctx, options, size).await
        }

        async fn get(&self, ctx: &Context, id: &str) -> eventstore::backend::Result<RecordedEvent> {
            self.0.get(ctx, id).await
        }

        async fn latest_version(&self, ctx: &Context) -> eventstore::backend::Result<Version> {
            self.0.latest_version(ctx).await
        }

        async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> eventstore::backend::Result<Revision> {
            self.0.aggregate_revision(ctx, aggregate_id).await
        }

        async fn wait_for_events(&self, ctx: &Context, after: Version) -> eventstore::backend::Result<Version> {
            self.0.wait_for_events(ctx, after).await
        }

        async fn run_gc(&self, ctx: &Context, gc: Gc) -> eventstore::backend::Result<GcReport> {
            self.0.run_gc(ctx, gc).await
        }

        async fn stats(&self, ctx: &Context) -> eventstore::backend::Result<Stats> {
            self.0.stats(ctx).await
        }

        async fn close(&self) -> eventstore::backend::Result<()> {
            self.0.close().await
        }
    }

    /// The skipped lines when these events are stored together, and the ids that are stored afterwards.
    async fn stored(events: &[(&str, &str)], skips: bool) -> (Vec<u64>, Vec<String>, Option<Failure>) {
        let store: Store = Arc::new(Particular(Arc::new(memory::open(StoreOptions::default()).expect("in memory"))));
        let items = (1..).zip(events).map(|(line, (id, event_type))| Item {
            place: Place { line, element: None },
            event: Event::builder(*event_type, "a").id(*id).build().expect("valid"),
            recorded_at: None,
            loses_time: false,
            version: None,
            revision: None,
            input: Some(Box::default()),
        });
        let mut gathered = Gathered::default();
        gathered.items = items.collect();
        let directory = tempfile::tempdir().expect("a directory");
        let rejects = skips.then(|| Rejects::create(&directory.path().join("rejects")).expect("a file"));
        let progress = Progress::of(&Input::from_reader(std::io::empty()));
        let import = Import { store: &store, checks_places: false, rejects, counts: Counts::default(), progress };
        let (done, failure) = match import.store(gathered).await {
            Ok(done) => (done, None),
            Err(ended) => (ended.0, Some(ended.1)),
        };
        let there = store.load(&Context::background(), LoadOptions::all()).into_vec().await.expect("in memory");
        assert_eq!(done.counts.written, there.len() as u64);
        let lines = done.rejected.iter().map(|rejected| rejected.place.line).collect();
        (lines, there.iter().map(|recorded| recorded.event.id().to_owned()).collect(), failure)
    }

    #[tokio::test]
    async fn of_a_batch_that_is_refused_without_a_name_exactly_the_refused_ones_are_left_out() {
        let events: Vec<_> = ["1", "2", "3", "4", "5", "6", "7"].map(|id| (id, "T")).to_vec();
        for refused in 0..1_u32 << events.len() {
            let is_refused = |index: usize| refused >> index & 1 == 1;
            let mut events = events.clone();
            (0..events.len()).filter(|&index| is_refused(index)).for_each(|index| events[index].1 = "Refused");
            let (lines, there, failure) = stored(&events, true).await;
            assert!(failure.is_none());
            let expected: Vec<_> = (0..events.len()).filter(|&index| is_refused(index)).map(|n| n as u64 + 1).collect();
            assert_eq!(lines, expected);
            let expected: Vec<_> = events.iter().filter(|(_, kind)| *kind == "T").map(|(id, _)| *id).collect();
            assert_eq!(there, expected, "in their order");
        }
    }

    #[tokio::test]
    async fn both_kinds_of_refusals_in_one_batch_are_left_out() {
        let events = [("1", "T"), ("1", "U"), ("2", "Refused"), ("3", "T"), ("3", "T"), ("1", "U"), ("4", "T")];
        let (lines, there, failure) = stored(&events, true).await;
        assert!(failure.is_none());
        assert_eq!((lines, there), (vec![2, 3, 6], vec!["1".to_owned(), "3".to_owned(), "4".to_owned()]));
    }

    #[tokio::test]
    async fn without_leave_to_skip_a_refusal_ends_the_batch_with_nothing_stored() {
        let (lines, there, failure) = stored(&[("1", "T"), ("2", "Refused"), ("3", "T")], false).await;
        assert!(lines.is_empty() && there.is_empty());
        let failure = failure.expect("refused");
        assert_eq!(failure.message(), "lines 1 to 3: invalid type: I do not like it");
    }
}
