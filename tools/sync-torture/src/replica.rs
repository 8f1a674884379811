//! A replica: it appends, syncs, decides and reads, all at once.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use eventstore::{CancellationToken, Cursor, Digest, Event, Expected, RecordedEvent, Revision};
use eventstore_api::Batch;
use faulty_disk::{Calls, Fault, Trigger};
use synckit::core::{Condition, EventPlace, Rule, Why};
use synckit::{Answer, Appended, Conflict, Entry, Error, Notice, Options, Replica, Resolution, Resolver, SyncOptions};
use tokio::task::JoinSet;

use crate::child::{commands, heal, is_disk_to_blame, runtime};
use crate::disk::{DiskFault, surviving};
use crate::told::{Dump, ReplicaPlan, Stands, Told, Trying, Verdict, Written, parsed, tell};

/// Small checkpoints of the index and small segments, so that each failure may hit one.
const OPTIONS: &str = "?index_events=40&segment_size=64KiB&map_size=1MiB";

/// The directory of a replica. Its parent is watched as well: the replica makes its own name.
pub(crate) fn directory_of(place: &Path) -> PathBuf {
    place.join("replica")
}

pub(crate) fn main(plan: ReplicaPlan) {
    std::fs::create_dir_all(&plan.directory).expect("the directory can be made");
    faulty_disk::watch(&plan.directory);
    let off = plan.off.as_ref().map(|name| {
        let rule = Rule::ALL.iter().find(|rule| format!("{rule:?}") == *name);
        *rule.expect("the parent has looked")
    });
    // A rule is off for one thread.
    let has_one_thread = off.is_some() || plan.seed.is_multiple_of(2);
    let work = || runtime(has_one_thread).block_on(live(Arc::new(Life::new(plan))));
    match off {
        Some(rule) => rule.without(work),
        None => work(),
    }
}

/// A process, and what its tasks share.
struct Life {
    plan: ReplicaPlan,
    random: Mutex<fastrand::Rng>,
    next_label: AtomicU64,
    next_duplicate: AtomicU64,
    /// How many batches are still to be tried.
    left: AtomicI64,
    again: Mutex<Vec<Trying>>,
    /// The ids of each batch that was acknowledged here.
    acknowledged: Mutex<Vec<Vec<String>>>,
    /// The ids of batches that somebody decided to take back.
    taken_back: Mutex<HashSet<String>>,
    /// Cancelled when the replica has to be opened again.
    reopen: Mutex<CancellationToken>,
    /// Whether the replica was stopped, and the process went on.
    goes_on: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a task of a replica ends.
enum Ending {
    /// All is done.
    Done,
    /// The replica has to be opened again.
    Reopen,
}

async fn live(life: Arc<Life>) {
    let plan = &life.plan;
    let mut commands = commands();
    tokio::spawn(heal(plan.fault));
    if let Some(fault) = plan.fault.filter(|fault| fault.is_early) {
        fault.arm();
    }
    let mut is_first = true;
    loop {
        let options = Options::new(directory_of(&plan.directory)).hub(&plan.hub).small_files(OPTIONS);
        let replica = match options.open().await {
            Ok(replica) => replica,
            Err(_) if life.is_stopped() => {
                life.go_on();
                continue;
            }
            Err(error) => {
                if !life.excuses("the replica does not open", &error) {
                    return;
                }
                faulty_disk::disarm();
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        let status = replica.status().await;
        match status {
            Ok(status) => tell(&Told::Opened { histories: status.histories_before }),
            Err(error) => _ = life.excuses("the replica has no status", &error),
        }
        if let Some(fault) = plan.fault.filter(|fault| is_first && !fault.is_early) {
            fault.arm();
        }
        is_first = false;
        let reopen = CancellationToken::new();
        *lock(&life.reopen) = reopen.clone();
        let mut tasks = JoinSet::new();
        if plan.batches.is_some() {
            life.begin(&replica, &mut tasks);
        }
        let stops = loop {
            tokio::select! {
                command = commands.recv() => match command.as_deref() {
                    Some("sync") => tell(&life.sync(&replica).await),
                    Some("dump") => life.dump(&replica).await,
                    _ => break true,
                },
                () = reopen.cancelled() => break false,
                () = life.stopped() => break false,
                ended = tasks.join_next(), if !tasks.is_empty() => {
                    if let Some(Err(error)) = ended {
                        tell(&Told::Wrong(format!("a task ended: {error}")));
                    }
                }
            }
        };
        tasks.shutdown().await;
        let closed = replica.close().await;
        if let Err(error) = closed {
            life.excuses("the replica does not close", &error);
        }
        if stops {
            return;
        }
        match life.is_stopped() {
            true => life.go_on(),
            false => faulty_disk::disarm(),
        }
    }
}

impl Life {
    fn new(plan: ReplicaPlan) -> Self {
        Life {
            random: Mutex::new(fastrand::Rng::with_seed(plan.seed)),
            next_label: AtomicU64::new(0),
            next_duplicate: AtomicU64::new(0),
            left: AtomicI64::new(plan.batches.unwrap_or_default().into()),
            again: Mutex::new(plan.again.clone()),
            acknowledged: Mutex::new(Vec::new()),
            taken_back: Mutex::new(HashSet::new()),
            reopen: Mutex::new(CancellationToken::new()),
            goes_on: AtomicBool::new(false),
            plan,
        }
    }

    /// Whether the replica was stopped, and nothing that it does reaches the disk.
    fn is_stopped(&self) -> bool {
        self.plan.fault.is_some_and(DiskFault::stops) && !self.goes_on.load(Ordering::Relaxed) && faulty_disk::fired()
    }

    /// Waits until the replica is stopped.
    async fn stopped(&self) {
        while !self.is_stopped() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// What was stopped is closed, as far as it could be. From here on the disk works and excuses nothing: the replica has to
    /// open, and a few more batches are tried before the power is cut.
    fn go_on(&self) {
        tell(&Told::Fired);
        faulty_disk::arm(Trigger { calls: Calls::ALL, nth: u64::MAX }, Fault::KillBefore);
        self.goes_on.store(true, Ordering::Relaxed);
        self.left.store(self.random().i64(1..10), Ordering::Relaxed);
    }

    fn random(&self) -> fastrand::Rng {
        lock(&self.random).fork()
    }

    /// Tells of an error that the disk cannot excuse, and returns whether it can.
    fn excuses(&self, what: &str, error: &Error) -> bool {
        let is_excused = is_disk_to_blame(self.plan.fault);
        match is_excused {
            true => tell(&Told::Failed { code: error.code().to_owned() }),
            false => tell(&Told::Wrong(format!("{what}: {error:?}"))),
        }
        is_excused
    }

    /// What an error of the replica's own files leads to.
    fn failed(&self, what: &str, error: &Error) -> Ending {
        if self.excuses(what, error) {
            let reopen = lock(&self.reopen).clone();
            if matches!(error.code(), "fenced" | "outcome_unknown" | "closed") {
                reopen.cancel();
                return Ending::Reopen;
            }
        }
        Ending::Done
    }

    fn begin(self: &Arc<Self>, replica: &Replica, tasks: &mut JoinSet<()>) {
        for _ in 0..2 {
            let (life, replica) = (self.clone(), replica.clone());
            tasks.spawn(async move { life.append(&replica).await });
        }
        // What reaches the hub cannot be lost any more. So sometimes nothing does, from a stop to the power cut.
        let is_offline = self.goes_on.load(Ordering::Relaxed) && self.plan.seed % 4 < 2;
        if !is_offline {
            let (life, own) = (self.clone(), replica.clone());
            tasks.spawn(async move { life.follow_hub(&own).await });
        }
        let (life, own) = (self.clone(), replica.clone());
        tasks.spawn(async move { life.read(&own).await });
        let (life, own) = (self.clone(), replica.clone());
        tasks.spawn(async move { life.listen(&own).await });
    }

    // Appending.

    async fn append(self: &Arc<Self>, replica: &Replica) {
        let mut random = self.random();
        loop {
            let again = lock(&self.again).pop();
            let ending = match again {
                Some(trying) => {
                    let batch = Batch::new(trying.events.iter().map(Written::event).collect());
                    self.attempt(trying, replica.append(batch)).await
                }
                None => {
                    if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
                        break;
                    }
                    tokio::time::sleep(Duration::from_micros(random.u64(..4_000))).await;
                    self.append_one(replica, &mut random).await
                }
            };
            if matches!(ending, Ending::Reopen) {
                return;
            }
        }
        // The last one.
        if self.left.load(Ordering::Relaxed) > -2 {
            return;
        }
        let has_gone_on = self.goes_on.load(Ordering::Relaxed) || is_disk_to_blame(self.plan.fault);
        let Some(cut) = self.plan.fault.and_then(|fault| fault.cut).filter(|_| has_gone_on) else {
            return tell(&Told::Done);
        };
        if self.plan.seed % 4 == 2 {
            let once = async { replica.sync_once(&self.options(replica)).await };
            let _ = tokio::time::timeout(Duration::from_millis(random.u64(1..200)), once).await;
        }
        faulty_disk::cut_power(surviving(cut));
    }

    fn label(&self) -> String {
        format!("{}-{}", self.plan.label, self.next_label.fetch_add(1, Ordering::Relaxed))
    }

    fn events(&self, random: &mut fastrand::Rng, label: &str, aggregates: &[String]) -> Vec<Written> {
        let of = [1, 1, 2, 3, 4][random.usize(..5)];
        let pad = "x".repeat(random.usize(..200));
        let written = |at: usize| Written {
            id: format!("{label}.{at}of{of}"),
            aggregate: aggregates[at % aggregates.len()].clone(),
            data: format!(r#"{{"of":"{label}","at":{at},"pad":"{pad}"}}"#),
        };
        (0..of).map(written).collect()
    }

    async fn append_one(&self, replica: &Replica, random: &mut fastrand::Rng) -> Ending {
        let label = self.label();
        let round = self.plan.round;
        let aggregate = |random: &mut fastrand::Rng| format!("r{round}-{}", random.u8(..8));
        let (one, other) = (aggregate(random), aggregate(random));
        let kind = random.u8(..100);
        let (events, stands, append) = match kind {
            0..40 => {
                let events = self.events(random, &label, &[one, other]);
                (events, Stands::Any, replica.append(batch_of(&[])))
            }
            40..78 => {
                let loaded = match replica.load().aggregate(&*one).await {
                    Ok(loaded) => loaded,
                    Err(error) => return self.failed("a load", &error),
                };
                let events = self.events(random, &label, std::slice::from_ref(&one));
                let append = replica.append(batch_of(&events)).basis(&loaded.basis);
                (events, Stands::Aggregate(one, ids(&loaded.entries)), append)
            }
            78..82 => {
                let loaded = match replica.load().await {
                    Ok(loaded) => loaded,
                    Err(error) => return self.failed("a load", &error),
                };
                let events = self.events(random, &label, &[one, other]);
                let append = replica.append(batch_of(&events)).basis(&loaded.basis);
                (events, Stands::Store(ids(&loaded.entries)), append)
            }
            82..88 => {
                let new = format!("n{round}-{}", random.u8(..60));
                let events = self.events(random, &label, std::slice::from_ref(&new));
                let append = replica.append(batch_of(&events)).expected(Expected::NoEvents);
                (events, Stands::Aggregate(new, Vec::new()), append)
            }
            // Where the history may change, so may what has a revision.
            88..92 if !self.plan.accepts => {
                let loaded = match replica.load().aggregate(&*one).await {
                    Ok(loaded) => loaded,
                    Err(error) => return self.failed("a load", &error),
                };
                let confirmed: Vec<_> = loaded.entries.into_iter().filter(is_confirmed).collect();
                let revision = Revision::new(confirmed.len() as u64);
                let events = self.events(random, &label, std::slice::from_ref(&one));
                let append = replica.append(batch_of(&events)).expected(Expected::Revision(revision));
                (events, Stands::Aggregate(one, ids(&confirmed)), append)
            }
            92..96 => {
                let events = self.events(random, &label, std::slice::from_ref(&one));
                let append = replica.append(batch_of(&events)).expected(Expected::Exists);
                (events, Stands::Exists(one), append)
            }
            // Somebody else has the same id with other content.
            _ => {
                let number = self.next_duplicate.fetch_add(1, Ordering::Relaxed);
                let mut events = self.events(random, &label, &[one]);
                events.truncate(1);
                events[0].id = format!("x{round}-{}-{number}", self.plan.turn);
                (events, Stands::Any, replica.append(batch_of(&[])))
            }
        };
        let append = match &stands {
            Stands::Any => replica.append(batch_of(&events)),
            _ => append,
        };
        let all: Vec<_> = events.iter().map(|event| event.id.clone()).collect();
        let trying = Trying { label, events, stands };
        let is_duplicate = parsed(&all[0]).is_none();
        if is_duplicate || random.u8(..30) > 0 {
            return self.attempt(trying, append).await;
        }
        // An append may be repeated, and sometimes one is.
        let again = replica.append(batch_of(&trying.events));
        let mut second = trying.clone();
        second.stands = Stands::Any;
        let ending = self.attempt(trying, append).await;
        let is_there = lock(&self.acknowledged).contains(&all);
        if matches!(ending, Ending::Reopen) || !is_there {
            return ending;
        }
        match again.await {
            Ok(Appended { batch: None, .. }) | Err(Error::Rejected { .. }) => Ending::Done,
            // It was dropped or replaced meanwhile, or another has the id.
            other if all.iter().any(|id| lock(&self.taken_back).contains(id)) => {
                tell(&Told::Trying(second.clone()));
                self.answered(second, all, other)
            }
            Ok(other) => {
                tell(&Told::Wrong(format!("{all:?} was appended a second time, as {other:?}")));
                Ending::Done
            }
            Err(error) => self.failed("a repeated append", &error),
        }
    }

    async fn attempt(&self, trying: Trying, append: synckit::Append) -> Ending {
        let ids: Vec<_> = trying.events.iter().map(|event| event.id.clone()).collect();
        tell(&Told::Trying(trying.clone()));
        let appended = append.await;
        self.answered(trying, ids, appended)
    }

    fn answered(&self, trying: Trying, ids: Vec<String>, appended: synckit::Result<Appended>) -> Ending {
        let label = trying.label;
        match appended {
            Ok(appended) => {
                let number = appended.batch.map(|number| number.0);
                tell(&Told::Acknowledged { label, number, is_durable: true });
                lock(&self.acknowledged).push(ids);
                Ending::Done
            }
            Err(error) => {
                let code = error.code().to_owned();
                match &error {
                    Error::Conflict | Error::PendingInScope | Error::Duplicate { .. } | Error::Rejected { .. } => {
                        tell(&Told::Refused { label, code });
                        Ending::Done
                    }
                    Error::Store(eventstore::Error::Full { .. } | eventstore::Error::Fenced { .. }) => {
                        tell(&Told::Refused { label, code });
                        self.failed("an append", &error)
                    }
                    _ => {
                        tell(&Told::Unknown { label, code });
                        self.failed("an append", &error)
                    }
                }
            }
        }
    }

    // Syncing.

    fn options(self: &Arc<Self>, replica: &Replica) -> SyncOptions {
        let (life, replica) = (self.clone(), replica.clone());
        let mut options = SyncOptions::new().resolver(Deciding { life, replica });
        if self.plan.accepts {
            options = options.accept_history();
        }
        options
    }

    async fn follow_hub(self: &Arc<Self>, replica: &Replica) {
        let mut random = self.random();
        loop {
            let mut options = self.options(replica);
            // Connections that stall are given up.
            options.timeout = Duration::from_millis(random.u64(50..400));
            options.skip_waiting = random.bool();
            let for_long = Duration::from_millis(random.u64(1..400));
            let done = match random.u8(..4) {
                // It is dropped at any moment.
                0 => tokio::time::timeout(for_long, replica.run(&options)).await.unwrap_or(Ok(())),
                1 => {
                    let once = async { replica.sync_once(&options).await.map(|_| ()) };
                    tokio::time::timeout(for_long, once).await.unwrap_or(Ok(()))
                }
                _ => {
                    let stop = options.stop.clone();
                    let stopping = async {
                        tokio::time::sleep(for_long).await;
                        stop.cancel();
                    };
                    let (done, ()) = tokio::join!(replica.run(&options), stopping);
                    done
                }
            };
            match done {
                Ok(()) => {}
                Err(error) if error.is_offline() => {}
                Err(error) => {
                    if matches!(self.failed("a sync", &error), Ending::Reopen) {
                        return;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(random.u64(..10))).await;
        }
    }

    /// The answer to `sync`: one round of it, with nothing in the way.
    async fn sync(self: &Arc<Self>, replica: &Replica) -> Told {
        let synced = replica.sync_once(&self.options(replica)).await;
        let error = synced.err().map(|error| {
            if !error.is_offline() {
                self.failed("a sync without faults", &error);
            }
            error.to_string()
        });
        match replica.status().await {
            Ok(status) => Told::Synced {
                version: status.confirmed.get(),
                digest: status.digest.to_string(),
                pending: status.pending,
                histories: status.histories_before,
                error,
            },
            Err(error) => Told::Wrong(format!("the replica has no status: {error:?}")),
        }
    }

    // Reading.

    async fn read(&self, replica: &Replica) {
        let mut random = self.random();
        loop {
            tokio::time::sleep(Duration::from_millis(random.u64(5..80))).await;
            let acknowledged = lock(&self.acknowledged).clone();
            let entries = match replica.load().await {
                Ok(loaded) => loaded.entries,
                Err(error) => match self.failed("a load", &error) {
                    Ending::Reopen => return,
                    Ending::Done => continue,
                },
            };
            let place = match shown(&entries) {
                Ok(place) => place,
                Err(what) => return tell(&Told::Wrong(what)),
            };
            let there: HashSet<&str> = entries.iter().map(|entry| entry.event().id()).collect();
            let missing = {
                let taken_back = lock(&self.taken_back);
                let is_missing = |id: &&String| !there.contains(id.as_str()) && !taken_back.contains(*id);
                acknowledged.iter().flatten().find(is_missing)
            };
            if let Some(id) = missing {
                return tell(&Told::Wrong(format!("the own event {id} was acknowledged, and is not shown")));
            }
            if random.u8(..20) == 0
                && let Some(rejected) = replica.rejected().first()
            {
                let ids = rejected.events.iter().map(|event| event.id().to_owned()).collect();
                tell(&Told::Deleting { ids });
                if let Err(error) = replica.delete_rejected(rejected.number).await
                    && matches!(self.failed("deleting a batch", &error), Ending::Reopen)
                {
                    return;
                }
            }
            tell(&Told::Place { version: place.0, digest: place.1.to_string() });
        }
    }

    /// Follows what the replica tells, which has to come to what it shows.
    async fn listen(&self, replica: &Replica) {
        'histories: loop {
            let mut notices = replica.subscribe(Cursor::START);
            let (mut version, mut pending) = (0, HashMap::new());
            loop {
                match notices.next().await {
                    Ok(Notice::Confirmed { event, was }) => {
                        version += 1;
                        if event.version.get() != version {
                            let found = event.version;
                            return tell(&Told::Wrong(format!("version {found} is told where {version} comes")));
                        }
                        let before = pending.remove(event.event.id());
                        if before != was {
                            let id = event.event.id();
                            let what = format!("{id} is told as confirmed, was {was:?}, and was told as {before:?}");
                            return tell(&Told::Wrong(what));
                        }
                    }
                    Ok(Notice::Pending(event)) => {
                        let place = EventPlace::Pending(event.batch, event.index);
                        pending.insert(event.event.id().to_owned(), place);
                    }
                    Ok(Notice::Rejected { batch, .. } | Notice::Dropped { batch } | Notice::Replaced { batch }) => {
                        pending.retain(|_, place| !matches!(place, EventPlace::Pending(of, _) if *of == batch))
                    }
                    Ok(_) => {}
                    Err(Error::Store(eventstore::Error::HistoryDiverged { .. })) if self.plan.accepts => {
                        continue 'histories;
                    }
                    Err(error) => {
                        self.failed("a subscription", &error);
                        return;
                    }
                }
            }
        }
    }

    async fn dump(&self, replica: &Replica) {
        let entries = match replica.load().await {
            Ok(loaded) => loaded.entries,
            Err(error) => return tell(&Told::Wrong(format!("a load without faults: {error:?}"))),
        };
        let (version, digest) = match shown(&entries) {
            Ok(place) => place,
            Err(what) => return tell(&Told::Wrong(what)),
        };
        let verified = match replica.confirmed().verify().await {
            Ok(verified) => verified.findings,
            Err(error) => return tell(&Told::Wrong(format!("the confirmed events are not verified: {error:?}"))),
        };
        let rejected = replica.rejected().into_iter().map(|batch| {
            let ids = batch.events.iter().map(|event| event.id().to_owned()).collect();
            (ids, batch.reason().unwrap_or_default().to_owned())
        });
        let confirmed = entries.iter().filter_map(|entry| match entry {
            Entry::Confirmed(recorded) => Some(recorded),
            Entry::Pending(_) => None,
        });
        tell(&Told::Dump(Dump {
            version,
            digest: digest.to_string(),
            times: times(confirmed),
            pending: entries
                .iter()
                .filter(|entry| !is_confirmed(entry))
                .map(|entry| entry.event().id().to_owned())
                .collect(),
            rejected: rejected.collect(),
            findings: verified.iter().map(|finding| format!("{finding:?}")).collect(),
        }));
    }
}

/// A hash of the times at which these events were recorded.
pub(crate) fn times<'events>(events: impl Iterator<Item = &'events RecordedEvent>) -> u64 {
    let mut hasher = DefaultHasher::new();
    events.for_each(|event| event.recorded_at.hash(&mut hasher));
    hasher.finish()
}

fn batch_of(events: &[Written]) -> Batch {
    Batch::new(events.iter().map(Written::event).collect())
}

fn ids(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| entry.event().id().to_owned()).collect()
}

fn is_confirmed(entry: &Entry) -> bool {
    matches!(entry, Entry::Confirmed(_))
}

/// Looks whether what is shown fits together, and returns the place behind the confirmed events.
fn shown(entries: &[Entry]) -> Result<(u64, Digest), String> {
    let (mut version, mut digest, mut revisions) = (0, Digest::EMPTY, HashMap::<&str, u64>::new());
    let (mut known, mut before) = (HashSet::new(), None::<&Entry>);
    for entry in entries {
        let id = entry.event().id();
        if !known.insert(id) {
            return Err(format!("{id} is shown twice"));
        }
        if let Entry::Confirmed(recorded) = entry {
            if before.is_some_and(|before| !is_confirmed(before)) {
                return Err(format!("{id} is confirmed, and shown behind what is pending"));
            }
            version += 1;
            let revision = revisions.entry(recorded.event.aggregate_id()).or_default();
            *revision += 1;
            if (recorded.version.get(), recorded.revision.get()) != (version, *revision) {
                let (found, at) = (recorded.version, recorded.revision);
                return Err(format!("{id} has version {found} and revision {at}, and {version} and {revision} come"));
            }
            digest = digest.chain(recorded);
        }
        follows(before, entry)?;
        before = Some(entry);
    }
    match before {
        Some(last) if !is_last(last) => Err(format!("{} is shown, and its batch is not whole", last.event().id())),
        _ => Ok((version, digest)),
    }
}

fn is_last(entry: &Entry) -> bool {
    parsed(entry.event().id()).is_none_or(|(_, at, of)| at + 1 == of)
}

/// Batches are whole, and nothing stands between their events.
fn follows(before: Option<&Entry>, entry: &Entry) -> Result<(), String> {
    let id = entry.event().id();
    let wants = match parsed(id) {
        Some((label, at @ 1.., of)) => Some(format!("{label}.{}of{of}", at - 1)),
        _ => None,
    };
    let has = before.filter(|before| !is_last(before));
    let is_same_part = has.is_none_or(|has| is_confirmed(has) == is_confirmed(entry));
    match (has.map(|has| has.event().id()), wants) {
        (None, None) => Ok(()),
        (Some(has), Some(wants)) if has == wants && is_same_part => Ok(()),
        (has, wants) => {
            Err(format!("{id} is shown behind {has:?}, and belongs behind {wants:?}: a batch is not whole"))
        }
    }
}

// Deciding.

/// Decides at random, and tells the parent before it answers.
struct Deciding {
    life: Arc<Life>,
    replica: Replica,
}

#[async_trait]
impl Resolver for Deciding {
    async fn resolve(&self, conflict: &Conflict) -> synckit::Result<Answer> {
        let (mut random, life) = (self.life.random(), &self.life);
        let is_working = life.plan.batches.is_some();
        if is_working && random.u8(..8) == 0 {
            return Ok(Resolution::Wait.into());
        }
        let view = match &conflict.condition {
            Condition::Any => Vec::new(),
            Condition::Exists(id) | Condition::Aggregate(id) => ids(&conflict.before(id).await?),
            Condition::Store => {
                let mut entries = self.replica.load().await?.entries;
                entries.retain(|entry| !matches!(entry, Entry::Pending(pending) if pending.batch >= conflict.batch));
                ids(&entries)
            }
        };
        let can_anyway = matches!(conflict.why, Why::Conflict | Why::Dependency);
        let resolution = match random.u8(..20) {
            0..11 if can_anyway => Resolution::AppendAnyway,
            0..18 if !matches!(conflict.why, Why::Refused(_)) => {
                Resolution::AppendInstead(life.instead(&conflict.events, &mut random))
            }
            18 => Resolution::Drop,
            _ => Resolution::Reject("it was decided so".to_owned()),
        };
        life.tell_decided(&conflict.events, &resolution, view);
        let takes_back = matches!(resolution, Resolution::Drop | Resolution::Reject(_));
        let mut answer = Answer::from(resolution);
        for (number, events) in &conflict.on_top {
            if takes_back && random.u8(..3) == 0 {
                let resolution = Resolution::Reject("with the one below it".to_owned());
                life.tell_decided(events, &resolution, Vec::new());
                answer = answer.on_top(*number, resolution);
            }
        }
        Ok(answer)
    }
}

impl Life {
    /// Other events, of the same aggregates.
    fn instead(&self, events: &[Event], random: &mut fastrand::Rng) -> Vec<Event> {
        let aggregates: Vec<_> = events.iter().map(|event| event.aggregate_id().to_owned()).collect();
        self.events(random, &self.label(), &aggregates).iter().map(Written::event).collect()
    }

    fn tell_decided(&self, events: &[Event], resolution: &Resolution, view: Vec<String>) {
        let ids: Vec<_> = events.iter().map(|event| event.id().to_owned()).collect();
        let verdict = match resolution {
            Resolution::AppendInstead(events) => Verdict::Instead(events.iter().map(Written::of).collect()),
            Resolution::Reject(_) => Verdict::Reject,
            Resolution::Drop => Verdict::Drop,
            _ => Verdict::Anyway,
        };
        if !matches!(verdict, Verdict::Anyway) {
            lock(&self.taken_back).extend(ids.iter().cloned());
        }
        tell(&Told::Decided { ids, verdict, view });
    }
}
