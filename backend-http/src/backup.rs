//! The files of a backup, which come as a tar archive.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, Write as _};
use std::path::{Component, Path, PathBuf};

use bytes::{Buf as _, Bytes};
use eventstore_api::{Context, Error, Result};
use http_body_util::BodyExt as _;
use tar::{Archive, EntryType};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::client::{Answer, Attempt, Failed};

/// The target directory of a backup, which is missing or empty.
pub(crate) struct Place {
    target: PathBuf,
}

/// A complete and synced backup that is not in its place yet. Dropping it deletes it.
pub(crate) struct Unpacked {
    target: PathBuf,
    directory: TempDir,
}

/// The most pieces of the archive that wait to be written.
const PIECES: usize = 8;

impl Place {
    /// Checks whether the target can be used.
    pub(crate) async fn new(ctx: &Context, target: &Path) -> Result<Self> {
        let place = Place { target: target.to_owned() };
        let looking = blocking(move || {
            match fs::read_dir(&place.target).map(|mut entries| entries.next().is_none()) {
                Ok(true) => {}
                Ok(false) => return Err(unusable(&place.target, "it is not empty", None)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unusable(&place.target, "it is not a readable directory", Some(error))),
            }
            Ok(place)
        });
        ctx.run(looking).await?
    }

    /// Reads the archive and writes its files beside the target.
    pub(crate) async fn unpack(self, answer: Answer) -> Attempt<Unpacked> {
        let (pieces, archive) = mpsc::channel(PIECES);
        let written = blocking(move || self.write(Pieces { pieces: archive, piece: Bytes::new(), is_over: false }));
        let mut body = answer.into_body();
        let sent = async move {
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| Failed::lost("the backup was cut off", error))?;
                let Ok(data) = frame.into_data() else { continue };
                if pieces.send(Some(data)).await.is_err() {
                    return Ok(()); // it was not written, which has the reason
                }
            }
            let _ = pieces.send(None).await;
            Ok::<_, Failed>(())
        };
        // Partial files are removed before the error is returned.
        let (sent, written) = tokio::join!(sent, written);
        sent?;
        Ok(written?)
    }

    fn write(self, mut pieces: Pieces) -> Result<Unpacked> {
        let failed = |error: io::Error| unusable(&self.target, "it cannot be written", Some(error));
        let parent = parent(&self.target);
        fs::create_dir_all(&parent).map_err(failed)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".eventstore-backup-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            builder.permissions(fs::Permissions::from_mode(0o750)); // like that of every store
        }
        let directory = builder.tempdir_in(&parent).map_err(failed)?;
        write_files(&mut pieces, directory.path()).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Error::engine("take the backup from the server", error),
            _ => failed(error),
        })?;
        Ok(Unpacked { target: self.target, directory })
    }
}

impl Unpacked {
    /// Moves it to its place, atomically.
    pub(crate) async fn take_place(self) -> Result<()> {
        let Unpacked { target, directory } = self;
        #[cfg(not(unix))]
        let _ = fs::remove_dir(&target); // if it exists and is empty
        if let Err(error) = fs::rename(directory.path(), &target) {
            let error = unusable(&target, "something was created there meanwhile", Some(error));
            // It may be large.
            return blocking(move || {
                drop(directory);
                Err(error)
            })
            .await;
        }
        let _ = directory.keep();
        blocking(move || {
            let synced = sync_directory(&parent(&target));
            synced.map_err(|error| unusable(&target, "it cannot be synced", Some(error)))
        })
        .await
    }
}

/// Writes the files and syncs them and their directories.
fn write_files(pieces: &mut Pieces, directory: &Path) -> io::Result<()> {
    let odd = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let damaged = |error: io::Error| odd(format!("the archive is damaged: {error}"));
    let mut directories = vec![directory.to_owned()];
    let mut archive = Archive::new(&mut *pieces);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.into_owned();
        if path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(odd(format!("the archive has the path {path:?}, which leads outside the target")));
        }
        let path = directory.join(path);
        match entry.header().entry_type() {
            EntryType::Directory => make_directories(&path, &mut directories)?,
            // In the archive they are without their holes, which are restored from it.
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                if let Some(parent) = path.parent() {
                    make_directories(parent, &mut directories)?;
                }
                let mut file = File::options().write(true).create_new(true).open(&path)?;
                let (size, written) = (entry.size(), copy(&mut entry, &mut file)?);
                if size != written {
                    return Err(odd(format!("the archive ends within {path:?}")));
                }
                file.sync_all()?;
            }
            other => return Err(odd(format!("the archive has {path:?} as {other:?}, which a backup does not have"))),
        }
    }
    // Data after the last file belongs to the answer: it may say that the answer was cut off.
    io::copy(pieces, &mut io::sink()).map_err(damaged)?;
    directories.iter().try_for_each(|directory| sync_directory(directory))
}

/// Copies, and distinguishes read errors from write errors. Long runs of zeros are not written, so that they take no
/// disk space.
fn copy(from: &mut impl Read, to: &mut File) -> io::Result<u64> {
    let mut buffer = vec![0; 64 << 10];
    let mut copied = 0;
    loop {
        let read = from.read(&mut buffer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if read == 0 {
            to.set_len(copied)?;
            return Ok(copied);
        }
        let piece = &buffer[..read];
        match read > HOLE && piece.iter().all(|&byte| byte == 0) {
            true => drop(to.seek_relative(read as i64)?),
            false => to.write_all(piece)?,
        }
        copied += read as u64;
    }
}

/// Shorter runs of zeros are written.
const HOLE: usize = 4 << 10;

/// Creates a directory and its parents, below the first one.
fn make_directories(path: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    if made.iter().any(|directory| directory == path) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directories(parent, made)?;
    }
    if !path.is_dir() {
        fs::create_dir(path)?;
    }
    made.push(path.to_owned());
    Ok(())
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match cfg!(unix) {
        true => File::open(path)?.sync_all(),
        false => Ok(()), // there are no such directories
    }
}

fn parent(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn unusable(target: &Path, reason: &str, error: Option<io::Error>) -> Error {
    let told = error.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
    Error::Open {
        path: target.display().to_string(),
        reason: format!("{reason}{told}; choose a missing or empty directory"),
        source: error.map(Into::into),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::engine("write a backup", error))?
}

/// The pieces of the archive as they arrive. `None` marks the end; without it, the archive was cut off.
struct Pieces {
    pieces: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    is_over: bool,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.is_over {
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.is_over = true,
                None => return Err(io::Error::new(io::ErrorKind::InvalidData, "it was cut off")),
            }
        }
        let len = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(bytes: &[u8], ends: bool) -> Pieces {
        let (sender, pieces) = mpsc::channel(bytes.len() + 1);
        for piece in bytes.chunks(700) {
            sender.try_send(Some(Bytes::copy_from_slice(piece))).expect("room");
        }
        if ends {
            sender.try_send(None).expect("room");
        }
        Pieces { pieces, piece: Bytes::new(), is_over: false }
    }

    fn archive(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            // The crate would refuse to write such paths.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(content.len() as u64);
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append(&header, *content).expect("in memory");
        }
        builder.into_inner().expect("in memory")
    }

    fn place() -> (TempDir, PathBuf) {
        let root = tempfile::tempdir().expect("a directory");
        let target = root.path().join("deep/backup");
        (root, target)
    }

    fn left(root: &Path) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for entry in fs::read_dir(root).expect("there") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                all.extend(left(&path));
            }
            all.push(path);
        }
        all
    }

    #[tokio::test]
    async fn files_and_directories_come_into_their_place() {
        let (root, target) = place();
        let large: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let holes = [&large[..], &[0; 300_000], &large, &[0; 200_000]].concat();
        let bytes = archive(&[
            ("a", EntryType::Regular, b"first"),
            ("log/", EntryType::Directory, b""),
            ("log/1", EntryType::Regular, &large),
            ("./index/deep/2", EntryType::Regular, b""),
            ("holes", EntryType::Regular, &holes),
        ]);
        let unpacked = Place { target: target.clone() };
        let unpacked = blocking(move || unpacked.write(pieces(&bytes, true))).await.expect("written");
        assert!(!target.exists(), "it is not there before it is whole");
        unpacked.take_place().await.expect("put in its place");
        assert_eq!(fs::read(target.join("a")).expect("there"), b"first");
        assert_eq!(fs::read(target.join("log/1")).expect("there"), large);
        assert!(target.join("index/deep/2").is_file());
        assert!(fs::read(target.join("holes")).expect("there") == holes);
        assert_eq!(fs::read_dir(root.path().join("deep")).expect("there").count(), 1, "nothing is beside it");
    }

    #[tokio::test]
    async fn what_leads_elsewhere_is_refused_and_leaves_nothing() {
        for (path, kind) in [
            ("../a", EntryType::Regular),
            ("/tmp/a", EntryType::Regular),
            ("a/../../b", EntryType::Regular),
            ("..", EntryType::Directory),
            ("link", EntryType::Symlink),
            ("link", EntryType::Link),
            ("pipe", EntryType::Fifo),
            ("device", EntryType::Char),
        ] {
            let (root, target) = place();
            let bytes = archive(&[("sound", EntryType::Regular, b"1"), (path, kind, b"")]);
            let place = Place { target };
            let refused = blocking(move || place.write(pieces(&bytes, true)).map(drop)).await;
            assert!(matches!(refused, Err(Error::Engine { .. })), "{path}: {refused:?}");
            assert_eq!(left(root.path()), [root.path().join("deep")], "{path}");
        }
    }

    #[tokio::test]
    async fn an_archive_that_is_cut_off_anywhere_leaves_nothing() {
        let bytes = archive(&[("a", EntryType::Regular, &[7; 900]), ("b", EntryType::Regular, b"2")]);
        for len in (0..bytes.len()).step_by(97) {
            let (root, target) = place();
            let (place, cut) = (Place { target }, bytes[..len].to_vec());
            let refused = blocking(move || place.write(pieces(&cut, false)).map(drop)).await;
            assert!(matches!(refused, Err(Error::Engine { .. })), "{len}: {refused:?}");
            assert_eq!(left(root.path()), [root.path().join("deep")], "{len}");
        }
    }

    #[tokio::test]
    async fn a_target_where_something_is_is_refused_and_not_touched() {
        let (root, target) = place();
        let ctx = Context::background();
        fs::create_dir_all(&target).expect("made");
        Place::new(&ctx, &target).await.expect("an empty directory can be used");
        let bytes = archive(&[("a", EntryType::Regular, b"new")]);
        let place = Place { target: target.clone() };
        let late = blocking(move || place.write(pieces(&bytes, true))).await.expect("written");
        fs::write(target.join("mine"), "old").expect("written");
        assert!(matches!(Place::new(&ctx, &target).await, Err(Error::Open { .. })));
        assert!(matches!(Place::new(&ctx, &target.join("mine")).await, Err(Error::Open { .. })));
        assert!(matches!(late.take_place().await, Err(Error::Open { .. })), "somebody was faster");
        let deep = root.path().join("deep");
        let mut found = left(root.path());
        found.sort();
        assert_eq!(found, [deep.clone(), deep.join("backup"), deep.join("backup/mine")]);
    }
}
