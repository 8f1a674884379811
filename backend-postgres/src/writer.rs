//! The one task of a process that appends: it takes the waiting appends and commits them as one transaction.
//!
//! ```text
//!  first round trip    BEGIN; lock the row of head; look up the aggregates
//!  another, if needed  look up those of appends that arrived during the wait for the lock
//!  decide              duplicates, conditions, versions, revisions, digests
//!  last round trip     insert the events; update head; COMMIT; wake the followers
//! ```
//!
//! Most ids are new, and the index of ids rejects those that are not. So ids are looked up only after such a rejection,
//! or if an append would be refused: an append whose events are already stored is not refused, whatever its condition.
//!
//! The lock orders the events of all processes. Each statement sees what was committed before it began, and the commit
//! releases the lock. So whoever gets the lock sees everything that its predecessors wrote, and nobody's versions
//! become visible before theirs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use eventstore_api::limits::clamp_recorded_at;
use eventstore_api::{
    Actual, Batch, CancellationToken, Digest, Error, Event, RecordedEvent, Result, Revision, StoreOutcome, Stored,
    Version,
};
use futures_util::future::{join3, join4};
use futures_util::{FutureExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, RowStream};

use crate::connect::Session;
use crate::error::{ConnectError, Failed, LONGEST_PAUSE, PgError, pauses, reason};
use crate::mutants::Mutant;
use crate::queue::{Request, unknown};
use crate::read;
use crate::store::Shared;

/// A group accepts no more appends once it has this many events or bytes.
const GROUP_EVENTS: usize = 4096;
const GROUP_BYTES: usize = 4 << 20;

pub(crate) struct Writer {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedReceiver<Request>,
    session: Option<Session>,
    /// The time since which nothing can be written.
    trouble: Option<Instant>,
    /// The newest group had ids that were already stored.
    expects_repetitions: bool,
    _ended: Ended,
}

/// Signals that the writer has ended, in whatever way, even if it never began because its runtime shut down before.
struct Ended(CancellationToken);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, requests: mpsc::UnboundedReceiver<Request>) -> Self {
        let _ended = Ended(shared.ended.clone());
        Writer { shared, requests, session: None, trouble: None, expects_repetitions: false, _ended }
    }

    /// Runs until the store is closed and nothing waits.
    pub(crate) async fn run(mut self) {
        let closing = self.shared.closing.clone();
        loop {
            let first = tokio::select! {
                biased;
                first = self.requests.recv() => first,
                () = closing.cancelled(), if !self.requests.is_closed() => {
                    self.requests.close(); // queued requests are still received
                    continue;
                }
            };
            let Some(first) = first else { return };
            let mut group = vec![first];
            fill(&mut group, &mut self.requests);
            self.write(group, true).await;
        }
    }

    /// Writes a group, in as many attempts as necessary, and answers each of its appends. The group may grow meanwhile.
    async fn write(&mut self, mut group: Vec<Request>, may_grow: bool) {
        let mut pauses = pauses();
        loop {
            group.retain(|request| !request.ticket.is_withdrawn());
            if group.is_empty() {
                return;
            }
            match self.attempt(&mut group, may_grow).await {
                Ok(()) => {
                    self.trouble = None;
                    debug_assert!(group.is_empty());
                    return;
                }
                Err(Failed::Final(error)) if group.len() == 1 => {
                    return group.drain(..).for_each(|request| request.answer(Err(error.clone())));
                }
                Err(Failed::Final(error)) => {
                    // One of them may be the cause: each is tried alone.
                    tracing::debug!(%error, "a group of appends failed");
                    for request in group.drain(..) {
                        Box::pin(self.write(vec![request], false)).await;
                    }
                    return;
                }
                Err(Failed::Passing { reason, source, .. }) => {
                    let now = Instant::now();
                    let trouble = *self.trouble.get_or_insert(now);
                    let is_over = |request: &mut Request| {
                        let until = request.since.max(trouble).checked_add(self.shared.retry_for);
                        until.is_some_and(|until| until <= now)
                    };
                    for request in group.extract_if(.., is_over) {
                        let url = self.shared.url.clone();
                        request.answer(Err(Error::Unavailable {
                            url,
                            reason: reason.clone(),
                            source: Some(source.clone()),
                        }));
                    }
                    tracing::debug!(reason, "appends wait for the server");
                    tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
                }
            }
        }
    }

    /// One transaction. Appends that it answers are removed from the group.
    async fn attempt(&mut self, group: &mut Vec<Request>, may_grow: bool) -> Result<(), Failed> {
        let session = match self.session.take().filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => self.connect().await?,
        };
        let mut more = may_grow.then_some(&mut self.requests);
        let outcome = loop {
            let looks_ids_up = self.expects_repetitions;
            match transact(&self.shared, &session, group, more.as_deref_mut(), looks_ids_up).await {
                Ok(Transacted::IdsAreStored) => self.expects_repetitions = true, // and try again
                Ok(Transacted::Done { had_repetitions }) => {
                    self.expects_repetitions = had_repetitions;
                    break Ok(());
                }
                Err(failed) => break Err(failed),
            }
        };
        if !matches!(outcome, Err(Failed::Passing { is_lost: true, .. })) {
            self.session = Some(session);
        }
        outcome
    }

    async fn connect(&self) -> Result<Session, Failed> {
        let (shared, queries) = (&self.shared, &self.shared.queries);
        shared.confirmed.store(0, Ordering::Relaxed); // it may be another server now
        let connected = async {
            let session = shared.connector.connect(None).await?;
            for query in [&queries.lock_head, &queries.find, &queries.revisions, &queries.insert, &queries.update_head]
            {
                session.prepare(query).await?;
            }
            Ok(session)
        };
        connected.await.map_err(|error: ConnectError| Failed::of(error, &shared.url, "connect"))
    }
}

/// Takes waiting appends until the group is full. Returns how many it took.
fn fill(group: &mut Vec<Request>, requests: &mut mpsc::UnboundedReceiver<Request>) -> usize {
    let before = group.len();
    let mut events: usize = group.iter().map(|request| request.batch.events.len()).sum();
    let mut bytes: usize = group.iter().map(|request| request.bytes).sum();
    while events < GROUP_EVENTS
        && bytes < GROUP_BYTES
        && let Ok(request) = requests.try_recv()
    {
        events += request.batch.events.len();
        bytes += request.bytes;
        group.push(request);
    }
    group.len() - before
}

async fn rows(stream: impl Future<Output = Result<RowStream, PgError>>) -> Result<Vec<Row>, PgError> {
    stream.await?.try_collect().await
}

/// The decision on an append.
enum Decision {
    /// It is part of the transaction. These are its positions once that is committed.
    Staged(Vec<Stored>),
    /// All of it is stored, or will be by this transaction. These are the positions of the stored events.
    AlreadyStored(Vec<Stored>),
    /// It is refused.
    Refused(Error),
    /// Its caller has gone.
    Withdrawn,
}

/// The result of a transaction that did not fail.
enum Transacted {
    Done {
        had_repetitions: bool,
    },
    /// Nothing was written: some ids that were not looked up are already stored.
    IdsAreStored,
}

async fn transact(
    shared: &Shared,
    session: &Session,
    group: &mut Vec<Request>,
    more: Option<&mut mpsc::UnboundedReceiver<Request>>,
    looks_ids_up: bool,
) -> Result<Transacted, Failed> {
    let failed = |error| Failed::of(error, &shared.url, "append");
    let decided = match gather(shared, session, group, more, looks_ids_up).await {
        Ok(looked_up) => decide(shared, session, group, looked_up).await,
        Err(error) => Err(failed(error)),
    };
    let Decided { staging, decisions, ids_were_looked_up } = match decided {
        Ok(decided) => decided,
        Err(error) => {
            let _ = session.batch_execute("ROLLBACK").await; // if it fails, the connection is lost, which has the same effect
            return Err(error);
        }
    };
    let is_sync = group.iter().any(|request| request.is_sync);
    let had_repetitions = !staging.stored.is_empty();
    let Staging { events, digests, head, .. } = staging;
    let newest = |places: &[Stored]| places.iter().map(|place| place.version).max().unwrap_or_default();
    let confirmed = Version::new(shared.confirmed.load(Ordering::Relaxed));
    let owes_sync = group.iter().zip(&decisions).any(|(request, decision)| match decision {
        Decision::AlreadyStored(places) => request.is_sync && newest(places) > confirmed,
        _ => false,
    });
    let synced = if is_sync { head.version } else { head.synced };
    let writes = !events.is_empty() || owes_sync;
    let outcome = match writes {
        true => commit(shared, session, &events, &digests, &head, synced, is_sync).await,
        false => match session.batch_execute("COMMIT").await {
            Ok(()) => Ok(()),
            Err(error) => return Err(failed(error)), // nothing was written
        },
    };
    let doubt = match outcome {
        Ok(()) => session.take_warning().filter(|_| is_sync).map(|warning| {
            // For example, that it did not wait for the standby.
            unknown(format!("it was committed, but the server warns: {warning}"), None)
        }),
        Err(Uncommitted::No(_, code)) if code == SqlState::UNIQUE_VIOLATION && !ids_were_looked_up => {
            return Ok(Transacted::IdsAreStored);
        }
        Err(Uncommitted::No(failed, _)) => return Err(failed),
        Err(Uncommitted::Unknown(_)) if shared.mutants.has(Mutant::AcknowledgesUnknown) => None,
        Err(Uncommitted::Unknown(error)) => Some(error),
    };
    if doubt.is_none() && !events.is_empty() {
        shared.commits.fetch_add(1, Ordering::Relaxed);
        shared.events_written.fetch_add(events.len() as u64, Ordering::Relaxed);
        shared.largest_group.fetch_max(events.len() as u64, Ordering::Relaxed);
    }
    if doubt.is_none() {
        shared.has_seen(head.version);
        if writes && is_sync {
            shared.confirmed.store(head.version.get(), Ordering::Release);
        }
    }
    let mut again = Vec::new();
    for (request, decision) in group.drain(..).zip(decisions) {
        match (decision, &doubt) {
            (Decision::Withdrawn, _) => {}
            (Decision::Staged(_), Some(doubt)) => request.answer(Err(doubt.clone())),
            // The decision may be based on events that are not stored.
            (_, Some(_)) => again.push(request),
            (Decision::Staged(places) | Decision::AlreadyStored(places), None) => request.answer(Ok(places)),
            (Decision::Refused(error), None) => request.answer(Err(error)),
        }
    }
    *group = again;
    match doubt {
        Some(_) if session.is_closed() => Err(Failed::Passing {
            reason: "the connection was lost while it committed".to_owned(),
            source: "the connection was lost".into(),
            is_lost: true,
        }),
        Some(_) if !group.is_empty() => Err(Failed::Passing {
            reason: "the commit before it is in doubt".to_owned(),
            source: "the commit before it is in doubt".into(),
            is_lost: true,
        }),
        _ => Ok(Transacted::Done { had_repetitions }),
    }
}

/// Begins the transaction, and looks up what is needed to decide. Callers that were answered together return one after
/// the other, and others arrive during the wait for the lock: they join the group.
async fn gather(
    shared: &Shared,
    session: &Session,
    group: &mut Vec<Request>,
    more: Option<&mut mpsc::UnboundedReceiver<Request>>,
    looks_ids_up: bool,
) -> Result<LookedUp, PgError> {
    let mut looked_up = begin(shared, session, group).await?;
    let came = more.map_or(0, |more| fill(group, more));
    if came > 0 {
        looked_up.revisions.append(&mut look_up(shared, session, &group[group.len() - came..]).await?);
    }
    if looks_ids_up {
        looked_up.found = Some(find(shared, session, group).await?);
    }
    Ok(looked_up)
}

struct Decided<'g> {
    staging: Staging<'g>,
    decisions: Vec<Decision>,
    ids_were_looked_up: bool,
}

async fn decide<'g>(
    shared: &Shared,
    session: &Session,
    group: &'g [Request],
    mut looked_up: LookedUp,
) -> Result<Decided<'g>, Failed> {
    let decide = |looked_up: &LookedUp| {
        let mut staging = Staging::new(looked_up, shared).map_err(Failed::Final)?;
        let decisions: Vec<Decision> = group.iter().map(|request| staging.decide(request)).collect();
        let ids_were_looked_up = looked_up.found.is_some();
        Ok(Decided { staging, decisions, ids_were_looked_up })
    };
    let decided = decide(&looked_up)?;
    let any_refused = decided.decisions.iter().any(|decision| matches!(decision, Decision::Refused(_)));
    if !any_refused || decided.ids_were_looked_up {
        return Ok(decided);
    }
    // What is already stored is not refused, whatever the condition.
    let found = find(shared, session, group).await.map_err(|error| Failed::of(error, &shared.url, "append"))?;
    looked_up.found = Some(found);
    decide(&looked_up)
}

/// The first round trip.
async fn begin(shared: &Shared, session: &Session, group: &[Request]) -> Result<LookedUp, PgError> {
    // The server releases a lock whose process is gone, even if the network has not reported that yet.
    const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout TO 10000";
    let queries = &shared.queries;
    let lock = if shared.mutants.has(Mutant::LocksNothing) { &queries.unlocked_head } else { &queries.lock_head };
    let (begun, head, revisions) =
        join3(session.batch_execute(BEGIN), rows(session.query(lock, &[])), look_up(shared, session, group)).await;
    begun?;
    Ok(LookedUp { head: head?, found: None, revisions: revisions? })
}

/// The newest revisions of the aggregates of some requests.
async fn look_up(shared: &Shared, session: &Session, requests: &[Request]) -> Result<Vec<Row>, PgError> {
    let events = requests.iter().flat_map(|request| &request.batch.events);
    let mut aggregates: Vec<&[u8]> = events.map(|event| event.aggregate_id().as_bytes()).collect();
    aggregates.sort_unstable();
    aggregates.dedup();
    rows(session.query(&shared.queries.revisions, &[&aggregates])).await
}

/// The stored events with the ids of some requests.
async fn find(shared: &Shared, session: &Session, requests: &[Request]) -> Result<Vec<Row>, PgError> {
    let events = requests.iter().flat_map(|request| &request.batch.events);
    let ids: Vec<&[u8]> = events.map(|event| event.id().as_bytes()).collect();
    rows(session.query(&shared.queries.find, &[&ids])).await
}

/// Why a transaction may not be committed.
enum Uncommitted {
    /// It certainly is not; this is the server's answer.
    No(Failed, SqlState),
    /// It is unknown.
    Unknown(Error),
}

/// The second round trip.
async fn commit(
    shared: &Shared,
    session: &Session,
    events: &[RecordedEvent],
    digests: &[Digest],
    head: &Head,
    synced: Version,
    is_sync: bool,
) -> Result<(), Uncommitted> {
    let queries = &shared.queries;
    let refused = |error: PgError| {
        let code = error.code().cloned().unwrap_or(SqlState::CONNECTION_EXCEPTION);
        Uncommitted::No(Failed::of(error, &shared.url, "append"), code)
    };
    let numbers =
        |number: fn(&RecordedEvent) -> u64| events.iter().map(|event| number(event) as i64).collect::<Vec<_>>();
    let bytes =
        |part: for<'e> fn(&'e Event) -> &'e [u8]| events.iter().map(|event| part(&event.event)).collect::<Vec<_>>();
    let versions = numbers(|event| event.version.get());
    let revisions = numbers(|event| event.revision.get());
    let times: Vec<SystemTime> = events.iter().map(|event| event.recorded_at).collect();
    let (ids, types) = (bytes(|event| event.id().as_bytes()), bytes(|event| event.event_type().as_bytes()));
    let aggregates = bytes(|event| event.aggregate_id().as_bytes());
    let (metadata, data) = (bytes(|event| event.metadata().as_bytes()), bytes(|event| event.data()));
    let chained: Vec<&[u8]> = digests.iter().map(|digest| digest.as_bytes().as_slice()).collect();
    let insert = async {
        if events.is_empty() {
            return Ok(());
        }
        let columns: [&(dyn ToSql + Sync); 9] =
            [&versions, &revisions, &times, &ids, &types, &aggregates, &metadata, &data, &chained];
        let rows = session.query(&queries.insert, &columns).await?;
        rows.try_for_each(|_| async { Ok(()) }).await
    };
    let digest = head.digest.as_bytes().as_slice();
    let (version, synced) = (head.version.get() as i64, synced.get() as i64);
    let (aggregate_count, largest) = (head.aggregates as i64, head.largest as i64);
    let update = async {
        let rows =
            session.query(&queries.update_head, &[&version, &synced, &aggregate_count, &largest, &digest]).await?;
        rows.try_for_each(|_| async { Ok(()) }).await
    };
    session.take_warning(); // discards warnings about earlier statements
    let mut notify = String::from("SELECT set_config('synchronous_commit', 'off', true), pg_notify(");
    let _ = write!(notify, "'{}', '{version}')", shared.channel);
    if shared.mutants.has(Mutant::NotifiesBeforeCommit) {
        if let Ok(other) = shared.connector.connect(None).await {
            let _ = other.batch_execute(&notify).await;
        }
        notify.clear();
    }
    let synchronous_commit = if is_sync { shared.synchronous_commit.as_str() } else { "off" };
    let set = format!("SET LOCAL synchronous_commit TO {synchronous_commit}");
    let (set, commit) = (session.batch_execute(&set), session.batch_execute("COMMIT"));
    let mut committing = pin!(join4(set, insert, update, commit));
    let first = std::future::poll_fn(|cx| Poll::Ready(committing.as_mut().poll(cx))).await;
    let (set, inserted, updated, committed) = match first {
        Poll::Ready(done) => done,
        Poll::Pending => {
            // Sent after the commit in the same message, and so in a separate transaction that nobody waits for:
            // commits that notify wait for each other on the server.
            let _ = session.batch_execute(&notify).now_or_never();
            committing.await
        }
    };
    // After an error of a statement, the commit becomes a rollback, which is not an error.
    let Err(error) = set.and(inserted).and(updated).and(committed) else { return Ok(()) };
    let is_over = error.as_db_error().is_none_or(|error| {
        let is_fatal = matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic));
        // SQLSTATE 40003: statement completion unknown.
        is_fatal || error.code().code() == "40003"
    });
    match is_over {
        true => Err(Uncommitted::Unknown(unknown(
            format!("the connection to {} was lost while it committed ({})", shared.url, reason(&error)),
            Some(error.into()),
        ))),
        false => Err(refused(error)),
    }
}

struct LookedUp {
    head: Vec<Row>,
    /// `None` if the ids were not looked up.
    found: Option<Vec<Row>>,
    revisions: Vec<Row>,
}

/// The row of `head`.
pub(crate) struct Head {
    version: Version,
    synced: Version,
    aggregates: u64,
    /// The size of the largest event in bytes.
    largest: u64,
    digest: Digest,
}

/// The result of looking up an event of an append.
enum Lookup {
    New,
    /// It repeats the event at this position of the same append.
    Repeats(usize),
    Stored(Stored),
}

/// Appends on their way into a transaction. Each is checked against what is stored and what is staged before it, so a
/// group gives the same results as its appends one by one.
struct Staging<'g> {
    head: Head,
    stored: HashMap<String, RecordedEvent>,
    revisions: HashMap<String, u64>,
    /// The positions of the staged events in `events`.
    staged: HashMap<&'g str, usize>,
    events: Vec<RecordedEvent>,
    digests: Vec<Digest>,
    recorded_at: SystemTime,
}

impl<'g> Staging<'g> {
    fn new(looked_up: &LookedUp, shared: &Shared) -> Result<Self> {
        let damaged = |reason: &str| Error::Corrupt {
            version: None,
            reason: format!("the table head of {} {reason}; restore a backup of the database", shared.url),
        };
        let head = looked_up.head.first().ok_or_else(|| damaged("has no row"))?;
        let number = |column| head.try_get::<_, i64>(column).ok().and_then(|number| u64::try_from(number).ok());
        let digest = head.try_get::<_, &[u8]>(4).ok().and_then(|digest| digest.try_into().ok());
        let numbers = (number(0), number(1), number(2), number(3), digest);
        let (Some(version), Some(synced), Some(aggregates), Some(largest), Some(digest)) = numbers else {
            return Err(damaged("has an invalid row"));
        };
        let head = Head {
            version: Version::new(version),
            synced: Version::new(synced),
            aggregates,
            largest,
            digest: Digest::from_bytes(digest),
        };
        let stored = read::events(looked_up.found.as_deref().unwrap_or_default(), 0)?;
        let revision = |row: &Row| {
            let (id, revision): (&[u8], i64) = (row.try_get(0).ok()?, row.try_get(1).ok()?);
            Some((String::from_utf8(id.to_vec()).ok()?, u64::try_from(revision).ok()?))
        };
        Ok(Staging {
            head,
            stored: stored.into_iter().map(|event| (event.event.id().to_owned(), event)).collect(),
            revisions: looked_up.revisions.iter().filter_map(revision).collect(),
            staged: HashMap::new(),
            events: Vec::new(),
            digests: Vec::new(),
            recorded_at: clamp_recorded_at(SystemTime::now()),
        })
    }

    fn decide(&mut self, request: &'g Request) -> Decision {
        // Everything that can refuse it comes before the first change.
        let lookups = match self.check(&request.batch) {
            Ok(lookups) => lookups,
            Err(error) => return Decision::Refused(error),
        };
        let any_new = lookups.iter().any(|lookup| matches!(lookup, Lookup::New));
        if any_new && !request.ticket.stage() {
            return Decision::Withdrawn;
        }
        let places = self.stage(&request.batch, &lookups);
        if any_new { Decision::Staged(places) } else { Decision::AlreadyStored(places) }
    }

    fn check(&self, batch: &Batch) -> Result<Vec<Lookup>> {
        let lookups = self.look_up(batch)?;
        let first_new = batch.events.iter().zip(&lookups).find(|(_, lookup)| matches!(lookup, Lookup::New));
        let Some((first_new, _)) = first_new else { return Ok(lookups) };
        let aggregate_id = first_new.aggregate_id();
        let revision = Revision::new(self.revisions.get(aggregate_id).copied().unwrap_or_default());
        let (expected, latest) = (batch.expected, self.head.version);
        if !expected.holds(revision, latest) {
            let actual = Actual::of(expected, aggregate_id, revision, latest);
            return Err(Error::VersionConflict { expected, actual });
        }
        Ok(lookups)
    }

    fn look_up(&self, batch: &Batch) -> Result<Vec<Lookup>> {
        let mut in_batch: HashMap<&str, usize> = HashMap::with_capacity(batch.events.len());
        let mut lookups = Vec::with_capacity(batch.events.len());
        for (place, event) in batch.events.iter().enumerate() {
            let duplicate = |version| Error::DuplicateEvent { id: event.id().to_owned(), version };
            let lookup = match in_batch.entry(event.id()) {
                Entry::Occupied(first) => {
                    if !batch.idempotency.is_same(&batch.events[*first.get()], event) {
                        return Err(duplicate(None));
                    }
                    Lookup::Repeats(*first.get())
                }
                Entry::Vacant(vacant) => {
                    vacant.insert(place);
                    let staged = self.staged.get(event.id()).map(|&place| &self.events[place]);
                    match staged.or_else(|| self.stored.get(event.id())) {
                        None => Lookup::New,
                        Some(first) if batch.idempotency.is_same(&first.event, event) => {
                            Lookup::Stored(Stored::new(first.version, first.revision, StoreOutcome::AlreadyStored))
                        }
                        Some(first) => return Err(duplicate(Some(first.version))),
                    }
                }
            };
            lookups.push(lookup);
        }
        Ok(lookups)
    }

    fn stage(&mut self, batch: &'g Batch, lookups: &[Lookup]) -> Vec<Stored> {
        let mut places: Vec<Stored> = Vec::with_capacity(lookups.len());
        for (nth, (event, lookup)) in batch.events.iter().zip(lookups).enumerate() {
            let place = match lookup {
                Lookup::New => {
                    let named = batch.recorded_at.as_ref().and_then(|times| times.get(nth));
                    self.stage_one(event, named.copied().unwrap_or(self.recorded_at))
                }
                Lookup::Stored(stored) => *stored,
                Lookup::Repeats(first) => {
                    let first = places[*first];
                    Stored::new(first.version, first.revision, StoreOutcome::AlreadyStored)
                }
            };
            places.push(place);
        }
        places
    }

    fn stage_one(&mut self, event: &'g Event, recorded_at: SystemTime) -> Stored {
        self.head.version = self.head.version.next();
        let revision = match self.revisions.get_mut(event.aggregate_id()) {
            Some(revision) => {
                *revision += 1;
                *revision
            }
            None => {
                self.revisions.insert(event.aggregate_id().to_owned(), 1);
                self.head.aggregates += 1;
                1
            }
        };
        self.head.largest = self.head.largest.max(event.len_bytes() as u64);
        let (version, revision) = (self.head.version, Revision::new(revision));
        let recorded = RecordedEvent::new(version, revision, to_the_microsecond(recorded_at), event.clone());
        self.head.digest = self.head.digest.chain(&recorded);
        self.digests.push(self.head.digest);
        self.staged.insert(event.id(), self.events.len());
        self.events.push(recorded);
        Stored::new(version, revision, StoreOutcome::Written)
    }
}

/// A time with the server's precision.
fn to_the_microsecond(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_micros(since.as_micros() as u64)
}
