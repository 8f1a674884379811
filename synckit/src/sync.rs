//! Syncing: the rounds between a replica and its hub.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use eventstore::backend::EventStore;
use eventstore_api::{
    CancellationToken, Context, Cursor, Error as StoreError, LoadOptions, PageSize, Place, Pulled, RecordedEvent,
    Version,
};
use tokio::time::Instant;

use crate::core::{Condition, Decision, Number, Question, Refusal, Why};
use crate::error::{Error, Result};
use crate::replica::Replica;
use crate::resolve::{Answer, Conflict, Resolution, Resolver};
use crate::worker::{Job, PAGES, Reply, behind};

/// The state of syncing, for a user interface.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SyncState {
    /// No sync is running, and nothing went wrong.
    Idle,
    /// The hub cannot be reached or used now, for this reason. It may be later.
    Offline(String),
    /// The hub answered with a permanent error, for this reason: it requires another token, it has no such store, or it
    /// is another store.
    Refused(String),
    /// The hub is not the cause: the replica's own files, its resolver or its program ended the sync, for this reason.
    Failed(String),
    /// This many events of the hub are still to be pulled.
    Behind(u64),
    /// The replica has all events of the hub and follows it.
    Live,
    /// This batch waits for a decision.
    Waiting(Number),
    /// The hub has another history.
    AnotherHistory,
}

impl SyncState {
    /// The state after an error that ended a sync.
    fn of(error: &Error) -> Self {
        match error {
            Error::AnotherHistory { .. } => SyncState::AnotherHistory,
            error if error.is_offline() => SyncState::Offline(error.to_string()),
            Error::Hub { .. } | Error::AnotherHub { .. } => SyncState::Refused(error.to_string()),
            error => SyncState::Failed(error.to_string()),
        }
    }
}

impl fmt::Display for SyncState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SyncState::Idle => f.write_str("idle"),
            SyncState::Offline(reason) => write!(f, "offline: {reason}"),
            SyncState::Refused(reason) => write!(f, "refused by the hub: {reason}"),
            SyncState::Failed(reason) => write!(f, "failed: {reason}"),
            SyncState::Behind(events) => write!(f, "behind by {events} events"),
            SyncState::Live => f.write_str("live"),
            SyncState::Waiting(batch) => write!(f, "batch {batch} waits for a decision"),
            SyncState::AnotherHistory => f.write_str("the hub has another history"),
        }
    }
}

/// The result of one sync.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncReport {
    /// The number of pulled events, including own ones.
    pub pulled: u64,
    /// The number of own batches that were confirmed.
    pub confirmed: u64,
    /// The number of own batches that the resolver rejected.
    pub rejected: u64,
    /// The number of own batches that the resolver dropped.
    pub dropped: u64,
    /// The histories of the hub that were accepted, in their order.
    pub accepted: Vec<AcceptedHistory>,
    /// The batch at which syncing stopped because it waits for a decision, if any.
    pub waiting: Option<Number>,
    /// The last confirmed version.
    pub version: Version,
}

/// Another history of the hub that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AcceptedHistory {
    /// The last version up to which both histories are the same.
    pub common: Version,
    /// The directory of the store that keeps the previous confirmed events.
    pub aside: PathBuf,
    /// The last version of that store.
    pub was: Version,
    /// The number of own batches that were confirmed before and are pending again.
    pub pending_again: u64,
}

/// Options of syncing.
#[derive(Clone)]
#[non_exhaustive]
pub struct SyncOptions {
    /// The resolver for conflicts. Without one, syncing stops at a conflict.
    pub resolver: Option<Arc<dyn Resolver>>,
    /// Whether another history of the hub is accepted. Nothing is lost: own events become pending again, and what was
    /// confirmed is kept aside. Default: no; syncing ends with [`Error::AnotherHistory`].
    pub accept_history: bool,
    /// Whether batches may overtake one that waits for a decision, if they share no aggregate with it. Default: no.
    pub skip_waiting: bool,
    /// The time limit for one request to the hub. Default: 30 seconds.
    pub timeout: Duration,
    /// Ends [`Replica::run`].
    pub stop: CancellationToken,
}

impl fmt::Debug for SyncOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncOptions")
            .field("has_resolver", &self.resolver.is_some())
            .field("accept_history", &self.accept_history)
            .field("skip_waiting", &self.skip_waiting)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Default for SyncOptions {
    fn default() -> Self {
        SyncOptions {
            resolver: None,
            accept_history: false,
            skip_waiting: false,
            timeout: Duration::from_secs(30),
            stop: CancellationToken::new(),
        }
    }
}

impl SyncOptions {
    /// The default options.
    #[must_use]
    pub fn new() -> Self {
        SyncOptions::default()
    }

    /// Sets the resolver for conflicts.
    #[must_use]
    pub fn resolver(mut self, resolver: impl Resolver + 'static) -> Self {
        self.resolver = Some(Arc::new(resolver));
        self
    }

    /// Accepts another history of the hub.
    #[must_use]
    pub fn accept_history(mut self) -> Self {
        self.accept_history = true;
        self
    }

    /// Lets batches overtake one that waits for a decision.
    #[must_use]
    pub fn skip_waiting(mut self) -> Self {
        self.skip_waiting = true;
        self
    }

    /// Ends [`Replica::run`] when this is cancelled.
    #[must_use]
    pub fn stop(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }
}

/// The most events and bytes of one push.
const PUSH_EVENTS: usize = 10_000;
const PUSH_BYTES: usize = 8 << 20;

/// The endless sequence of pauses between attempts: each up to twice as long as the one before, up to half a minute,
/// and random because of the jitter, which makes a pause up to twice as long.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_jitter()
    .with_min_delay(Duration::from_millis(50))
    .with_max_delay(Duration::from_secs(15))
    .without_max_times();

/// After a sync that pulled something, a replica waits this many times as long as that took before it pulls what others
/// append, up to a limit. With many events or many replicas, many events then travel in one page; with few, nobody
/// notices the delay. Own batches do not wait.
const REST: u32 = 4;
const LONGEST_REST: Duration = Duration::from_secs(1);

type Pauses = <ExponentialBuilder as BackoffBuilder>::Backoff;

/// How often batches are pushed again while no pulled event shows their outcome.
const FRUITLESS: u32 = 5;

/// How often the hub may have another history during one sync.
const HISTORIES: u32 = 3;

tokio::task_local! {
    /// The replicas whose resolvers are currently being asked, nested.
    static DECIDING: Vec<usize>;
}

impl Replica {
    /// The state of syncing.
    #[must_use]
    pub fn sync_state(&self) -> SyncState {
        self.shared.sync_state.borrow().clone()
    }

    /// Observes the state of syncing.
    #[must_use]
    pub fn watch_sync(&self) -> tokio::sync::watch::Receiver<SyncState> {
        self.shared.sync_state.subscribe()
    }

    fn of_hub(&self, source: StoreError) -> Error {
        Error::Hub { hub: self.shared.hub.to_string(), source }
    }

    fn set_state(&self, state: SyncState) {
        self.shared.sync_state.send_if_modified(|before| {
            let is_new = *before != state;
            *before = state;
            is_new
        });
    }

    /// Pulls everything from the hub, has conflicts decided, and pushes what is pending, until there is nothing more to
    /// do.
    ///
    /// # Errors
    ///
    /// [`Error::AnotherHistory`] and [`Error::AnotherHub`]; errors of the hub, such as `Unavailable`; errors of the
    /// resolver; [`Error::Deciding`] if called inside a resolver of this replica. What was done before the error is
    /// kept, and the next sync continues from there.
    pub async fn sync_once(&self, options: &SyncOptions) -> Result<SyncReport> {
        self.check_not_deciding()?;
        let _one = self.shared.syncing.lock().await;
        let done = self.sync(options).await;
        match &done {
            Ok(SyncReport { waiting: Some(batch), .. }) => self.set_state(SyncState::Waiting(*batch)),
            Ok(_) => self.set_state(SyncState::Live),
            Err(error) => self.set_state(SyncState::of(error)),
        }
        if done.is_err() {
            self.shared.is_checked.store(false, Ordering::SeqCst);
            self.shared.hub.forget().await;
        }
        done
    }

    /// Syncs, follows the hub, and pushes what is appended at once, until `stop` of the options is cancelled.
    ///
    /// Between pulls of events of others, it pauses four times as long as the last pull took, at most a second.
    ///
    /// While the hub cannot be used, it retries with pauses that grow up to half a minute.
    ///
    /// # Errors
    ///
    /// Permanent errors: [`Error::AnotherHistory`], [`Error::AnotherHub`], `Closed`, `Forbidden`, errors of the
    /// resolver, errors of the replica's own files, and [`Error::Deciding`] if called inside a resolver of this
    /// replica. Afterwards, the [state](Replica::sync_state) shows the error as well.
    pub async fn run(&self, options: &SyncOptions) -> Result<()> {
        self.check_not_deciding()?;
        let stop = options.stop.clone();
        let live = async {
            let (mut failures, mut quiet, mut is_by_news) = (PAUSES.build(), None, false);
            let mut rest = Duration::ZERO;
            loop {
                let mut changes = self.shared.state.changes();
                changes.mark_unchanged();
                let before = self.shared.state.machine().seen().number;
                let began = Instant::now();
                match self.sync_once(options).await {
                    Ok(report) => {
                        rest = rest_behind(report.pulled, began.elapsed(), rest);
                        failures = PAUSES.build();
                        // Without a pause, a hub that announces events but has none would be asked continuously.
                        quiet = (is_by_news && report.pulled == 0).then(|| quiet.unwrap_or_else(|| PAUSES.build()));
                        is_by_news = false;
                        let is_appended = async {
                            loop {
                                if self.shared.state.machine().seen().number > before
                                    || self.shared.state.has_ended()
                                    || changes.changed().await.is_err()
                                {
                                    break;
                                }
                            }
                        };
                        tokio::select! {
                            () = is_appended => {}
                            is_there = self.news(options, rest, &mut quiet) => is_by_news = is_there,
                        }
                    }
                    Err(error) if error.is_offline() => {
                        let pause = failures.next().unwrap_or_default();
                        tracing::debug!(%error, ?pause, "syncing failed and is retried");
                        tokio::time::sleep(pause).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let done = tokio::select! {
            done = live => done,
            () = stop.cancelled() => Ok(()),
        };
        if done.is_ok() {
            self.set_state(SyncState::Idle);
        }
        done
    }

    /// A sync waits for the current decision, which therefore must not wait for a sync.
    fn check_not_deciding(&self) -> Result<()> {
        let is_deciding = DECIDING.try_with(|deciding| deciding.contains(&self.id()));
        if is_deciding.unwrap_or_default() { Err(Error::Deciding) } else { Ok(()) }
    }

    fn id(&self) -> usize {
        Arc::as_ptr(&self.shared).addr()
    }

    async fn resolve(&self, resolver: &dyn Resolver, conflict: &Conflict) -> Result<Answer> {
        let mut deciding = DECIDING.try_with(Clone::clone).unwrap_or_default();
        deciding.push(self.id());
        DECIDING.scope(deciding, resolver.resolve(conflict)).await
    }

    /// Pauses, and waits for new events of the hub. Returns whether there should be some. Pauses longer if there were
    /// none the last times.
    async fn news(&self, options: &SyncOptions, rest: Duration, quiet: &mut Option<Pauses>) -> bool {
        tokio::time::sleep(rest).await;
        let published = self.shared.state.machine().published();
        let waiting = async {
            let hub = self.shared.hub.get().await?;
            let ctx = Context::background().with_timeout(options.timeout);
            hub.wait_for_events(&ctx, published).await.map_err(|error| self.of_hub(error))
        };
        match waiting.await {
            Ok(latest) => self.set_state(SyncState::Behind(latest.get().saturating_sub(published.get()))),
            Err(Error::Hub { source: StoreError::DeadlineExceeded, .. }) => return false,
            Err(_) => _ = quiet.get_or_insert_with(|| PAUSES.build()),
        }
        if let Some(quiet) = quiet {
            tokio::time::sleep(quiet.next().unwrap_or_default()).await;
        }
        true
    }

    async fn sync(&self, options: &SyncOptions) -> Result<SyncReport> {
        let hub = self.shared.hub.get().await?;
        self.check_hub(&hub, options).await?;
        let mut report = SyncReport::default();
        let (mut fruitless, mut histories) = (0, 0);
        loop {
            let before = self.shared.state.machine().unconfirmed();
            match self.pull(&hub, options).await {
                Ok(0) => {}
                Ok(pulled) => {
                    report.pulled += pulled;
                    fruitless = 0;
                }
                Err(Error::Hub { source: StoreError::HistoryDiverged { cursor, found }, .. }) => {
                    histories += 1;
                    if histories > HISTORIES {
                        let what = "the hub's history keeps changing";
                        return Err(self.of_hub(StoreError::engine("give events", what)));
                    }
                    report.pulled += self.leave_history(&hub, options, cursor, found, &mut report.accepted).await?;
                    self.shared.is_checked.store(false, Ordering::SeqCst);
                    self.check_hub(&hub, options).await?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let after = self.shared.state.machine().unconfirmed();
            report.confirmed += before.saturating_sub(after) as u64;
            report.waiting = self.decide_all(options, &mut report).await?;
            let (at, batches) = {
                let machine = self.shared.state.machine();
                (machine.end(), machine.to_send(options.skip_waiting, PUSH_EVENTS, PUSH_BYTES))
            };
            if batches.is_empty() {
                report.version = at.version;
                return Ok(report);
            }
            fruitless += 1;
            if fruitless > FRUITLESS {
                let what = "it was sent repeatedly, but no event of the hub shows its outcome";
                return Err(self.of_hub(StoreError::engine("append a batch", what)));
            }
            let (numbers, batches): (Vec<_>, Vec<_>) = batches.into_iter().unzip();
            let ctx = Context::background().with_timeout(options.timeout);
            let pushed = match hub.push(&ctx, at, batches).await {
                Ok(pushed) => pushed,
                // The next pull reports it as well.
                Err(StoreError::HistoryDiverged { .. }) => continue,
                Err(error) => return Err(self.of_hub(error)),
            };
            let stored = pushed.stored.len();
            let refused = match (pushed.refused, numbers.get(stored)) {
                (Some(error), Some(number)) => Some((*number, refusal(error).map_err(|error| self.of_hub(error))?)),
                _ => None,
            };
            if matches!(refused, Some((_, Refusal::ForEver(_)))) {
                fruitless = 0;
            }
            self.shared.state.machine().answered(&numbers[..stored.min(numbers.len())], refused);
        }
    }

    /// Checks that the hub is still the same store.
    async fn check_hub(&self, hub: &Arc<dyn EventStore>, options: &SyncOptions) -> Result<()> {
        // After the first event, each pull and push checks that by the digest.
        if self.shared.state.machine().end() != Place::START && self.shared.is_checked.load(Ordering::SeqCst) {
            return Ok(());
        }
        let ctx = Context::background().with_timeout(options.timeout);
        let stats = hub.stats(&ctx).await.map_err(|error| self.of_hub(error))?;
        let Some(found) = stats.store_id else { return Ok(()) };
        let config = self.shared.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match &config.store_id {
            Some(known) if *known == found => {}
            // With events of its own history, the digest shows whether it is a copy.
            Some(expected) if self.shared.state.machine().end() == Place::START && !options.accept_history => {
                let expected = expected.clone();
                return Err(Error::AnotherHub { hub: self.shared.hub.to_string(), expected, found });
            }
            _ => {}
        }
        let mut next = self.shared.next_config.lock().unwrap_or_else(PoisonError::into_inner);
        next.get_or_insert(config).store_id = Some(found);
        self.shared.is_checked.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Saves the settings for this hub, which has the replica's history and so is the right one.
    fn keep_hub(&self) -> Result<()> {
        let mut next = self.shared.next_config.lock().unwrap_or_else(PoisonError::into_inner);
        let mut config = self.shared.config.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = next.as_ref().filter(|next| **next != *config) {
            self.shared.state.change_names(|| next.write(&self.shared.directory))?;
            *config = next.clone();
        }
        *next = None;
        Ok(())
    }

    async fn pull(&self, hub: &Arc<dyn EventStore>, options: &SyncOptions) -> Result<u64> {
        let since = self.shared.state.machine().end();
        self.pages(hub, options, since, |Page { since, events, end, head }, reply| Job::Page {
            since,
            events,
            end,
            head,
            reply,
        })
        .await
    }

    /// Pulls up to the head, and returns the number of events. The next page is requested while one is being written.
    async fn pages(
        &self,
        hub: &Arc<dyn EventStore>,
        options: &SyncOptions,
        mut since: Place,
        job: impl Fn(Page, Reply<()>) -> Job,
    ) -> Result<u64> {
        let next = |since: Place| {
            let (hub, timeout) = (hub.clone(), options.timeout);
            async move {
                let ctx = Context::background().with_timeout(timeout);
                hub.pull(&ctx, since, PAGES).await.map_err(|error| self.of_hub(error))
            }
        };
        let (mut pulled, mut page) = (0, next(since).await?);
        self.keep_hub()?;
        loop {
            let Pulled { events, head, .. } = page;
            pulled += events.len() as u64;
            if !(since.version.get() + 1..).zip(&events).all(|(version, event)| event.version.get() == version) {
                let what = "they do not follow the given place";
                return Err(self.of_hub(StoreError::engine("give events", what)));
            }
            let end = behind(since, &events);
            let is_empty = events.is_empty();
            let write = self.ask(|reply| job(Page { since, events, end, head }, reply));
            if end.version >= head {
                write.await?;
                return Ok(pulled);
            }
            if is_empty {
                let what = "it says that it has more events, but returns none";
                return Err(self.of_hub(StoreError::engine("give events", what)));
            }
            self.set_state(SyncState::Behind(head.get() - end.version.get()));
            let (written, following) = tokio::join!(write, next(end));
            written?;
            (since, page) = (end, following?);
        }
    }

    /// Asks the resolver about waiting batches, and counts its decisions. Returns the batch that was not decided, if any.
    async fn decide_all(&self, options: &SyncOptions, report: &mut SyncReport) -> Result<Option<Number>> {
        loop {
            let question = self.shared.state.machine().question();
            let Some(question) = question else { return Ok(None) };
            let Some(resolver) = &options.resolver else { return Ok(Some(question.batch)) };
            let conflict = self.conflict(&question).await?;
            let Answer { resolution, on_top } = self.resolve(&**resolver, &conflict).await?;
            let on_top = on_top.into_iter().filter_map(|(batch, resolution)| Some((batch, decision(resolution)?)));
            let on_top = on_top.collect();
            let Some(decision) = decision(resolution) else { return Ok(Some(question.batch)) };
            for decision in self.ask(|reply| Job::Decide { question, decision, on_top, reply }).await? {
                match decision {
                    Decision::Reject(_) => report.rejected += 1,
                    Decision::Drop => report.dropped += 1,
                    Decision::Anyway | Decision::Replace(_) => {}
                }
            }
        }
    }

    /// The conflict that the next sync will ask about, if there is one.
    ///
    /// # Errors
    ///
    /// Errors of the replica's files.
    pub async fn next_conflict(&self) -> Result<Option<Conflict>> {
        let question = self.shared.state.machine().question();
        match question {
            Some(question) => Ok(Some(self.conflict(&question).await?)),
            None => Ok(None),
        }
    }

    async fn conflict(&self, question: &Question) -> Result<Conflict> {
        let (ctx, confirmed) = (&Context::background(), self.shared.state.confirmed());
        let mut unseen = Vec::new();
        if question.why == Why::Duplicate {
            for event in &question.events {
                match confirmed.get(ctx, event.id()).await {
                    Ok(found) => unseen.push(found),
                    Err(StoreError::EventNotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        } else {
            let until = Version::new(question.seen.version).next();
            let all = LoadOptions::since(Version::new(question.basis.version)).before(until);
            let mut next = match &question.condition {
                Condition::Any => None,
                Condition::Store => Some(all),
                Condition::Aggregate(id) | Condition::Exists(id) => Some(all.aggregate(id.clone())),
            };
            while let Some(options) = next.filter(|_| unseen.len() < Conflict::MOST) {
                let page = confirmed.load_page(ctx, &options, PageSize::LARGEST).await?;
                let machine = self.shared.state.machine();
                // Earlier own batches are known, wherever they were confirmed.
                let basis = crate::core::Seen { number: question.batch, ..question.basis };
                let is_unseen = |event: &RecordedEvent| !machine.is_seen(event.version, event.event.id(), basis);
                unseen.extend(page.events.into_iter().filter(is_unseen));
                next = page.next;
            }
            unseen.truncate(Conflict::MOST);
        }
        let machine = self.shared.state.machine();
        let on_top = question.on_top.iter().filter_map(|number| Some((*number, machine.events(*number)?.to_vec())));
        Ok(Conflict {
            batch: question.batch,
            why: question.why.clone(),
            events: question.events.clone(),
            condition: question.condition.clone(),
            unseen,
            on_top: on_top.collect(),
            replica: self.clone(),
        })
    }

    /// The hub has another history: switches to it, if that is accepted, and adds it to `accepted`. Returns the number of
    /// pulled events.
    async fn leave_history(
        &self,
        hub: &Arc<dyn EventStore>,
        options: &SyncOptions,
        confirmed: Cursor,
        found: Cursor,
        accepted: &mut Vec<AcceptedHistory>,
    ) -> Result<u64> {
        if !options.accept_history {
            return Err(Error::AnotherHistory { hub: self.shared.hub.to_string(), confirmed, found });
        }
        // Finds the last version at which both have the same digest: they are equal up to it and differ after it.
        let end = self.shared.state.machine().end();
        if end == Place::START {
            let what = "it says that it has another history than a replica that has none";
            return Err(self.of_hub(StoreError::engine("give events", what)));
        }
        let (mut same, mut other) = (0, end.version.get());
        let own = self.shared.state.confirmed();
        while other - same > 1 {
            let middle = Version::new(same + (other - same) / 2);
            let place = Place::new(middle, own.digest(&Context::background(), middle).await?);
            let ctx = Context::background().with_timeout(options.timeout);
            match hub.pull(&ctx, place, PageSize::new(1, 1)).await {
                Ok(_) => same = middle.get(),
                Err(StoreError::HistoryDiverged { .. }) => other = middle.get(),
                Err(error) => return Err(self.of_hub(error)),
            }
        }
        let common = Version::new(same);
        let since = self.ask(|reply| Job::BeginHistory { common, reply }).await?;
        // The common part may end inside a batch. So it is shown only together with everything else that the hub has.
        let copied =
            self.pages(hub, options, since, |Page { events, end, .. }, reply| Job::CopyHistory { events, end, reply });
        let pulled = match copied.await {
            // The hub has yet another history by now, as the next pull will show.
            Err(Error::Hub { source: StoreError::HistoryDiverged { .. }, .. }) => return Ok(0),
            copied => copied?,
        };
        let (aside, pending_again) = self.ask(|reply| Job::EnterHistory { reply }).await?;
        tracing::warn!(
            hub = %self.shared.hub, %common, was = %end.version, aside = %aside.display(),
            "the hub has another history, which was accepted; what was confirmed before is kept aside"
        );
        accepted.push(AcceptedHistory { common, aside, was: end.version, pending_again });
        Ok(pulled)
    }
}

/// A page that was pulled.
struct Page {
    since: Place,
    events: Vec<RecordedEvent>,
    /// The place after them.
    end: Place,
    head: Version,
}

fn decision(resolution: Resolution) -> Option<Decision> {
    match resolution {
        Resolution::AppendAnyway => Some(Decision::Anyway),
        Resolution::AppendInstead(events) => Some(Decision::Replace(events)),
        Resolution::Reject(reason) => Some(Decision::Reject(reason)),
        Resolution::Drop => Some(Decision::Drop),
        Resolution::Wait => None,
    }
}

/// What the refusal of a batch means; an error if the batch is not the cause.
fn refusal(error: StoreError) -> Result<Refusal, StoreError> {
    match error {
        StoreError::VersionConflict { .. } | StoreError::DuplicateEvent { .. } => Ok(Refusal::ForNow),
        StoreError::InvalidEvent { .. } => Ok(Refusal::ForEver(error.to_string())),
        error => Err(error),
    }
}

/// How long a replica pauses after a sync that pulled this many events in this time.
fn rest_behind(pulled: u64, took: Duration, before: Duration) -> Duration {
    match pulled {
        0 => before,
        _ => took.saturating_mul(REST).min(LONGEST_REST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_rests_as_long_as_pulls_ask_for() {
        let [short, long] = [2, 10_000].map(Duration::from_millis);
        assert_eq!(rest_behind(1, short, Duration::ZERO), short * 4);
        assert_eq!(rest_behind(1, long, short), Duration::from_secs(1), "and not longer");
        assert_eq!(rest_behind(0, long, short), short, "a sync without news says nothing");
    }
}
