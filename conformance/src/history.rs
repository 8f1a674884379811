//! A recorded history of concurrent calls, and a checker of whether a store that keeps the contract could have produced
//! it.
//!
//! The checker needs no store. It gets the calls, each with the moments of its beginning and end, and the final log.
//! From these it derives two bounds for every moment: the version that the store had certainly reached, because
//! somebody had seen it, and the version that it could have reached at most, because later appends had not begun. Every
//! result must be within these bounds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use eventstore_api::{
    Batch, Error, Event, EventStore, EventStoreExt, Expected, LoadOptions, PageSize, RecordedEvent, StoreOutcome,
    Stored, Version,
};

use crate::env::Store;
use crate::events::{background, found_in};
use crate::failure::{Checked, Failure};
use crate::reading::{add_page, audit, is_prefix, select};
use crate::tasks::polled;

/// One call: the caller, its beginning and end, and its result.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) who: String,
    pub(crate) began: u64,
    pub(crate) ended: u64,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Append {
        batch: Batch,
        outcome: Appended,
    },
    /// A whole load, and the head of its first page.
    Load {
        options: LoadOptions,
        head: Version,
        events: Vec<RecordedEvent>,
    },
    Get {
        id: String,
        found: Option<RecordedEvent>,
    },
    /// Also the result of a wait.
    Latest(Version),
    Revision {
        aggregate_id: String,
        revision: u64,
    },
    /// A subscription that was read until a certain event, each event with the moment of its arrival.
    Subscription {
        options: LoadOptions,
        events: Vec<(u64, RecordedEvent)>,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Appended {
    Stored(Vec<Stored>),
    Conflict {
        actual: u64,
    },
    /// All or nothing: the outcome is unknown, or the future was dropped.
    Unknown,
}

/// Makes and records calls.
pub(crate) struct Recorder {
    store: Store,
    clock: AtomicU64,
    calls: Mutex<Vec<Call>>,
}

impl Recorder {
    pub(crate) fn new(store: &Store) -> Arc<Self> {
        Arc::new(Recorder { store: store.clone(), clock: AtomicU64::new(1), calls: Mutex::default() })
    }

    /// The current moment. Moments are distinct and increasing.
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn record(&self, who: &str, began: u64, what: What) {
        let call = Call { who: who.to_owned(), began, ended: self.now(), what };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }

    /// Appends. A conflict is not a failure.
    pub(crate) async fn append(&self, who: &str, batch: Batch) -> Checked<Appended> {
        self.append_polled(who, usize::MAX, batch).await
    }

    /// The same with a future that is dropped after this many polls.
    pub(crate) async fn append_polled(&self, who: &str, polls: usize, batch: Batch) -> Checked<Appended> {
        let (ctx, began) = (background(), self.now());
        let outcome = match polls {
            usize::MAX => Some(self.store.store_batch(&ctx, batch.clone()).await),
            polls => polled(polls, self.store.store_batch(&ctx, batch.clone())).await,
        };
        let outcome = match outcome {
            Some(Ok(stored)) => Appended::Stored(stored),
            Some(Err(Error::VersionConflict { actual, .. })) => Appended::Conflict { actual: found_in(&actual) },
            Some(Err(error)) => return Err(error.into()),
            None => Appended::Unknown,
        };
        self.record(who, began, What::Append { batch, outcome: outcome.clone() });
        Ok(outcome)
    }

    /// Loads page by page.
    pub(crate) async fn load(&self, who: &str, options: LoadOptions, size: PageSize) -> Checked {
        let (began, mut head, mut events) = (self.now(), None, Vec::new());
        let mut next = Some(options.clone());
        while let Some(asked) = next {
            let page = self.store.load_page(&background(), &asked, size).await?;
            head = head.or(Some(page.head));
            add_page(&mut events, page.events, options.direction)?;
            next = page.next;
        }
        self.record(who, began, What::Load { options, head: head.unwrap_or_default(), events });
        Ok(())
    }

    pub(crate) async fn get(&self, who: &str, id: &str) -> Checked {
        let began = self.now();
        let found = match self.store.get(&background(), id).await {
            Ok(found) => Some(found),
            Err(Error::EventNotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        self.record(who, began, What::Get { id: id.to_owned(), found });
        Ok(())
    }

    pub(crate) async fn latest(&self, who: &str) -> Checked<Version> {
        let began = self.now();
        let latest = self.store.latest_version(&background()).await?;
        self.record(who, began, What::Latest(latest));
        Ok(latest)
    }

    pub(crate) async fn wait(&self, who: &str, after: Version) -> Checked {
        let began = self.now();
        let reached = self.store.wait_for_events(&background(), after).await?;
        ensure!(reached > after, "waiting for what is after version {after} ends at version {reached}");
        self.record(who, began, What::Latest(reached));
        Ok(())
    }

    pub(crate) async fn revision(&self, who: &str, aggregate_id: &str) -> Checked<u64> {
        let began = self.now();
        let revision = self.store.aggregate_revision(&background(), aggregate_id).await?.get();
        self.record(who, began, What::Revision { aggregate_id: aggregate_id.to_owned(), revision });
        Ok(revision)
    }

    /// Follows until the event with this id arrives.
    pub(crate) async fn subscribe(&self, who: &str, options: LoadOptions, last: &str) -> Checked {
        let (began, mut events) = (self.now(), Vec::new());
        let mut stream = self.store.subscribe(&background(), options.clone());
        loop {
            let event = stream.next().await.unwrap_or(Err(Error::Closed))?;
            let is_last = event.event.id() == last;
            events.push((self.now(), event));
            if is_last {
                break;
            }
        }
        self.record(who, began, What::Subscription { options, events });
        Ok(())
    }

    /// Checks the history after every call has ended.
    pub(crate) async fn check(&self) -> Checked {
        let log = audit(&self.store).await?;
        let calls = std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner));
        check(&calls, &log)
    }
}

/// Fails unless the calls and the final log agree with the contract.
pub(crate) fn check(calls: &[Call], log: &[RecordedEvent]) -> Checked {
    is_prefix(log)?;
    let checker = Checker::new(calls, log)?;
    // Errors in a result come before errors in time, which may follow from them.
    for call in calls {
        if let What::Append { batch, outcome: Appended::Stored(stored) } = &call.what {
            checker.places(&call.who, batch, stored)?;
        }
    }
    // The earliest error is the cause of later ones.
    let mut in_time: Vec<_> = calls.iter().collect();
    in_time.sort_by_key(|call| call.ended);
    for call in in_time {
        match &call.what {
            What::Append { batch, outcome } => checker.append(call, batch, outcome)?,
            What::Load { options, head, events } => checker.load(call, options, *head, events)?,
            What::Get { id, found } => checker.get(call, id, found.as_ref())?,
            What::Latest(version) => checker.head(call, version.get())?,
            What::Revision { aggregate_id, revision } => checker.revision(call, aggregate_id, *revision)?,
            What::Subscription { options, events } => checker.subscription(call, options, events)?,
        }
    }
    Ok(())
}

struct Checker<'h> {
    log: &'h [RecordedEvent],
    /// The versions of each id, and of each aggregate in order.
    ids: HashMap<&'h str, u64>,
    aggregates: HashMap<&'h str, Vec<u64>>,
    /// For each version from 1, the moment before which the store cannot have reached it.
    possible_from: Vec<u64>,
    /// In order of time: a moment, the greatest version seen so far, and by whom.
    shown: Vec<(u64, u64, &'h str)>,
    /// The first and last version of the batch of each version.
    batches: HashMap<u64, (u64, u64)>,
}

/// A failure without a location in the suite.
macro_rules! wrong {
    ($($what:tt)+) => { return Err(Failure::elsewhere(format!($($what)+))) };
}

impl<'h> Checker<'h> {
    fn new(calls: &'h [Call], log: &'h [RecordedEvent]) -> Checked<Self> {
        let mut checker = Checker {
            log,
            ids: HashMap::new(),
            aggregates: HashMap::new(),
            possible_from: Vec::new(),
            shown: Vec::new(),
            batches: HashMap::new(),
        };
        for event in log {
            checker.ids.insert(event.event.id(), event.version.get());
            checker.aggregates.entry(event.event.aggregate_id()).or_default().push(event.version.get());
        }
        checker.find_writers(calls)?;
        checker.find_winners(calls)?;
        checker.find_shown(calls);
        Ok(checker)
    }

    /// Every event in the log was appended, and at most one append was told that it wrote it.
    fn find_writers(&mut self, calls: &'h [Call]) -> Checked {
        // By id: the append that was told that it wrote the event, and the earliest of those that may have.
        let mut writers: HashMap<&str, &Call> = HashMap::new();
        let mut candidates: HashMap<&str, &Call> = HashMap::new();
        for call in calls {
            let What::Append { batch, outcome } = &call.what else { continue };
            for (at, event) in batch.events.iter().enumerate() {
                let told = match outcome {
                    Appended::Stored(stored) => stored.get(at).map(|stored| stored.outcome),
                    Appended::Conflict { .. } => continue,
                    Appended::Unknown => None,
                };
                if told == Some(StoreOutcome::Written)
                    && let Some(other) = writers.insert(event.id(), call)
                    && !std::ptr::eq(other, call)
                {
                    wrong!("{} and {} were both told that they wrote {:?} (W2)", other.who, call.who, event.id());
                }
                if told != Some(StoreOutcome::AlreadyStored) {
                    let earliest = candidates.entry(event.id()).or_insert(call);
                    if call.began < earliest.began {
                        *earliest = call;
                    }
                }
            }
        }
        let mut possible_from = 0;
        for event in self.log {
            let (id, version) = (event.event.id(), event.version);
            let Some(writer) = writers.get(id).or(candidates.get(id)) else {
                wrong!("version {version} is {id:?}, and no append was told that it wrote it, or may have (W2, W3)");
            };
            possible_from = writer.began.max(possible_from);
            self.possible_from.push(possible_from);
        }
        for (call, batch) in calls.iter().filter_map(|call| match &call.what {
            What::Append { batch, .. } => Some((call, batch)),
            _ => None,
        }) {
            let is_writer = |event: &&Event| {
                writers.get(event.id()).or(candidates.get(event.id())).is_some_and(|writer| std::ptr::eq(*writer, call))
            };
            let versions = batch.events.iter().filter(is_writer).filter_map(|event| self.ids.get(event.id()));
            let versions: Vec<_> = versions.copied().collect();
            if let (Some(&first), Some(&last)) = (versions.iter().min(), versions.iter().max()) {
                self.batches.extend((first..=last).map(|version| (version, (first, last))));
            }
        }
        Ok(())
    }

    /// Of appends with the same condition on a revision or version, at most one wins.
    fn find_winners(&self, calls: &'h [Call]) -> Checked {
        let mut winners: HashMap<(Expected, &str), &Call> = HashMap::new();
        for call in calls {
            let What::Append { batch, outcome: Appended::Stored(stored) } = &call.what else { continue };
            let aggregate_id = match batch.expected {
                Expected::Revision(_) => batch.events.first().map_or("", |event| event.aggregate_id()),
                Expected::LatestVersion(_) => "",
                _ => continue,
            };
            if stored.iter().any(|stored| stored.outcome == StoreOutcome::Written)
                && let Some(other) = winners.insert((batch.expected, aggregate_id), call)
            {
                wrong!(
                    "{} and {} both won with the condition {} on {aggregate_id:?} (W3)",
                    other.who,
                    call.who,
                    batch.expected
                );
            }
        }
        Ok(())
    }

    /// Collects what was seen by anybody, and when.
    fn find_shown(&mut self, calls: &'h [Call]) {
        for call in calls {
            let version = match &call.what {
                What::Append { outcome: Appended::Stored(stored), .. } => stored.iter().map(|s| s.version).max(),
                What::Load { head, .. } => Some(*head),
                What::Get { found, .. } => found.as_ref().map(|found| found.version),
                What::Latest(version) => Some(*version),
                What::Revision { aggregate_id, revision } => self.version_of(aggregate_id, *revision),
                What::Append { .. } | What::Subscription { .. } => None,
            };
            self.shown.extend(version.map(|version| (call.ended, version.get(), call.who.as_str())));
            if let What::Subscription { events, .. } = &call.what {
                self.shown.extend(events.iter().map(|(at, event)| (*at, event.version.get(), call.who.as_str())));
            }
        }
        self.shown.sort_unstable();
        let mut greatest = (0, "");
        for (_, version, who) in &mut self.shown {
            if *version > greatest.0 {
                greatest = (*version, *who);
            }
            (*version, *who) = greatest;
        }
    }

    fn version_of(&self, aggregate_id: &str, revision: u64) -> Option<Version> {
        let at = usize::try_from(revision.checked_sub(1)?).ok()?;
        self.aggregates.get(aggregate_id)?.get(at).copied().map(Version::new)
    }

    /// The version that the store had certainly reached at this moment, and who had seen it.
    fn reached(&self, moment: u64) -> (u64, &'h str) {
        let before = self.shown.partition_point(|(shown, ..)| *shown < moment);
        before.checked_sub(1).map_or((0, ""), |last| (self.shown[last].1, self.shown[last].2))
    }

    /// The version that it could have reached at most.
    fn reachable(&self, moment: u64) -> u64 {
        self.possible_from.partition_point(|&from| from < moment) as u64
    }

    fn revision_at(&self, aggregate_id: &str, version: u64) -> u64 {
        self.aggregates
            .get(aggregate_id)
            .map_or(0, |versions| versions.partition_point(|&other| other <= version) as u64)
    }

    fn append(&self, call: &Call, batch: &Batch, outcome: &Appended) -> Checked {
        let who = &call.who;
        let aggregate_id = batch.events.first().map_or("", |event| event.aggregate_id());
        match outcome {
            Appended::Stored(stored) => {
                let repeated = stored.iter().filter(|stored| stored.outcome == StoreOutcome::AlreadyStored);
                let newest = repeated.map(|stored| stored.version.get()).max().unwrap_or_default();
                let reachable = self.reachable(call.ended);
                if newest > reachable {
                    wrong!("{who} was told of version {newest} when only {reachable} events can have been there (W2)");
                }
                let written = stored.iter().find(|stored| stored.outcome == StoreOutcome::Written);
                let Some(first) = written.map(|stored| stored.version.get()) else { return Ok(()) };
                let (reached, other) = self.reached(call.began);
                if first <= reached {
                    wrong!(
                        "{who} was given version {first} by an append that began after {other} had been shown version \
                         {reached} (O1: the order of versions is that of time)"
                    );
                }
                let before = first - 1;
                let revision = self.revision_at(aggregate_id, before);
                if !batch.expected.holds(revision.into(), before.into()) {
                    wrong!(
                        "{who} won with the condition {} at version {before}, where {aggregate_id:?} has revision \
                         {revision} (W3)",
                        batch.expected
                    );
                }
            }
            Appended::Conflict { actual } => {
                let is_true = |version: u64| {
                    let revision = self.revision_at(aggregate_id, version);
                    let found = if batch.expected.is_about_aggregate() { revision } else { version };
                    !batch.expected.holds(revision.into(), version.into()) && found == *actual
                };
                let (from, to) = (self.reached(call.began).0, self.reachable(call.ended));
                if !(from..=to).any(is_true) {
                    wrong!(
                        "{who} was refused with a conflict on {} of {aggregate_id:?} that found {actual}, which was never \
                         so while the call lasted, from version {from} to version {to} (W3)",
                        batch.expected
                    );
                }
            }
            Appended::Unknown => {
                let there: Vec<_> = batch.events.iter().filter_map(|event| self.ids.get(event.id())).collect();
                let consecutive = there.windows(2).all(|pair| *pair[1] == pair[0] + 1);
                if !there.is_empty() && (there.len() != batch.events.len() || !consecutive) {
                    wrong!(
                        "{who} dropped an append of {} events, of which the versions {there:?} are there (W1, C4)",
                        batch.events.len()
                    );
                }
            }
        }
        Ok(())
    }

    /// The positions returned by an append match the log, and those of its new events are consecutive.
    fn places(&self, who: &str, batch: &Batch, stored: &[Stored]) -> Checked {
        if stored.len() != batch.events.len() {
            wrong!("{who} was told {} places for {} events", stored.len(), batch.events.len());
        }
        let mut last = None;
        for (event, place) in batch.events.iter().zip(stored) {
            self.place(who, event, place)?;
            if place.outcome == StoreOutcome::Written
                && let Some(before) = last.replace(place.version).filter(|before| before.next() != place.version)
            {
                wrong!("{who} appended a batch whose events have the versions {before} and {} (O2)", place.version);
            }
        }
        Ok(())
    }

    /// A position returned by an append matches the log.
    fn place(&self, who: &str, event: &Event, place: &Stored) -> Checked {
        let (id, version) = (event.id(), place.version);
        let Some(there) = self.ids.get(id).and_then(|version| self.at(*version)) else {
            wrong!("{who} was told that {id:?} has version {version}, and it is not in the log (O1)");
        };
        if (there.version, there.revision.get()) != (version, place.revision.get()) {
            let rule = if place.outcome == StoreOutcome::Written { "O1" } else { "W2" };
            wrong!(
                "{who} was told that {id:?} has version {version} and revision {}, and in the log it has version {} and \
                 revision {} ({rule})",
                place.revision.get(),
                there.version,
                there.revision.get()
            );
        }
        if there.event != *event {
            wrong!("{who} was told that {id:?} is stored, and the log has other content (W2, W6)");
        }
        Ok(())
    }

    fn at(&self, version: u64) -> Option<&'h RecordedEvent> {
        usize::try_from(version.checked_sub(1)?).ok().and_then(|at| self.log.get(at))
    }

    /// Checks a version that was returned as the newest.
    fn head(&self, call: &Call, version: u64) -> Checked {
        let (who, latest) = (&call.who, self.log.len());
        let (reached, other) = self.reached(call.began);
        if version < reached {
            let rule = if other == who { "its reads went back: O7" } else { "O6" };
            wrong!(
                "{who} was shown a store at version {version} after {other} had been shown version {reached} ({rule})"
            );
        }
        let reachable = self.reachable(call.ended);
        if version > reachable {
            wrong!(
                "{who} was shown a store at version {version} of {latest} when only {reachable} events can have been \
                 there (O5)"
            );
        }
        if let Some((first, last)) = self.batches.get(&version).filter(|(_, last)| *last != version) {
            wrong!(
                "{who} was shown a store at version {version}, in the middle of the batch of {first} to {last} (W1)"
            );
        }
        Ok(())
    }

    fn load(&self, call: &Call, options: &LoadOptions, head: Version, events: &[RecordedEvent]) -> Checked {
        self.head(call, head.get())?;
        let there = &self.log[..usize::try_from(head.get()).unwrap_or_default()];
        same(&call.who, "a load", events.iter(), &select(there, options), "O5")
    }

    fn get(&self, call: &Call, id: &str, found: Option<&RecordedEvent>) -> Checked {
        let (who, place) = (&call.who, self.ids.get(id).copied());
        match (found, place) {
            (Some(found), _) => {
                if place.and_then(|version| self.at(version)) != Some(found) {
                    wrong!("{who} got {id:?} as version {}, which is not what the log has (O1, W6)", found.version);
                }
                let (version, reachable) = (found.version.get(), self.reachable(call.ended));
                if version > reachable {
                    wrong!("{who} got version {version} when only {reachable} events can have been there (O5)");
                }
            }
            (None, Some(version)) => {
                let (reached, other) = self.reached(call.began);
                if version <= reached {
                    wrong!(
                        "{who} did not find {id:?}, which has version {version}, after {other} had been shown version \
                         {reached} (O6)"
                    );
                }
            }
            (None, None) => {}
        }
        Ok(())
    }

    fn revision(&self, call: &Call, aggregate_id: &str, revision: u64) -> Checked {
        let (reached, other) = self.reached(call.began);
        let (least, most) =
            (self.revision_at(aggregate_id, reached), self.revision_at(aggregate_id, self.reachable(call.ended)));
        if !(least..=most).contains(&revision) {
            wrong!(
                "{} was told revision {revision} of {aggregate_id:?}, which had revision {least} when {other} had been \
                 shown version {reached}, and {most} at most at the end of the call (O6)",
                call.who
            );
        }
        Ok(())
    }

    fn subscription(&self, call: &Call, options: &LoadOptions, events: &[(u64, RecordedEvent)]) -> Checked {
        let given = events.iter().map(|(_, event)| event);
        // It was read until a certain event; later events are not required.
        let last = given.clone().map(|event| event.version.get()).max().unwrap_or_default();
        let there = &self.log[..self.log.len().min(usize::try_from(last).unwrap_or(usize::MAX))];
        same(&call.who, "a subscription", given, &select(there, options), "S1")?;
        match events.iter().find(|(at, event)| event.version.get() > self.reachable(*at)) {
            Some((_, event)) => wrong!("{} was given version {} before its append (O5)", call.who, event.version),
            None => Ok(()),
        }
    }
}

/// Fails at the first event that is missing, repeated or different.
fn same<'e>(
    who: &str,
    what: &str,
    given: impl ExactSizeIterator<Item = &'e RecordedEvent> + Clone,
    expected: &[RecordedEvent],
    rule: &str,
) -> Checked {
    let Some(at) = given.clone().zip(expected).position(|(given, expected)| given != expected) else {
        if let Some(lost) = expected.get(given.len()) {
            wrong!("{what} of {who} lost version {} ({rule})", lost.version);
        }
        if let Some(more) = given.clone().nth(expected.len()) {
            wrong!("{what} of {who} gave version {}, which was not to come ({rule})", more.version);
        }
        return Ok(());
    };
    let versions: Vec<_> = given.map(|event| event.version).collect();
    if versions[..at].contains(&versions[at]) {
        wrong!("{what} of {who} gave version {} twice ({rule})", versions[at]);
    }
    if !versions.contains(&expected[at].version) {
        wrong!("{what} of {who} lost version {}: after it came {} ({rule})", expected[at].version, versions[at]);
    }
    wrong!(
        "{what} of {who} gave version {} where version {} was to come, with the content of the log ({rule})",
        versions[at],
        expected[at].version
    )
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::events::event;

    fn recorded(version: u64, revision: u64, id: &str, aggregate_id: &str) -> RecordedEvent {
        RecordedEvent::new(version.into(), revision.into(), SystemTime::UNIX_EPOCH, event(id, aggregate_id))
    }

    /// `one`, and the batch of `two` and `three`, all of one aggregate.
    fn log() -> Vec<RecordedEvent> {
        [(1, "one"), (2, "two"), (3, "three")].map(|(version, id)| recorded(version, version, id, "a")).to_vec()
    }

    fn call(who: &str, (began, ended): (u64, u64), what: What) -> Call {
        Call { who: who.to_owned(), began, ended, what }
    }

    fn append(who: &str, when: (u64, u64), ids: &[&str], expected: Expected, outcome: Appended) -> Call {
        let batch = Batch::new(ids.iter().map(|&id| event(id, "a")).collect()).expected(expected);
        call(who, when, What::Append { batch, outcome })
    }

    fn places(versions: &[u64], outcome: StoreOutcome) -> Appended {
        Appended::Stored(versions.iter().map(|&version| Stored::new(version.into(), version.into(), outcome)).collect())
    }

    fn written(who: &str, when: (u64, u64), ids: &[&str], versions: &[u64]) -> Call {
        append(who, when, ids, Expected::Any, places(versions, StoreOutcome::Written))
    }

    fn load(when: (u64, u64), head: u64, versions: &[u64]) -> Call {
        let events = log().into_iter().filter(|event| versions.contains(&event.version.get())).collect();
        call("r", when, What::Load { options: LoadOptions::all(), head: head.into(), events })
    }

    fn latest(who: &str, when: (u64, u64), version: u64) -> Call {
        call(who, when, What::Latest(version.into()))
    }

    fn follows(versions: &[u64]) -> Call {
        let events = versions.iter().map(|&version| (30 + version, log()[version as usize - 1].clone())).collect();
        call("s", (1, 40), What::Subscription { options: LoadOptions::all(), events })
    }

    /// The appends that wrote the log: `w` before `v`.
    fn with(more: impl IntoIterator<Item = Call>) -> Vec<Call> {
        [written("w", (1, 4), &["one"], &[1]), written("v", (6, 9), &["two", "three"], &[2, 3])]
            .into_iter()
            .chain(more)
            .collect()
    }

    #[test]
    fn a_sound_history_is_accepted() {
        let repeated = places(&[1], StoreOutcome::AlreadyStored);
        let calls = with([
            load((2, 3), 0, &[]),
            load((2, 7), 1, &[1]),
            load((7, 8), 3, &[1, 2, 3]),
            latest("r", (10, 11), 3),
            follows(&[1, 2, 3]),
            append("x", (2, 5), &["one"], Expected::NoEvents, repeated.clone()),
            append("x", (12, 13), &["one"], Expected::NoEvents, repeated),
            append("x", (7, 14), &["x"], Expected::Revision(0.into()), Appended::Conflict { actual: 1 }),
            append("x", (7, 14), &["x"], Expected::Revision(0.into()), Appended::Conflict { actual: 3 }),
            append("y", (7, 14), &["y"], Expected::Any, Appended::Unknown),
            call("r", (7, 8), What::Get { id: "two".to_owned(), found: None }),
            call("r", (7, 8), What::Revision { aggregate_id: "a".to_owned(), revision: 3 }),
        ]);
        check(&calls, &log()).expect("sound");
        check(&[], &[]).expect("nothing happened");
    }

    #[test]
    fn every_wrong_history_is_refused_and_the_reason_told() {
        let conflict = |actual| Appended::Conflict { actual };
        let get = |when, id: &str, found| call("r", when, What::Get { id: id.to_owned(), found });
        let wrong = [
            (with([written("x", (1, 4), &["one"], &[1])]), "w and x were both told that they wrote \"one\""),
            (with([written("x", (1, 4), &["lost"], &[4])]), "x was told that \"lost\" has version 4, and it is not in"),
            (
                vec![written("w", (1, 4), &["one"], &[2]), written("v", (1, 4), &["two", "three"], &[2, 3])],
                "w was told that \"one\" has version 2 and revision 2, and in the log it has version 1",
            ),
            (
                vec![written("w", (6, 9), &["one"], &[1]), written("v", (1, 4), &["two", "three"], &[2, 3])],
                "w was given version 1 by an append that began after v had been shown version 3",
            ),
            (
                vec![written("w", (1, 9), &["one", "three"], &[1, 3]), written("v", (1, 9), &["two"], &[2])],
                "w appended a batch whose events have the versions 1 and 3 (O2)",
            ),
            (with([latest("r", (10, 11), 3), latest("r", (12, 13), 1)]), "r was shown a store at version 1 after"),
            (with([latest("v", (10, 11), 1)]), "v was shown a store at version 1 after v had been shown version 3"),
            (with([load((10, 11), 1, &[1])]), "r was shown a store at version 1 after v had been shown version 3 (O6)"),
            (with([load((7, 8), 2, &[1, 2])]), "in the middle of the batch of 2 to 3 (W1)"),
            (with([latest("r", (2, 5), 3)]), "at version 3 of 3 when only 1 events can have been there"),
            (with([latest("r", (10, 11), 4)]), "at version 4 of 3 when only 3 events can have been there"),
            (with([load((10, 11), 3, &[1, 3])]), "a load of r lost version 2: after it came 3 (O5)"),
            (with([load((10, 11), 3, &[1, 2])]), "a load of r lost version 3 (O5)"),
            (with([get((5, 6), "one", None)]), "r did not find \"one\", which has version 1, after w had been shown"),
            (
                with([get((5, 6), "one", Some(recorded(2, 2, "one", "a")))]),
                "r got \"one\" as version 2, which is not what the log has",
            ),
            (with([get((2, 3), "two", Some(log()[1].clone()))]), "r got version 2 when only 1 events can have been"),
            (
                with([call("r", (10, 11), What::Revision { aggregate_id: "a".to_owned(), revision: 1 })]),
                "r was told revision 1 of \"a\", which had revision 3",
            ),
            (
                vec![
                    append("w", (1, 9), &["one"], Expected::Revision(0.into()), places(&[1], StoreOutcome::Written)),
                    append("v", (1, 9), &["two"], Expected::Revision(0.into()), places(&[2], StoreOutcome::Written)),
                    written("v", (1, 9), &["three"], &[3]),
                ],
                "w and v both won with the condition revision=0",
            ),
            (
                vec![
                    written("w", (1, 4), &["one"], &[1]),
                    append("v", (2, 9), &["two"], Expected::NoEvents, places(&[2], StoreOutcome::Written)),
                    written("v", (2, 9), &["three"], &[3]),
                ],
                "v won with the condition none at version 1, where \"a\" has revision 1",
            ),
            (
                with([append("x", (10, 11), &["x"], Expected::Revision(3.into()), conflict(3))]),
                "x was refused with a conflict on revision=3 of \"a\" that found 3, which was never so",
            ),
            (
                with([append("x", (10, 11), &["x"], Expected::Revision(0.into()), conflict(1))]),
                "that found 1, which was never so while the call lasted, from version 3 to version 3",
            ),
            (with([follows(&[1, 3])]), "a subscription of s lost version 2: after it came 3 (S1)"),
            (with([follows(&[1, 2, 2, 3])]), "a subscription of s gave version 2 twice (S1)"),
            (with([follows(&[2, 1, 3])]), "a subscription of s gave version 2 where version 1 was to come"),
            (
                vec![
                    written("w", (1, 4), &["one"], &[1]),
                    append("v", (6, 9), &["two", "gone"], Expected::Any, Appended::Unknown),
                    written("u", (6, 9), &["three"], &[3]),
                ],
                "v dropped an append of 2 events, of which the versions [2] are there (W1, C4)",
            ),
            (
                vec![written("w", (1, 4), &["one"], &[1])],
                "version 2 is \"two\", and no append was told that it wrote it",
            ),
            (
                with([append("x", (10, 11), &["one"], Expected::Any, places(&[2], StoreOutcome::AlreadyStored))]),
                "x was told that \"one\" has version 2 and revision 2, and in the log it has version 1",
            ),
            (
                with([append("x", (2, 3), &["two"], Expected::Any, places(&[2], StoreOutcome::AlreadyStored))]),
                "x was told of version 2 when only 1 events can have been there (W2)",
            ),
        ];
        for (calls, reason) in wrong {
            let failure = check(&calls, &log()).expect_err(reason).to_string();
            assert!(failure.contains(reason), "expected {reason:?}, got {failure:?}");
        }
        let other = vec![recorded(1, 1, "one", "b")];
        let failure = check(&[written("w", (1, 4), &["one"], &[1])], &other).expect_err("other content").to_string();
        assert!(failure.contains("w was told that \"one\" is stored, and the log has other content"), "{failure}");
    }
}
