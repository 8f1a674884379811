//! Backups: created on the server and downloaded by the client as an archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::Method;
use eventstore_api::{Error, Event};
use eventstore_wire::{BackupForm, Problem};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::answer::{Answer, Maintaining, Params, stream};
use crate::read::required;
use crate::server::App;
use crate::stores::lock;
use crate::work;

/// The media type of an archive.
pub(crate) const TAR: &str = "application/x-tar";

/// How long a backup is kept for download.
const KEPT: Duration = Duration::from_secs(600);

/// The size of the pieces of an archive, and how many of them may wait for a slow reader.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

/// The prefix of the names of backup directories.
const PREFIX: &str = "eventstore-backup-";

/// The file in such a directory that its server keeps locked.
const LOCK: &str = "lock";
/// Its name until it is locked.
const NEW_LOCK: &str = "lock.new";

/// A directory for a backup in the temporary directory. Dropping it deletes it.
#[derive(Debug)]
struct Place {
    directory: TempDir,
    /// While it is locked, no other server deletes the directory.
    _lock: File,
}

impl Place {
    fn new() -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        // It gets its name when it is locked: another server takes a lock that nobody holds for one that is left.
        let unlocked = directory.path().join(NEW_LOCK);
        let lock = File::create_new(&unlocked)?;
        lock.try_lock()?;
        std::fs::rename(&unlocked, directory.path().join(LOCK))?;
        Ok(Place { directory, _lock: lock })
    }

    /// The path of the backup.
    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }
}

/// Deletes backups in this directory that were left by a killed server. Blocks the thread.
pub(crate) fn remove_left(temporary: &Path) {
    let Ok(entries) = std::fs::read_dir(temporary) else { return };
    for entry in entries.filter_map(Result::ok) {
        let is_named = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // Links are not followed, and directories of other users are left alone.
        if !is_named || !entry.file_type().is_ok_and(|kind| kind.is_dir()) || !is_own(&entry.path()) {
            continue;
        }
        // A directory without a lock file is just being created.
        let lock = File::options().write(true).open(entry.path().join(LOCK));
        let Ok(lock) = lock else { continue };
        if lock.try_lock().is_ok() {
            let path = entry.path();
            match std::fs::remove_dir_all(&path) {
                Ok(()) => tracing::info!(path = %path.display(), "removed a backup that a killed server left"),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a backup that a killed server left cannot be removed")
                }
            }
        }
    }
}

/// Whether it belongs to this user.
#[cfg(unix)]
fn is_own(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let own = tempfile::tempfile().and_then(|file| file.metadata());
    let theirs = std::fs::symlink_metadata(path);
    matches!((own, theirs), (Ok(own), Ok(theirs)) if own.uid() == theirs.uid())
}

#[cfg(not(unix))]
fn is_own(_: &Path) -> bool {
    true
}

/// Backups that are kept for download, by the names of their stores and their ids.
#[derive(Debug, Default)]
pub(crate) struct Backups(Mutex<HashMap<(String, String), Place>>);

impl Backups {
    fn take(&self, store: &str, id: &str) -> Option<Place> {
        lock(&self.0).remove(&(store.to_owned(), id.to_owned()))
    }
}

/// Keeps a backup for download.
fn keep(app: &Arc<App>, store: String, id: String, place: Place) {
    lock(&app.backups.0).insert((store.clone(), id.clone()), place);
    let (app, stopping) = (Arc::downgrade(app), app.stopping.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(KEPT) => {}
            () = stopping.cancelled() => {}
        }
        if let Some(app) = app.upgrade() {
            drop(app.backups.take(&store, &id));
        }
    });
}

pub(crate) async fn make(State(app): State<Arc<App>>, Maintaining(served): Maintaining, params: Params) -> Answer {
    let ctx = params.ctx;
    params.query.finish()?;
    let (of, keeper) = (served.clone(), app.clone());
    Ok(work::run(app, &served, "backup", ctx, async move |ctx| {
        // The directory stays until the engine is done with it, even if nobody waits for the backup any more.
        let (ctx, cancel) = ctx.child();
        let is_wanted = cancel.drop_guard();
        let store = of.store.clone();
        let making = keeper.tasks.spawn(async move {
            let place = Place::new();
            let place = place.map_err(|error| Error::engine("make a temporary directory for the backup", error))?;
            let report = store.backup(&ctx, &place.store()).await?;
            Ok::<_, Error>((report, place))
        });
        let made = making.await.map_err(|error| Error::engine("make the backup", error))?;
        let (report, place) = made?;
        drop(is_wanted);
        // Ids are not secret: whoever may create backups of this store may download them.
        let id = Event::new_id();
        keep(&keeper, of.name.clone(), id.clone(), place);
        Ok(BackupForm { id, latest_version: report.latest_version, bytes_on_disk: report.bytes_on_disk })
    }))
}

pub(crate) async fn take(
    State(app): State<Arc<App>>,
    Maintaining(served): Maintaining,
    method: Method,
    params: Params,
) -> Answer {
    let mut query = params.query;
    let id = required(&mut query, "id")?;
    query.finish()?;
    if method != Method::GET {
        return Err(Problem::new(
            405,
            "method_not_allowed",
            "a backup has no HEAD: its length is not known in advance",
        )
        .into());
    }
    let Some(place) = app.backups.take(&served.name, &id) else {
        let detail = format!("there is no backup {id:?}: it was taken, or is older than ten minutes; make another one");
        return Err(Problem::new(404, "not_found", detail).into());
    };
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES);
    let keeper = app.clone();
    let runtime = tokio::runtime::Handle::current();
    app.tasks.spawn_blocking(move || {
        let mut pieces = Pieces { sender: sender.clone(), piece: Vec::with_capacity(PIECE) };
        let archive = |pieces: &mut Pieces| {
            let mut archive = tar::Builder::new(&mut *pieces);
            archive.append_dir_all(".", place.store())?;
            archive.finish()?;
            drop(archive);
            pieces.flush()
        };
        if let Err(error) = archive(&mut pieces) {
            tracing::warn!(%error, "sending a backup failed");
            // The body ends with an error, so that it does not appear complete.
            let _ = sender.blocking_send(Err(error));
            // It can be downloaded again.
            let _inside = runtime.enter();
            if !keeper.stopping.is_cancelled() {
                keep(&keeper, served.name.clone(), id, place);
            }
        }
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    Ok(stream(TAR, Body::from_stream(pieces)))
}

/// Collects written bytes into pieces and sends them.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads the archive any more");
        self.sender.blocking_send(Ok(piece.into())).map_err(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_backups_of_killed_servers_are_removed() {
        let temporary = tempfile::tempdir().expect("a directory");
        let make = |name: &str| {
            let path = temporary.path().join(name);
            std::fs::create_dir_all(path.join("store/log")).expect("made");
            path
        };
        let (killed, new, other) = (make("eventstore-backup-1"), make("eventstore-backup-2"), make("backup-3"));
        let (lives, elsewhere) = (make("eventstore-backup-4"), make("elsewhere"));
        for path in [&killed, &other, &lives, &elsewhere] {
            std::fs::write(path.join(LOCK), "").expect("written");
        }
        let lock = File::open(lives.join(LOCK)).expect("there");
        lock.try_lock().expect("locked");
        #[cfg(unix)]
        std::os::unix::fs::symlink(&elsewhere, temporary.path().join("eventstore-backup-5")).expect("linked");
        remove_left(temporary.path());
        assert!(!killed.exists());
        for path in [&new, &other, &lives, &elsewhere] {
            assert!(path.join("store/log").is_dir(), "{}", path.display());
        }
        drop(lock);
        remove_left(temporary.path());
        assert!(!lives.exists(), "its server is gone by now");
    }
}
