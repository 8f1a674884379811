//! What processes have told, and what has to follow from it.

use std::collections::{BTreeMap, HashMap, HashSet};

use eventstore::{Digest, RecordedEvent};

use crate::told::{Dump, Stands, Told, Trying, Verdict, Written};

/// Somebody who appends: a replica, or the hub itself.
pub(crate) type Name = String;

/// A batch that somebody has tried to append.
#[derive(Clone, Debug)]
struct Batch {
    owner: Name,
    label: String,
    /// Its events as they were appended, and those of each decision to append others instead.
    variants: Vec<Vec<Written>>,
    stands: Stands,
    /// What each decision to append it anyway, or others instead, had seen.
    views: Vec<Vec<String>>,
    /// How often it was tried, and how often the answer was that nothing was written.
    tries: u32,
    refusals: u32,
    is_acknowledged: bool,
    number: Option<u64>,
    was_decided: bool,
    /// It was dropped, or rejected and deleted: it may be gone.
    may_be_gone: bool,
    /// The hub itself appended it without a sync, or was restored since.
    may_be_lost: bool,
    /// It was tried again when it had been replaced: as a new batch, if its replica had forgotten the old one by then.
    is_anew: bool,
    /// The process that tried it last has not told an answer.
    is_open: bool,
}

/// What all processes have told, since the directories were new.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    batches: Vec<Batch>,
    by_label: HashMap<String, usize>,
    by_id: HashMap<(Name, String), usize>,
    contents: HashMap<String, HashSet<Written>>,
    numbers: HashMap<(Name, u64), usize>,
    /// The largest number of each replica, and that of its earlier processes.
    largest: HashMap<Name, (u64, u64)>,
    /// What replicas have shown since the last check.
    places: Vec<(Name, u64, String)>,
    histories: HashMap<Name, u32>,
    /// How often the hub was restored, and whether it was since the last check.
    restores: u32,
    was_restored: bool,
    /// The hub's events at the last check.
    settled: Vec<String>,
    settled_digest: Option<Digest>,
    /// Ids that every replica had confirmed at some check.
    seen_by_all: HashSet<String>,
}

/// What became of what was acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) acknowledged: u64,
    pub(crate) confirmed: u64,
    pub(crate) replaced: u64,
    pub(crate) rejected: u64,
    pub(crate) gone: u64,
    pub(crate) conditions: u64,
}

impl Witness {
    /// A process of this one begins.
    pub(crate) fn begins(&mut self, name: &str) {
        let (largest, before) = self.largest.entry(name.to_owned()).or_default();
        *before = *largest;
    }

    /// A process of this one has ended: returns what it tried without an answer, and with no condition.
    pub(crate) fn ended(&mut self, name: &str) -> Vec<Trying> {
        let mut again = Vec::new();
        for batch in self.batches.iter_mut().filter(|batch| batch.is_open && batch.owner == name) {
            batch.is_open = false;
            if batch.stands == Stands::Any {
                let Batch { label, variants, stands, .. } = &*batch;
                again.push(Trying { label: label.clone(), events: variants[0].clone(), stands: stands.clone() });
            }
        }
        again
    }

    /// The hub has an older copy of its files from now on.
    pub(crate) fn restored(&mut self) {
        self.restores += 1;
        self.was_restored = true;
        for batch in self.batches.iter_mut().filter(|batch| batch.owner == HUB) {
            batch.may_be_lost = true;
        }
    }

    /// Takes what a process has told.
    pub(crate) fn take(&mut self, name: &str, told: &Told) -> Result<(), String> {
        match told {
            Told::Trying(trying) => self.try_batch(name, trying),
            Told::Acknowledged { label, number, is_durable } => {
                let at = self.of_label(label)?;
                let batch = &mut self.batches[at];
                (batch.is_open, batch.is_acknowledged) = (false, true);
                batch.may_be_lost |= !is_durable;
                batch.is_anew |= number.is_some() && batch.tries > 1 && batch.variants.len() > 1;
                if let Some(number) = *number {
                    batch.number = Some(number);
                    let (largest, before) = self.largest.entry(name.to_owned()).or_default();
                    if number <= *before {
                        return Err(format!("{label} has the number {number}, and an earlier process had {before}"));
                    }
                    *largest = number.max(*largest);
                    if let Some(other) = self.numbers.insert((name.to_owned(), number), at).filter(|other| *other != at)
                    {
                        let other = &self.batches[other].label;
                        return Err(format!("{label} has the number {number}, which {other} had"));
                    }
                }
                Ok(())
            }
            Told::Refused { label, .. } => {
                let at = self.of_label(label)?;
                self.batches[at].is_open = false;
                self.batches[at].refusals += 1;
                Ok(())
            }
            Told::Unknown { label, .. } => {
                let at = self.of_label(label)?;
                // It stays open: another process tries it again.
                self.batches[at].is_open = true;
                Ok(())
            }
            Told::Decided { ids, verdict, view } => {
                let at = self.of_ids(name, ids)?;
                self.batches[at].was_decided = true;
                match verdict {
                    Verdict::Anyway => self.batches[at].views.push(view.clone()),
                    Verdict::Instead(events) => {
                        for event in events {
                            self.by_id.insert((name.to_owned(), event.id.clone()), at);
                            self.contents.entry(event.id.clone()).or_default().insert(event.clone());
                        }
                        self.batches[at].views.push(view.clone());
                        self.batches[at].variants.push(events.clone());
                    }
                    Verdict::Reject => {}
                    Verdict::Drop => self.batches[at].may_be_gone = true,
                }
                Ok(())
            }
            Told::Deleting { ids } => {
                let at = self.of_ids(name, ids)?;
                self.batches[at].may_be_gone = true;
                Ok(())
            }
            Told::Place { version, digest } => {
                self.places.push((name.to_owned(), *version, digest.clone()));
                Ok(())
            }
            Told::Opened { histories } | Told::Synced { histories, .. } => {
                self.histories.insert(name.to_owned(), *histories);
                match *histories <= self.restores {
                    true => Ok(()),
                    false => Err(format!(
                        "{name} accepted {histories} histories, and the hub had {} restores",
                        self.restores
                    )),
                }
            }
            Told::Wrong(what) => Err(format!("{name}: {what}")),
            Told::Serves(_) | Told::Fired | Told::Failed { .. } | Told::Done | Told::Dump(_) => Ok(()),
        }
    }

    fn try_batch(&mut self, name: &str, trying: &Trying) -> Result<(), String> {
        let Trying { label, events, stands } = trying;
        if let Some(at) = self.by_label.get(label) {
            let batch = &mut self.batches[*at];
            batch.tries += 1;
            batch.is_open = true;
            batch.is_anew |= batch.variants.len() > 1;
            // What is tried again has no condition.
            if batch.is_anew || batch.may_be_gone {
                batch.stands = Stands::Any;
            }
            return match batch.variants[0] == *events {
                true => Ok(()),
                false => Err(format!("{label} was tried with other events")),
            };
        }
        let at = self.batches.len();
        self.by_label.insert(label.clone(), at);
        for event in events {
            self.by_id.insert((name.to_owned(), event.id.clone()), at);
            self.contents.entry(event.id.clone()).or_default().insert(event.clone());
        }
        self.batches.push(Batch {
            owner: name.to_owned(),
            label: label.clone(),
            variants: vec![events.clone()],
            stands: stands.clone(),
            views: Vec::new(),
            tries: 1,
            refusals: 0,
            is_acknowledged: false,
            number: None,
            was_decided: false,
            may_be_gone: false,
            may_be_lost: false,
            is_anew: false,
            is_open: true,
        });
        Ok(())
    }

    fn of_label(&self, label: &str) -> Result<usize, String> {
        self.by_label.get(label).copied().ok_or_else(|| format!("{label} was answered, and nobody tried it"))
    }

    fn of_ids(&self, name: &str, ids: &[String]) -> Result<usize, String> {
        let found = ids.first().and_then(|id| self.by_id.get(&(name.to_owned(), id.clone())));
        found.copied().ok_or_else(|| format!("{name} has {ids:?}, which it never tried"))
    }

    /// All faults are over, and all is synced: looks whether what is there follows from what was told.
    pub(crate) fn check(&mut self, hub: &[RecordedEvent], dumps: &BTreeMap<Name, Dump>) -> Result<Counts, String> {
        let digests = digests(hub)?;
        let log = Log::new(hub)?;
        self.check_contents(&log)?;
        self.check_history(hub, &digests)?;
        self.check_replicas(hub, &digests, dumps)?;
        let counts = self.check_batches(&log, dumps)?;
        self.settled = hub.iter().map(|recorded| recorded.event.id().to_owned()).collect();
        self.settled_digest = digests.last().copied();
        self.seen_by_all.extend(self.settled.iter().cloned());
        self.places.clear();
        self.was_restored = false;
        Ok(counts)
    }

    /// Nobody has appended anything else.
    fn check_contents(&self, log: &Log<'_>) -> Result<(), String> {
        for (written, _) in &log.events {
            if !self.contents.get(&written.id).is_some_and(|contents| contents.contains(written)) {
                return Err(format!("nobody has appended {written:?}, which the hub has"));
            }
        }
        Ok(())
    }

    /// What was there is there, in its order, and what replicas have shown was always the beginning of it.
    fn check_history(&self, hub: &[RecordedEvent], digests: &[Digest]) -> Result<(), String> {
        if self.was_restored {
            return Ok(());
        }
        let len = self.settled.len();
        if self.settled_digest.is_some_and(|settled| digests.get(len) != Some(&settled)) {
            let changed = self.settled.iter().zip(hub).find(|(id, recorded)| **id != recorded.event.id());
            return Err(format!("the hub's first {len} events are not those that it had: {changed:?}"));
        }
        for (name, version, digest) in &self.places {
            let found = digests.get(*version as usize).map(Digest::to_string);
            if found.as_ref() != Some(digest) {
                return Err(format!(
                    "{name} has shown {version} events with the digest {digest}, and the hub has {found:?}"
                ));
            }
        }
        Ok(())
    }

    fn check_replicas(
        &self,
        hub: &[RecordedEvent],
        digests: &[Digest],
        dumps: &BTreeMap<Name, Dump>,
    ) -> Result<(), String> {
        let (version, digest) = (hub.len() as u64, digests[hub.len()].to_string());
        let times = crate::replica::times(hub.iter());
        for (name, dump) in dumps {
            if (dump.version, &dump.digest) != (version, &digest) {
                let (own, other) = (dump.version, &dump.digest);
                return Err(format!(
                    "{name} shows {own} events with the digest {other}, and the hub has {version}, {digest}"
                ));
            }
            // What two histories have in common keeps the times that it was confirmed with first.
            if self.restores == 0 && dump.times != times {
                return Err(format!("{name} has other times of recording than the hub"));
            }
            if let Some(id) = dump.pending.first() {
                return Err(format!("{name} has {id} pending, and all was synced"));
            }
            if let Some(finding) = dump.findings.first() {
                return Err(format!("the confirmed events of {name} are not sound: {finding}"));
            }
            if let Some((ids, _)) = dump.rejected.iter().find(|(_, reason)| reason.is_empty()) {
                return Err(format!("{name} has rejected {ids:?} without a reason"));
            }
        }
        Ok(())
    }

    fn check_batches(&self, log: &Log<'_>, dumps: &BTreeMap<Name, Dump>) -> Result<Counts, String> {
        let mut counts = Counts::default();
        let mut rejected = HashSet::new();
        for (name, dump) in dumps {
            for (ids, _) in &dump.rejected {
                rejected.insert(self.of_ids(name, ids)?);
            }
        }
        for (at, batch) in self.batches.iter().enumerate() {
            let Batch { owner, label, .. } = batch;
            let mut there = Vec::new();
            for (variant, events) in batch.variants.iter().enumerate() {
                if let Some(place) = log.place_of(events).map_err(|what| format!("{label} of {owner}: {what}"))? {
                    there.push((variant, place));
                }
            }
            if there.len() > 1 && !batch.is_anew {
                return Err(format!("{label} of {owner} is at the hub as it was, and as it was decided later"));
            }
            let place = there.pop();
            if place.is_some() && batch.tries == batch.refusals {
                return Err(format!("{label} of {owner} was refused, and is at the hub"));
            }
            if place.is_some() && rejected.contains(&at) && !batch.is_anew {
                return Err(format!("{label} of {owner} is at the hub, and its replica has it as rejected"));
            }
            if let Some((_, place)) = place {
                self.check_condition(batch, place, log)?;
                counts.conditions += u64::from(batch.stands != Stands::Any);
            }
            if !batch.is_acknowledged {
                continue;
            }
            counts.acknowledged += 1;
            match place {
                Some((0, _)) => counts.confirmed += 1,
                Some(_) => counts.replaced += 1,
                None if rejected.contains(&at) => counts.rejected += 1,
                None if batch.may_be_gone || batch.may_be_lost => counts.gone += 1,
                None => return Err(format!("{label} of {owner} was acknowledged, and is LOST: {batch:?}")),
            }
        }
        Ok(counts)
    }

    /// What the batch stands on is there, and in its scope nothing else but own earlier events, or a decision has seen it.
    fn check_condition(&self, batch: &Batch, place: usize, log: &Log<'_>) -> Result<(), String> {
        let (aggregate, seen) = match &batch.stands {
            Stands::Any => return Ok(()),
            Stands::Exists(aggregate) => {
                let is_there = log.aggregates.get(aggregate.as_str()).is_some_and(|places| places[0] < place);
                // What goes with a restored hub may be what there was of it.
                return match is_there || batch.was_decided || self.restores > 0 {
                    true => Ok(()),
                    false => {
                        Err(format!("{} asked for an event of {aggregate}, and there is none before it", batch.label))
                    }
                };
            }
            Stands::Aggregate(aggregate, seen) => (Some(aggregate.as_str()), seen),
            Stands::Store(seen) => (None, seen),
        };
        let mut why = String::new();
        for view in std::iter::once(seen).chain(&batch.views) {
            let known: HashSet<&str> = view.iter().map(String::as_str).collect();
            let unseen = log.before(place, aggregate).find(|at| {
                let written = &log.events[*at].0;
                !known.contains(&*written.id) && !self.is_own_earlier(batch, written)
            });
            let is_own = |id: &str| batch.variants.iter().flatten().any(|event| event.id == id);
            let is_missing = |id: &&str| !is_own(id) && log.ids.get(*id).is_none_or(|at| *at >= place);
            let missing = known.iter().copied().find(is_missing);
            match (unseen, missing) {
                (None, None) => return Ok(()),
                (Some(at), _) => why += &format!("; it had not seen {}", log.events[at].0.id),
                (None, Some(id)) => why += &format!("; it had seen {id}, which is not before it"),
            }
        }
        Err(format!("the condition of {} of {} does not hold at version {}{why}", batch.label, batch.owner, place + 1))
    }

    fn is_own_earlier(&self, batch: &Batch, written: &Written) -> bool {
        let Some(other) = self.by_id.get(&(batch.owner.clone(), written.id.clone())) else { return false };
        let other = &self.batches[*other];
        let is_earlier = other.number.is_none_or(|other| batch.number.is_none_or(|number| other < number));
        is_earlier && other.variants.iter().flatten().any(|own| own == written)
    }

    /// What every replica had confirmed, and the hub has lost.
    pub(crate) fn lost(&self) -> Vec<&str> {
        let there: HashSet<&str> = self.settled.iter().map(String::as_str).collect();
        self.seen_by_all.iter().map(String::as_str).filter(|id| !there.contains(id)).collect()
    }

    /// How many histories a replica has accepted.
    pub(crate) fn histories(&self, name: &str) -> u32 {
        self.histories.get(name).copied().unwrap_or_default()
    }
}

/// The name of the hub, as somebody who appends.
pub(crate) const HUB: &str = "hub";

/// The digest behind each event, and before the first. Versions and revisions have no gaps.
fn digests(hub: &[RecordedEvent]) -> Result<Vec<Digest>, String> {
    let (mut digests, mut revisions) = (vec![Digest::EMPTY], HashMap::<&str, u64>::new());
    for (recorded, version) in hub.iter().zip(1..) {
        let revision = revisions.entry(recorded.event.aggregate_id()).or_default();
        *revision += 1;
        if (recorded.version.get(), recorded.revision.get()) != (version, *revision) {
            let (found, at, id) = (recorded.version, recorded.revision, recorded.event.id());
            return Err(format!(
                "{id} has version {found} and revision {at} at the hub, and {version} and {revision} come"
            ));
        }
        digests.extend(digests.last().map(|digest| digest.chain(recorded)));
    }
    Ok(digests)
}

/// The events of the hub.
struct Log<'events> {
    events: Vec<(Written, &'events RecordedEvent)>,
    ids: HashMap<&'events str, usize>,
    aggregates: HashMap<&'events str, Vec<usize>>,
    all: Vec<usize>,
}

impl<'events> Log<'events> {
    fn new(hub: &'events [RecordedEvent]) -> Result<Self, String> {
        let (mut ids, mut aggregates) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        for (at, recorded) in hub.iter().enumerate() {
            if ids.insert(recorded.event.id(), at).is_some() {
                return Err(format!("{} is at the hub twice", recorded.event.id()));
            }
            aggregates.entry(recorded.event.aggregate_id()).or_default().push(at);
        }
        let events = hub.iter().map(|recorded| (Written::of(&recorded.event), recorded)).collect();
        Ok(Log { events, ids, aggregates, all: (0..hub.len()).collect() })
    }

    /// The place of a batch, which is there whole or not at all.
    fn place_of(&self, events: &[Written]) -> Result<Option<usize>, String> {
        let found =
            |event: &Written| self.ids.get(event.id.as_str()).copied().filter(|at| self.events[*at].0 == *event);
        let places: Vec<_> = events.iter().map(found).collect();
        let Some(first) = places.iter().flatten().min().copied() else { return Ok(None) };
        match places.iter().zip(first..).all(|(place, wanted)| *place == Some(wanted)) {
            true => Ok(Some(first)),
            false => Err(format!("it is at the hub in part or scattered, at {places:?}")),
        }
    }

    /// The places before one, of an aggregate or of all.
    fn before(&self, place: usize, aggregate: Option<&str>) -> impl Iterator<Item = usize> {
        let of = |aggregate| self.aggregates.get(aggregate).map_or(&[][..], Vec::as_slice);
        let places = aggregate.map_or(&self.all[..], of);
        places.iter().copied().take_while(move |at| *at < place)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::SystemTime;

    use eventstore::{Revision, Version};

    use super::*;

    fn written(id: &str) -> Written {
        Written { id: id.to_owned(), aggregate: "x".to_owned(), data: format!("{{\"of\":\"{id}\"}}") }
    }

    fn trying(label: &str, ids: &[&str], stands: Stands) -> Told {
        let events = ids.iter().map(|id| written(id)).collect();
        Told::Trying(Trying { label: label.to_owned(), events, stands })
    }

    fn acknowledged(label: &str, number: u64) -> Told {
        Told::Acknowledged { label: label.to_owned(), number: Some(number), is_durable: true }
    }

    fn refused(label: &str) -> Told {
        Told::Refused { label: label.to_owned(), code: "full".to_owned() }
    }

    fn of_x(ids: &[&str]) -> Stands {
        Stands::Aggregate("x".to_owned(), ids.iter().map(|id| (*id).to_owned()).collect())
    }

    fn decided(id: &str, verdict: Verdict, view: &[&str]) -> Told {
        Told::Decided { ids: vec![id.to_owned()], verdict, view: view.iter().map(|id| (*id).to_owned()).collect() }
    }

    fn recorded(events: &[Written]) -> Vec<RecordedEvent> {
        let at = |(event, at): (&Written, u64)| {
            RecordedEvent::new(Version::new(at), Revision::new(at), SystemTime::UNIX_EPOCH, event.event())
        };
        events.iter().zip(1..).map(at).collect()
    }

    fn hub(ids: &[&str]) -> Vec<RecordedEvent> {
        recorded(&ids.iter().map(|id| written(id)).collect::<Vec<_>>())
    }

    /// What a replica shows that has all of it.
    fn dump(hub: &[RecordedEvent]) -> Dump {
        let digest = hub.iter().fold(Digest::EMPTY, Digest::chain).to_string();
        Dump { version: hub.len() as u64, digest, times: crate::replica::times(hub.iter()), ..Dump::default() }
    }

    fn witness(told: &[(&str, Told)]) -> Witness {
        let mut witness = Witness::default();
        for (name, told) in told {
            witness.take(name, told).unwrap();
        }
        witness
    }

    fn check(told: &[(&str, Told)], there: &[&str]) -> Result<Counts, String> {
        let there = hub(there);
        witness(told).check(&there, &BTreeMap::from([("a".to_owned(), dump(&there))]))
    }

    #[track_caller]
    fn breaks(told: &[(&str, Told)], there: &[&str], why: &str) {
        let checked = check(told, there);
        assert!(checked.as_ref().is_err_and(|what| what.contains(why)), "{checked:?}");
    }

    #[test]
    fn what_was_acknowledged_is_there_once_whole_and_in_one_piece() {
        let told = [
            ("a", trying("1", &["1", "2"], Stands::Any)),
            ("a", acknowledged("1", 1)),
            ("b", trying("2", &["3"], Stands::Any)),
        ];
        assert_eq!(check(&told, &["1", "2", "3"]).unwrap().confirmed, 1);
        assert_eq!(check(&told, &["1", "2"]).unwrap().acknowledged, 1, "the other one was not acknowledged");
        breaks(&told, &[], "LOST");
        breaks(&told, &["1"], "in part");
        breaks(&told, &["1", "3", "2"], "scattered");
        breaks(&told, &["2", "1"], "scattered");
        breaks(&told, &["1", "2", "1"], "twice");
        breaks(&told, &["1", "2", "4"], "nobody has appended");
    }

    #[test]
    fn content_and_places_are_those_that_were_told() {
        let told = [("a", trying("1", &["1"], Stands::Any)), ("a", acknowledged("1", 1))];
        let mut witness = witness(&told);
        let other = recorded(&[Written { data: "{}".to_owned(), ..written("1") }]);
        assert!(witness.check(&other, &BTreeMap::new()).is_err_and(|what| what.contains("nobody has appended")));
        let mut gap = hub(&["1"]);
        gap[0].version = Version::new(2);
        assert!(witness.check(&gap, &BTreeMap::new()).is_err_and(|what| what.contains("version 2")));
    }

    #[test]
    fn what_was_refused_is_not_there() {
        let told = [("a", trying("1", &["1"], Stands::Any)), ("a", refused("1"))];
        check(&told, &[]).unwrap();
        breaks(&told, &["1"], "refused");
        // If it was tried twice, nobody knows which.
        let [tried, refused] = told;
        check(&[tried.clone(), tried, refused], &["1"]).unwrap();
    }

    #[test]
    fn replicas_have_what_the_hub_has() {
        let there = hub(&["1"]);
        let told = [("a", trying("1", &["1"], Stands::Any)), ("a", acknowledged("1", 1))];
        let broken = |change: &dyn Fn(&mut Dump)| {
            let mut dump = dump(&there);
            change(&mut dump);
            witness(&told).check(&there, &BTreeMap::from([("a".to_owned(), dump)])).unwrap_err()
        };
        assert!(broken(&|dump| dump.version = 0).contains("shows 0 events"));
        assert!(broken(&|dump| dump.digest = "00".repeat(32)).contains("with the digest 00"));
        assert!(broken(&|dump| dump.times += 1).contains("times"));
        assert!(broken(&|dump| dump.pending = vec!["2".to_owned()]).contains("pending"));
        assert!(broken(&|dump| dump.findings = vec!["a gap".to_owned()]).contains("not sound"));
        assert!(
            broken(&|dump| dump.rejected = vec![(vec!["1".to_owned()], String::new())]).contains("without a reason")
        );
        assert!(broken(&|dump| dump.rejected = vec![(vec!["1".to_owned()], "no".to_owned())]).contains("as rejected"));
        assert!(broken(&|dump| dump.rejected = vec![(vec!["9".to_owned()], "no".to_owned())]).contains("never tried"));
    }

    #[test]
    fn a_batch_may_be_gone_only_by_a_decision() {
        let told = |verdict| {
            [("a", trying("1", &["1"], Stands::Any)), ("a", acknowledged("1", 1)), ("a", decided("1", verdict, &[]))]
        };
        assert_eq!(check(&told(Verdict::Drop), &[]).unwrap().gone, 1);
        breaks(&told(Verdict::Reject), &[], "LOST");
        breaks(&told(Verdict::Anyway), &[], "LOST");
        let instead = told(Verdict::Instead(vec![written("2")]));
        assert_eq!(check(&instead, &["2"]).unwrap().replaced, 1);
        breaks(&instead, &[], "LOST");
        breaks(&instead, &["1", "2"], "as it was decided later");
    }

    #[test]
    fn conditions_are_about_what_was_seen() {
        let told = [
            ("b", trying("1", &["1"], Stands::Any)),
            ("b", trying("2", &["2"], Stands::Any)),
            ("a", trying("own", &["own"], Stands::Any)),
            ("a", acknowledged("own", 1)),
            ("a", trying("3", &["3"], of_x(&["1"]))),
            ("a", acknowledged("3", 2)),
        ];
        check(&told, &["1", "own", "3", "2"]).unwrap();
        breaks(&told, &["1", "2", "own", "3"], "had not seen 2");
        breaks(&told, &["own", "3", "1"], "had seen 1, which is not before");
        // A later own one is none that it had seen.
        breaks(&[told.to_vec(), vec![("a", acknowledged("own", 3))]].concat(), &["1", "own", "3"], "had not seen own");
        let anyway = [told.to_vec(), vec![("a", decided("3", Verdict::Anyway, &["1", "2"]))]].concat();
        check(&anyway, &["1", "2", "own", "3"]).unwrap();
        breaks(&anyway, &["2", "own", "3"], "had seen 1");
        let exists =
            [("b", trying("1", &["1"], Stands::Any)), ("a", trying("2", &["2"], Stands::Exists("x".to_owned())))];
        check(&exists, &["1", "2"]).unwrap();
        breaks(&exists, &["2", "1"], "there is none before it");
    }

    #[test]
    fn a_history_goes_on_unless_the_hub_is_restored() {
        let told = [("a", trying("1", &["1"], Stands::Any)), ("b", trying("2", &["2"], Stands::Any))];
        let mut witness = witness(&told);
        let digest = |ids: &[&str]| hub(ids).iter().fold(Digest::EMPTY, Digest::chain).to_string();
        let place = |ids: &[&str]| Told::Place { version: ids.len() as u64, digest: digest(ids) };
        witness.take("a", &place(&["1"])).unwrap();
        witness.check(&hub(&["1", "2"]), &BTreeMap::new()).unwrap();
        assert!(witness.check(&hub(&["2", "1"]), &BTreeMap::new()).is_err_and(|what| what.contains("first 2 events")));
        witness.take("a", &place(&["2"])).unwrap();
        assert!(
            witness.check(&hub(&["1", "2"]), &BTreeMap::new()).is_err_and(|what| what.contains("has shown 1 events"))
        );
        let histories = Told::Opened { histories: 1 };
        assert!(witness.take("a", &histories).is_err_and(|what| what.contains("0 restores")));
        witness.restored();
        witness.take("a", &histories).unwrap();
        witness.check(&hub(&["2"]), &BTreeMap::new()).unwrap();
        assert_eq!(witness.lost(), ["1"]);
        witness.take("a", &place(&["1"])).unwrap();
        assert!(witness.check(&hub(&["2"]), &BTreeMap::new()).is_err(), "once more");
    }

    #[test]
    fn numbers_are_not_used_again() {
        let mut witness = witness(&[
            ("a", trying("1", &["1"], Stands::Any)),
            ("a", acknowledged("1", 5)),
            ("a", trying("2", &["2"], Stands::Any)),
            ("a", trying("3", &["3"], Stands::Any)),
        ]);
        assert!(witness.take("a", &acknowledged("2", 5)).is_err_and(|what| what.contains("which 1 had")));
        witness.begins("a");
        assert!(witness.take("a", &acknowledged("3", 4)).is_err_and(|what| what.contains("an earlier process had 5")));
    }

    #[test]
    fn what_has_no_answer_is_tried_again_if_it_has_no_condition() {
        let mut witness = witness(&[
            ("a", trying("1", &["1"], Stands::Any)),
            ("a", trying("2", &["2"], of_x(&[]))),
            ("a", trying("3", &["3"], Stands::Any)),
            ("b", trying("4", &["4"], Stands::Any)),
            ("a", acknowledged("3", 1)),
        ]);
        let again: Vec<_> = witness.ended("a").into_iter().map(|trying| trying.label).collect();
        assert_eq!(again, ["1"]);
        assert!(witness.ended("a").is_empty(), "it is told once");
    }
}
