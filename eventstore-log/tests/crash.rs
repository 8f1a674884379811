//! After a crash the log has everything that was acknowledged, and nothing else.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Every, Fault, SimDisk, by_chance};
use eventstore_log::{CommitError, Compression, Directory, Error, Group, Known, Log, Opened, Options, Page, Position};
use proptest::prelude::*;

const ID: [u8; 16] = [3; 16];

fn try_open(disk: &SimDisk, known: u64) -> (Result<Opened, Error>, Vec<Vec<u8>>) {
    try_open_with(disk, known, 0)
}

fn try_open_with(disk: &SimDisk, known: u64, space_ahead: u64) -> (Result<Opened, Error>, Vec<Vec<u8>>) {
    let compression = if cfg!(feature = "zstd") { Compression::Zstd } else { Compression::None };
    let options = Options { segment_size: 128 << 10, space_ahead, cache_size: 1 << 20, compression };
    let mut visited = Vec::new();
    let files = Arc::new(disk.clone());
    let opened = Log::open(files, ID, &options, Known { synced: known }, 0, &mut |number, content| {
        visited.push(content.to_vec());
        assert_eq!(number, visited.len() as u64);
    });
    (opened, visited)
}

fn group(first: u64, contents: &[Vec<u8>]) -> Group {
    let mut group = Group::default();
    group.begin(first);
    contents.iter().for_each(|content| group.push(&[content]));
    group
}

fn commit(opened: &mut Opened, content: &[u8], sync: bool) {
    let mut group = group(opened.log.last() + 1, &[content.to_vec()]);
    opened.appender.as_mut().expect("sound").commit(&mut group, sync).expect("committed");
}

/// All records of the log.
fn records(log: &Log) -> Vec<Vec<u8>> {
    let mut page = Page::default();
    while (page.records.len() as u64) < log.last() {
        log.read(page.records.len() as u64 + 1..u64::MAX, 1 << 20, usize::MAX, &mut page).expect("read");
    }
    page.contents().map(|(_, content)| content.to_vec()).collect()
}

/// Frames of equal size: data that was cut off would fit after what is appended later. That may be the very group that
/// was cut off, since an unacknowledged writer tries again.
#[test]
fn what_was_cut_off_never_comes_back() {
    let frame = |name: u8| vec![name; 700];
    let mut every = Every::default();
    let mut images = 0;
    while every.begin() {
        let is_again = every.choose(2) == 1;
        // Only the first and the last version of a sector are tried.
        let mut choose = |options: usize| every.choose(2) * (options - 1);
        let disk = SimDisk::default();
        let (opened, _) = try_open(&disk, 0);
        let mut opened = opened.expect("opened");
        commit(&mut opened, &frame(b'a'), true);
        b"bcd".iter().for_each(|name| commit(&mut opened, &frame(*name), false));
        let disk = disk.after_power_cut(&mut choose);
        drop(opened);

        let (opened, there) = try_open(&disk, 1);
        let mut opened = opened.expect("opened");
        let expected: Vec<_> = b"abcd"[..there.len()].iter().map(|name| frame(*name)).collect();
        assert!(there == expected, "a beginning");
        let new = if is_again { b"abcde"[there.len()] } else { b'n' };
        commit(&mut opened, &frame(new), false);
        let disk = disk.after_power_cut(&mut choose);
        drop(opened);

        let (opened, again) = try_open(&disk, there.len() as u64);
        opened.expect("opened");
        let with_new = [expected.as_slice(), &[frame(new)]].concat();
        let names: Vec<_> = again.iter().map(|content| content[0]).collect();
        assert!(again == expected || again == with_new, "{names:?} behind {}", there.len());
        images += 1;
        every.end();
    }
    assert!(images > 1000, "{images}");
}

/// Opens the log, appends a small or a large group, cuts the power, and opens it again. What was there and the new group
/// must be there, and nothing else. The first few unsynced names, sectors and lengths are there or not in every
/// combination, the others all or none.
fn append_and_cut_power(disk: &SimDisk, before: &[Vec<u8>], what: &str) {
    let mut every = Every::default();
    while every.begin() {
        let len = [300, 100_000][every.choose(2)];
        let what = format!("{what}, then {len} bytes");
        // How far it was synced may be known or not.
        let is_known = every.choose(2) == 1;
        let known = |synced: usize| if is_known { synced as u64 } else { 0 };
        let disk = disk.after_kill();
        let (opened, there) = try_open(&disk, known(2));
        let mut opened = opened.expect(&what);
        assert!(there.len() >= 2 && before.starts_with(&there), "{what}: {} records", there.len());
        let new = vec![9; len];
        commit(&mut opened, &new, true);
        let (are_others_there, mut few) = (every.choose(2), 8);
        let disk = disk.after_power_cut(&mut |options| match few {
            0 => are_others_there * (options - 1),
            _ => {
                few -= 1;
                every.choose(options)
            }
        });
        drop(opened);
        let (opened, again) = try_open(&disk, known(there.len() + 1));
        assert_eq!(opened.expect(&what).damage, None, "{what}");
        assert!(again == [there, vec![new]].concat(), "{what}: {} records", again.len());
        every.end();
    }
}

/// Opening removes a torn end. Whatever it was doing when it was killed, the next opening sees what is in the cache, and
/// makes that durable before anything is appended.
#[test]
fn what_a_killed_opening_removed_never_comes_back() {
    let frame = |name: u8, len| vec![name; len];
    let (first, second) = ("0000000001-0.seg", "0000000002-0.seg");
    // The groups after the first, and the part of a file that a power cut has lost.
    let torn = [
        ("the first group of a segment", vec![frame(b'b', 100_000)], second, 4096..8192),
        ("the header of a segment", vec![frame(b'b', 100_000)], second, 0..512),
        ("a segment", vec![frame(b'b', 100_000)], second, 0..200_000),
        ("a group before another", vec![frame(b'b', 2000), frame(b'c', 2000)], first, 1024..1536),
    ];
    for (what, groups, name, lost) in torn {
        for after in 1.. {
            let disk = SimDisk::default();
            let mut opened = try_open(&disk, 0).0.expect("opened");
            let before = [frame(b'a', 300), frame(b'a', 300)];
            before.iter().for_each(|content| commit(&mut opened, content, true));
            groups.iter().for_each(|content| commit(&mut opened, content, false));
            let file = disk.open(name).expect("opened");
            let len = lost.end.min(file.len().expect("measured")) - lost.start;
            file.write_at(&vec![0; len as usize], lost.start).and_then(|()| file.sync_all()).expect("lost");
            let disk = disk.after_power_cut(&mut |options| options - 1);
            drop(opened);
            disk.fail_after(after, Fault::Down, 0);
            let is_ended = try_open(&disk, 0).0.is_err();
            append_and_cut_power(&disk, &before, &format!("{what} is torn, killed at call {after}"));
            if !is_ended {
                assert!(after > 1, "opening changes something");
                break;
            }
        }
    }
}

/// A file system may accept a group and only then say that the disk is full. The group is removed again, and whatever
/// that was doing when the process was killed, the group does not come back after later ones.
#[test]
fn what_was_refused_never_comes_back() {
    for (len, full, down) in each_refusal() {
        let disk = SimDisk::default();
        let mut opened = try_open(&disk, 0).0.expect("opened");
        let mut before = vec![vec![b'a'; 300], vec![b'b'; 300]];
        before.iter().for_each(|content| commit(&mut opened, content, true));
        before.push(vec![b'c'; len]);
        disk.fail_after(full, Fault::Full, 0);
        disk.fail_after(full + down, Fault::Down, 0);
        let mut refused = group(3, &before[2..]);
        let _ = opened.appender.as_mut().expect("sound").commit(&mut refused, true);
        append_and_cut_power(&disk, &before, &format!("{len} bytes, full at call {full}, killed {down} later"));
        drop(opened);
    }
}

/// The length of a group, the call at which the disk is full, and how many calls later the process is killed.
fn each_refusal() -> impl Iterator<Item = (usize, u64, u64)> {
    let calls = |len| (1..6).flat_map(move |full| (1..5).map(move |down| (len, full, down)));
    [300, 100_000].into_iter().flat_map(calls)
}

/// Compression fails at some call, such as the sync after which the new generation counts. Its name may never become
/// durable then, whatever a later sync says: nothing that a later opening does may rest on it.
#[cfg(feature = "zstd")]
#[test]
fn a_failed_compression_takes_nothing_away() {
    for after in 1.. {
        let disk = SimDisk::default();
        let mut opened = try_open(&disk, 0).0.expect("opened");
        let before = [vec![b'a'; 100_000], vec![b'b'; 100_000], vec![b'c'; 300]];
        before.iter().for_each(|content| commit(&mut opened, content, true));
        let at = opened.log.position();
        opened.log.checkpoint(at, b"blob", &mut |_| Vec::new()).expect("made");
        let calls = disk.calls();
        disk.fail_after(after, Fault::Error, 0);
        let _ = opened.log.compress(&mut || true);
        let is_past = disk.calls() < calls + after;
        append_and_cut_power(&disk, &before, &format!("compression failed at call {after}"));
        drop(opened);
        if is_past {
            assert!(after > 5, "compression changes something");
            break;
        }
    }
}

/// A checkpoint is durable when it returns, so that opening reads only what follows it.
#[test]
fn a_checkpoint_is_durable() {
    let disk = SimDisk::default();
    let (opened, _) = try_open(&disk, 0);
    let mut opened = opened.expect("opened");
    (0..30).for_each(|_| commit(&mut opened, &[7; 20_000], false));
    let at = opened.log.position();
    opened.log.checkpoint(at, b"blob", &mut |_| Vec::new()).expect("made");
    assert_eq!(opened.log.synced(), 30);
    commit(&mut opened, &[7; 100], true);
    let disk = disk.after_power_cut(&mut |_| 0);
    let opened = try_open(&disk, 0).0.expect("opened");
    assert_eq!(opened.tail.map(|tail| (tail.record, tail.blob)), Some((30, b"blob".to_vec())));
    assert_eq!((opened.log.last(), opened.recovery.scanned_records), (31, 1));
    let segments = opened.log.segments();
    let (_, full) = segments.split_last().expect("segments");
    assert!(full.len() > 3 && full.iter().all(|segment| segment.is_sealed));
}

#[derive(Clone, Debug)]
enum Op {
    Commit {
        lens: Vec<usize>,
        sync: bool,
    },
    Sync,
    Checkpoint {
        back: usize,
    },
    Compress,
    Reopen(End),
    /// Opening meets this fault; after another end, the log is opened again.
    ReopenFailing {
        end: End,
        after: u64,
        fault: Fault,
        again: End,
    },
    /// The next calls meet this fault.
    Fail {
        after: u64,
        fault: Fault,
    },
    Full {
        room: u64,
    },
    Room,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Close,
    Kill,
    PowerCut,
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![5 => 0..600usize, 2 => 600..9000usize, 2 => 20_000..60_000usize];
    let end = prop_oneof![1 => Just(End::Close), 1 => Just(End::Kill), 2 => Just(End::PowerCut)];
    let fault = prop_oneof![Just(Fault::Error), Just(Fault::Full), Just(Fault::Down)];
    let failing = (end.clone(), 1..8u64, fault.clone(), end.clone())
        .prop_map(|(end, after, fault, again)| Op::ReopenFailing { end, after, fault, again });
    prop_oneof![
        12 => (prop::collection::vec(len, 1..4), any::<bool>()).prop_map(|(lens, sync)| Op::Commit { lens, sync }),
        2 => Just(Op::Sync),
        2 => (0..4usize).prop_map(|back| Op::Checkpoint { back }),
        4 => Just(Op::Compress),
        4 => end.prop_map(Op::Reopen),
        3 => failing,
        3 => (1..12u64, fault).prop_map(|(after, fault)| Op::Fail { after, fault }),
        1 => (0..100_000u64).prop_map(|room| Op::Full { room }),
        1 => Just(Op::Room),
    ]
}

/// What must be there, and what may be.
struct Model {
    disk: SimDisk,
    space_ahead: u64,
    opened: Option<Opened>,
    /// The contents of all groups, in order.
    groups: Vec<Vec<Vec<u8>>>,
    /// The number of groups acknowledged with a sync.
    synced: usize,
    /// The number of acknowledged groups.
    committed: usize,
    positions: Vec<Position>,
    /// A sync or write failed: the cache may differ from the disk.
    has_failed: bool,
    choose: Box<dyn FnMut(usize) -> usize>,
    contents: u64,
}

impl Model {
    fn new(seed: u64, space_ahead: u64) -> Self {
        let mut model = Model {
            disk: SimDisk::default(),
            space_ahead,
            opened: None,
            groups: Vec::new(),
            synced: 0,
            committed: 0,
            positions: Vec::new(),
            has_failed: false,
            choose: Box::new(by_chance(seed)),
            contents: 0,
        };
        model.open(0);
        model
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Commit { lens, sync } => self.commit(lens, *sync),
            Op::Sync => match self.opened.as_ref().unwrap().log.sync() {
                Ok(()) => self.synced = self.committed,
                Err(_) => self.has_failed = true,
            },
            Op::Checkpoint { back } => self.checkpoint(*back),
            // Whether it fails or not, it changes nothing that is visible.
            Op::Compress => {
                self.checkpoint(0);
                drop(self.opened.as_ref().unwrap().log.compress(&mut || true));
            }
            Op::Reopen(end) => {
                let must = self.end(*end);
                self.open(must);
            }
            Op::ReopenFailing { end, after, fault, again } => self.reopen_failing(*end, (*after, *fault), *again),
            Op::Fail { after, fault } => self.disk.fail_after(*after, *fault, self.contents % 4),
            Op::Full { room } => self.disk.set_capacity(Some(self.disk.used() + room)),
            Op::Room => self.disk.set_capacity(None),
        }
    }

    fn commit(&mut self, lens: &[usize], sync: bool) {
        let opened = self.opened.as_mut().unwrap();
        // After a failure, everything fails.
        let mut contents = Vec::new();
        for len in lens {
            self.contents += 1;
            let tag = self.contents.to_le_bytes();
            contents.push((0..*len).map(|index| tag[index % 8] ^ index as u8).collect::<Vec<_>>());
        }
        let mut group = group(opened.log.last() + 1, &contents);
        let before = opened.log.last();
        match opened.appender.as_mut().unwrap().commit(&mut group, sync) {
            Ok(position) => {
                assert!(!self.has_failed, "fenced");
                self.groups.truncate(self.committed);
                self.groups.push(contents);
                self.committed += 1;
                if sync {
                    self.synced = self.committed;
                }
                self.positions.push(position);
                assert_eq!(position.record(), opened.log.last());
                assert!(opened.log.synced() >= if sync { position.record() } else { 0 });
            }
            Err(CommitError::NotWritten(error)) => {
                assert_eq!(opened.log.last(), before);
                self.has_failed |= !matches!(error, Error::Full { .. });
            }
            Err(CommitError::Unknown(_)) => {
                assert_eq!(opened.log.last(), before);
                assert!(!self.has_failed, "fenced");
                self.groups.truncate(self.committed);
                self.groups.push(contents);
                self.has_failed = true;
            }
        }
    }

    fn checkpoint(&mut self, back: usize) {
        let log = &self.opened.as_ref().unwrap().log;
        let Some(at) = self.positions.iter().rev().nth(back) else { return };
        let made = log.checkpoint(*at, b"blob", &mut |range| format!("{range:?}").into_bytes());
        match made {
            // It may sync more, but does not promise that.
            Ok(()) => {
                let records: Vec<_> = self.groups[..self.committed].iter().map(Vec::len).collect();
                let mut end = 0;
                let covered = records
                    .iter()
                    .take_while(|len| {
                        end += **len as u64;
                        end <= at.record()
                    })
                    .count();
                self.synced = self.synced.max(covered);
            }
            Err(Error::Full { .. }) => {}
            // The sync of the checkpoint does not belong to the log: the log may or may not remain usable.
            Err(_) => {}
        }
        let mut empty = Group::default();
        empty.begin(0);
        let appender = self.opened.as_mut().unwrap().appender.as_mut().unwrap();
        if matches!(appender.commit(&mut empty, false), Err(CommitError::NotWritten(Error::Fenced { .. }))) {
            self.has_failed = true;
        }
    }

    fn reopen_failing(&mut self, end: End, (after, fault): (u64, Fault), again: End) {
        let must = self.end(end);
        self.disk.fail_after(after, fault, self.contents);
        let (opened, _) = try_open_with(&self.disk, 0, self.space_ahead);
        if opened.is_ok() {
            self.disk.no_faults();
        }
        self.opened = opened.ok();
        let must_again = self.end(again);
        self.open(must.min(must_again));
    }

    /// Ends the process and returns how many groups must be there afterwards.
    fn end(&mut self, end: End) -> usize {
        let mut opened = self.opened.take();
        if let Some(opened) = opened.as_mut().filter(|_| matches!(end, End::Close)) {
            opened.appender.take().unwrap().close();
        }
        let disk = match end {
            End::PowerCut => self.disk.after_power_cut(&mut self.choose),
            _ => self.disk.after_kill(),
        };
        // Dropping it only now does no harm: another disk continues.
        drop(opened);
        self.disk = disk;
        if matches!(end, End::PowerCut) { self.synced } else { self.committed }
    }

    /// Opens the log, which must have this many groups.
    fn open(&mut self, must: usize) {
        // Sometimes the synced end is known exactly, sometimes not at all.
        let count = |groups: usize| self.groups[..groups].iter().map(Vec::len).sum::<usize>();
        let (known, records) = ((self.choose)(2) * count(self.synced), count(must));
        let (opened, visited) = try_open_with(&self.disk, known as u64, self.space_ahead);
        let opened = opened.expect("opened");
        assert_eq!(opened.damage, None);
        assert_eq!(records_of(&self.groups, visited.len()), Some(visited.clone()), "whole groups");
        assert!(visited.len() >= records, "{} of {records} synced", visited.len());
        assert_eq!(visited, self::records(&opened.log));
        let mut left = visited.len();
        let groups = self.groups.iter().take_while(|group| {
            let fits = left >= group.len();
            left = left.saturating_sub(group.len());
            fits
        });
        let count = groups.count();
        self.groups.truncate(count);
        (self.synced, self.committed, self.has_failed) = (count, count, false);
        self.positions = vec![opened.log.position()];
        self.opened = Some(opened);
    }
}

/// The first records, if they are whole groups.
fn records_of(groups: &[Vec<Vec<u8>>], count: usize) -> Option<Vec<Vec<u8>>> {
    let mut records = Vec::new();
    for group in groups {
        if records.len() == count {
            break;
        }
        records.extend(group.iter().cloned());
    }
    (records.len() == count).then_some(records)
}

fn config() -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig { cases: 300, ..default } }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn all_that_was_answered_for_is_there_and_nothing_else(
        ops in prop::collection::vec(op(), 1..40),
        seed in any::<u64>(),
    ) {
        check(&ops, seed, 0);
    }

    /// The same with background preallocation, so that calls come in any order.
    #[test]
    fn space_ahead_of_the_end_takes_nothing_away(ops in prop::collection::vec(op(), 1..40), seed in any::<u64>()) {
        check(&ops, seed, 1 << 20);
    }
}

fn check(ops: &[Op], seed: u64, space_ahead: u64) {
    let mut model = Model::new(seed, space_ahead);
    for op in ops {
        model.run(op);
    }
    model.run(&Op::Reopen(End::PowerCut));
    model.run(&Op::Commit { lens: vec![10], sync: true });
    model.run(&Op::Reopen(End::Kill));
}
