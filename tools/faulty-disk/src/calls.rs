//! The functions of the C library that this crate takes the place of.
//!
//! Each asks the kernel directly for what the original does. They hold the disk's lock while a write is made, so that a
//! power cut finds every write either made and remembered, or not made.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{iovec, off_t, size_t, ssize_t};

use crate::disk::{self, Disk, STOPPED, Verdict};
use crate::{Call, Calls, kill};

/// Their addresses: whoever looks at them keeps the linker from taking the C library's.
pub(crate) fn addresses() -> [*const (); 17] {
    [
        write as *const (),
        writev as *const (),
        pwrite as *const (),
        pwrite64 as *const (),
        pwritev as *const (),
        pwritev64 as *const (),
        fsync as *const (),
        fdatasync as *const (),
        close as *const (),
        sync_file_range as *const (),
        ftruncate as *const (),
        ftruncate64 as *const (),
        fallocate as *const (),
        fallocate64 as *const (),
        copy_file_range as *const (),
        sendfile as *const (),
        sendfile64 as *const (),
    ]
}

/// Calls the kernel, with the result and the error number of the C library's functions.
macro_rules! kernel {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: The arguments are those of the caller, who vouches for them as for the call that this stands for; or the
        // function around it does.
        unsafe { libc::syscall(libc::$number $(, $argument)*) }
    };
}
pub(crate) use kernel;

pub(crate) fn fail(error: c_int) -> c_int {
    // SAFETY: The place of this thread's error number.
    unsafe { *libc::__errno_location() = error };
    -1
}

pub(crate) fn error_number() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The descriptors that have yet to be told of a failed sync of their file: each that was open then is told once, by its next
/// sync, and none that is opened later.
struct ToBeTold(Vec<(c_int, c_int)>);

/// Locked by itself, for a moment, because descriptors are closed with the disk locked.
fn to_be_told() -> MutexGuard<'static, ToBeTold> {
    static TO_BE_TOLD: Mutex<ToBeTold> = Mutex::new(ToBeTold(Vec::new()));
    TO_BE_TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ToBeTold {
    /// A sync through this descriptor has failed: all others of the same file are to be told.
    fn add_all_but(&mut self, failed: c_int, error: c_int) {
        let Some(file) = regular_file(failed) else { return };
        let (mut fd, mut unused) = (0, 0);
        // Descriptors are small numbers: the smallest that is free is the next.
        while unused < MOST_UNUSED {
            match regular_file(fd) {
                Some(other) if other == file && fd != failed => {
                    self.take(fd);
                    self.0.push((fd, error));
                    unused = 0;
                }
                Some(_) => unused = 0,
                None => unused += 1,
            }
            fd += 1;
        }
    }

    /// The error of which this descriptor was to be told.
    fn take(&mut self, fd: c_int) -> Option<c_int> {
        let place = self.0.iter().position(|(other, _)| *other == fd)?;
        Some(self.0.swap_remove(place).1)
    }
}

/// Behind so many descriptors that are no files none is looked for.
const MOST_UNUSED: u32 = 1024;

/// The device and inode of the file behind a descriptor, if there is one and it is no directory.
fn regular_file(fd: c_int) -> Option<(libc::dev_t, libc::ino_t)> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: Any number may be asked for, and there is room for the answer.
    if unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: It was filled.
    let stat = unsafe { stat.assume_init() };
    (stat.st_mode & libc::S_IFMT == libc::S_IFREG).then_some((stat.st_dev, stat.st_ino))
}

/// The disk, if this descriptor is of a watched file or directory.
fn watched(fd: c_int) -> Option<MutexGuard<'static, Disk>> {
    if !disk::is_watching() {
        return None;
    }
    let saved = error_number();
    let path = path_of(fd);
    fail(saved);
    disk::watched(&path?)
}

/// The path of an open file.
pub(crate) fn path_of(fd: c_int) -> Option<Vec<u8>> {
    let mut link = [0_u8; 32];
    io::Write::write_fmt(&mut link.as_mut_slice(), format_args!("/proc/self/fd/{fd}\0")).ok()?;
    let mut path = [0_u8; 4096];
    // SAFETY: A terminated name, and room for as many bytes as are told.
    let len = unsafe { libc::readlink(link.as_ptr().cast(), path.as_mut_ptr().cast(), path.len()) };
    Some(path[..usize::try_from(len).ok()?].to_vec())
}

/// A write of watched bytes: decided, remembered and made. `make` writes that many of them.
fn written(
    mut disk: MutexGuard<'static, Disk>,
    fd: c_int,
    offset: Option<off_t>,
    bytes: impl FnOnce() -> Vec<u8>,
    make: impl Fn(&[u8]) -> ssize_t,
) -> ssize_t {
    let verdict = disk.decide(Call::Write);
    if let Some(error) = verdict.error() {
        drop(disk);
        return fail(error) as ssize_t;
    }
    let mut bytes = bytes();
    // SAFETY: It is open for as long as the caller's call lasts.
    let handle = unsafe { BorrowedFd::borrow_raw(fd) };
    let offset = offset.and_then(|offset| u64::try_from(offset).ok());
    match verdict {
        Verdict::Short => bytes.truncate(bytes.len().div_ceil(2)),
        Verdict::HalfAndKill => {
            let end = place(handle, offset).unwrap_or(0) + bytes.len() as u64 / 2;
            bytes.truncate((bytes.len() / 2).saturating_sub((end % PAGE) as usize));
            if bytes.is_empty() {
                kill();
            }
        }
        _ => {}
    }
    let pending = disk.log.before_write(handle, offset, bytes.clone());
    let result = make(&bytes);
    let saved = error_number();
    if let (Some(pending), Ok(written)) = (pending, usize::try_from(result)) {
        disk.log.wrote(pending, written);
    }
    if matches!(verdict, Verdict::GoAndKill | Verdict::HalfAndKill) {
        kill();
    }
    drop(disk);
    fail(saved);
    result
}

fn copied(buffer: *const c_void, count: size_t) -> Vec<u8> {
    if count == 0 {
        return Vec::new();
    }
    // SAFETY: The caller of the write vouches for its buffer.
    unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), count) }.to_vec()
}

fn gathered(parts: *const iovec, count: c_int) -> Vec<u8> {
    let Ok(count) = usize::try_from(count) else { return Vec::new() };
    // SAFETY: The caller of the write vouches for its buffers.
    let parts = unsafe { std::slice::from_raw_parts(parts, count) };
    parts.iter().flat_map(|part| copied(part.iov_base, part.iov_len)).collect()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, buffer: *const c_void, count: size_t) -> ssize_t {
    match watched(fd) {
        None => kernel!(SYS_write, fd, buffer, count) as ssize_t,
        Some(disk) => written(
            disk,
            fd,
            None,
            || copied(buffer, count),
            |bytes| kernel!(SYS_write, fd, bytes.as_ptr(), bytes.len()) as ssize_t,
        ),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    match watched(fd) {
        None => kernel!(SYS_writev, fd, parts, count) as ssize_t,
        Some(disk) => written(
            disk,
            fd,
            None,
            || gathered(parts, count),
            |bytes| kernel!(SYS_write, fd, bytes.as_ptr(), bytes.len()) as ssize_t,
        ),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(fd: c_int, buffer: *const c_void, count: size_t, offset: off_t) -> ssize_t {
    match watched(fd) {
        None => kernel!(SYS_pwrite64, fd, buffer, count, offset) as ssize_t,
        Some(disk) => written(
            disk,
            fd,
            Some(offset),
            || copied(buffer, count),
            |bytes| kernel!(SYS_pwrite64, fd, bytes.as_ptr(), bytes.len(), offset) as ssize_t,
        ),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(fd: c_int, buffer: *const c_void, count: size_t, offset: off_t) -> ssize_t {
    // SAFETY: The same call under its other name.
    unsafe { pwrite64(fd, buffer, count, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwritev64(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    match watched(fd) {
        None => kernel!(SYS_pwritev, fd, parts, count, offset, 0) as ssize_t,
        Some(disk) => written(
            disk,
            fd,
            Some(offset),
            || gathered(parts, count),
            |bytes| kernel!(SYS_pwrite64, fd, bytes.as_ptr(), bytes.len(), offset) as ssize_t,
        ),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwritev(fd: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    // SAFETY: The same call under its other name.
    unsafe { pwritev64(fd, parts, count, offset) }
}

/// A call that is only counted, killed or failed.
fn decided(disk: Option<MutexGuard<'static, Disk>>, call: Call, make: impl FnOnce() -> c_int) -> c_int {
    let verdict = disk.map_or(Verdict::Go, |mut disk| disk.decide(call));
    if let Some(error) = verdict.error() {
        return fail(error);
    }
    let result = make();
    if verdict == Verdict::GoAndKill {
        kill();
    }
    result
}

fn synced(fd: c_int, make: impl FnOnce() -> c_int) -> c_int {
    let Some(mut disk) = watched(fd) else { return make() };
    // SAFETY: It is open for as long as the caller's call lasts, and not closed here: that would give back locks.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    let is_of_directory = file.metadata().is_ok_and(|metadata| metadata.is_dir());
    let verdict = disk.decide_as(Call::Sync, Calls::of_sync(is_of_directory));
    if verdict == Verdict::Stop {
        return fail(STOPPED);
    }
    let newest = disk.log.newest();
    // SAFETY: It is open for as long as the caller's call lasts.
    let handle = unsafe { BorrowedFd::borrow_raw(fd) };
    let told = to_be_told().take(fd);
    if let Verdict::Fail(error) = verdict {
        disk.log.synced(handle, newest, false);
        to_be_told().add_all_but(fd, error);
        return fail(error);
    }
    if let Some(error) = told {
        disk.log.synced(handle, newest, false);
        return fail(error);
    }
    drop(disk); // others may write meanwhile
    let result = make();
    let saved = error_number();
    let mut disk = disk::lock();
    // Another sync of the file may have failed meanwhile. The kernel tells both.
    if let Some(error) = to_be_told().take(fd) {
        disk.log.synced(handle, newest, false);
        return fail(error);
    }
    disk.log.synced(handle, newest, result == 0);
    drop(disk);
    if verdict == Verdict::GoAndKill {
        kill();
    }
    fail(saved);
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    synced(fd, || kernel!(SYS_fsync, fd) as c_int)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    synced(fd, || kernel!(SYS_fdatasync, fd) as c_int)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    if disk::is_watching() {
        to_be_told().take(fd);
    }
    kernel!(SYS_close, fd) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sync_file_range(fd: c_int, offset: off_t, count: off_t, flags: c_int) -> c_int {
    decided(watched(fd), Call::Sync, || kernel!(SYS_sync_file_range, fd, offset, count, flags) as c_int)
}

fn resized(fd: c_int, len: off_t, make: impl FnOnce() -> c_int) -> c_int {
    let Some(mut disk) = watched(fd) else { return make() };
    let verdict = disk.decide(Call::Resize);
    if let Some(error) = verdict.error() {
        return fail(error);
    }
    // SAFETY: It is open for as long as the caller's call lasts.
    let handle = unsafe { BorrowedFd::borrow_raw(fd) };
    let pending = u64::try_from(len).ok().and_then(|len| disk.log.before_resize(handle, len));
    let result = make();
    let saved = error_number();
    if let Some(pending) = pending.filter(|_| result == 0) {
        disk.log.resized(pending);
    }
    if verdict == Verdict::GoAndKill {
        kill();
    }
    drop(disk);
    fail(saved);
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate64(fd: c_int, len: off_t) -> c_int {
    resized(fd, len, || kernel!(SYS_ftruncate, fd, len) as c_int)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate(fd: c_int, len: off_t) -> c_int {
    // SAFETY: The same call under its other name.
    unsafe { ftruncate64(fd, len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fallocate64(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
    let make = || kernel!(SYS_fallocate, fd, mode, offset, len) as c_int;
    // SAFETY: It is open for as long as the caller's call lasts.
    let old_len = ManuallyDrop::new(borrow(unsafe { BorrowedFd::borrow_raw(fd) })).metadata().map_or(0, |it| it.len());
    match u64::try_from(offset + len) {
        Ok(end) if mode == 0 && end > old_len => resized(fd, offset + len, make),
        _ => decided(watched(fd), Call::Resize, make), // the length stays
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fallocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
    // SAFETY: The same call under its other name.
    unsafe { fallocate64(fd, mode, offset, len) }
}

/// What is copied inside the kernel is not seen: whoever tries is told to write it.
#[unsafe(no_mangle)]
unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_offset: *mut off_t,
    to: c_int,
    to_offset: *mut off_t,
    len: size_t,
    flags: libc::c_uint,
) -> ssize_t {
    match watched(to) {
        Some(_) => fail(libc::EINVAL) as ssize_t,
        None => kernel!(SYS_copy_file_range, from, from_offset, to, to_offset, len, flags) as ssize_t,
    }
}

/// As [`copy_file_range`].
#[unsafe(no_mangle)]
unsafe extern "C" fn sendfile64(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
    match watched(to) {
        Some(_) => fail(libc::EINVAL) as ssize_t,
        None => kernel!(SYS_sendfile, to, from, offset, count) as ssize_t,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sendfile(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
    // SAFETY: The same call under its other name.
    unsafe { sendfile64(to, from, offset, count) }
}

/// The descriptor's file, which the caller must not drop.
pub(crate) fn borrow(fd: BorrowedFd<'_>) -> File {
    // SAFETY: It is open, and stays so, because whoever calls this does not drop it.
    unsafe { File::from_raw_fd(fd.as_raw_fd()) }
}

/// The flags that a descriptor was opened with.
pub(crate) fn flags(fd: BorrowedFd<'_>) -> c_int {
    // SAFETY: It only asks.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }
}

/// The kernel writes page by page, and looks between two of them whether the process was killed.
const PAGE: u64 = 4096;

/// Where a write goes that is made at this offset, or where the file's handle stands.
pub(crate) fn place(fd: BorrowedFd<'_>, offset: Option<u64>) -> Option<u64> {
    if flags(fd) & libc::O_APPEND != 0 {
        return Some(ManuallyDrop::new(borrow(fd)).metadata().ok()?.len());
    }
    offset.or_else(|| position(fd))
}

/// Where the next write goes.
fn position(fd: BorrowedFd<'_>) -> Option<u64> {
    // SAFETY: It only asks.
    u64::try_from(unsafe { libc::lseek(fd.as_raw_fd(), 0, libc::SEEK_CUR) }).ok()
}

/// Writes without being watched.
pub(crate) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = kernel!(SYS_pwrite64, file.as_raw_fd(), bytes.as_ptr(), bytes.len(), offset);
        match usize::try_from(written) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// Changes the length without being watched.
pub(crate) fn set_len(file: &File, len: u64) -> io::Result<()> {
    match kernel!(SYS_ftruncate, file.as_raw_fd(), len) {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
