//! Checks of a store that was reopened after an incident.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use eventstore_api::{Error, Event, EventStore, EventStoreExt, LoadOptions, RecordedEvent, Version};

use super::witness::Witness;
use super::workload;
use crate::Profile;
use crate::env::Store;
use crate::events::background;
use crate::failure::{Checked, Failure};
use crate::reading::{self, pages_of, same_events};

/// All events known to the witness, by id.
pub(crate) struct Known {
    events: HashMap<String, (u64, usize, Event)>,
    sizes: HashMap<u64, usize>,
}

impl Known {
    pub(crate) fn new(witness: &Witness, events_seed: u64) -> Self {
        let mut known = Known { events: HashMap::new(), sizes: HashMap::new() };
        for &number in witness.batches.keys() {
            let events = workload::batch(events_seed, number).events;
            known.sizes.insert(number, events.len());
            for (nth, event) in events.into_iter().enumerate() {
                known.events.insert(event.id().to_owned(), (number, nth, event));
            }
        }
        known
    }

    /// The ids of acknowledged events.
    pub(crate) fn acknowledged<'k>(&'k self, witness: &'k Witness) -> impl Iterator<Item = &'k str> {
        let is_acknowledged = |number: &u64| witness.batches.get(number).is_some_and(|batch| batch.places.is_some());
        self.events.iter().filter(move |(_, (number, ..))| is_acknowledged(number)).map(|(id, _)| id.as_str())
    }

    /// The batch of an event and the event's index in it, if the event is unchanged.
    pub(crate) fn find(&self, event: &Event) -> Checked<(u64, usize)> {
        let Some((batch, nth, appended)) = self.events.get(event.id()) else {
            return Err(Failure::new(format!("an event is there that nobody appended: {:?}", event.id())));
        };
        ensure!(event == appended, "the event {:?} is not as it was appended (F3, W6): {event:?}", event.id());
        Ok((*batch, *nth))
    }
}

/// Fails unless the store agrees with the witness. Returns the number of its events and their digest.
pub(crate) async fn audit(store: &Store, profile: &Profile, witness: &Witness, known: &Known) -> Checked<(u64, u64)> {
    let all = reading::audit(store).await?;
    let latest = all.len() as u64;
    if latest < witness.seen {
        let lost =
            witness.acknowledged.iter().filter(|(version, _)| (latest + 1..=witness.seen).contains(version)).count();
        return Err(Failure::difference(
            format_args!("{lost} events that were acknowledged are lost (F2, W4)"),
            &format!("at least {} events", witness.seen),
            &format!("{latest} events"),
        ));
    }
    are_whole_batches(&all, witness, known)?;
    if let Some((before, digest)) = witness.audited.filter(|(before, _)| *before <= latest) {
        expect_eq!(digest_of(&all[..before as usize]), digest, "the first {before} events have changed (O1)");
    }
    if profile.verifies() {
        let report = store.verify(&background()).await?;
        expect_eq!(report.findings, [], "the findings of `verify` (M3)");
        expect_eq!(report.events, latest, "the events that `verify` read (M3)");
    }
    Ok((latest, digest_of(&all)))
}

/// Checks that every event was appended, no batch is there in part, and all are at their acknowledged positions.
fn are_whole_batches(all: &[RecordedEvent], witness: &Witness, known: &Known) -> Checked {
    let mut found: HashMap<u64, Vec<(u64, u64)>> = HashMap::new();
    for event in all {
        let (batch, nth) = known.find(&event.event)?;
        let places = found.entry(batch).or_default();
        expect_eq!(nth, places.len(), "the place in its batch of version {} (O2)", event.version);
        places.push((event.version.get(), event.revision.get()));
    }
    for (number, batch) in &witness.batches {
        let there = found.get(number).map_or(&[][..], Vec::as_slice);
        if let Some(places) = &batch.places {
            expect_eq!(
                there,
                places.as_slice(),
                "the versions and revisions of batch {number}, which was acknowledged"
            );
        }
        ensure!(!batch.is_refused || there.is_empty(), "batch {number} was refused, and {there:?} of it is there");
        let size = known.sizes.get(number).copied().unwrap_or_default();
        ensure!(
            there.is_empty() || there.len() == size,
            "{} of the {size} events of batch {number} are there (W1, F2)",
            there.len()
        );
        let first = there.first().map_or(0, |(version, _)| *version);
        let is_together = there.iter().zip(first..).all(|((version, _), expected)| *version == expected);
        ensure!(is_together, "the versions of batch {number} are not one after the other (O2): {there:?}");
    }
    Ok(())
}

/// A digest of versions, revisions, times and content.
pub(crate) fn digest_of(events: &[RecordedEvent]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for event in events {
        (event.version.get(), event.revision.get(), event.recorded_at).hash(&mut hasher);
        (event.event.id(), event.event.event_type(), event.event.aggregate_id()).hash(&mut hasher);
        (event.event.metadata(), event.event.data()).hash(&mut hasher);
    }
    hasher.finish()
}

/// Checks that a finished backup has the first events of the store, including all that were acknowledged before it.
pub(crate) async fn audit_backup(
    backup: &Store,
    profile: &Profile,
    of: &[RecordedEvent],
    acknowledged: u64,
    latest: Option<u64>,
) -> Checked {
    let kept = reading::audit(backup).await?;
    let count = kept.len() as u64;
    if latest.is_none() && count == 0 {
        return Ok(()); // it was interrupted, and opening it created a new store (M2)
    }
    ensure!(count >= acknowledged, "a backup has {count} events; {acknowledged} were acknowledged before it (M1)");
    if let Some(latest) = latest {
        expect_eq!(count, latest, "the number of events of a backup that was told to be done (M1)");
    }
    // A power cut may have removed events from the store that the backup has synced.
    let both = kept.len().min(of.len());
    same_events(&kept[..both], &of[..both], "the events of a backup (M1)")?;
    if profile.verifies() {
        expect_eq!(backup.verify(&background()).await?.findings, [], "the findings of `verify` in a backup (M3)");
    }
    Ok(())
}

/// Reads a store whose files were damaged: each answer must be right or report the damage. Returns how it was reported;
/// `None` if the damage had no effect.
///
/// Only safe events must be there. An unsynced event that is missing at the end looks as if the process had died before
/// it was written, which no store can distinguish from a lost end of a file.
pub(crate) async fn audit_damaged(
    store: &Store,
    profile: &Profile,
    witness: &Witness,
    known: &Known,
) -> Checked<Option<String>> {
    if profile.trusts_its_files()
        && let Some(told) = told_by_verify(store).await?
    {
        return Ok(Some(told));
    }
    let mut told = None;
    let mut wrong = Vec::new();
    let places: HashMap<_, _> = witness
        .batches
        .iter()
        .flat_map(|(number, batch)| {
            let places = batch.places.as_deref().unwrap_or_default();
            places.iter().enumerate().map(|(nth, place)| ((*number, nth), *place))
        })
        .collect();
    let mut check = |event: &RecordedEvent| -> Checked {
        let place = known.find(&event.event)?;
        if let Some(expected) = places.get(&place) {
            expect_eq!((event.version.get(), event.revision.get()), *expected, "the place of {:?}", event.event.id());
        }
        Ok(())
    };
    for options in [LoadOptions::all(), LoadOptions::all().backward()] {
        let what = format!("load {:?}", options.direction);
        let (mut next, mut count) = (Some(options), 0);
        while let Some(options) = next.take() {
            match store.load_page(&background(), &options, pages_of(16)).await {
                Ok(page) => {
                    page.events.iter().try_for_each(&mut check)?;
                    count += page.events.len() as u64;
                    next = page.next;
                }
                Err(error) => {
                    told.get_or_insert(is_told(error, &what)?);
                    count = u64::MAX;
                }
            }
        }
        if count < witness.safe {
            wrong.push(format!("{what} gives {count} events of {} and no error", witness.safe));
        }
    }
    for (id, (batch, nth, _)) in &known.events {
        match store.get(&background(), id).await {
            Ok(event) => check(&event)?,
            Err(Error::EventNotFound { .. })
                if places.get(&(*batch, *nth)).is_some_and(|(version, _)| *version <= witness.safe) =>
            {
                wrong.push(format!("`get` does not find the acknowledged event {id:?}"));
            }
            Err(Error::EventNotFound { .. }) => {}
            Err(error) => drop(told.get_or_insert(is_told(error, "get")?)),
        }
    }
    for aggregate in 0..9 {
        let mut loading = store.load_by_aggregate(&background(), format!("aggregate-{aggregate}"), Version::ZERO);
        while let Some(event) = loading.next().await {
            match event {
                Ok(event) => check(&event)?,
                Err(error) => drop(told.get_or_insert(is_told(error, "load_by_aggregate")?)),
            }
        }
    }
    if profile.verifies()
        && let Some(by) = told_by_verify(store).await?
    {
        told.get_or_insert(by);
    }
    match (wrong.first(), told) {
        (Some(wrong), None) => Err(Failure::new(format!("damage that nothing tells of (F3): {wrong}"))),
        (_, told) => Ok(told),
    }
}

/// How `verify` reports the damage, if it does.
async fn told_by_verify(store: &Store) -> Checked<Option<String>> {
    match store.verify(&background()).await {
        Ok(report) if report.is_clean() => Ok(None),
        Ok(_) => Ok(Some("verify".to_owned())),
        Err(error) => is_told(error, "verify").map(Some),
    }
}

/// Damage must be `Corrupt` or an error of the engine.
pub(crate) fn is_told(error: Error, by: &str) -> Checked<String> {
    match error {
        Error::Corrupt { .. }
        | Error::Engine { .. }
        | Error::Open { .. }
        | Error::Fenced { .. }
        | Error::Unsupported { .. } => Ok(format!("{by}: {}", error.code())),
        other => Err(Failure::difference(
            format_args!("reading damaged files with {by}"),
            "Corrupt or Engine",
            &format!("{other:?}"),
        )),
    }
}
