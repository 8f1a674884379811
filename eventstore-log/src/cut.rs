//! Removes what an incomplete group left after the end of the log.

use std::ops::Range;
use std::sync::Arc;

use crate::scan::{CHUNK, Window};
use crate::{Directory, Error, File, Result};

/// A part of a segment.
#[derive(Clone)]
pub(crate) struct Piece {
    pub(crate) name: String,
    pub(crate) file: Arc<dyn File>,
    pub(crate) range: Range<u64>,
}

/// Copies the pieces into a new subdirectory, durably. Returns its name and the number of bytes.
pub(crate) fn set_aside(files: &dyn Directory, pieces: &[Piece]) -> Result<(String, u64)> {
    let failed = |error| Error::io("write to", "the copies set aside", error);
    let names = files.list().map_err(failed)?;
    let number = names.iter().filter_map(|name| name.strip_prefix("aside-")?.parse::<u64>().ok()).max().unwrap_or(0);
    let name = format!("aside-{}", number.saturating_add(1));
    let aside = files.subdirectory(&name).map_err(failed)?;
    let mut bytes = 0;
    for piece in pieces {
        let copy = aside.create(&format!("{}.{}", piece.name, piece.range.start)).map_err(failed)?;
        bytes += copy_nonzero(piece, &*copy)?;
        copy.sync_all().map_err(failed)?;
    }
    aside.sync().and_then(|()| files.sync()).map_err(failed)?;
    Ok((name, bytes))
}

/// Copies a piece up to its last nonzero byte.
fn copy_nonzero(piece: &Piece, copy: &dyn File) -> Result<u64> {
    let Range { start, end } = piece.range;
    let mut window = Window::new(Arc::clone(&piece.file), &piece.name, end);
    let end = window.nonzero_end(start, end)?.unwrap_or(start);
    copy_range(&mut window, start..end, &mut |bytes, at| copy.write_at(bytes, at - start))?;
    Ok(end - start)
}

/// Copies a piece to the beginning of a file.
pub(crate) fn copy(piece: &Piece, copy: &dyn File) -> Result<()> {
    let Range { start, end } = piece.range;
    let mut window = Window::new(Arc::clone(&piece.file), &piece.name, end);
    copy_range(&mut window, start..end, &mut |bytes, at| copy.write_at(bytes, at - start))
}

fn copy_range(
    window: &mut Window,
    range: Range<u64>,
    write: &mut dyn FnMut(&[u8], u64) -> std::io::Result<()>,
) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let bytes = window.get(at, CHUNK.min((range.end - at) as usize))?;
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len() as u64;
        write(bytes, at).map_err(|error| Error::io("write", "a copy", error))?;
        at += len;
    }
    Ok(())
}

/// Removes files, durably.
pub(crate) fn remove<'a>(files: &dyn Directory, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut is_any = false;
    for name in names {
        files.remove(name).map_err(|error| Error::io("remove", name, error))?;
        is_any = true;
    }
    if is_any { files.sync().map_err(|error| Error::io("sync", "the directory", error)) } else { Ok(()) }
}

/// Makes a segment that is about to be removed one that was never begun, durably. Its name may come back: if the sync
/// behind its removal fails, a later one may succeed and not make the removal durable.
pub(crate) fn erase(file: &dyn File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.sync_all()
}

/// Cuts a segment where the piece begins.
pub(crate) fn cut(piece: &Piece) -> Result<()> {
    piece.file.set_len(piece.range.start).map_err(|error| Error::io("cut", &piece.name, error))
}

/// Rewrites a piece, byte for byte.
pub(crate) fn rewrite(piece: &Piece) -> Result<()> {
    let mut window = Window::new(Arc::clone(&piece.file), &piece.name, piece.range.end);
    copy_range(&mut window, piece.range.clone(), &mut |bytes, at| piece.file.write_at(bytes, at))
}
