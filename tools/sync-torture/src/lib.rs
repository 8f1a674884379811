//! Replicas and a hub as processes: they are killed, lose power, have disks that fail and connections that are cut, and the hub is
//! restored from older copies. What they acknowledged is held against what is there when all of that is over.
//!
//! A *world* is the directories of a hub and of three to five replicas. In each *round* every process works, and most of them are
//! ended by a fault, more than once. Then the faults stop, all sync until nothing moves, and the witness looks whether
//! what is there follows from what was told. Each process tells its parent through a pipe what it tries, what it was answered and
//! what it decides, before it goes on, so that nothing of that is lost with it.
//!
//! # What is looked for
//!
//! * Every batch that was acknowledged is at the hub once, whole and in one piece, as it was appended or as a resolver replaced it;
//!   or it is rejected, with a reason; or a resolver dropped it, or it was deleted.
//! * What was refused, for want of room among others, is not there, and neither is what nobody appended.
//! * All replicas have the events of the hub, with their places, and, if the hub was never restored, with their times.
//! * What a replica has shown was always the beginning of what the hub has. Events keep their order and their content.
//! * Versions and revisions have no gaps. Every load shows whole batches, and own ones that were acknowledged.
//! * What a condition stands on is before its batch, and nothing else of its scope but own earlier events; or a resolver saw what
//!   is there, and let it be appended.
//! * What all replicas had confirmed and a restored hub has lost is in the stores that they keep aside.
//! * Numbers of batches are never used again. Subscriptions tell what loads show.
//! * `verify` finds nothing, in any store. No process panics, hangs, or has an error that no fault explains.

#![forbid(unsafe_code)]

mod child;
mod disk;
mod hub;
mod process;
mod replica;
mod summary;
mod told;
mod witness;
mod world;

use std::fmt;
use std::path::PathBuf;

pub use child::run_child;
pub use summary::Summary;

use world::World;

/// How many rounds the same directories go through.
const ROUNDS_OF_A_WORLD: u64 = 8;

/// Some rounds.
#[derive(Clone, Debug)]
pub struct Torture {
    /// The program of which the processes are: it calls [`run_child`] first.
    pub program: PathBuf,
    /// Where the directories are made. Those in which all was well are removed.
    pub directory: PathBuf,
    /// How many rounds.
    pub rounds: u64,
    /// The seed of the first world; each next one has the next. It decides on all but threads and time.
    pub seed: u64,
    /// A rule of syncing that is switched off, by its name.
    pub off: Option<String>,
    /// The fault that every process of a replica has; all kinds by default.
    pub only: Option<Only>,
}

/// A fault of every process of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// The replica is stopped at some call, as by a kill, and opened again by the same process; then the power is cut.
    Stops,
    /// The disk fails for a while, the replica goes on, and then the power is cut.
    FailingDisks,
}

/// Something that may never happen.
#[derive(Clone, Debug)]
pub struct Broken {
    /// What it is.
    pub what: String,
    /// The seed of its world.
    pub seed: u64,
    /// In which round of its world, counted from 0.
    pub round: u64,
    /// The directories, which are kept. `story.txt` tells what happened, and `NAME.log` what a process complained about.
    pub directory: PathBuf,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Broken { what, seed, round, directory } = self;
        // Some name all that was there.
        let what: String = what.chars().take(4_000).collect();
        write!(f, "BROKEN: {what}\nin round {round} of seed {seed}; what is left is in {}", directory.display())
    }
}

impl std::error::Error for Broken {}

impl Torture {
    /// Runs the rounds. `progress` is told what has happened after each.
    ///
    /// # Errors
    ///
    /// What may never happen, as soon as it does.
    pub async fn run(&self, progress: &dyn Fn(&Summary)) -> Result<Summary, Broken> {
        let mut all = Summary::default();
        for seed in self.seed.. {
            if all.rounds >= self.rounds {
                break;
            }
            let directory = self.directory.join(format!("world-{seed}"));
            let broken = |what, round| Broken { what, seed, round, directory: directory.clone() };
            let mut random = fastrand::Rng::with_seed(seed);
            let replicas = random.usize(3..=5);
            let world = World::new(&self.program, directory.clone(), self.off.clone(), self.only, replicas).await;
            let world = world.map_err(|what| broken(what, 0))?;
            let rounds = ROUNDS_OF_A_WORLD.min(self.rounds - all.rounds);
            for round in 0..rounds {
                world.round(round, &mut random).await.map_err(|what| broken(what, round))?;
                progress(&all.and(world.summary()));
            }
            world.look_into_directories().await.map_err(|what| broken(what, rounds))?;
            all = all.and(world.summary());
            drop(world);
            let removed = std::fs::remove_dir_all(&directory);
            removed.map_err(|error| broken(format!("the directories cannot be removed: {error}"), rounds))?;
        }
        Ok(all)
    }
}
