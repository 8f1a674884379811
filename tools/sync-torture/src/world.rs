//! A hub, its replicas, and what becomes of them, round by round.

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cutting_proxy::{Fate, Proxy};
use eventstore::Version;
use futures_util::future::{FutureExt as _, try_join_all};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Only;
use crate::disk::{DiskFault, What};
use crate::hub::address_of;
use crate::process::{End, Process};
use crate::replica::directory_of;
use crate::summary::Summary;
use crate::told::{Cut, Dump, HubPlan, ReplicaPlan, Role, Told, Trying};
use crate::witness::{HUB, Name, Witness};

/// An address at which nobody listens.
const NOWHERE: &str = "127.0.0.1:9";

/// The longest time for the faults of a round, and for what comes behind them.
const LONGEST: Duration = Duration::from_secs(300);

/// How often all replicas sync at most before all is quiet.
const PASSES: u64 = 40;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The directories of a hub and its replicas, and what their processes have told.
pub(crate) struct World {
    program: PathBuf,
    directory: PathBuf,
    off: Option<String>,
    only: Option<Only>,
    replicas: Vec<Place>,
    /// Copies of the hub's directory, taken while no process had it.
    copies: Mutex<Vec<PathBuf>>,
    witness: Mutex<Witness>,
    summary: Mutex<Summary>,
    story: Mutex<std::fs::File>,
    began: Instant,
    /// How often replicas have told something.
    progress: watch::Sender<u64>,
    lives: AtomicU64,
}

/// A replica, and its way to the hub.
struct Place {
    name: Name,
    proxy: Proxy,
    /// What its processes tried without an answer.
    again: Mutex<Vec<Trying>>,
}

/// What becomes of a process.
struct Life {
    fault: Option<DiskFault>,
    /// Of a hub.
    cut: Option<Cut>,
    /// It is killed so many microseconds after it has told so much.
    kill: Option<(u64, u64)>,
    /// It is asked to stop when it has done its work, rather than killed.
    is_stopped: bool,
    /// How long it lives on when it has done its work.
    lingers: Duration,
}

impl Life {
    fn random(random: &mut fastrand::Rng) -> Self {
        let fault = (random.u8(..100) < 55).then(|| DiskFault::random(random));
        let kill = (fault.is_none() && random.u8(..100) < 70).then(|| (random.u64(1..160), random.u64(..3_000)));
        let lingers = Duration::from_millis(random.u64(..120));
        Life { fault, cut: None, kill, is_stopped: random.u8(..4) == 0, lingers }
    }

    fn random_of_replica(random: &mut fastrand::Rng, only: Option<Only>, is_new: bool) -> Self {
        let life = Life::random(random);
        let fault = match (only, random.u8(..6)) {
            (Some(Only::Stops), _) | (None, 0) => DiskFault::random_stop(random, is_new),
            (Some(Only::FailingDisks), _) | (None, 1) => DiskFault::random_failure(random, is_new),
            (None, _) => return life,
        };
        Life { fault: Some(fault), kill: None, ..life }
    }

    fn random_of_hub(random: &mut fastrand::Rng) -> Self {
        let cut = Cut { nth: random.u64(1..6), micros: random.u64(..30_000), seed: random.u64(..) };
        match random.u8(..5) {
            0 => Life { fault: None, cut: Some(cut), kill: None, ..Life::random(random) },
            _ => Life::random(random),
        }
    }
}

impl World {
    pub(crate) async fn new(
        program: &Path,
        directory: PathBuf,
        off: Option<String>,
        only: Option<Only>,
        replicas: usize,
    ) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{} cannot be made: {error}", directory.display());
        std::fs::create_dir_all(directory.join("copies")).map_err(failed)?;
        let story = std::fs::File::create(directory.join("story.txt")).map_err(failed)?;
        let mut places = Vec::new();
        for name in ["a", "b", "c", "d", "e"].into_iter().take(replicas) {
            // Nobody is there before the hub is.
            let proxy = Proxy::start(NOWHERE).await;
            places.push(Place { name: name.to_owned(), proxy, again: Mutex::default() });
        }
        Ok(World {
            program: program.to_owned(),
            directory,
            off,
            only,
            replicas: places,
            copies: Mutex::default(),
            witness: Mutex::default(),
            summary: Mutex::default(),
            story: Mutex::new(story),
            began: Instant::now(),
            progress: watch::Sender::new(0),
            lives: AtomicU64::new(0),
        })
    }

    /// What has happened so far.
    pub(crate) fn summary(&self) -> Summary {
        let mut summary = *lock(&self.summary);
        for place in &self.replicas {
            summary.connections += place.proxy.connections().len() as u64;
            summary.cuts += (place.proxy.cuts() + place.proxy.refused()) as u64;
            summary.stalls += place.proxy.stalls() as u64;
            summary.histories += u64::from(lock(&self.witness).histories(&place.name));
        }
        summary
    }

    fn say(&self, what: &str) {
        let _ = writeln!(lock(&self.story), "{:9.3} {what}", self.began.elapsed().as_secs_f64());
    }

    fn count(&self, count: impl FnOnce(&mut Summary)) {
        count(&mut lock(&self.summary));
    }

    fn take(&self, name: &str, told: &Told) -> Result<(), String> {
        if name != HUB {
            self.progress.send_modify(|progress| *progress += 1);
        }
        match told {
            Told::Fired | Told::Failed { .. } | Told::Done | Told::Decided { .. } | Told::Wrong(_) => {
                self.say(&format!("{name} tells {told:?}"));
            }
            _ => {}
        }
        lock(&self.witness).take(name, told)
    }

    /// One round: faults, and then none, until all is quiet.
    pub(crate) async fn round(&self, round: u64, random: &mut fastrand::Rng) -> Result<(), String> {
        let has_copies = !lock(&self.copies).is_empty();
        let restores = has_copies && random.u8(..4) == 0;
        self.say(&format!("round {round}{}", if restores { ", in which the hub is restored" } else { "" }));
        let faults = tokio::time::timeout(LONGEST, self.faults(round, restores, random));
        faults.await.map_err(|_| format!("the faults did not end within {LONGEST:?}"))??;
        self.say("no more faults");
        let quiet = tokio::time::timeout(LONGEST, self.settle(round, restores, random));
        quiet.await.map_err(|_| format!("it was not quiet within {LONGEST:?}"))??;
        self.count(|summary| summary.rounds += 1);
        Ok(())
    }

    // Processes.

    fn start(&self, name: &str, role: &Role, fault: Option<DiskFault>) -> Result<Process, String> {
        self.say(&format!("{name} starts{}", fault.map_or(String::new(), |fault| format!(", with {fault:?}"))));
        self.count(|summary| summary.processes += 1);
        Process::start(&self.program, name, role, &self.directory.join(format!("{name}.log")))
    }

    /// Follows a process until it has ended. Its end begins with its life's kill, when it has done its work, or with `ends`.
    async fn follow(
        &self,
        name: &str,
        mut process: Process,
        life: &Life,
        ends: impl Future<Output = ()>,
    ) -> Result<(), String> {
        let mut ends = pin!(ends.fuse());
        let (mut count, mut is_done, mut is_bid, mut end_at) = (0, false, false, None);
        loop {
            let timer = tokio::time::sleep_until(end_at.unwrap_or_else(Instant::now));
            let told = tokio::select! {
                () = timer, if end_at.is_some() => {
                    (end_at, is_bid) = (None, true);
                    match is_done && life.is_stopped {
                        true => process.bid("stop").await,
                        false => process.kill(),
                    }
                    continue;
                }
                () = &mut ends, if !is_bid => {
                    is_done = true;
                    end_at.get_or_insert(Instant::now() + life.lingers);
                    continue;
                }
                told = process.told() => told?,
            };
            let Some(told) = told else { break };
            count += 1;
            self.take(name, &told)?;
            match told {
                Told::Serves(address) => self.replicas.iter().for_each(|place| place.proxy.lead_to(&address)),
                Told::Done if !is_bid => {
                    is_done = true;
                    end_at.get_or_insert(Instant::now() + life.lingers);
                }
                // It serves on, and appends nothing any more.
                Told::Failed { .. } if name == HUB && !is_bid => {
                    end_at.get_or_insert(Instant::now() + life.lingers);
                }
                Told::Fired if life.fault.is_some_and(|fault| fault.what == What::Full) => {
                    self.count(|summary| summary.full_disks += 1);
                }
                // It is counted when it has ended.
                Told::Fired if life.fault.is_some_and(|fault| fault.stops()) => {}
                Told::Fired => self.count(|summary| summary.failing_disks += 1),
                _ => {}
            }
            if let Some((_, micros)) = life.kill.filter(|(told, _)| *told == count && !is_bid) {
                end_at = Some(Instant::now() + Duration::from_micros(micros));
                is_done = false;
            }
        }
        let end = process.end().await?;
        self.say(&format!("{name} ended: {end:?}"));
        let is_hub = name == HUB;
        if is_hub {
            // Its port may be given to somebody else, such as the hub of another world.
            self.replicas.iter().for_each(|place| place.proxy.lead_to(NOWHERE));
        }
        match (end, life.fault) {
            (End::AtCall, _) if life.cut.is_some() => {
                self.count(|summary| *summary.power_cuts_of(is_hub) += 1);
            }
            (End::Killed, _) => self.count(|summary| *summary.kills_of(is_hub) += 1),
            (End::AtCall, Some(DiskFault { what: What::CutPower(_), .. })) => {
                self.count(|summary| *summary.power_cuts_of(is_hub) += 1);
            }
            (End::AtCall, Some(fault)) if fault.stops() => self.count(|summary| summary.stops += 1),
            (End::AtCall, Some(fault)) if fault.cut.is_some() => self.count(|summary| summary.late_cuts += 1),
            (End::AtCall, Some(fault)) if !fault.is_survived() => {
                self.count(|summary| *summary.kills_of(is_hub) += 1);
            }
            (End::AtCall, _) => return Err(format!("{name} was killed by somebody else")),
            (End::Itself, _) => {}
        }
        Ok(())
    }

    // Faults.

    async fn faults(&self, round: u64, restores: bool, random: &mut fastrand::Rng) -> Result<(), String> {
        let over = CancellationToken::new();
        let randoms: Vec<_> = self.replicas.iter().map(|_| (random.fork(), random.fork())).collect();
        let replicas = self.replicas.iter().zip(randoms).map(|(place, (of_replica, of_network))| async {
            let lives = self.live(place, round, restores, of_replica);
            tokio::select! {
                done = lives => done,
                () = trouble(&place.proxy, of_network) => Ok(()),
            }
        });
        let all = async {
            let done = try_join_all(replicas).await;
            over.cancel();
            done
        };
        let (done, hub) = tokio::join!(all, self.live_as_hub(round, restores, random.fork(), &over));
        done?;
        hub
    }

    /// The lives of a replica in a round.
    async fn live(&self, place: &Place, round: u64, accepts: bool, mut random: fastrand::Rng) -> Result<(), String> {
        let Place { name, again, .. } = place;
        for turn in 0..random.u64(1..4) {
            let is_new = (round, turn) == (0, 0);
            let life = Life::random_of_replica(&mut random, self.only, is_new);
            let batches = Some(random.u32(8..50));
            let plan = ReplicaPlan {
                turn,
                batches,
                again: std::mem::take(&mut lock(again)),
                fault: life.fault,
                ..self.plan(place, round, accepts, random.u64(..))
            };
            lock(&self.witness).begins(name);
            let process = self.start(name, &Role::Replica(plan), life.fault)?;
            self.follow(name, process, &life, std::future::pending()).await?;
            *lock(again) = lock(&self.witness).ended(name);
        }
        Ok(())
    }

    /// A replica that only does as it is bidden.
    fn plan(&self, place: &Place, round: u64, accepts: bool, seed: u64) -> ReplicaPlan {
        ReplicaPlan {
            directory: self.directory.join(&place.name),
            hub: place.proxy.url.clone(),
            seed,
            label: format!("{}{}", place.name, self.lives.fetch_add(1, Ordering::Relaxed)),
            round,
            turn: 0,
            batches: None,
            again: Vec::new(),
            accepts,
            fault: None,
            off: self.off.clone(),
        }
    }

    /// A hub with this life; without one it appends nothing.
    fn hub_plan(&self, round: u64, seed: u64, life: Option<&Life>) -> Role {
        let label = format!("h{}", self.lives.fetch_add(1, Ordering::Relaxed));
        let (fault, cut) = life.map_or((None, None), |life| (life.fault, life.cut));
        let label = life.map(|_| label);
        Role::Hub(HubPlan { directory: self.directory.join(HUB), seed, label, round, fault, cut })
    }

    /// The lives of the hub, until the round is over.
    async fn live_as_hub(
        &self,
        round: u64,
        mut restores: bool,
        mut random: fastrand::Rng,
        over: &CancellationToken,
    ) -> Result<(), String> {
        for turn in 0.. {
            let mut life = Life::random_of_hub(&mut random);
            // One that always fails at once would be no hub.
            (life.fault, life.cut) = (life.fault.filter(|_| turn < 4), life.cut.filter(|_| turn < 4));
            let target = *self.progress.borrow() + random.u64(20..500);
            let ends = async {
                let mut progress = self.progress.subscribe();
                tokio::select! {
                    _ = progress.wait_for(|progress| *progress >= target) => {}
                    () = over.cancelled() => {}
                }
            };
            let role = self.hub_plan(round, random.u64(..), Some(&life));
            let hub = self.start(HUB, &role, life.fault)?;
            self.follow(HUB, hub, &life, ends).await?;
            lock(&self.witness).ended(HUB);
            if restores && (random.bool() || over.is_cancelled()) {
                self.restore(&mut random)?;
                restores = false;
            } else if random.u8(..4) == 0 {
                self.copy()?;
            }
            if over.is_cancelled() && !restores {
                break;
            }
        }
        Ok(())
    }

    /// Copies the hub's directory, which no process has.
    fn copy(&self) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("the hub's directory cannot be copied: {error}");
        let mut copies = lock(&self.copies);
        if !self.directory.join(HUB).is_dir() {
            return Ok(());
        }
        let to = self.directory.join("copies").join(self.lives.fetch_add(1, Ordering::Relaxed).to_string());
        copy_directory(&self.directory.join(HUB), &to).map_err(failed)?;
        self.say(&format!("the hub is copied to {}", to.display()));
        copies.push(to);
        if copies.len() > 3 {
            std::fs::remove_dir_all(copies.remove(0)).map_err(failed)?;
        }
        Ok(())
    }

    /// Puts an older copy in the place of the hub's directory.
    fn restore(&self, random: &mut fastrand::Rng) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("the hub cannot be restored: {error}");
        let mut copies = lock(&self.copies);
        let at = random.usize(..copies.len());
        let hub = self.directory.join(HUB);
        std::fs::remove_dir_all(&hub).and_then(|()| copy_directory(&copies[at], &hub)).map_err(failed)?;
        self.say(&format!("the hub is restored from {}", copies[at].display()));
        // What came later is given up, and does not come back.
        copies.drain(at + 1..).try_for_each(std::fs::remove_dir_all).map_err(failed)?;
        lock(&self.witness).restored();
        self.count(|summary| summary.restores += 1);
        Ok(())
    }

    // Quiet.

    async fn settle(&self, round: u64, accepts: bool, random: &mut fastrand::Rng) -> Result<(), String> {
        let mut hub = self.start(HUB, &self.hub_plan(round, 0, None), None)?;
        let address = match hub.told().await? {
            Some(Told::Serves(address)) => address,
            told => return Err(format!("the hub does not serve: {told:?}")),
        };
        let mut replicas = Vec::new();
        for place in &self.replicas {
            place.proxy.next([]);
            place.proxy.others(Fate::Pass);
            place.proxy.refuse(false);
            place.proxy.lead_to(&address);
            place.proxy.cut_all().await;
            lock(&self.witness).begins(&place.name);
            let role = Role::Replica(self.plan(place, round, accepts, random.u64(..)));
            replicas.push((&*place.name, self.start(&place.name, &role, None)?));
        }
        let url = format!("http://{address}");
        let failed = |error: eventstore::Error| format!("the hub does not answer: {error:?}");
        let store = eventstore::open_existing(&url).await.map_err(failed)?;
        let mut pass = 0;
        loop {
            pass += 1;
            let synced = replicas.iter_mut().map(|(name, process)| self.sync(name, process));
            let synced = try_join_all(synced).await?;
            let digest = store.digest().await.map_err(failed)?.to_string();
            let is_quiet = |told: &Told| matches!(told, Told::Synced { digest: own, pending: 0, error: None, .. } if *own == digest);
            if synced.iter().all(is_quiet) {
                break;
            }
            if pass == PASSES {
                return Err(format!("it is not quiet after {pass} syncs of all; the hub has {digest}: {synced:?}"));
            }
        }
        self.count(|summary| summary.most_passes = summary.most_passes.max(pass));
        let mut dumps = BTreeMap::new();
        for (name, process) in &mut replicas {
            dumps.insert((*name).to_owned(), self.dump(name, process).await?);
        }
        let events = store.load(Version::ZERO).await.map_err(failed)?;
        let verified = store.verify().await.map_err(failed)?;
        if let Some(finding) = verified.findings.first() {
            return Err(format!("the hub is not sound: {finding:?}"));
        }
        self.say(&format!("quiet after {pass} syncs, with {} events", events.len()));
        let counts = lock(&self.witness).check(&events, &dumps)?;
        self.count(|summary| summary.counts = counts);
        let stopped = Life { fault: None, cut: None, kill: None, is_stopped: true, lingers: Duration::ZERO };
        for (name, process) in replicas {
            self.follow(name, process, &stopped, std::future::ready(())).await?;
        }
        self.follow(HUB, hub, &stopped, std::future::ready(())).await?;
        if random.bool() {
            self.copy()?;
        }
        Ok(())
    }

    async fn sync(&self, name: &str, process: &mut Process) -> Result<Told, String> {
        process.bid("sync").await;
        loop {
            let Some(told) = process.told().await? else { return Err(format!("{name} ended by itself")) };
            self.take(name, &told)?;
            if matches!(told, Told::Synced { .. }) {
                return Ok(told);
            }
        }
    }

    async fn dump(&self, name: &str, process: &mut Process) -> Result<Dump, String> {
        process.bid("dump").await;
        loop {
            let Some(told) = process.told().await? else { return Err(format!("{name} ended by itself")) };
            self.take(name, &told)?;
            if let Told::Dump(dump) = told {
                return Ok(dump);
            }
        }
    }

    /// Looks into the directories, which no process has any more: all stores are sound, and what the hub has lost is kept aside.
    pub(crate) async fn look_into_directories(&self) -> Result<(), String> {
        self.ids_in(address_of(&self.directory.join(HUB))).await?;
        let lost: Vec<String> = lock(&self.witness).lost().into_iter().map(str::to_owned).collect();
        for Place { name, .. } in &self.replicas {
            let directory = directory_of(&self.directory.join(name));
            let (mut aside, mut count) = (HashSet::new(), 0);
            for path in children(&directory.join("aside"))? {
                aside.extend(self.ids_in(format!("lmdb:{}", path.display())).await?);
                count += 1;
            }
            let histories = lock(&self.witness).histories(name);
            if count != histories {
                return Err(format!("{name} has accepted {histories} histories, and keeps {count} aside"));
            }
            for path in children(&directory)? {
                if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("confirmed-")) {
                    self.ids_in(format!("lmdb:{}", path.display())).await?;
                }
            }
            if let Some(id) = lost.iter().find(|id| !aside.contains(*id)) {
                return Err(format!("the hub has lost {id}, and {name} does not keep it aside"));
            }
            self.count(|summary| summary.kept_aside += lost.len() as u64);
        }
        Ok(())
    }

    /// The ids of a store, which has to be sound.
    async fn ids_in(&self, url: String) -> Result<Vec<String>, String> {
        let failed = |error: eventstore::Error| format!("{url} cannot be read: {error:?}");
        let store = eventstore::open_read_only(&url).await.map_err(failed)?;
        let verified = store.verify().await.map_err(failed)?;
        if let Some(finding) = verified.findings.first() {
            return Err(format!("{url} is not sound: {finding:?}"));
        }
        let events = store.load(Version::ZERO).await.map_err(failed)?;
        store.close().await.map_err(failed)?;
        Ok(events.iter().map(|recorded| recorded.event.id().to_owned()).collect())
    }
}

/// What is in a directory; nothing if there is none.
fn children(directory: &Path) -> Result<Vec<PathBuf>, String> {
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let list = || std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    list().map_err(|error| format!("{} cannot be listed: {error}", directory.display()))
}

fn copy_directory(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_directory(&entry.path(), &to)?,
            false => _ = std::fs::copy(entry.path(), to)?,
        }
    }
    Ok(())
}

// The network.

/// Makes trouble on a replica's way to the hub, until it is dropped.
async fn trouble(proxy: &Proxy, mut random: fastrand::Rng) {
    let is_calm = random.u8(..5) == 0;
    proxy.others(Fate::Pass);
    proxy.refuse(false);
    loop {
        tokio::time::sleep(Duration::from_micros(random.u64(2_000..40_000))).await;
        match random.u8(..10) {
            _ if is_calm => {}
            0..5 => {
                let fates: Vec<_> = (0..random.usize(1..5)).map(|_| fate(&mut random)).collect();
                proxy.next(fates);
            }
            5 => {
                proxy.cut_all().await;
            }
            6 => {
                proxy.refuse(true);
                tokio::time::sleep(Duration::from_micros(random.u64(..60_000))).await;
                proxy.refuse(false);
            }
            7 => proxy.others(Fate::Rough { seed: random.u64(..), cuts: true }),
            _ => proxy.others(Fate::Pass),
        }
    }
}

fn fate(random: &mut fastrand::Rng) -> Fate {
    // Small numbers are as likely as large ones: heads and bodies are cut alike.
    let bits = random.u32(1..18);
    let at = random.u64(..1 << bits);
    match random.u8(..10) {
        0..3 => Fate::CutRequest(at),
        3..7 => Fate::CutAnswer(at),
        7 => Fate::StallRequest(at),
        8 => Fate::StallAnswer(at),
        _ => Fate::Rough { seed: random.u64(..), cuts: true },
    }
}
