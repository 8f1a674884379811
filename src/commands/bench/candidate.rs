//! A measured store, in a temporary directory of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use eventstore::backend::{Batch, Context, Durability, Error, EventStore, EventStoreExt, Version};
use eventstore_kv::StoreUrl;
use tempfile::TempDir;

use super::events::{Events, Ids};
use crate::commands::Store;
use crate::failure::Failure;

/// The number of events per append while a store is filled.
const FILL_BATCH: u64 = 1000;
const MEMORY: &str = "memory";

/// A measured store.
pub(super) struct Candidate {
    /// The URL as given, without what is secret.
    pub(super) url: String,
    pub(super) backend: String,
    pub(super) options: Vec<(String, String)>,
    pub(super) events: Events,
    /// The number of the next event to append, which is also the number of events.
    pub(super) next: u64,
    /// `None` for a store without files.
    place: Option<Place>,
    path: PathBuf,
    /// The URL of a temporary store in a database.
    in_database: Option<String>,
    /// `None` while it is closed.
    store: Option<Store>,
}

impl Candidate {
    /// Opens a new store and fills it.
    ///
    /// # Errors
    ///
    /// `Cancelled` if the user interrupted. After any error, nothing is left behind.
    pub(super) async fn filled(url: &str, events: Events, ctx: &Context) -> Result<Self, Failure> {
        if eventstore::backend::is_postgres(url) {
            return Self::filled_in_database(url, events, ctx).await;
        }
        if eventstore::backend::is_served(url) || eventstore::backend::is_gosync(url) {
            let what = "the URL names a server, but `bench` measures stores that it makes itself; name an engine, such as lmdb:";
            return Err(Error::Unsupported { what: what.to_owned() }.into());
        }
        let parsed: StoreUrl = match url.parse() {
            Ok(parsed) => parsed,
            // Opening the store gives a more specific error.
            Err(error) => return Err(eventstore::backend::open(url).await.err().unwrap_or(error).into()),
        };
        let place = match parsed.scheme.as_str() {
            MEMORY => None,
            _ => Some(Place::new(&parsed.path)?),
        };
        // Opening rejects a store in memory with a path.
        let path = place.as_ref().map_or(parsed.path, |place| place.files.path().join("store"));
        let mut candidate = Candidate {
            url: url.to_owned(),
            backend: parsed.scheme,
            options: parsed.options,
            events,
            next: 0,
            place,
            path,
            in_database: None,
            store: None,
        };
        candidate.fill_or_remove(ctx).await?;
        Ok(candidate)
    }

    async fn filled_in_database(url: &str, events: Events, ctx: &Context) -> Result<Self, Failure> {
        let (address, options) = url.split_once('?').unwrap_or((url, ""));
        let options: Vec<_> = options.split('&').filter_map(|option| option.split_once('=')).collect();
        // A named schema may have somebody's store, now or later.
        let options: Vec<_> = options.into_iter().filter(|(name, _)| *name != "schema").collect();
        let own = format!("schema=eventstore_bench_{:016x}", fastrand::u64(..));
        let given: Vec<_> = options.iter().map(|(name, value)| format!("{name}={value}")).chain([own]).collect();
        // Reports are published.
        let shown = eventstore::backend::shown(url);
        let told = shown.split_once('?').map_or("", |(_, options)| options).split('&');
        let told = told.filter_map(|option| option.split_once('=')).filter(|(name, _)| *name != "schema");
        let mut candidate = Candidate {
            backend: "postgres".to_owned(),
            options: told.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            url: shown.clone(),
            events,
            next: 0,
            place: None,
            path: PathBuf::new(),
            in_database: Some(format!("{address}?{}", given.join("&"))),
            store: None,
        };
        candidate.fill_or_remove(ctx).await?;
        Ok(candidate)
    }

    async fn fill_or_remove(&mut self, ctx: &Context) -> Result<(), Failure> {
        match self.open_and_fill(ctx).await {
            Ok(()) => Ok(()),
            // The first error is reported.
            Err(failure) => {
                self.remove().await.ok();
                Err(failure.at(&self.url))
            }
        }
    }

    async fn open_and_fill(&mut self, ctx: &Context) -> Result<(), Failure> {
        self.open().await?;
        self.fill(ctx).await
    }

    pub(super) fn store(&self) -> Result<Store, Failure> {
        self.store.clone().ok_or_else(|| eventstore::backend::Error::Closed.into())
    }

    /// Whether it can be reopened.
    pub(super) fn is_kept(&self) -> bool {
        self.backend != MEMORY
    }

    /// The directory of its files; `None` if it has none.
    pub(super) fn directory(&self) -> Option<&Path> {
        self.place.as_ref().map(|place| place.files.path())
    }

    pub(super) async fn open(&mut self) -> Result<(), Failure> {
        let options: Vec<_> = self.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let url = match &self.in_database {
            Some(url) => url.clone(),
            None => format!("{}:{}?{}", self.backend, self.path.display(), options.join("&")),
        };
        self.store = Some(eventstore::backend::open(&url).await?);
        Ok(())
    }

    pub(super) async fn close(&mut self) -> Result<(), Failure> {
        if let Some(store) = self.store.take() {
            store.close().await?;
        }
        Ok(())
    }

    async fn fill(&mut self, ctx: &Context) -> Result<(), Failure> {
        let store = self.store()?;
        while self.next < self.events.len() {
            // Only between appends: a running append is finished in an orderly way.
            ctx.check()?;
            let numbers = self.next..(self.next + FILL_BATCH).min(self.events.len());
            let len = numbers.end - numbers.start;
            let events = numbers.map(|number| self.events.event(number, Ids::TimeOrdered)).collect::<Result<_, _>>()?;
            store.store_batch(&Context::background(), Batch::new(events).durability(Durability::Sync)).await?;
            self.next += len;
        }
        Ok(())
    }

    /// The size of its files in bytes, if it has any. The store must be closed, so that they are complete.
    pub(super) fn bytes_on_disk(&self) -> Result<Option<u64>, Failure> {
        let Some(directory) = self.directory() else { return Ok(None) };
        let bytes = bytes_below(directory);
        bytes.map(Some).map_err(|error| Failure::io(format_args!("measure {}", directory.display()), &error))
    }

    /// Reads everything, and checks that each appended event is there once, byte for byte, and nothing else.
    pub(super) async fn check(&self, ctx: &Context) -> Result<(), Failure> {
        let wrong = |what: String| Err(Failure::wrong_result(what).at(&self.url));
        let mut seen = vec![false; self.next as usize];
        let mut events = self.store()?.load(ctx, Version::ZERO);
        let mut version = 0;
        while let Some(page) = events.next_page().await {
            for recorded in page? {
                version += 1;
                let number = self.events.number_of(&recorded).map_err(|failure| failure.at(&self.url))?;
                if recorded.version.get() != version {
                    return wrong(format!("version {version} is missing"));
                }
                match seen.get_mut(number as usize) {
                    Some(seen) if !*seen => *seen = true,
                    _ => return wrong(format!("version {version} is there twice, or was never appended")),
                }
            }
        }
        match version == self.next {
            true => Ok(()),
            false => wrong(format!("it has {version} events of the {} that were appended", self.next)),
        }
    }

    /// Closes the store and deletes everything created for it.
    pub(super) async fn remove(&mut self) -> Result<(), Failure> {
        let closed = self.close().await;
        let removed = self.place.take().map_or(Ok(()), Place::remove);
        #[cfg(feature = "postgres")]
        if let Some(url) = self.in_database.take() {
            eventstore::postgres::delete(eventstore::postgres::Options::from_url(&url)?).await?;
        }
        closed.and(removed)
    }
}

/// The location of a store's files, and the directories created for it.
struct Place {
    files: TempDir,
    /// Directories that did not exist before, the innermost first.
    made: Vec<PathBuf>,
}

impl Place {
    /// A new directory in `given`, which must be missing or empty, or in the working directory if none is given.
    fn new(given: &Path) -> Result<Self, Failure> {
        let is_given = !given.as_os_str().is_empty();
        let parent = if is_given { given } else { Path::new(".") };
        let cannot = |error: &io::Error| Failure::io(format_args!("make a store in {}", parent.display()), error);
        if is_given && !is_missing_or_empty(given).map_err(|error| cannot(&error))? {
            let path = given.display().to_string();
            let reason = "bench makes stores of its own and touches no other: name a directory that is missing or empty, \
                          or none, such as lmdb:";
            return Err(eventstore::backend::Error::Open { path, reason: reason.to_owned(), source: None }.into());
        }
        let made = make_directory(parent).map_err(|error| cannot(&error))?;
        let files = tempfile::Builder::new().prefix("eventstore-bench-").tempdir_in(parent);
        match files {
            Ok(files) => Ok(Place { files, made }),
            Err(error) => {
                remove_directories(&made).ok();
                Err(cannot(&error))
            }
        }
    }

    fn remove(self) -> Result<(), Failure> {
        let path = self.files.path().display().to_string();
        let removed = self.files.close().and_then(|()| remove_directories(&self.made));
        removed.map_err(|error| Failure::io(format_args!("remove {path}"), &error))
    }
}

pub(super) fn is_missing_or_empty(directory: &Path) -> io::Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Creates a directory and its parents. Returns those that were missing, the innermost first.
fn make_directory(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let missing = directory.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists());
    let missing: Vec<_> = missing.map(Path::to_owned).collect();
    fs::create_dir_all(directory)?;
    Ok(missing)
}

/// Removes empty directories. One that somebody else has used is kept.
fn remove_directories(directories: &[PathBuf]) -> io::Result<()> {
    for directory in directories {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
            result => result?,
        }
    }
    Ok(())
}

fn bytes_below(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_below(&entry.path())? } else { bytes_of(&metadata) };
    }
    Ok(bytes)
}

/// The disk usage of a file: holes take no space, and the last block counts as a whole.
#[cfg(unix)]
fn bytes_of(metadata: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    metadata.blocks() * 512
}

#[cfg(not(unix))]
fn bytes_of(metadata: &fs::Metadata) -> u64 {
    metadata.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_were_made_are_removed_and_others_are_not() {
        let outer = tempfile::tempdir().expect("made");
        let given = outer.path().join("a/b");
        let place = Place::new(&given).expect("made");
        assert!(place.files.path().starts_with(&given));
        place.remove().expect("removed");
        assert!(!outer.path().join("a").exists());

        fs::create_dir(outer.path().join("empty")).expect("made");
        Place::new(&outer.path().join("empty")).expect("made").remove().expect("removed");
        assert!(outer.path().join("empty").is_dir(), "it was there before");

        let place = Place::new(&given).expect("made");
        fs::write(outer.path().join("a/mine"), "mine").expect("written");
        place.remove().expect("removed");
        assert!(outer.path().join("a/mine").exists());
    }

    #[test]
    fn a_directory_with_something_in_it_is_refused() {
        let outer = tempfile::tempdir().expect("made");
        fs::write(outer.path().join("mine"), "mine").expect("written");
        let failure = Place::new(outer.path()).err().expect("refused");
        assert_eq!(failure.code(), "cannot_open");
        assert_eq!(fs::read_dir(outer.path()).expect("there").count(), 1);
    }

    #[test]
    fn a_changed_store_is_told() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let (events, ctx) = (Events::new(1, 94), Context::background());
            let candidate = Candidate::filled("memory:", events, &ctx).await.expect("filled");
            candidate.check(&ctx).await.expect("sound");
            let alien = eventstore::backend::Event::builder("Other", "other").build().expect("valid");
            let store = candidate.store().expect("open");
            store.store_batch(&ctx, Batch::new(vec![alien])).await.expect("stored");
            assert_eq!(candidate.check(&ctx).await.expect_err("changed").code(), "wrong_result");
            let missing = Candidate { next: 95, ..Candidate::filled("memory:", events, &ctx).await.expect("filled") };
            assert!(missing.check(&ctx).await.expect_err("fewer").message().contains("94 events of the 95"));
        });
    }
}
