//! The child process: it opens the store, audits it and works on it, and is ended somewhere in between.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use eventstore_api::{
    Batch, Durability, Error, EventStore, EventStoreExt, Expected, Gc, LoadOptions, PageSize, StoreOutcome, Stored,
    Version,
};
use faulty_disk::{Calls, Fault, Trigger};

use super::audit::{Known, audit, audit_backup, audit_damaged, is_told};
use super::plan::{Incident, Kinds, Phase, Plan, Role, Unsynced, What, WrongClock};
use super::points::{Listener, Points};
use super::shortage::{self, UsedUp};
use super::witness::{Line, Witness};
use super::{listeners, workload};
use crate::Profile;
use crate::env::{Factory, Store};
use crate::events::background;
use crate::failure::{Checked, Failure};
use crate::random::Random;
use crate::reading::{load, same_events};
use crate::tasks::all_at_once;

/// The most batches of a child that is not interrupted.
const MOST_BATCHES: u64 = 500;

/// The name of the store's directory. Its backups are beside it.
pub(crate) const STORE: &str = "store";

/// The lines of its witness that the child has read.
pub(crate) const WITNESS_FILE: &str = "witness.jsonl";

/// Executes the plan in this process. Returns only if nothing ends the process before.
pub(crate) fn run(profile: &Profile, factory: &Factory, place: &Path, plan: &Plan) -> ExitCode {
    let points = Arc::new(Points::new(&plan.incident));
    // A program with its own subscriber has no points.
    match plan.role {
        Role::PanicWhenTold => listeners::install(),
        _ => drop(tracing::subscriber::set_global_default(Listener(points.clone()))),
    }
    let child = Child {
        profile: profile.clone(),
        factory: factory.clone(),
        place: place.to_owned(),
        plan: plan.clone(),
        out: Mutex::new(io::stdout()),
        points,
        next_batch: AtomicU64::new(plan.first_batch),
        is_fenced: AtomicBool::new(false),
        has_maintenance_failed: AtomicBool::new(false),
        unknown: Mutex::default(),
    };
    let mut builder = match plan.seed % 4 {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let worked = builder.worker_threads(2).enable_all().build().map_err(Failure::from).and_then(|runtime| {
        let child = Arc::new(child);
        let outcome = runtime.block_on(async {
            match plan.role {
                Role::Work => child.clone().work().await,
                Role::LookAtDamage => child.look_at_damage().await,
                Role::Hold => child.hold().await,
                Role::OpenSecond => child.open_second().await,
                Role::WorkWithWrongClock(clock) => {
                    faulty_disk::set_clock(clock.shows(profile));
                    match clock {
                        WrongClock::Before1970 if !profile.works_before_1970() => child.says_that_time_is_wrong().await,
                        _ => child.clone().work().await,
                    }
                }
                Role::RunOutOfFiles => child.run_out_of_files().await,
                Role::PanicWhenTold => child.clone().panic_when_told().await,
            }
        });
        outcome.inspect_err(|failure| child.tell(&Line::Violation { text: failure.to_string() }))
    });
    match worked {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{failure}");
            ExitCode::FAILURE
        }
    }
}

struct Child {
    profile: Profile,
    factory: Factory,
    place: PathBuf,
    plan: Plan,
    out: Mutex<io::Stdout>,
    points: Arc<Points>,
    next_batch: AtomicU64,
    /// An append had an unknown outcome or was refused by the fence. From then on all must be refused (rule F1).
    is_fenced: AtomicBool,
    has_maintenance_failed: AtomicBool,
    /// The batches with an unknown outcome.
    unknown: Mutex<Vec<u64>>,
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Child {
    /// Sends a line to the parent.
    fn tell(&self, line: &Line) {
        let mut text = serde_json::to_vec(line).expect("a line has nothing that JSON has not");
        text.push(b'\n');
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a parent there is nothing to do.
        if out.write_all(&text).and_then(|()| out.flush()).is_err() {
            std::process::exit(1);
        }
    }

    fn tell_unknown(&self, batch: u64) {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner).push(batch);
        self.tell(&Line::Unknown { batch });
    }

    fn tell_stored(&self, batch: u64, sync: bool, stored: &[Stored]) {
        let places = stored.iter().map(|stored| (stored.version.get(), stored.revision.get())).collect();
        self.tell(&Line::Stored { batch, sync, places });
    }

    /// Runs work as a phase, in which the planned incident may happen.
    async fn phase<T>(&self, phase: Phase, work: impl Future<Output = T>) -> T {
        let before: Vec<_> = Kinds::ALL.iter().map(|kinds| (*kinds, kinds.seen())).collect();
        self.tell(&Line::Began(phase));
        self.plan.incident.arm(phase);
        let output = work.await;
        if !self.is_faulty(phase) {
            faulty_disk::disarm(); // it did not happen in this phase
        } else if faulty_disk::fired() {
            self.tell(&Line::Fired);
        }
        let calls = before.into_iter().map(|(kinds, before)| (kinds, kinds.seen() - before)).collect();
        self.tell(&Line::Counted { phase, calls });
        if let Incident::Behind { phase: behind, unsynced } = self.plan.incident
            && behind == phase
        {
            faulty_disk::cut_power(unsynced.into());
        }
        output
    }

    /// Whether calls fail in this phase.
    fn is_faulty(&self, now: Phase) -> bool {
        matches!(&self.plan.incident, Incident::AtCall { phase, what, .. } if what.is_survived() && *phase == now)
    }

    /// Whether a call has failed.
    fn has_failed(&self) -> bool {
        self.plan.incident.is_fault() && faulty_disk::fired()
    }

    fn open(&self) -> impl Future<Output = Result<Store, Error>> + use<> {
        (self.factory)(self.place.join(STORE))
    }

    async fn work(self: Arc<Self>) -> Checked {
        let witness = self.read_witness()?;
        faulty_disk::watch(&self.place);
        let opened = self.phase(Phase::Opening, self.open()).await;
        if let Some(unsynced) = self.cut_after_stop() {
            return self.go_on_and_cut_power(opened.ok(), unsynced).await;
        }
        let store = match opened {
            Err(error) if self.has_failed() => {
                ensure!(
                    !matches!(error, Error::Locked { .. }),
                    "{error:?} while the disk fails, and nobody has it open"
                );
                // The disk works again, and the store opens.
                faulty_disk::disarm();
                self.end_if_planned();
                self.open().await
            }
            opened => opened,
        };
        let store = store.map_err(|error| {
            let what = format_args!("opening the store again had to succeed (F2, F4)");
            Failure::difference(what, "Ok", &format!("{error:?}"))
        })?;
        if self.is_faulty(Phase::Opening) {
            faulty_disk::disarm();
        }
        let known = Known::new(&witness, self.plan.events_seed);
        let (latest, digest) = audit(&store, &self.profile, &witness, &known).await?;
        self.audit_backups(&store, &witness).await?;
        self.tell(&Line::Audited { latest, digest });
        let store = self.clone().append_and_maintain(store, &witness).await?;
        if let Role::WorkWithWrongClock(_) = self.plan.role {
            self.copy_elsewhere(&store).await?;
        }
        self.close(store).await?;
        if let Some(unsynced) = self.cut_after_stop() {
            return self.go_on_and_cut_power(None, unsynced).await;
        }
        self.done()
    }

    /// If the store was stopped: what becomes of unsynced data in the power cut that follows.
    fn cut_after_stop(&self) -> Option<Unsynced> {
        match &self.plan.incident {
            Incident::AtCall { what: What::StopThenCut(unsynced), .. } => faulty_disk::fired().then_some(*unsynced),
            _ => None,
        }
    }

    /// Opens the store after it was stopped, appends to it, and cuts the power. The next child's audit says whether
    /// anything is missing.
    async fn go_on_and_cut_power(self: &Arc<Self>, stopped: Option<Store>, unsynced: Unsynced) -> Checked {
        if let Some(stopped) = stopped {
            // Nothing that it still does reaches the disk.
            let _ = stopped.close().await;
        }
        // The disk works again, and from here on nothing may fail.
        faulty_disk::arm(Trigger { calls: Calls::ALL, nth: u64::MAX }, Fault::KillBefore);
        self.is_fenced.store(false, Ordering::SeqCst);
        let store = self.open().await.map_err(|error| {
            let what = format_args!("opening a store that was stopped had to succeed (F2)");
            Failure::difference(what, "Ok", &format!("{error:?}"))
        })?;
        let mut random = Random::new(self.plan.seed ^ 1);
        let unknown: Arc<[u64]> = self.unknown.lock().unwrap_or_else(PoisonError::into_inner).clone().into();
        for _ in 0..=random.below(3) {
            self.append_at_once(&store, &mut random, &unknown).await?;
        }
        faulty_disk::cut_power(unsynced.into())
    }

    /// Copies everything with its times to another store, which must accept it (W7).
    async fn copy_elsewhere(&self, store: &Store) -> Checked {
        let all = load(store, LoadOptions::all()).await?;
        let place = self.place.join("copy");
        let copy = (self.factory)(place.clone()).await?;
        for part in all.chunks(100) {
            copy.store_batch(&background(), Batch::copy_of(part)).await.map_err(|error| {
                let what = format_args!("an append of what the store has recorded to another one (W7)");
                Failure::difference(what, "Ok", &format!("{error:?}"))
            })?;
        }
        let copied = load(&copy, LoadOptions::all()).await?;
        same_events(&copied, &all, "the copy of what was recorded when the clock was wrong (W7)")?;
        copy.close().await?;
        drop(copy);
        Ok(std::fs::remove_dir_all(&place)?)
    }

    /// A store that cannot work with this clock refuses to open, does not report damage, and works again when the clock
    /// is right.
    async fn says_that_time_is_wrong(&self) -> Checked {
        let mut random = Random::new(self.plan.seed);
        let refusal = match self.open().await {
            Err(refusal) => Some(refusal),
            Ok(store) => {
                let mut refusal = None;
                for _ in 0..MOST_BATCHES {
                    let number = self.next_batch.fetch_add(1, Ordering::Relaxed);
                    self.tell(&Line::Tried { batch: number });
                    let batch = workload::batch(self.plan.events_seed, number).durability(Durability::Sync);
                    match store.store_batch(&background(), batch).await {
                        Ok(stored) => self.tell_stored(number, true, &stored),
                        Err(error) => {
                            self.tell(&Line::Refused { batch: number });
                            refusal = Some(error);
                            break;
                        }
                    }
                }
                faulty_disk::set_clock(&[]);
                self.append(&store, &mut random, &[], Some(Durability::Sync)).await?;
                store.close().await?;
                refusal
            }
        };
        match refusal {
            Some(Error::Open { .. } | Error::Full { .. } | Error::Engine { .. }) => {}
            other => {
                let what =
                    format_args!("opening, or {MOST_BATCHES} appends, of a store that opts out of clocks before 1970");
                return Err(Failure::difference(what, "Open, Full or Engine", &format!("{other:?}")));
            }
        }
        faulty_disk::set_clock(&[]);
        self.open().await?.close().await?;
        self.done()
    }

    async fn run_out_of_files(&self) -> Checked {
        let witness = self.read_witness()?;
        let known = Known::new(&witness, self.plan.events_seed);
        for left in 0..shortage::MOST {
            self.tell(&Line::GoesOn);
            // First few descriptors for everything, then few after it has been opened.
            let files = UsedUp::all_but(left);
            let opened = self.open().await;
            let is_enough_for_all = match &opened {
                Ok(store) => shortage::read(store, &self.profile, &witness, &known).await?,
                Err(error) => {
                    shortage::is_no_damage(error, "opening")?;
                    false
                }
            };
            drop(files);
            drop(opened);
            let store = self.open().await?;
            let files = UsedUp::all_but(left);
            let is_enough = shortage::read(&store, &self.profile, &witness, &known).await?;
            drop(files);
            let is_read = shortage::read(&store, &self.profile, &witness, &known).await?;
            ensure!(is_read, "the store is not read when there are enough file descriptors again (M3)");
            store.close().await?;
            if is_enough && is_enough_for_all {
                break;
            }
        }
        self.done()
    }

    async fn panic_when_told(self: Arc<Self>) -> Checked {
        let witness = self.read_witness()?;
        listeners::panic(true);
        let store = match tokio::spawn(self.open()).await {
            Ok(Ok(opened)) => opened,
            _ => {
                listeners::panic(false);
                let opened = self.open().await?;
                listeners::panic(true);
                opened
            }
        };
        let appends = (0..6).map(|number| {
            let (child, store) = (self.clone(), store.clone());
            async move {
                for nth in 0..5 {
                    let (child, store) = (child.clone(), store.clone());
                    let mut random = Random::new(child.plan.seed ^ (number * 5 + nth));
                    let append = tokio::spawn(async move { child.append(&store, &mut random, &[], None).await });
                    // It may end with the panic of the listener; then its outcome is unknown.
                    append.await.unwrap_or(Ok(()))?;
                }
                Ok(())
            }
        });
        all_at_once(appends.collect::<Vec<_>>()).await?;
        for call in 0..6 {
            let (called, target) = (store.clone(), self.place.join(format!("told-{call}")));
            let call = async move {
                match call {
                    0 => called.verify(&background()).await.map(drop),
                    1 => called.run_gc(&background(), Gc::Quick).await.map(drop),
                    2 => called.run_gc(&background(), Gc::Full).await.map(drop),
                    3 => called.backup(&background(), &target).await.map(drop),
                    4 => called.load_page(&background(), &LoadOptions::all(), PageSize::LARGEST).await.map(drop),
                    _ => called.digest(&background(), Version::new(u64::MAX)).await.map(drop),
                }
            };
            // It may end in any way, but it must end.
            let _ = tokio::spawn(call).await;
        }
        listeners::panic(false);
        let fenced = store.stats(&background()).await?.fenced;
        expect_eq!(fenced, None, "why the writer is fenced after {} panics of listeners (F5)", listeners::told());
        let store = self.clone().append_and_maintain(store, &witness).await?;
        self.close(store).await?;
        self.done()
    }

    async fn look_at_damage(&self) -> Checked {
        let witness = self.read_witness()?;
        let told = match self.open().await {
            Ok(store) => {
                let known = Known::new(&witness, self.plan.events_seed);
                audit_damaged(&store, &self.profile, &witness, &known).await?
            }
            Err(error) => Some(is_told(error, "opening")?),
        };
        if let Some(told) = told {
            self.tell(&Line::Damage { told });
        }
        self.done()
    }

    /// Keeps the store open until stdin is closed.
    async fn hold(&self) -> Checked {
        let store = self.open().await?;
        self.tell(&Line::Began(Phase::Appending));
        io::copy(&mut io::stdin(), &mut io::sink())?;
        store.close().await?;
        self.done()
    }

    async fn open_second(&self) -> Checked {
        expect_err!(self.open().await, Error::Locked { .. }, "opening a store that another process has open (L2)");
        self.done()
    }

    fn done(&self) -> Checked {
        self.tell(&Line::Passed { points: self.points.passed() });
        self.tell(&Line::Done);
        Ok(())
    }

    fn read_witness(&self) -> Checked<Witness> {
        let mut witness = Witness::default();
        let text = std::fs::read_to_string(self.place.join(WITNESS_FILE)).unwrap_or_default();
        for line in text.lines() {
            match line {
                super::POWER_CUT => witness.power_was_cut(),
                line => witness.take(&serde_json::from_str(line).map_err(io::Error::from)?),
            }
        }
        Ok(witness)
    }

    async fn audit_backups(&self, store: &Store, witness: &Witness) -> Checked {
        let all = load(store, LoadOptions::all()).await?;
        for (place, (acknowledged, latest)) in &witness.backups {
            let path = self.place.join(place);
            if path.exists() || latest.is_some() {
                match (self.factory)(path.clone()).await {
                    Ok(backup) => {
                        audit_backup(&backup, &self.profile, &all, *acknowledged, *latest).await?;
                        backup.close().await?;
                    }
                    Err(error) if latest.is_some() => {
                        let what = format_args!("opening a backup that was told to be done (M1)");
                        return Err(Failure::difference(what, "Ok", &format!("{error:?}")));
                    }
                    Err(_) => {} // it was interrupted, and does not open (M2)
                }
            }
            std::fs::remove_dir_all(&path).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
            self.tell(&Line::BackupAudited { place: place.clone() });
        }
        Ok(())
    }

    /// The work: several tasks append, beside reads, garbage collections and a backup.
    async fn append_and_maintain(self: Arc<Self>, store: Store, witness: &Witness) -> Checked<Store> {
        let mut random = Random::new(self.plan.seed);
        let earlier: Vec<_> = witness.batches.iter().filter(|(_, batch)| !batch.is_refused).map(|(n, _)| *n).collect();
        let earlier: Arc<[u64]> = earlier.into();
        let follower = tokio::spawn(follow(store.clone()));
        self.phase(Phase::Appending, self.append_at_once(&store, &mut random, &earlier)).await?;
        self.heal(&store, Phase::Appending).await?;
        for phase in [Phase::Collecting, Phase::BackingUp] {
            let is_planned = self.is_about(phase);
            if !is_planned && random.below(4) > 0 {
                continue;
            }
            let mut beside = Random::new(random.below(u64::MAX));
            let work = async {
                let appending = self.append_at_once(&store, &mut beside, &earlier);
                let (appended, maintained) = tokio::join!(appending, self.maintain(&store, phase, &mut random));
                appended.and(maintained)
            };
            self.phase(phase, work).await?;
            self.heal(&store, phase).await?;
        }
        if self.is_about(Phase::Closing) {
            // Something unsynced.
            self.append(&store, &mut random, &[], Some(Durability::Buffered)).await?;
        }
        follower.abort();
        if let Ok(followed) = follower.await {
            followed?;
        }
        Ok(store)
    }

    /// Whether the incident is planned for this phase. Also true without an incident.
    fn is_about(&self, now: Phase) -> bool {
        match &self.plan.incident {
            Incident::AtCall { phase, .. } | Incident::Behind { phase, .. } => *phase == now,
            Incident::None => true,
            Incident::Kill { .. } | Incident::AtPoint { .. } => false,
        }
    }

    async fn append_at_once(self: &Arc<Self>, store: &Store, random: &mut Random, earlier: &Arc<[u64]>) -> Checked {
        let writers = 1 + random.below(6);
        let appends = (0..writers).map(|_| {
            let (child, store, earlier) = (self.clone(), store.clone(), earlier.clone());
            let mut random = Random::new(random.below(u64::MAX));
            async move {
                for _ in 0..1 + random.below(8) {
                    child.append(&store, &mut random, &earlier, None).await?;
                }
                Ok(())
            }
        });
        all_at_once(appends.collect::<Vec<_>>()).await.map(drop)
    }

    /// Appends a new batch, or one that was tried before, and reports the result.
    async fn append(
        &self,
        store: &Store,
        random: &mut Random,
        earlier: &[u64],
        durability: Option<Durability>,
    ) -> Checked {
        let was_fenced = self.is_fenced.load(Ordering::SeqCst);
        let is_repeated = !earlier.is_empty() && random.below(6) == 0;
        let number = match is_repeated {
            true => earlier[random.below(earlier.len() as u64) as usize],
            false => self.next_batch.fetch_add(1, Ordering::Relaxed),
        };
        let mut batch = workload::batch(self.plan.events_seed, number);
        batch.durability = durability.or(batch.durability);
        let sync = batch.durability != Some(Durability::Buffered);
        let aggregate_id = batch.events[0].aggregate_id().to_owned();
        let is_of_one = batch.events.iter().all(|event| event.aggregate_id() == aggregate_id);
        if is_of_one && !is_repeated && random.below(4) == 0 {
            match store.aggregate_revision(&background(), &aggregate_id).await {
                Ok(revision) => batch.expected = Expected::Revision(revision),
                Err(_) if self.has_failed() => {} // the engine may refuse reads as well (F1)
                Err(error) => return Err(error.into()),
            }
        }
        self.tell(&Line::Tried { batch: number });
        match store.store_batch(&background(), batch).await {
            Ok(stored) => {
                let is_new = |stored: &Stored| stored.outcome == StoreOutcome::Written;
                let is_written = was_fenced && stored.iter().any(is_new);
                ensure!(!is_written, "batch {number} was accepted after an unknown outcome or a fence (F1)");
                let mixed = stored.iter().any(is_new) && !stored.iter().all(is_new);
                ensure!(!mixed, "of the repeated batch {number} some events were there (W1): {stored:?}");
                self.tell_stored(number, sync, &stored);
            }
            Err(Error::VersionConflict { .. }) if !is_repeated => self.tell(&Line::Refused { batch: number }),
            Err(error) => self.failed(number, is_repeated, was_fenced, error)?,
        }
        Ok(())
    }

    /// Handles a failed append, which only a failing disk may cause.
    fn failed(&self, number: u64, is_repeated: bool, was_fenced: bool, error: Error) -> Checked {
        let what = format!("an append while {}", if self.has_failed() { "the disk fails" } else { "all is well" });
        let difference = |expected| Err(Failure::difference(format_args!("{what}"), expected, &format!("{error:?}")));
        if !self.has_failed() {
            return difference("Ok, or VersionConflict for a condition");
        }
        match &error {
            // An append that cannot be looked up may be stored since its first attempt, as far as the store knows.
            Error::OutcomeUnknown { .. } if was_fenced && error.is_retryable() => {
                return difference("Fenced, because an earlier outcome was unknown (F1)");
            }
            Error::OutcomeUnknown { .. } => {
                self.is_fenced.store(true, Ordering::SeqCst);
                self.tell_unknown(number);
            }
            Error::Fenced { .. } | Error::Full { .. } | Error::Engine { .. } => {
                self.is_fenced.fetch_or(matches!(error, Error::Fenced { .. }), Ordering::SeqCst);
                // After other errors, a repeated append may be stored since its first attempt.
                let is_unknown = is_repeated && !matches!(error, Error::Fenced { .. });
                match is_unknown {
                    true => self.tell_unknown(number),
                    false => self.tell(&Line::Refused { batch: number }),
                }
            }
            _ => return difference("OutcomeUnknown, Fenced, Full or Engine"),
        }
        Ok(())
    }

    /// After a phase in which calls may have failed: reads continue, the fence holds although the disk works again, and
    /// without a fence appends continue.
    async fn heal(self: &Arc<Self>, store: &Store, phase: Phase) -> Checked {
        if !self.is_faulty(phase) {
            return Ok(());
        }
        let has_failed = self.has_failed();
        if let Some(unsynced) = self.cut_after_stop() {
            return self.go_on_and_cut_power(Some(store.clone()), unsynced).await;
        }
        faulty_disk::disarm();
        if !has_failed {
            return Ok(());
        }
        self.end_if_planned();
        let stats = store.stats(&background()).await;
        let is_fenced = self.is_fenced.load(Ordering::SeqCst) || stats.is_ok_and(|stats| stats.fenced.is_some());
        let number = self.next_batch.fetch_add(1, Ordering::Relaxed);
        let batch = workload::batch(self.plan.events_seed, number).durability(Durability::Sync);
        self.tell(&Line::Tried { batch: number });
        let outcome = store.store_batch(&background(), batch).await;
        match (is_fenced, outcome) {
            // Also if only maintenance has seen the failure, and the engine cannot report in `stats` that it is fenced.
            (_, Err(Error::Fenced { .. })) => self.tell(&Line::Refused { batch: number }),
            // It could not be looked up.
            (true, Err(error @ Error::OutcomeUnknown { .. })) if !error.is_retryable() => {
                self.tell_unknown(number);
            }
            (true, other) => {
                let what = format_args!("an append after a failed commit, when the disk is whole again (F1)");
                return Err(Failure::difference(what, "Err(Fenced)", &format!("{other:?}")));
            }
            (false, Ok(stored)) => self.tell_stored(number, true, &stored),
            // An engine whose own work has failed may refuse later calls with its own errors.
            (false, Err(Error::OutcomeUnknown { .. })) if self.has_maintenance_failed.load(Ordering::SeqCst) => {
                self.is_fenced.store(true, Ordering::SeqCst);
                self.tell_unknown(number);
            }
            (false, Err(error)) => {
                let what = format_args!("an append when the disk is whole again and nothing was unknown (F4)");
                return Err(Failure::difference(what, "Ok", &format!("{error:?}")));
            }
        }
        match load(store, LoadOptions::all()).await {
            Ok(events) => crate::reading::is_prefix(&events),
            Err(_) => Ok(()), // the engine may refuse reads as well
        }
    }

    /// Ends the process as planned after a fault.
    fn end_if_planned(&self) {
        if let Incident::AtCall { what: What::Fail { then: Some(end), .. }, .. } = &self.plan.incident {
            end.end();
        }
    }

    async fn maintain(&self, store: &Store, phase: Phase, random: &mut Random) -> Checked {
        let outcome = match phase {
            Phase::BackingUp if self.profile.takes_backups() => {
                let place = format!("backup-{}", self.next_batch.load(Ordering::Relaxed));
                let acknowledged = store.latest_version(&background()).await?.get();
                self.tell(&Line::BackupBegan { place: place.clone(), acknowledged });
                store.backup(&background(), &self.place.join(&place)).await.map(|report| {
                    self.tell(&Line::BackedUp { place, latest: report.latest_version.get() });
                })
            }
            Phase::Collecting => {
                let gc = if random.below(3) == 0 { Gc::Quick } else { Gc::Full };
                match store.run_gc(&background(), gc).await {
                    Err(Error::Unsupported { .. }) if gc == Gc::Full => Ok(()),
                    outcome => outcome.map(drop),
                }
            }
            _ => Ok(()),
        };
        match outcome {
            Err(error) if !self.has_failed() => {
                Err(Failure::difference(format_args!("{phase:?} while all is well"), "Ok", &format!("{error:?}")))
            }
            Err(_) => {
                self.has_maintenance_failed.store(true, Ordering::SeqCst);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    async fn close(&self, store: Store) -> Checked {
        let by_dropping = self.plan.seed.is_multiple_of(3);
        let closed = self
            .phase(Phase::Closing, async {
                let closed = if by_dropping { Ok(()) } else { store.close().await };
                drop(store); // the last handle
                if closed.is_ok() && !self.has_failed() {
                    self.tell(&Line::Closed);
                }
                closed
            })
            .await;
        match closed {
            Err(error) if !self.has_failed() => {
                Err(Failure::difference(format_args!("closing while all is well (L1)"), "Ok", &format!("{error:?}")))
            }
            _ => {
                self.end_if_planned();
                Ok(())
            }
        }
    }
}

/// Follows the store until it is aborted.
async fn follow(store: Store) -> Checked {
    let mut following = store.subscribe(&background(), Version::ZERO);
    let mut version = 0;
    while let Some(event) = following.next().await {
        let Ok(event) = event else { return Ok(()) }; // closed, or the engine refuses
        version += 1;
        expect_eq!(event.version.get(), version, "the version that a subscription gives next (S1)");
    }
    Ok(())
}
