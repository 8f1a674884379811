//! Backups: made here, and taken by the client as an archive.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use eventstore_api::{Error, Event};
use eventstore_wire::{BackupForm, Problem};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::answer::{Answer, Maintaining, Params, stream};
use crate::server::App;
use crate::stores::{Served, lock};
use crate::work;

/// The media type of an archive.
pub(crate) const TAR: &str = "application/x-tar";

/// How long a backup waits to be taken.
const KEPT: Duration = Duration::from_secs(600);

/// Bytes of an archive that are sent at a time, and how many such pieces wait for a slow reader.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

/// Backups that were made and wait to be taken.
#[derive(Debug, Default)]
pub(crate) struct Backups(Mutex<HashMap<String, TempDir>>);

impl Backups {
    fn take(&self, id: &str) -> Option<TempDir> {
        lock(&self.0).remove(id)
    }
}

pub(crate) async fn make(State(app): State<Arc<App>>, Maintaining(served): Maintaining, params: Params) -> Answer {
    let ctx = params.ctx;
    params.query.finish()?;
    let of = served.clone();
    Ok(work::run(app, &served, "backup", ctx, async move |ctx| {
        let directory = tempfile::Builder::new().prefix("eventstore-backup-").tempdir();
        let directory = directory.map_err(|error| Error::engine("make a temporary directory for the backup", error))?;
        let target: PathBuf = directory.path().join("store");
        let report = of.store.backup(&ctx, &target).await?;
        // Random, as ids are: whoever may make backups may take them.
        let id = Event::new_id();
        lock(&of.backups.0).insert(id.clone(), directory);
        let (kept, name): (Weak<Served>, _) = (Arc::downgrade(&of), id.clone());
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            if let Some(served) = kept.upgrade() {
                drop(served.backups.take(&name));
            }
        });
        Ok(BackupForm { id, latest_version: report.latest_version, bytes_on_disk: report.bytes_on_disk })
    }))
}

pub(crate) async fn take(Maintaining(served): Maintaining, params: Params) -> Answer {
    let mut query = params.query;
    let id = query.text("id")?.unwrap_or_default();
    query.finish()?;
    let Some(directory) = served.backups.take(&id) else {
        let detail = format!("there is no backup {id:?}; it was taken, or not for ten minutes: make another one");
        return Err(Problem::new(404, "not_found", detail).into());
    };
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES);
    tokio::task::spawn_blocking(move || {
        let mut pieces = Pieces { sender: sender.clone(), piece: Vec::with_capacity(PIECE) };
        let archive = |pieces: &mut Pieces| {
            let mut archive = tar::Builder::new(&mut *pieces);
            archive.append_dir_all(".", directory.path().join("store"))?;
            archive.finish()?;
            drop(archive);
            pieces.flush()
        };
        if let Err(error) = archive(&mut pieces) {
            tracing::warn!(%error, "sending a backup failed");
            // The body ends with an error, not as if this were all.
            let _ = sender.blocking_send(Err(error));
        }
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    Ok(stream(TAR, Body::from_stream(pieces)))
}

/// Collects what is written into pieces, which it sends.
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
