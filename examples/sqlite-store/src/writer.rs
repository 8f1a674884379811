//! The one thread that writes. It takes whatever waits in the queue and commits it as one transaction with one sync.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::SystemTime;

use eventstore_api::limits::clamp_recorded_at;
use eventstore_api::{Actual, Batch, Durability, Error, Event, Result, StoreOutcome, Stored, Version};
use rusqlite::hooks::Wal;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use crate::database::failed_to;
use crate::rows::{self, At};
use crate::shared::{Place, Shared};

pub(crate) enum Message {
    Append(Request),
    /// Make the log a part of the database; the answer is what was done.
    Checkpoint(oneshot::Sender<Result<Vec<String>>>),
    /// The store is closing: nothing more comes.
    Close,
}

/// An append on its way to the writer.
pub(crate) struct Request {
    pub(crate) batch: Batch,
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) reply: oneshot::Sender<Result<Vec<Stored>>>,
    pub(crate) place: Place,
}

impl Request {
    /// Who has an answer has left the queue, so the place is given back first. A caller who has gone wants no answer: that
    /// the channel is closed is no error.
    fn answer(self, result: Result<Vec<Stored>>) {
        drop(self.place);
        let _ = self.reply.send(result);
    }

    fn is_sync(&self) -> bool {
        self.batch.durability != Some(Durability::Buffered)
    }
}

/// Decides the race between the writer, which wants to stage a request, and its caller, who wants to leave. Both change one
/// atomic, so exactly one of them succeeds.
#[derive(Debug, Default)]
pub(crate) struct Ticket(AtomicU8);

impl Ticket {
    const QUEUED: u8 = 0;
    const STAGED: u8 = 1;
    const WITHDRAWN: u8 = 2;

    fn stage(&self) -> bool {
        self.leave_queue(Self::STAGED)
    }

    /// False if the writer has it already.
    pub(crate) fn withdraw(&self) -> bool {
        self.leave_queue(Self::WITHDRAWN)
    }

    fn leave_queue(&self, to: u8) -> bool {
        self.0.compare_exchange(Self::QUEUED, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Withdraws the request when the caller's future is dropped (C4).
pub(crate) struct WithdrawOnDrop(pub(crate) Arc<Ticket>);

impl Drop for WithdrawOnDrop {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

/// A group takes no more requests once it has this many events or bytes.
const GROUP_EVENTS: usize = 4096;
const GROUP_BYTES: usize = 4 << 20;

/// The log is written back once it has this many pages, of 4 KiB. It bounds what opening has to replay after a kill (L3).
const CHECKPOINT_AFTER: u64 = 4096;

pub(crate) struct Writer {
    db: Connection,
    shared: Arc<Shared>,
    queue: mpsc::UnboundedReceiver<Message>,
    head: u64,
    /// Something may be committed that was not synced. True at first: an earlier process may have been killed between the
    /// two, and then its events are there, but only with the operating system.
    unsynced: bool,
    /// Something of this opening was acknowledged with `Buffered` and not synced since.
    owes_sync: bool,
    /// The ids of events whose commit has failed: they may be there when the store is opened again.
    doubtful: HashSet<String>,
    /// Pages in the log after the newest commit.
    pages_in_log: Arc<AtomicU64>,
}

/// What becomes of a request, if its group is committed.
enum Decision {
    Staged(Vec<Stored>),
    /// All of it is there already.
    AlreadyStored(Vec<Stored>),
    Refused(Error),
}

/// Why a group was not committed.
enum Failure {
    /// Certainly nothing of it was written.
    NotWritten(Error),
    Unknown(Arc<rusqlite::Error>),
}

impl Writer {
    pub(crate) fn new(
        mut db: Connection,
        shared: Arc<Shared>,
        queue: mpsc::UnboundedReceiver<Message>,
        head: Version,
    ) -> Result<Self> {
        let pages_in_log = Arc::new(AtomicU64::new(0));
        let pages = pages_in_log.clone();
        // In place of SQLite's own hook, which writes the log back by itself and passes over the errors of that.
        db.wal_hook(Some(move |_: &mut Wal, in_log: i32| {
            pages.store(in_log.unsigned_abs().into(), Ordering::Relaxed);
            Ok(())
        }))
        .map_err(failed_to("follow the log"))?;
        Ok(Writer {
            db,
            shared,
            queue,
            head: head.get(),
            unsynced: true,
            owes_sync: false,
            doubtful: HashSet::new(),
            pages_in_log,
        })
    }

    /// Works until the store is closed and everything that was accepted is answered (L1).
    pub(crate) fn run(self) {
        let shared = self.shared.clone();
        // A panic leaves the database in doubt as a failed commit does; whoever waits for the end has to be woken.
        let result = catch_unwind(AssertUnwindSafe(|| self.work())).unwrap_or_else(|_| {
            shared.fence("the writer panicked".to_owned());
            Err("the writer panicked".to_owned())
        });
        shared.finish_closing(result);
    }

    fn work(mut self) -> Result<(), String> {
        while let Some(message) = self.queue.blocking_recv() {
            let mut group = Vec::new();
            let mut next = Some(message);
            let (mut events, mut bytes) = (0, 0);
            while let Some(message) = next {
                match message {
                    // Who has withdrawn it is gone, and it was never looked at.
                    Message::Append(request) if request.ticket.stage() => {
                        events += request.batch.events.len();
                        bytes += request.batch.len_bytes();
                        group.push(request);
                    }
                    Message::Append(_) => {}
                    Message::Checkpoint(reply) if reply.is_closed() => {}
                    Message::Checkpoint(reply) => {
                        let _ = reply.send(self.checkpoint("TRUNCATE"));
                    }
                    // What is in the queue is still received; nothing new comes in.
                    Message::Close => self.queue.close(),
                }
                let is_full = events >= GROUP_EVENTS || bytes >= GROUP_BYTES;
                next = if is_full { None } else { self.queue.try_recv().ok() };
            }
            if !group.is_empty() {
                self.commit_group(group);
            }
            if self.pages_in_log.load(Ordering::Relaxed) >= CHECKPOINT_AFTER && self.shared.check_fence().is_ok() {
                // Everybody has an answer, and what was answered is in the log. A failure fences, and is told to the next.
                let _ = self.checkpoint("PASSIVE");
            }
        }
        self.finish()
    }

    /// The last sync, and the log written back, so that the next opening has nothing to replay.
    fn finish(mut self) -> Result<(), String> {
        if self.owes_sync {
            self.shared.check_fence().map_err(|fenced| fenced.to_string())?;
            self.sync().map_err(|error| error.to_string())?;
        }
        // If this fails, or must not be tried, everything is still in the log.
        let _ = self.checkpoint("TRUNCATE");
        Ok(())
    }

    fn commit_group(&mut self, group: Vec<Request>) {
        if self.shared.fence_reason().is_some() {
            for request in group {
                let answer = self.answer_fenced(&request);
                request.answer(answer);
            }
            return;
        }
        let head_before = self.head;
        match self.write(&group) {
            Ok((decisions, needs_sync)) => {
                // Already stored is not already synced (W4). A commit with a sync has synced all before it as well.
                let failure = if needs_sync { self.sync().err() } else { None };
                if self.head > head_before {
                    self.shared.publish(Version::new(self.head), self.head - head_before); // before it is answered (O6)
                }
                for (request, decision) in group.into_iter().zip(decisions) {
                    let answer = match (decision, &failure) {
                        (Decision::Refused(refusal), _) => Err(refusal),
                        (Decision::AlreadyStored(_), Some(error)) if request.is_sync() => Err(unknown(error)),
                        (Decision::Staged(places) | Decision::AlreadyStored(places), _) => Ok(places),
                    };
                    request.answer(answer);
                }
            }
            // Each by itself: one that cannot be written must not take the others with it.
            Err(Failure::NotWritten(_)) if group.len() > 1 => {
                group.into_iter().for_each(|request| self.commit_group(vec![request]));
            }
            Err(Failure::NotWritten(error)) => {
                if let Some(only) = group.into_iter().next() {
                    only.answer(Err(error));
                }
            }
            Err(Failure::Unknown(error)) => {
                for request in group {
                    self.doubtful.extend(request.batch.events.iter().map(|event| event.id().to_owned()));
                    request.answer(Err(unknown(&error)));
                }
            }
        }
    }

    /// Nothing is written any more. Whoever is told so relies on it, also if it is the second attempt: what is stored gets its
    /// first result, and what may be there is unknown again (F1).
    fn answer_fenced(&self, request: &Request) -> Result<Vec<Stored>> {
        let fenced = || Error::Fenced { reason: self.shared.fence_reason().unwrap_or_default().to_owned() };
        let unknown = || Error::OutcomeUnknown {
            reason: "an earlier attempt may have been written; close and reopen the store first".to_owned(),
            source: Some(fenced().into()),
        };
        let events = &request.batch.events;
        if events.iter().any(|event| self.doubtful.contains(event.id())) {
            return Err(unknown());
        }
        let mut places = Vec::with_capacity(events.len());
        for event in events {
            match rows::find(&self.db, event.id(), Version::new(self.head)).map_err(|_| unknown())? {
                Some(found) if !request.batch.idempotency.is_same(&found.event, event) => {
                    return Err(Error::DuplicateEvent { id: event.id().to_owned(), version: Some(found.version) });
                }
                Some(_) if request.is_sync() && self.unsynced => return Err(unknown()),
                Some(found) => places.push(Stored::new(found.version, found.revision, StoreOutcome::AlreadyStored)),
                None => return Err(fenced()),
            }
        }
        Ok(places)
    }

    /// Decides each request and writes what is new, in one transaction. Each one sees what those before it have staged, since
    /// that is what a transaction shows itself; so a group gives the same results as its requests one by one.
    ///
    /// With the decisions comes whether somebody still waits for a sync.
    fn write(&mut self, group: &[Request]) -> Result<(Vec<Decision>, bool), Failure> {
        let not_written = |error| Failure::NotWritten(failed_to("write events")(error));
        let with_sync = group.iter().any(Request::is_sync);
        // FULL syncs the log with each commit, NORMAL only when it is written back. Both leave it whole.
        let level = if with_sync { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
        self.db.execute_batch(level).map_err(not_written)?;
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(not_written)?;
        let (mut head, now) = (self.head, clamp_recorded_at(SystemTime::now()));
        let decided = group.iter().map(|request| {
            let decision = decide(&transaction, &request.batch, &mut head, now)?;
            // After some errors SQLite takes the whole transaction back by itself, also if it was only reading. What is
            // written then would be committed at once, and without what comes before it.
            if transaction.is_autocommit() {
                return Err(Error::engine("write events", "SQLite has taken the transaction back"));
            }
            Ok(decision)
        });
        let decisions: Vec<_> = match decided.collect() {
            Ok(decisions) => decisions,
            Err(error) => {
                drop(transaction); // takes it back
                if !self.db.is_autocommit() {
                    self.shared.fence("a transaction could not be taken back".to_owned());
                }
                return Err(Failure::NotWritten(error));
            }
        };
        if head == self.head {
            let waits = |(request, decision): (&Request, &Decision)| {
                request.is_sync() && matches!(decision, Decision::AlreadyStored(_))
            };
            let needs_sync = self.unsynced && group.iter().zip(&decisions).any(waits);
            return Ok((decisions, needs_sync)); // nothing was written, and dropping the transaction ends it
        }
        // A commit that fails may be on disk all the same, or a part of it in the disk's own memory. SQLite would take a
        // second one; that may succeed without having written what the first one lost. So it is the last (F1).
        transaction.commit().map_err(|error| Failure::Unknown(self.fail("a commit", error)))?;
        self.head = head;
        self.unsynced = !with_sync;
        self.owes_sync = self.unsynced;
        Ok((decisions, false))
    }

    /// Syncs what is committed. SQLite syncs the log when something is committed to it, so something is.
    fn sync(&mut self) -> Result<(), Arc<rusqlite::Error>> {
        let synced = self.db.execute_batch("PRAGMA synchronous = FULL; UPDATE syncs SET done = done + 1");
        synced.map_err(|error| self.fail("a sync", error))?;
        (self.unsynced, self.owes_sync) = (false, false);
        Ok(())
    }

    /// Writes the log back into the database, and syncs both in the order that a power cut allows.
    fn checkpoint(&mut self, mode: &str) -> Result<Vec<String>> {
        self.shared.check_fence()?;
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
        let done = self.db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], read);
        let fenced = |error| Error::engine("write the log back", self.fail("writing the log back", error));
        let (is_busy, _, pages) = done.map_err(fenced)?;
        self.pages_in_log.store(0, Ordering::Relaxed);
        Ok(vec![match (is_busy, pages) {
            (0, _) => "the log is written back into the database".to_owned(),
            (_, pages) => format!("{pages} pages of the log are written back; for the rest a reader has to end first"),
        }])
    }

    fn fail(&self, what: &str, error: rusqlite::Error) -> Arc<rusqlite::Error> {
        self.shared.fence(format!("{what} failed: {error}"));
        Arc::new(error)
    }
}

fn unknown(error: &Arc<rusqlite::Error>) -> Error {
    Error::OutcomeUnknown { reason: "the commit failed".to_owned(), source: Some(error.clone().into()) }
}

/// An event of a batch, after it was looked up.
enum Lookup {
    New,
    /// It stands in the same batch, at this place in it.
    Repeats(usize),
    Stored(Stored),
}

/// Decides a batch, and writes its new events behind `head`. Everything that refuses it comes before the first write, so a
/// refused batch leaves no trace in the transaction; an error is for the whole group.
fn decide(db: &Connection, batch: &Batch, head: &mut u64, now: SystemTime) -> Result<Decision> {
    let (lookups, mut revisions) = match check(db, batch, Version::new(*head)) {
        Ok(checked) => checked,
        Err(refusal) => return Ok(Decision::Refused(refusal)),
    };
    let mut places: Vec<Stored> = Vec::with_capacity(lookups.len());
    let mut any_new = false;
    for (nth, (event, lookup)) in batch.events.iter().zip(lookups).enumerate() {
        places.push(match lookup {
            Lookup::Stored(stored) => stored,
            Lookup::Repeats(first) => {
                Stored::new(places[first].version, places[first].revision, StoreOutcome::AlreadyStored)
            }
            Lookup::New => {
                any_new = true;
                *head += 1;
                let revision = revisions.entry(event.aggregate_id()).or_default();
                *revision += 1;
                let recorded_at = batch.recorded_at.as_ref().map_or(now, |times| times[nth]);
                let at = At { version: *head, revision: *revision, recorded_at };
                rows::insert(db, event, at).map_err(failed_to("write an event"))?;
                Stored::new(Version::new(*head), (*revision).into(), StoreOutcome::Written)
            }
        });
    }
    Ok(if any_new { Decision::Staged(places) } else { Decision::AlreadyStored(places) })
}

/// Rules W2 and W3, in this order: an id that is taken is found before any condition is looked at, and a condition only
/// matters if something is left to write. With the look-ups come the revisions of the aggregates that get events.
fn check<'b>(db: &Connection, batch: &'b Batch, head: Version) -> Result<(Vec<Lookup>, HashMap<&'b str, u64>)> {
    let duplicate = |event: &Event, version| Error::DuplicateEvent { id: event.id().to_owned(), version };
    let mut first_places: HashMap<&str, usize> = HashMap::new();
    let mut lookups = Vec::with_capacity(batch.events.len());
    for (place, event) in batch.events.iter().enumerate() {
        let first = *first_places.entry(event.id()).or_insert(place);
        lookups.push(if first < place {
            if !batch.idempotency.is_same(&batch.events[first], event) {
                return Err(duplicate(event, None));
            }
            Lookup::Repeats(first)
        } else {
            match rows::find(db, event.id(), head)? {
                Some(found) if !batch.idempotency.is_same(&found.event, event) => {
                    return Err(duplicate(event, Some(found.version)));
                }
                Some(found) => Lookup::Stored(Stored::new(found.version, found.revision, StoreOutcome::AlreadyStored)),
                None => Lookup::New,
            }
        });
    }
    let mut revisions = HashMap::new();
    for (event, lookup) in batch.events.iter().zip(&lookups) {
        if !matches!(lookup, Lookup::New) || revisions.contains_key(event.aggregate_id()) {
            continue;
        }
        let revision = rows::revision(db, event.aggregate_id(), head)?;
        // The condition is about the first new event's aggregate, or about the store.
        if revisions.is_empty() && !batch.expected.holds(revision.into(), head) {
            let actual = Actual::of(batch.expected, event.aggregate_id(), revision.into(), head);
            return Err(Error::VersionConflict { expected: batch.expected, actual });
        }
        revisions.insert(event.aggregate_id(), revision);
    }
    Ok((lookups, revisions))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use eventstore_api::{Bytes, Context, EventStore, EventStoreExt, Expected};

    use super::*;
    use crate::{SqliteStore, database};

    fn event(id: &str) -> Event {
        Event::builder("Tested", "a").id(id).build().expect("valid")
    }

    #[tokio::test]
    async fn a_failed_commit_fences_and_reads_go_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let fails = Arc::new(AtomicBool::new(false));
        let (files, mut db) = database::open(directory.path()).expect("opened");
        let asked = fails.clone();
        db.commit_hook(Some(move || asked.load(Ordering::Relaxed))).expect("a hook");
        let (store, ctx) = (SqliteStore::start(files, db).expect("started"), Context::background());
        store.store(&ctx, event("first"), Expected::Any).await.expect("written");

        fails.store(true, Ordering::Relaxed);
        let failed = store.store(&ctx, event("second"), Expected::Any).await;
        assert!(matches!(failed, Err(Error::OutcomeUnknown { source: Some(_), .. })), "{failed:?}");
        fails.store(false, Ordering::Relaxed);
        let again = store.store(&ctx, event("first"), Expected::Any).await.expect("it is there");
        assert_eq!(again.outcome, StoreOutcome::AlreadyStored);
        let again = store.store(&ctx, event("second"), Expected::Any).await.expect_err("nobody knows");
        assert!(matches!(again, Error::OutcomeUnknown { .. }) && !again.is_retryable(), "{again:?}");
        let refused = store.store(&ctx, event("third"), Expected::Any).await;
        assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
        assert!(store.stats(&ctx).await.expect("read").fenced.is_some());
        assert_eq!(store.get(&ctx, "first").await.expect("read").version, Version::new(1));
        store.close().await.expect("closed: nothing was owed");

        let store = SqliteStore::open(directory.path()).await.expect("opened again");
        for (id, version) in [("second", 2), ("first", 1)] {
            let stored = store.store(&ctx, event(id), Expected::Any).await.expect("resolved");
            assert_eq!(stored.version, Version::new(version));
        }
    }

    #[tokio::test]
    async fn what_finds_no_room_is_refused_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let (files, db) = database::open(directory.path()).expect("opened");
        db.execute_batch("PRAGMA max_page_count = 64").expect("a limit");
        let (store, ctx) = (SqliteStore::start(files, db).expect("started"), Context::background());
        let large =
            |id| Event::builder("Large", "b").id(id).data(Bytes::from(vec![7; 1 << 20])).build().expect("valid");
        for round in 0..3 {
            // All of them at once, so that some share a group.
            let appends = ["before", "large", "after"].map(|name| {
                let (store, ctx, id) = (store.clone(), ctx.clone(), format!("{name}-{round}"));
                let event = if name == "large" { large(id) } else { event(&id) };
                tokio::spawn(async move { (name, store.store(&ctx, event, Expected::Any).await) })
            });
            for append in appends {
                match append.await.expect("no panic") {
                    ("large", result) => assert!(matches!(result, Err(Error::Full { .. })), "{result:?}"),
                    (_, result) => drop(result.expect("written")),
                }
            }
        }
        assert_eq!(store.latest_version(&ctx).await.expect("open"), Version::new(6));
        assert!(store.verify(&ctx).await.expect("verified").is_clean());
    }
}
