use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use eventstore_api::{Error, EventStore};
use tempfile::TempDir;

use crate::Profile;
use crate::failure::{Checked, Failure};
use crate::journal::{Journal, Observed};
use crate::random::Random;

/// A handle to the store under test.
pub(crate) type Store = Arc<dyn EventStore>;
pub(crate) type Opening = Pin<Box<dyn Future<Output = Result<Store, Error>> + Send>>;
pub(crate) type Factory = Arc<dyn Fn(PathBuf) -> Opening + Send + Sync>;

/// The ways to open a store.
#[derive(Clone)]
pub(crate) struct Ways {
    pub(crate) factory: Factory,
    /// Read-only, if supported.
    pub(crate) read_only: Option<Factory>,
}

/// A stored way to open a store.
pub(crate) fn way<F, Fut>(factory: F) -> Factory
where
    F: Fn(PathBuf) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Arc<dyn EventStore>, Error>> + Send + 'static,
{
    Arc::new(move |directory| Box::pin(factory(directory)))
}

/// The environment of a check: an empty directory of its own, and a way to open a store in it.
pub(crate) struct Env {
    pub(crate) profile: Profile,
    pub(crate) seed: u64,
    /// The operations on the stores of this check, including those of [`Env::fresh`].
    pub(crate) journal: Arc<Journal>,
    ways: Ways,
    root: PathBuf,
    directory: TempDir,
    /// The number of other places that were handed out.
    places: AtomicU32,
    /// Increased by a check without a time limit, to show that it is alive.
    steps: Arc<AtomicU64>,
}

impl Env {
    /// An environment with a directory below `root`, whose owner deletes it even if the check hangs.
    pub(crate) fn new(profile: Profile, ways: Ways, seed: u64, root: PathBuf) -> Checked<Self> {
        let directory = TempDir::new_in(&root)?;
        let (journal, places, steps) = (Arc::default(), AtomicU32::new(0), Arc::default());
        Ok(Env { profile, seed, journal, ways, root, directory, places, steps })
    }

    /// The same environment with another empty directory.
    pub(crate) fn fresh(&self) -> Checked<Env> {
        let mut fresh = Env::new(self.profile.clone(), self.ways.clone(), self.seed, self.root.clone())?;
        fresh.journal = self.journal.clone();
        Ok(fresh)
    }

    /// Signals that the check is alive: its time limit starts again.
    pub(crate) fn goes_on(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// The counter of [`goes_on`](Env::goes_on).
    pub(crate) fn steps(&self) -> Arc<AtomicU64> {
        self.steps.clone()
    }

    /// The directory of this check's store.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path that does not exist yet, for a backup.
    pub(crate) fn unused_path(&self) -> PathBuf {
        let place = self.places.fetch_add(1, Ordering::Relaxed);
        let check = self.directory.path().file_name().unwrap_or_default().display();
        self.root.join(format!("place-{place}-beside-{check}"))
    }

    /// Opens the store in the directory of this check.
    #[track_caller]
    pub(crate) fn open(&self) -> impl Future<Output = Checked<Store>> + use<> {
        self.open_at(self.directory())
    }

    /// Opens the store in another directory, such as that of a backup.
    #[track_caller]
    pub(crate) fn open_at(&self, directory: &Path) -> impl Future<Output = Checked<Store>> + use<> {
        opened(self.opening_at(directory), "opening the store")
    }

    /// Opens the store in a directory read-only.
    #[track_caller]
    pub(crate) fn read_at(&self, directory: &Path) -> impl Future<Output = Checked<Store>> + use<> {
        opened(self.reading_at(directory), "opening the store read-only")
    }

    /// The same, for an opening that may fail.
    pub(crate) fn opening(&self) -> Opening {
        self.opening_at(self.directory())
    }

    /// The same in another directory.
    pub(crate) fn opening_at(&self, directory: &Path) -> Opening {
        self.told((self.ways.factory)(directory.to_path_buf()), directory, "open")
    }

    /// A read-only opening that may fail.
    pub(crate) fn reading_at(&self, directory: &Path) -> Opening {
        let opening = match &self.ways.read_only {
            Some(factory) => factory(directory.to_path_buf()),
            None => {
                Box::pin(async { Err(Error::Unsupported { what: "the suite was given no way to do that".to_owned() }) })
            }
        };
        self.told(opening, directory, "open to read only")
    }

    /// An opening that is recorded in the journal.
    fn told(&self, opening: Opening, directory: &Path, call: &str) -> Opening {
        let journal = self.journal.clone();
        let number = journal.next_store();
        let begun = journal.begin_opening(number, call, directory);
        Box::pin(async move {
            let outcome = opening.await;
            begun.end(&outcome, |_| "opened".to_owned());
            outcome.map(|store| Observed::handle(store, number, journal))
        })
    }

    /// Closes and reopens the store.
    pub(crate) async fn reopen(&self, store: Store) -> Checked<Store> {
        store.close().await?;
        drop(store);
        self.open().await
    }

    pub(crate) fn random(&self) -> Random {
        Random::new(self.seed)
    }
}

/// The result of an opening that must succeed.
#[track_caller]
fn opened(opening: Opening, what: &'static str) -> impl Future<Output = Checked<Store>> + use<> {
    let at = std::panic::Location::caller();
    async move {
        opening.await.map_err(|error| {
            let what = format_args!("{what} at {}:{} had to succeed", at.file(), at.line()).to_string();
            Failure::difference(format_args!("{what}"), "Ok", &format!("Err({error:?})"))
        })
    }
}
