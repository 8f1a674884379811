//! The effect of failed writes, failed syncs and full disks on an open log, and of concurrent threads.
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{Fault, SimDisk};
use eventstore_log::{
    CommitError, Directory, DiskDirectory, Error, File, Group, Known, Log, MemoryDirectory, Opened, Options, Page,
};

const ID: [u8; 16] = [5; 16];

fn open(files: Arc<dyn Directory>, space_ahead: u64) -> Opened {
    let options = Options { segment_size: 128 << 10, space_ahead, ..Options::default() };
    Log::open(files, ID, &options, Known::default(), 0, &mut |_, _| {}).expect("opened")
}

fn commit(opened: &mut Opened, len: usize, sync: bool) -> Result<u64, CommitError> {
    let mut group = Group::default();
    group.begin(opened.log.last() + 1);
    group.push(&[&vec![group.next() as u8; len]]);
    opened.appender.as_mut().expect("sound").commit(&mut group, sync).map(|position| position.record())
}

fn check_records(log: &Log, expected: u64) {
    assert_eq!(log.last(), expected);
    for number in 1..=expected {
        let mut page = Page::default();
        log.read_one(number, &mut page).expect("read");
        let (at, content) = page.contents().next().expect("there");
        assert!(at == number && content.iter().all(|byte| *byte == number as u8));
    }
}

#[test]
fn a_full_disk_takes_nothing_of_a_group_and_the_log_goes_on() {
    let disk = SimDisk::default();
    let mut opened = open(Arc::new(disk.clone()), 0);
    commit(&mut opened, 1000, true).expect("committed");
    for len in [20_000, 70_000, 200_000] {
        let before = disk.files();
        disk.set_capacity(Some(disk.used() + 10_000));
        let full = commit(&mut opened, len, true);
        assert!(matches!(full, Err(CommitError::NotWritten(Error::Full { .. }))), "{full:?}");
        assert!(disk.files() == before);
        let last = opened.log.last();
        commit(&mut opened, 100, true).expect("a smaller one fits");
        check_records(&opened.log, last + 1);
        disk.set_capacity(None);
        commit(&mut opened, len, true).expect("there is room again");
    }
    drop(opened);
    check_records(&open(Arc::new(disk.after_kill()), 0).log, 7);
}

/// A copy-on-write file system may run out of space where zeros are.
#[test]
fn no_room_in_the_middle_of_a_group_takes_all_of_it_away() {
    let (mut full, mut failed) = (0, 0);
    for first in [None, Some(1000), Some(60_000)] {
        for (seed, call) in (0..20).flat_map(|seed| (1..6).map(move |call| (seed, call))) {
            let disk = SimDisk::default();
            let mut opened = open(Arc::new(disk.clone()), 0);
            if let Some(len) = first {
                commit(&mut opened, len, true).expect("committed");
            }
            let before = opened.log.last();
            disk.fail_after(call, Fault::Full, seed);
            let committed = commit(&mut opened, 5000, false);
            disk.no_faults();
            if matches!(committed, Err(CommitError::NotWritten(Error::Full { .. }))) {
                full += 1;
                check_records(&opened.log, before);
                check_records(&open(Arc::new(disk.after_kill()), 0).log, before);
                let cut = disk.after_power_cut(&mut common::by_chance(seed));
                assert!(open(Arc::new(cut), 0).log.last() <= before);
                commit(&mut opened, 4000, true).expect("the log goes on");
                check_records(&opened.log, before + 1);
                drop(opened);
                check_records(&open(Arc::new(disk.after_kill()), 0).log, before + 1);
            } else if committed.is_err() {
                failed += 1;
                let fenced = commit(&mut opened, 10, false);
                assert!(
                    matches!(fenced, Err(CommitError::NotWritten(Error::Fenced { .. }))),
                    "{committed:?} {fenced:?}"
                );
            }
        }
    }
    assert!(full > 50 && failed > 20, "{full} {failed}");
}

#[test]
fn a_failed_sync_fences_for_ever_and_reads_go_on() {
    let disk = SimDisk::default();
    let mut opened = open(Arc::new(disk.clone()), 0);
    commit(&mut opened, 1000, true).expect("committed");
    commit(&mut opened, 1000, false).expect("committed");
    // The calls are: zeros, the group, the sync.
    disk.fail_after(3, Fault::Error, 0);
    let unknown = commit(&mut opened, 1000, true);
    assert!(matches!(unknown, Err(CommitError::Unknown(Error::Io { .. }))), "{unknown:?}");
    for sync in [true, false] {
        let fenced = commit(&mut opened, 10, sync);
        assert!(matches!(fenced, Err(CommitError::NotWritten(Error::Fenced { .. }))), "{fenced:?}");
        assert!(matches!(opened.log.sync(), Err(Error::Fenced { .. })));
    }
    let checkpoint = opened.log.checkpoint(opened.log.position(), b"", &mut |_| Vec::new());
    assert!(matches!(checkpoint, Err(Error::Fenced { .. })));
    check_records(&opened.log, 2);
    assert_eq!(opened.log.synced(), 1);
    let files = disk.files();
    drop(opened);
    assert!(disk.files() == files, "what may be looked at later is left");
}

#[test]
fn a_failed_sync_of_another_thread_fences_the_appender() {
    let disk = SimDisk::default();
    let mut opened = open(Arc::new(disk.clone()), 0);
    commit(&mut opened, 1000, false).expect("committed");
    disk.fail_after(1, Fault::Error, 0);
    let log = opened.log.clone();
    let failed = thread::spawn(move || log.sync()).join().unwrap();
    assert!(matches!(failed, Err(Error::Io { .. })), "{failed:?}");
    assert!(matches!(commit(&mut opened, 10, false), Err(CommitError::NotWritten(Error::Fenced { .. }))));
}

/// Files in memory, some of which cannot be opened or synced.
#[derive(Debug, Default)]
struct Faulty {
    files: MemoryDirectory,
    /// The process has run out of file descriptors.
    is_without_descriptors: AtomicBool,
    /// Files that were opened, not created, cannot be synced: those of the background.
    opened_ones_fail: bool,
}

impl Faulty {
    fn check(&self) -> io::Result<()> {
        let is_over = self.is_without_descriptors.load(Ordering::SeqCst);
        if is_over { Err(io::Error::from_raw_os_error(24)) } else { Ok(()) } // EMFILE
    }
}

impl Directory for Faulty {
    fn list(&self) -> io::Result<Vec<String>> {
        self.files.list()
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.check()?;
        let file = self.files.open(name)?;
        Ok(if self.opened_ones_fail { Arc::new(NoSync(file)) } else { file })
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.check()?;
        self.files.create(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn subdirectory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        self.files.subdirectory(name)
    }
}

#[cfg(unix)]
#[test]
fn without_file_descriptors_the_log_waits_for_some() {
    for space_ahead in [0, 1 << 20] {
        let files = Arc::new(Faulty::default());
        let mut opened = open(files.clone(), space_ahead);
        commit(&mut opened, 100, true).expect("committed");
        files.is_without_descriptors.store(true, Ordering::SeqCst);
        let mut refused = None;
        while refused.is_none() {
            refused = commit(&mut opened, 10_000, true).err(); // until the segment is full
        }
        let is_told = matches!(&refused, Some(CommitError::NotWritten(Error::Io { operation: "create", .. })));
        assert!(is_told, "{refused:?}");
        let last = opened.log.last();
        files.is_without_descriptors.store(false, Ordering::SeqCst);
        commit(&mut opened, 10_000, true).expect("there are some again");
        check_records(&opened.log, last + 1);
    }
}

#[derive(Debug)]
struct NoSync(Arc<dyn File>);

impl File for NoSync {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, out: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
        self.0.read_at(out, at, len)
    }
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_at(bytes, at)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        Err(io::Error::other("on purpose"))
    }
    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
}

#[test]
fn a_failed_sync_of_space_ahead_fences_as_any_other() {
    let mut opened = open(Arc::new(Faulty { opened_ones_fail: true, ..Faulty::default() }), 1 << 20);
    commit(&mut opened, 100, true).expect("committed");
    // Closing waits for the background.
    opened.appender.take().unwrap().close();
    assert!(matches!(opened.log.sync(), Err(Error::Fenced { .. })));
}

#[test]
fn threads_read_while_the_log_grows_and_moves_on() {
    let temporary = tempfile::tempdir().unwrap();
    let mut opened = open(Arc::new(DiskDirectory::new(temporary.path())), 1 << 20);
    let log = opened.log.clone();
    let is_right = |number: u64, content: &[u8]| content.iter().all(|byte| *byte == number as u8);
    thread::scope(|scope| {
        for reader in 0..2 {
            let log = log.clone();
            scope.spawn(move || {
                let mut page = Page::default();
                while log.last() < 300 {
                    page.clear();
                    let last = log.last();
                    log.read(last.saturating_sub(20)..u64::MAX, 30_000, 50, &mut page).expect("read");
                    log.read_backward(1..last + 1, 30_000, 50, &mut page).expect("read");
                    log.read_one(1 + (last * 7 + reader) % last.max(1), &mut page).expect("read");
                    assert!(page.contents().all(|(number, content)| is_right(number, content)));
                    assert!(last == 0 || !page.records.is_empty());
                    log.sync().expect("synced");
                }
            });
        }
        for number in 1..=300 {
            commit(&mut opened, 100 + number * 37 % 5000, number % 3 == 0).expect("committed");
            if number % 40 == 0 {
                log.checkpoint(log.position(), b"", &mut |_| b"blob".to_vec()).expect("made");
            }
        }
    });
    check_records(&log, 300);
}
