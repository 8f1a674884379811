//! The disk as the process sees it: what is watched, what was counted, and what is to happen.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::undo::UndoLog;
use crate::{Call, Calls, Fault, Surviving, Trigger};

/// Whether anything is watched. Looked at in front of every call, so that a program that only links this pays one load.
static WATCHING: AtomicBool = AtomicBool::new(false);

static DISK: Mutex<Disk> = Mutex::new(Disk::new());

pub(crate) struct Disk {
    /// The watched directory, absolute, ending in `/`.
    prefix: Vec<u8>,
    counts: [u64; 4],
    armed: Option<Armed>,
    fired: bool,
    pub(crate) log: UndoLog,
}

struct Armed {
    trigger: Trigger,
    fault: Fault,
    seen: u64,
}

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Go,
    GoAndKill,
    HalfAndKill,
    Short,
    Fail(i32),
    /// The call fails as if it had never been made.
    Stop,
}

/// The error number of calls that fail because of [`Fault::Stop`].
pub(crate) const STOPPED: i32 = libc::EIO;

impl Verdict {
    /// The error number with which the call fails, if it does.
    pub(crate) fn error(self) -> Option<i32> {
        match self {
            Verdict::Fail(error) => Some(error),
            Verdict::Stop => Some(STOPPED),
            Verdict::Go | Verdict::GoAndKill | Verdict::HalfAndKill | Verdict::Short => None,
        }
    }
}

impl Disk {
    const fn new() -> Self {
        Disk { prefix: Vec::new(), counts: [0; 4], armed: None, fired: false, log: UndoLog::new() }
    }

    /// Counts a call and decides what becomes of it. If that is its end, it does not return.
    pub(crate) fn decide(&mut self, call: Call) -> Verdict {
        self.decide_as(call, Calls::of(call))
    }

    /// The same for a call of several kinds.
    pub(crate) fn decide_as(&mut self, call: Call, kinds: Calls) -> Verdict {
        self.counts[call as usize] += 1;
        let is_stopped = self.fired && matches!(self.armed, Some(Armed { fault: Fault::Stop, .. }));
        let Some(armed) = self.armed.as_mut().filter(|armed| armed.trigger.calls.meets(kinds)) else {
            return if is_stopped { Verdict::Stop } else { Verdict::Go };
        };
        armed.seen += 1;
        let (nth, fault) = (armed.trigger.nth, armed.fault);
        let lasts = matches!(fault, Fault::Fail(_) | Fault::Stop);
        if armed.seen < nth || (armed.seen > nth && !lasts) {
            return Verdict::Go;
        }
        self.fired = true;
        match fault {
            Fault::KillBefore => kill(),
            Fault::KillAfter => Verdict::GoAndKill,
            Fault::KillAmid if call == Call::Write => Verdict::HalfAndKill,
            Fault::KillAmid => kill(),
            Fault::CutPower(surviving) => self.cut_power(surviving),
            Fault::Fail(error) | Fault::FailOnce(error) => Verdict::Fail(error),
            Fault::WriteShort if call == Call::Write => Verdict::Short,
            Fault::WriteShort => Verdict::Go,
            Fault::Stop => Verdict::Stop,
        }
    }

    /// Takes back what was not synced and ends the process. Called with the disk locked, so that no other thread writes.
    fn cut_power(&mut self, surviving: Surviving) -> ! {
        hold_up_readers_of_maps();
        self.log.undo(surviving);
        kill()
    }
}

/// A thread that reads a map beyond what is left of its file, or follows what is left there to nowhere, waits for the end of the
/// process, which it would be otherwise, before everything is taken back.
fn hold_up_readers_of_maps() {
    extern "C" fn wait(_: libc::c_int) {
        loop {
            // SAFETY: It waits for a signal, and may be called by a handler of one.
            unsafe { libc::pause() };
        }
    }
    for signal in [libc::SIGBUS, libc::SIGSEGV, libc::SIGABRT] {
        // SAFETY: The handler touches no memory and never returns.
        unsafe { libc::signal(signal, wait as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
}

/// The disk, if the file at this path is watched, or the directory, of which the watched one is the first.
pub(crate) fn watched(path: &[u8]) -> Option<MutexGuard<'static, Disk>> {
    let disk = lock();
    let is_first = disk.prefix.split_last().is_some_and(|(_, directory)| directory == path);
    (is_first || path.starts_with(&disk.prefix)).then_some(disk)
}

pub(crate) fn is_watching() -> bool {
    WATCHING.load(Ordering::Relaxed)
}

pub(crate) fn lock() -> MutexGuard<'static, Disk> {
    DISK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to watch the files below a directory, which must exist; from here on a power cut knows what was not synced. What
/// was watched before is forgotten.
///
/// # Panics
///
/// If the directory's absolute path cannot be found out.
pub fn watch(directory: &Path) {
    let absolute = directory.canonicalize().expect("the directory to watch exists");
    let mut prefix = absolute.as_os_str().as_bytes().to_vec();
    prefix.push(b'/');
    let mut disk = lock();
    disk.prefix = prefix;
    disk.log.forget();
    WATCHING.store(true, Ordering::Relaxed);
    std::hint::black_box((crate::calls::addresses(), crate::name_calls::addresses())); // the linker has to take them
}

/// Makes this fault happen at that call, counted from now on; what was armed before is not.
pub fn arm(trigger: Trigger, fault: Fault) {
    let mut disk = lock();
    disk.armed = Some(Armed { trigger, fault, seen: 0 });
    disk.fired = false;
}

/// Lets nothing happen from now on: the disk is whole again.
pub fn disarm() {
    lock().armed = None;
}

/// Whether what was armed last has happened.
#[must_use]
pub fn fired() -> bool {
    lock().fired
}

/// How many calls of this kind were made on watched files.
#[must_use]
pub fn count(call: Call) -> u64 {
    lock().counts[call as usize]
}

/// Kills this process, as `kill -9` does.
pub fn kill() -> ! {
    // SAFETY: A signal to this process, which ends it.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    loop {
        // The signal is under way.
        std::thread::park();
    }
}

/// Cuts the power now: takes back what was not synced, and kills this process.
pub fn cut_power(surviving: Surviving) -> ! {
    lock().cut_power(surviving)
}
