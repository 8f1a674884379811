//! The engine on its own: what was written is there, or damage is reported.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use backend_lmdb::{LmdbEngine, Options};
use engine_suite::{Rows, content, copied, entries, expected, get, is_corrupt};
use eventstore_api::{Context, Error, Result};
use eventstore_kv::{Engine, Entries, Table, Task};
use tempfile::TempDir;

fn open(directory: &Path) -> Result<LmdbEngine> {
    LmdbEngine::open(directory, &Options::new("elsewhere"))
}

fn written(rounds: u64) -> TempDir {
    engine_suite::written(open, rounds)
}

engine_suite::tests!(open:
    what_was_written_is_there_after_opening_again,
    a_batch_may_lack_tables_and_change_the_mark,
    scans_go_both_ways_and_have_both_ends,
    scans_include_both_ends_and_keep_to_them,
    many_keys_are_looked_up_in_their_order,
    many_keys_are_looked_up_in_their_order_until_it_is_enough,
);

fn check(engine: &LmdbEngine) -> Result<()> {
    let (ctx, is_wanted) = (Context::background(), || Ok(()));
    engine.check_files(&Task::new(&ctx, &is_wanted))
}

fn small(directory: &Path, max_map_size: usize) -> LmdbEngine {
    let mut options = Options::new("elsewhere");
    options.map_size = 1 << 20;
    options.max_map_size = max_map_size;
    LmdbEngine::open(directory, &options).unwrap()
}

fn map_size(engine: &LmdbEngine) -> usize {
    let properties = engine.properties().unwrap();
    properties.iter().find(|(name, _)| *name == "map_size").unwrap().1.parse().unwrap()
}

/// Entries of about 2 MB.
fn large(round: u16) -> Entries {
    let mut entries = Entries::new();
    entries.put(Table::Meta, b"mark", &round.to_be_bytes());
    (0..1000_u16)
        .for_each(|n| entries.put(Table::Aggregates, &[n.to_be_bytes(), round.to_be_bytes()].concat(), &[7; 2048]));
    entries
}

#[test]
fn many_openings_leave_few_files() {
    engine_suite::many_openings_leave_few_tables(open, |_| true);
}

#[test]
fn the_longest_entries_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path()).unwrap();
    for round in 0..10_u8 {
        let mut entries = Entries::new();
        (0..200_u8).for_each(|n| entries.put(Table::Aggregates, &[vec![n; 488], vec![round]].concat(), &[n; 2 << 10]));
        engine.write(&entries).unwrap();
    }
    check(&engine).unwrap();
    assert_eq!(content(&engine).unwrap()[2].len(), 2000);
}

#[test]
fn keys_that_ascend_fill_the_pages() {
    let len = |is_ascending: bool| {
        let directory = tempfile::tempdir().unwrap();
        let engine = open(directory.path()).unwrap();
        for round in 0..20_u64 {
            let round = if is_ascending { round } else { 19 - round };
            let mut entries = Entries::new();
            (0..500).for_each(|n| entries.put(Table::Ids, &(round * 500 + n).to_be_bytes(), &[7; 100]));
            engine.write(&entries).unwrap();
            engine.write(&entries).expect("once more"); // not after the last key this time
        }
        check(&engine).unwrap();
        assert_eq!(content(&engine).unwrap()[1].len(), 10_000);
        let properties = engine.properties().unwrap();
        properties.iter().find(|(name, _)| *name == "last_page").unwrap().1.parse::<usize>().unwrap()
    };
    assert!(len(true) * 10 < len(false) * 8);
}

#[test]
fn the_map_grows_beside_readers_and_checks() {
    let directory = tempfile::tempdir().unwrap();
    let engine = small(directory.path(), 1 << 30);
    let is_writing = AtomicBool::new(true);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while is_writing.load(Ordering::Relaxed) {
                    let [meta, _, aggregates] = content(&engine).unwrap();
                    assert!(aggregates.len().is_multiple_of(1000) && aggregates.is_sorted());
                    assert!(meta.is_empty() || !aggregates.is_empty(), "they were read one after the other");
                    engine.properties().unwrap();
                }
            });
        }
        scope.spawn(|| {
            while is_writing.load(Ordering::Relaxed) {
                check(&engine).unwrap();
            }
        });
        (0..40).for_each(|round| engine.write(&large(round)).unwrap());
        is_writing.store(false, Ordering::Relaxed);
    });
    assert!(map_size(&engine) > 80 << 20, "80 MB are in a map that began with 1 MiB");
    assert_eq!(content(&engine).unwrap()[2].len(), 40_000);
    check(&engine).unwrap();
    drop(engine);
    let engine = small(directory.path(), 1 << 30);
    assert_eq!(content(&engine).unwrap()[2].len(), 40_000, "though its map is said to begin with 1 MiB");
    engine.write(&large(40)).unwrap();
}

#[test]
fn a_full_map_is_told_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let engine = small(directory.path(), 8 << 20);
    let error = (0..).find_map(|round| engine.write(&large(round)).err()).unwrap();
    assert!(matches!(&error, Error::Full { reason } if reason.contains("max_map_size")), "{error}");
    let [meta, _, aggregates] = content(&engine).unwrap();
    let rounds = aggregates.len() / 1000;
    assert_eq!((meta[0].1.as_slice(), aggregates.len() % 1000), (&(rounds as u16 - 1).to_be_bytes()[..], 0));
    let mut few = Entries::new();
    few.put(Table::Ids, b"few", b"entries");
    engine.write(&few).expect("few entries still fit");
    drop(engine);
    let engine = small(directory.path(), 16 << 20);
    engine.write(&large(rounds as u16)).expect("there is room now");
    assert_eq!(content(&engine).unwrap()[1].len(), 1);
    check(&engine).unwrap();
}

#[test]
fn more_readers_than_there_are_places_wait() {
    let directory = written(1);
    let engine = open(directory.path()).unwrap();
    let all_began = Barrier::new(256);
    thread::scope(|scope| {
        for n in 0..300 {
            let (engine, all_began) = (&engine, &all_began);
            scope.spawn(move || {
                if n < 256 {
                    let snapshot = engine.snapshot().unwrap();
                    all_began.wait();
                    thread::sleep(Duration::from_millis(50));
                    drop(snapshot);
                } else {
                    thread::sleep(Duration::from_millis(20));
                }
                assert!(get(engine, Table::Meta, b"mark").unwrap().is_some());
            });
        }
    });
    engine.write(&entries(1)).unwrap();
}

#[test]
fn a_copy_of_the_open_files_is_whole() {
    let directory = written(2);
    let engine = open(directory.path()).unwrap();
    for round in 2..6 {
        engine.write(&entries(round)).unwrap();
        let copy = copied(directory.path());
        let copied = open(copy.path()).unwrap();
        assert_eq!(content(&copied).unwrap(), expected(round + 1), "as after a kill");
        copied.write(&entries(round + 1)).unwrap();
        check(&copied).unwrap();
    }
    assert!(matches!(open(directory.path()), Err(Error::Locked { .. })));
}

#[test]
fn a_file_without_its_last_commit_is_as_it_was_before() {
    let directory = written(3);
    let path = directory.path().join("data.mdb");
    let mut bytes = fs::read(&path).unwrap();
    let transaction = |page: usize| u64::from_ne_bytes(bytes[page * 4096 + 144..][..8].try_into().unwrap());
    let newer = usize::from(transaction(1) > transaction(0));
    let older = bytes[(1 - newer) * 4096..][..4096].to_vec();
    // The page that makes the last commit visible was not written: it has its content from two commits ago, here from
    // before that.
    bytes[newer * 4096..][..4096].copy_from_slice(&older);
    fs::write(&path, bytes).unwrap();
    let engine = open(directory.path()).unwrap();
    check(&engine).unwrap();
    assert_eq!(content(&engine).unwrap(), expected(2));
    engine.write(&entries(2)).unwrap();
    assert_eq!(content(&engine).unwrap(), expected(3));
}

#[test]
fn lost_and_cut_files_are_told() {
    let directory = written(3);
    let sound = fs::read(directory.path().join("data.mdb")).unwrap();
    let opened = |bytes: Option<&[u8]>| {
        let copy = copied(directory.path());
        let path = copy.path().join("data.mdb");
        match bytes {
            Some(bytes) => fs::write(path, bytes).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        is_corrupt(open(copy.path()))
    };
    assert!(opened(None));
    assert!(opened(Some(&[0x42; 8192])), "not LMDB's");
    for len in [0, 1, 100, 4096, 4913, 8191, 8192, sound.len() / 2, sound.len() - 1] {
        assert!(opened(Some(&sound[..len])), "{len}");
    }
    // LMDB's lock file has no meaning after the process has ended.
    for content in [None, Some(vec![]), Some(vec![0xff; 100]), Some(vec![0xff; 100_000])] {
        let copy = copied(directory.path());
        match content {
            Some(content) => fs::write(copy.path().join("lock.mdb"), content).unwrap(),
            None => fs::remove_file(copy.path().join("lock.mdb")).unwrap(),
        }
        let engine = open(copy.path()).unwrap();
        assert_eq!(engine_suite::content(&engine).unwrap(), expected(3));
        engine.write(&entries(3)).unwrap();
    }
}

#[test]
fn flipped_bits_are_found_before_they_do_harm() {
    let directory = written(4);
    let path = directory.path().join("data.mdb");
    let sound = fs::read(&path).unwrap();
    let expected = expected(4);
    let (mut opening, mut checking, mut harmless, mut values) = (0, 0, 0, 0);
    for n in 0..400 {
        // Half of the changes are in the pages that are read first, which are at the end, and in those that lead to
        // them.
        let at = match n % 4 {
            0 => n * 3 % 304 / 152 * 4096 + n * 3 % 152,
            1 => sound.len() - 1 - n * 17 % (16 << 10),
            _ => n * (sound.len() - 1) / 399,
        };
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << (n * 5 % 8);
        fs::write(&path, bytes).unwrap();
        let engine = match open(directory.path()) {
            Ok(engine) => engine,
            opened => {
                assert!(is_corrupt(opened), "byte {at}");
                opening += 1;
                continue;
            }
        };
        match check(&engine) {
            Err(error) => {
                assert!(matches!(error, Error::Corrupt { version: None, .. }), "byte {at}: {error}");
                checking += 1;
            }
            Ok(()) => {
                // LMDB cannot tell the original value of an entry, or of a key that is still in order, or that a commit
                // is missing.
                let found = content(&engine).unwrap();
                let rows = |of: &[Rows; 3]| of.iter().map(Vec::len).sum::<usize>();
                if found == expected || found == engine_suite::expected(3) {
                    harmless += 1;
                } else {
                    let pairs = || found.iter().flatten().zip(expected.iter().flatten());
                    assert_eq!(
                        (rows(&found), pairs().filter(|(a, b)| a != b).count()),
                        (rows(&expected), 1),
                        "byte {at}"
                    );
                    values += 1;
                }
                engine.write(&entries(9)).unwrap();
            }
        }
    }
    assert!(opening > 3 && checking > 3 && harmless > 3 && values > 3, "{opening} {checking} {harmless} {values}");
}

#[test]
fn checking_ends_when_it_is_not_wanted() {
    let directory = written(1);
    let engine = open(directory.path()).unwrap();
    let (ctx, is_unwanted) = (Context::background(), || Err(Error::Closed));
    let task = Task::new(&ctx, &is_unwanted);
    assert!(matches!(engine.check_files(&task), Err(Error::Closed)));
    assert!(matches!(engine.compact(&task), Err(Error::Closed)));
    let is_wanted = || Ok(());
    assert!(engine.compact(&Task::new(&ctx, &is_wanted)).unwrap()[0].contains("gives back nothing"));
}

#[cfg(unix)]
mod failing {
    use std::env;

    use engine_suite::{CHILD, in_a_process_with_small_files};

    use super::*;

    #[test]
    fn a_write_that_fails_leaves_what_was_there() {
        if let Some(directory) = env::var_os(CHILD) {
            let engine = open(directory.as_ref()).unwrap();
            let failed = (0..).find(|round| engine.write(&entries(*round)).is_err()).unwrap();
            assert!(failed > 1);
            let error = engine.write(&entries(failed)).unwrap_err();
            assert!(matches!(error, Error::Engine { .. }), "{error}");
            assert_eq!(content(&engine).unwrap(), expected(failed));
            check(&engine).unwrap();
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        in_a_process_with_small_files("failing::a_write_that_fails_leaves_what_was_there", directory.path());
        let engine = open(directory.path()).unwrap();
        check(&engine).unwrap();
        let mark = get(&engine, Table::Meta, b"mark").unwrap().unwrap();
        let rounds = u64::from_be_bytes(mark.try_into().unwrap()) + 1;
        assert_eq!(content(&engine).unwrap(), expected(rounds));
        engine.write(&entries(rounds)).unwrap();
    }
}
