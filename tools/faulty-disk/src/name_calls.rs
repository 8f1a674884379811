//! The functions of the C library that make, change and delete names, as [`calls`](crate::calls) has those that write.

use std::ffi::{c_char, c_int, c_uint};
use std::os::fd::BorrowedFd;
use std::sync::MutexGuard;

use libc::{AT_FDCWD, mode_t};

use crate::calls::{error_number, fail, kernel, path_of};
use crate::disk::{self, Disk, Verdict};
use crate::names::Place;
use crate::undo::UndoLog;
use crate::{Call, kill};

/// Their addresses: whoever looks at them keeps the linker from taking the C library's.
pub(crate) fn addresses() -> [*const (); 16] {
    [
        open as *const (),
        open64 as *const (),
        openat as *const (),
        openat64 as *const (),
        creat as *const (),
        creat64 as *const (),
        rename as *const (),
        renameat as *const (),
        renameat2 as *const (),
        link as *const (),
        linkat as *const (),
        unlink as *const (),
        unlinkat as *const (),
        rmdir as *const (),
        mkdir as *const (),
        mkdirat as *const (),
    ]
}

/// The place that a path means, and the disk, if the directory is watched.
///
/// # Safety
///
/// The path is terminated.
unsafe fn watched(directory: c_int, path: *const c_char) -> Option<(Place, MutexGuard<'static, Disk>)> {
    if !disk::is_watching() {
        return None;
    }
    let saved = error_number();
    // SAFETY: As the caller says.
    let place = unsafe { Place::of(directory, path) };
    let disk = place.as_ref().and_then(|place| path_of(place.directory())).and_then(|path| disk::watched(&path));
    fail(saved);
    Some((place?, disk?))
}

/// A call that changes names: decided, made and remembered. `remember` gets the log if it has succeeded.
fn changed(
    mut disk: MutexGuard<'static, Disk>,
    call: Call,
    make: impl FnOnce() -> c_int,
    remember: impl FnOnce(&mut UndoLog, c_int),
) -> c_int {
    let verdict = disk.decide(call);
    if let Some(error) = verdict.error() {
        drop(disk);
        return fail(error);
    }
    let result = make();
    let saved = error_number();
    if result >= 0 {
        remember(&mut disk.log, result);
    }
    if verdict == Verdict::GoAndKill {
        kill();
    }
    drop(disk);
    fail(saved);
    result
}

/// # Safety
///
/// The path is terminated.
unsafe fn opened(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let make = |flags: c_int| kernel!(SYS_openat, directory, path, flags, mode) as c_int;
    let (creates, empties) = (flags & libc::O_CREAT != 0, flags & libc::O_TRUNC != 0);
    if !creates && !empties {
        return make(flags);
    }
    // SAFETY: As the caller says.
    let Some((place, disk)) = (unsafe { watched(directory, path) }) else { return make(flags) };
    let is_written = flags & libc::O_ACCMODE != libc::O_RDONLY;
    match place.look() {
        None if creates => changed(disk, Call::Name, || make(flags), |log, _| log.made(place)),
        Some(it) if it.is_file() && it.len > 0 && empties && is_written && flags & libc::O_EXCL == 0 => {
            changed(
                disk,
                Call::Resize,
                || make(flags & !libc::O_TRUNC),
                |log, fd| {
                    // SAFETY: Just opened.
                    let handle = unsafe { BorrowedFd::borrow_raw(fd) };
                    let pending = log.before_resize(handle, 0);
                    let result = kernel!(SYS_ftruncate, fd, 0);
                    if let Some(pending) = pending.filter(|_| result == 0) {
                        log.resized(pending);
                    }
                },
            )
        }
        _ => {
            drop(disk);
            make(flags)
        }
    }
}

// What is behind the flags is there only if they say so, and comes as any other argument does.

#[unsafe(no_mangle)]
unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: The caller vouches for its path.
    unsafe { opened(AT_FDCWD, path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: The caller vouches for its path.
    unsafe { opened(AT_FDCWD, path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: The caller vouches for its path.
    unsafe { opened(directory, path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat64(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: The caller vouches for its path.
    unsafe { opened(directory, path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn creat(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: The caller vouches for its path.
    unsafe { opened(AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn creat64(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: The same call under its other name.
    unsafe { creat(path, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn renameat2(
    from_directory: c_int,
    from: *const c_char,
    to_directory: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    let make = || kernel!(SYS_renameat2, from_directory, from, to_directory, to, flags) as c_int;
    // SAFETY: The caller vouches for its paths.
    let Some((to_place, disk)) = (unsafe { watched(to_directory, to) }) else { return make() };
    // SAFETY: As above.
    let from_place = unsafe { Place::of(from_directory, from) };
    let (renamed, replaced) = (from_place.as_ref().and_then(Place::look), to_place.look());
    let is_one = renamed.zip(replaced.as_ref()).is_some_and(|(from, to)| from.is_same(to));
    changed(disk, Call::Name, make, |log, _| match from_place {
        Some(from) if !is_one && flags & libc::RENAME_EXCHANGE != 0 => log.exchanged(from, to_place),
        Some(from) if !is_one => {
            log.renamed(from, to_place, replaced.filter(|it| it.is_file() || it.is_directory()));
        }
        _ => {}
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn renameat(
    from_directory: c_int,
    from: *const c_char,
    to_directory: c_int,
    to: *const c_char,
) -> c_int {
    // SAFETY: The caller vouches for its paths.
    unsafe { renameat2(from_directory, from, to_directory, to, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: The caller vouches for its paths.
    unsafe { renameat2(AT_FDCWD, from, AT_FDCWD, to, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn linkat(
    from_directory: c_int,
    from: *const c_char,
    to_directory: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    let make = || kernel!(SYS_linkat, from_directory, from, to_directory, to, flags) as c_int;
    // SAFETY: The caller vouches for its paths.
    match unsafe { watched(to_directory, to) } {
        Some((place, disk)) => changed(disk, Call::Name, make, |log, _| log.made(place)),
        None => make(),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn link(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: The caller vouches for its paths.
    unsafe { linkat(AT_FDCWD, from, AT_FDCWD, to, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlinkat(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    let make = || kernel!(SYS_unlinkat, directory, path, flags) as c_int;
    // SAFETY: The caller vouches for its path.
    let Some((place, disk)) = (unsafe { watched(directory, path) }) else { return make() };
    let was = place.look().filter(|it| it.is_file() || it.is_directory());
    changed(disk, Call::Name, make, |log, _| {
        if let Some(was) = was {
            log.deleted(place, was);
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: The caller vouches for its path.
    unsafe { unlinkat(AT_FDCWD, path, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: The caller vouches for its path.
    unsafe { unlinkat(AT_FDCWD, path, libc::AT_REMOVEDIR) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdirat(directory: c_int, path: *const c_char, mode: mode_t) -> c_int {
    let make = || kernel!(SYS_mkdirat, directory, path, mode) as c_int;
    // SAFETY: The caller vouches for its path.
    match unsafe { watched(directory, path) } {
        Some((place, disk)) => changed(disk, Call::Name, make, |log, _| log.made(place)),
        None => make(),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: The caller vouches for its path.
    unsafe { mkdirat(AT_FDCWD, path, mode) }
}
