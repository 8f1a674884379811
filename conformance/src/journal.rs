//! A record of the operations of a check on its stores, so that a failure can be understood without running it again.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eventstore_api::{
    AggregateOptions, AggregatePage, BackupReport, Batch, Context, Digest, Direction, Event, EventStore, Gc, GcReport,
    Idempotency, LoadOptions, Page, PageSize, Place, Pulled, Pushed, RecordedEvent, Result, Revision, Stats,
    StoreOutcome, Stored, VerifyReport, Version, async_trait,
};

use crate::env::Store;

/// The newest operations of a check. Operations that change something are kept separately: a check often ends with
/// hundreds of reads, and the cause of what they find came before.
#[derive(Debug, Default)]
pub(crate) struct Journal(Mutex<Operations>);

const DROPPED: &str = "drop the last handle";

#[derive(Debug, Default)]
struct Operations {
    begun: u64,
    opened: u64,
    changes: VecDeque<Operation>,
    reads: VecDeque<Operation>,
}

#[derive(Debug)]
struct Operation {
    number: u64,
    /// The number of the store, in the order in which the check opened them.
    store: u64,
    call: String,
    end: End,
}

#[derive(Debug)]
enum End {
    /// It is running. In a check that hangs, this is the one to look at.
    NotYet,
    Dropped,
    With(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Change,
    Read,
}

impl Kind {
    const fn most(self) -> usize {
        match self {
            Kind::Change => 14,
            Kind::Read => 6,
        }
    }
}

impl Journal {
    /// A number for the operations of the next store.
    pub(crate) fn next_store(&self) -> u64 {
        let mut operations = self.lock();
        operations.opened += 1;
        operations.opened
    }

    fn begin(self: &Arc<Self>, kind: Kind, store: u64, call: String) -> Begun {
        let mut operations = self.lock();
        operations.begun += 1;
        let number = operations.begun;
        let kept = operations.of(kind);
        if kept.len() >= kind.most() {
            // Running operations are kept as long as others can be dropped.
            let oldest = kept.iter().position(|operation| !matches!(operation.end, End::NotYet)).unwrap_or(0);
            kept.remove(oldest);
        }
        kept.push_back(Operation { number, store, call, end: End::NotYet });
        Begun { journal: self.clone(), kind, number, has_ended: false }
    }

    /// Records a call of the factory that opens a store.
    pub(crate) fn begin_opening(self: &Arc<Self>, store: u64, call: &str, directory: &Path) -> Begun {
        let place = directory.file_name().unwrap_or_default().display();
        self.begin(Kind::Change, store, format!("{call} {place}"))
    }

    fn lock(&self) -> MutexGuard<'_, Operations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Operations {
    fn of(&mut self, kind: Kind) -> &mut VecDeque<Operation> {
        match kind {
            Kind::Change => &mut self.changes,
            Kind::Read => &mut self.reads,
        }
    }
}

/// One line for each operation, oldest first.
impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operations = self.lock();
        let mut kept: Vec<_> = operations.changes.iter().chain(&operations.reads).collect();
        kept.sort_by_key(|operation| operation.number);
        // A failed check drops its stores; that is not the cause.
        while kept.last().is_some_and(|last| last.call == DROPPED) {
            kept.pop();
        }
        match (kept.len() as u64, kept.last().map_or(0, |last| last.number)) {
            (0, _) => return f.write_str("none"),
            (kept, last) if kept < last => write!(f, "the newest {kept} of {last}, the oldest of them first:")?,
            (_, last) => write!(f, "all {last}, the oldest first:")?,
        }
        for Operation { number, store, call, end } in kept {
            write!(f, "\n    {number}. ")?;
            if operations.opened > 1 {
                write!(f, "store {store}: ")?;
            }
            match end {
                End::NotYet => write!(f, "{call} … has not returned")?,
                End::Dropped => write!(f, "{call} … its future was dropped")?,
                End::With(outcome) => write!(f, "{call} → {outcome}")?,
            }
        }
        Ok(())
    }
}

/// An operation that has begun. If it is dropped before its end, the journal says so.
pub(crate) struct Begun {
    journal: Arc<Journal>,
    kind: Kind,
    number: u64,
    has_ended: bool,
}

impl Begun {
    pub(crate) fn end<T>(mut self, outcome: &Result<T>, describe: impl FnOnce(&T) -> String) {
        let text = match outcome {
            Ok(value) => describe(value),
            Err(error) => shortened(&format!("{error:?}"), 200),
        };
        self.has_ended = true;
        self.set(End::With(text));
    }

    fn set(&self, end: End) {
        let mut operations = self.journal.lock();
        if let Some(operation) = operations.of(self.kind).iter_mut().find(|kept| kept.number == self.number) {
            operation.end = end;
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.has_ended {
            self.set(End::Dropped);
        }
    }
}

/// A store that records calls and changes nothing else.
pub(crate) struct Observed {
    store: Store,
    number: u64,
    journal: Arc<Journal>,
}

impl Observed {
    pub(crate) fn handle(store: Store, number: u64, journal: Arc<Journal>) -> Store {
        Arc::new(Observed { store, number, journal })
    }

    fn change(&self, call: String) -> Begun {
        self.journal.begin(Kind::Change, self.number, call)
    }

    fn read(&self, call: String) -> Begun {
        self.journal.begin(Kind::Read, self.number, call)
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.change(DROPPED.to_owned()).end(&Ok(()), done);
    }
}

#[deny(clippy::missing_trait_methods)] // including those with a default
#[async_trait]
impl EventStore for Observed {
    // Written out, so that the store is called when this is called: a store may act before its future is polled.
    fn store_batch<'store, 'ctx, 'both>(
        &'store self,
        ctx: &'ctx Context,
        batch: Batch,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<Stored>>> + Send + 'both>>
    where
        'store: 'both,
        'ctx: 'both,
        Self: 'both,
    {
        let begun = self.change(describe_batch(&batch));
        let direct: &'both dyn EventStore = self.store.as_ref();
        let appending = direct.store_batch(ctx, batch);
        Box::pin(async move {
            let outcome = appending.await;
            begun.end(&outcome, |stored| describe_stored(stored));
            outcome
        })
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        let begun = self.read(describe_load(options, size));
        let outcome = self.store.load_page(ctx, options, size).await;
        begun.end(&outcome, describe_page);
        outcome
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        let begun = self.read(format!("get {}", quoted(id)));
        let outcome = self.store.get(ctx, id).await;
        begun.end(&outcome, |event| format!("version {}, revision {}", event.version, event.revision.get()));
        outcome
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        let begun = self.read("latest_version".to_owned());
        let outcome = self.store.latest_version(ctx).await;
        begun.end(&outcome, Version::to_string);
        outcome
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        let begun = self.read(format!("aggregate_revision {}", quoted(aggregate_id)));
        let outcome = self.store.aggregate_revision(ctx, aggregate_id).await;
        begun.end(&outcome, Revision::to_string);
        outcome
    }

    async fn list_aggregates(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        let begun = self.read(describe_list(options, most));
        let outcome = self.store.list_aggregates(ctx, options, most).await;
        begun.end(&outcome, |page| {
            let more = if page.next.is_some() { ", and more" } else { "" };
            format!("{} aggregates, head {}{more}", page.aggregates.len(), page.head)
        });
        outcome
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        let begun = self.read(format!("wait_for_events after {after}"));
        let outcome = self.store.wait_for_events(ctx, after).await;
        begun.end(&outcome, Version::to_string);
        outcome
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        let begun = self.change(format!("run_gc {gc:?}"));
        let outcome = self.store.run_gc(ctx, gc).await;
        begun.end(&outcome, |report| format!("{:?}", report.actions));
        outcome
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        let begun = self.change(format!("backup to {}", target.file_name().unwrap_or_default().display()));
        let outcome = self.store.backup(ctx, target).await;
        begun.end(&outcome, |report| format!("up to version {}", report.latest_version));
        outcome
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        let begun = self.read("verify".to_owned());
        let outcome = self.store.verify(ctx).await;
        begun.end(&outcome, |report| format!("{} events, {} findings", report.events, report.findings.len()));
        outcome
    }

    async fn digest(&self, ctx: &Context, until: Version) -> Result<Digest> {
        let begun = self.read(format!("digest until {until}"));
        let outcome = self.store.digest(ctx, until).await;
        begun.end(&outcome, Digest::to_string);
        outcome
    }

    async fn sync(&self, ctx: &Context) -> Result<Version> {
        let begun = self.change("sync".to_owned());
        let outcome = self.store.sync(ctx).await;
        begun.end(&outcome, Version::to_string);
        outcome
    }

    async fn pull(&self, ctx: &Context, since: Place, size: PageSize) -> Result<Pulled> {
        let begun = self.read(format!("pull since {}", since.cursor()));
        let outcome = self.store.pull(ctx, since, size).await;
        begun.end(&outcome, |pulled| format!("{} events, head {}", pulled.events.len(), pulled.head));
        outcome
    }

    async fn push(&self, ctx: &Context, at: Place, batches: Vec<Batch>) -> Result<Pushed> {
        let begun = self.change(format!("push {} batches at {}", batches.len(), at.cursor()));
        let outcome = self.store.push(ctx, at, batches).await;
        begun.end(&outcome, |pushed| {
            let refused = pushed.refused.as_ref().map_or_else(String::new, |error| format!(", then {}", error.code()));
            format!("{} stored{refused}, head {}", pushed.stored.len(), pushed.head)
        });
        outcome
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        let begun = self.read("stats".to_owned());
        let outcome = self.store.stats(ctx).await;
        begun.end(&outcome, |stats| format!("version {}, {} aggregates", stats.latest_version, stats.aggregates));
        outcome
    }

    async fn close(&self) -> Result<()> {
        let begun = self.change("close".to_owned());
        let outcome = self.store.close().await;
        begun.end(&outcome, done);
        outcome
    }
}

fn done((): &()) -> String {
    "done".to_owned()
}

fn shortened(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text, 48))
}

fn describe_batch(batch: &Batch) -> String {
    let mut text = "append ".to_owned();
    match batch.events.as_slice() {
        [] => text.push_str("nothing"),
        [only] => text.push_str(&quoted(only.id())),
        [first, .., last] => {
            let _ = write!(text, "{} events, {} to {}", batch.events.len(), quoted(first.id()), quoted(last.id()));
        }
    }
    if let Some(first) = batch.events.first() {
        let others = batch.events.iter().any(|event| event.aggregate_id() != first.aggregate_id());
        let _ = write!(text, " of {}", quoted(first.aggregate_id()));
        text.push_str(if others { " and others" } else { "" });
    }
    let bytes: usize = batch.events.iter().map(Event::len_bytes).sum();
    if bytes > 64 << 10 {
        let _ = write!(text, ", {bytes} bytes");
    }
    let _ = write!(text, ", on {}", batch.expected);
    if let Some(durability) = batch.durability {
        let _ = write!(text, ", {durability:?}");
    }
    if batch.idempotency != Idempotency::default() {
        let _ = write!(text, ", repeated if the same {}", batch.idempotency);
    }
    if let Some(times) = &batch.recorded_at {
        let _ = write!(text, ", with {} times", times.len());
    }
    text
}

fn describe_stored(stored: &[Stored]) -> String {
    const MOST: usize = 4;
    let mut text = String::new();
    for (at, place) in stored.iter().take(MOST).enumerate() {
        text.push_str(if at == 0 { "" } else { "; " });
        let _ = write!(text, "version {}, revision {}", place.version, place.revision.get());
        text.push_str(if place.outcome == StoreOutcome::AlreadyStored { ", was there" } else { "" });
    }
    if let Some(last) = stored.last().filter(|_| stored.len() > MOST) {
        let _ = write!(text, "; … to version {}, revision {}", last.version, last.revision.get());
    }
    if text.is_empty() { "no places".to_owned() } else { text }
}

fn describe_load(options: &LoadOptions, size: PageSize) -> String {
    let mut text = format!("load_page since {}", options.since);
    if let Some(before) = options.before {
        let _ = write!(text, " before {before}");
    }
    if let Some(aggregate_id) = &options.aggregate_id {
        let _ = write!(text, " of {}", quoted(aggregate_id));
    }
    if options.since_revision > Revision::ZERO {
        let _ = write!(text, " since revision {}", options.since_revision);
    }
    if !options.types.is_empty() {
        let _ = write!(text, " of types {:?}", options.types);
    }
    if let Some(prefix) = &options.aggregate_prefix {
        let _ = write!(text, " with the prefix {}", quoted(prefix));
    }
    if let Some(time) = options.recorded_since {
        let _ = write!(text, " recorded since {time:?}");
    }
    if let Some(time) = options.recorded_before {
        let _ = write!(text, " recorded before {time:?}");
    }
    text.push_str(if options.direction == Direction::Backward { " backward" } else { "" });
    if let Some(limit) = options.limit {
        let _ = write!(text, " limit {limit}");
    }
    let _ = write!(text, ", {} events or {} bytes", size.events, size.bytes);
    text
}

fn describe_list(options: &AggregateOptions, most: usize) -> String {
    let AggregateOptions { prefix, after, before, .. } = options;
    let mut text = format!("list_aggregates with the prefix {} after {}", quoted(prefix), quoted(after));
    if let Some(before) = before {
        let _ = write!(text, " before {before}");
    }
    let _ = write!(text, ", {most} at most");
    text
}

fn describe_page(page: &Page) -> String {
    let mut text = match page.events.as_slice() {
        [] => "no events".to_owned(),
        [only] => format!("version {}", only.version),
        [first, .., last] => format!("{} events, versions {} to {}", page.events.len(), first.version, last.version),
    };
    let _ = write!(text, ", head {}", page.head);
    text.push_str(if page.next.is_some() { ", and more" } else { "" });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_stays_and_reads_do_not_push_changes_out() {
        let journal = Arc::new(Journal::default());
        let number = journal.next_store();
        let hangs = journal.begin(Kind::Read, number, "hangs".to_owned());
        drop(journal.begin(Kind::Change, number, "appends".to_owned()));
        for read in 0..100 {
            journal.begin(Kind::Read, number, format!("read {read}")).end(&Ok(()), done);
        }
        let text = journal.to_string();
        assert!(text.starts_with("the newest 7 of 102, "), "{text}");
        for line in ["\n    1. hangs … has not returned", "\n    2. appends … its future was dropped"] {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.ends_with("\n    102. read 99 → done") && !text.contains("read 0"), "{text}");
        drop(hangs);
    }

    #[test]
    fn what_a_failed_check_drops_is_not_shown() {
        let journal = Arc::new(Journal::default());
        let number = journal.next_store();
        for call in [DROPPED, "open", DROPPED, DROPPED] {
            journal.begin(Kind::Change, number, call.to_owned()).end(&Ok(()), done);
        }
        let expected = "all 2, the oldest first:\n    1. drop the last handle → done\n    2. open → done";
        assert_eq!(journal.to_string(), expected);
    }

    #[test]
    fn several_stores_are_told_apart() {
        let journal = Arc::new(Journal::default());
        for _ in 0..2 {
            let number = journal.next_store();
            journal.begin_opening(number, "open", Path::new("/some/where")).end(&Ok(()), done);
        }
        assert_eq!(
            journal.to_string(),
            "all 2, the oldest first:\n    1. store 1: open where → done\n    2. store 2: open where → done"
        );
    }
}
