//! The engine alone: what it was given is there, or it says that it is damaged.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use backend_lmdb::{LmdbEngine, Options};
use eventstore_api::{Context, Direction, Error, Result};
use eventstore_kv::{Engine, Entries, KeyRange, Snapshot, Table, Task};
use tempfile::TempDir;

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fn open(directory: &Path) -> Result<LmdbEngine> {
    LmdbEngine::open(directory, &Options::new("elsewhere"))
}

/// Entries as an index has them, as of some round of writing.
fn entries(round: u64) -> Entries {
    let ids: BTreeMap<[u8; 8], u64> =
        (round * 500..round * 500 + 500).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes(), n)).collect();
    let mut entries = Entries::new();
    entries.put(Table::Meta, b"mark", &round.to_be_bytes());
    ids.iter().for_each(|(id, n)| entries.put(Table::Ids, &[b"\x01", &id[..]].concat(), &n.to_be_bytes()));
    for n in 0..50 {
        let key = [format!("aggregate-{n:02}").as_bytes(), &[0xff], &round.to_be_bytes()].concat();
        entries.put(Table::Aggregates, &key, &vec![n; usize::from(n) * 40]);
    }
    entries
}

fn get(engine: &LmdbEngine, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut value = b"before".to_vec();
    let is_there = engine.snapshot()?.get(table, key, &mut value)?;
    assert!(value.starts_with(b"before"));
    Ok(is_there.then(|| value.split_off(6)))
}

fn scan(engine: &LmdbEngine, table: Table, range: (&[u8], &[u8]), direction: Direction, most: usize) -> Result<Rows> {
    let mut rows = Rows::new();
    engine.snapshot()?.scan(table, KeyRange { first: range.0, last: range.1 }, direction, |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        if rows.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(rows)
}

/// All rows of the tables.
fn content(engine: &LmdbEngine) -> Result<[Rows; 3]> {
    let [mut meta, mut ids, mut aggregates] = [const { Rows::new() }; 3];
    for (table, rows) in [(Table::Meta, &mut meta), (Table::Ids, &mut ids), (Table::Aggregates, &mut aggregates)] {
        *rows = scan(engine, table, (b"", &[0xff; 489]), Direction::Forward, usize::MAX)?;
    }
    Ok([meta, ids, aggregates])
}

/// What the tables have after so many rounds.
fn expected(rounds: u64) -> [Rows; 3] {
    let mut tables = [const { BTreeMap::new() }; 3];
    for round in 0..rounds {
        let entries = entries(round);
        for table in Table::ALL {
            tables[table.index()].extend(entries.of(table).map(|(key, value)| (key.to_vec(), value.to_vec())));
        }
    }
    tables.map(|table| table.into_iter().collect())
}

/// A directory with the files of some rounds.
fn written(rounds: u64) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..rounds {
        open(directory.path()).unwrap().write(&entries(round)).unwrap();
    }
    directory
}

fn copy(from: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => fs::create_dir(copy.path().join(entry.file_name())).unwrap(),
            false => fs::copy(entry.path(), copy.path().join(entry.file_name())).map(drop).unwrap(),
        }
    }
    copy
}

fn is_corrupt(opened: Result<LmdbEngine>) -> bool {
    matches!(opened, Err(Error::Corrupt { version: None, .. }))
}

#[test]
fn what_was_written_is_there_after_opening_again() {
    let directory = written(6);
    let engine = open(directory.path()).unwrap();
    assert_eq!(content(&engine).unwrap(), expected(6));
    assert_eq!(get(&engine, Table::Meta, b"mark").unwrap(), Some(5_u64.to_be_bytes().to_vec()));
    assert_eq!(get(&engine, Table::Ids, b"mark").unwrap(), None);
    drop(engine);
    assert_eq!(content(&open(directory.path()).unwrap()).unwrap(), expected(6), "nothing was written between");
}

#[test]
fn scans_go_both_ways_and_have_both_ends() {
    let directory = written(3);
    let engine = open(directory.path()).unwrap();
    let [_, ids, aggregates] = expected(3);
    for (table, all) in [(Table::Ids, ids), (Table::Aggregates, aggregates)] {
        let part = &all[7..100];
        let range = (part[0].0.as_slice(), part[part.len() - 1].0.as_slice());
        assert_eq!(scan(&engine, table, range, Direction::Forward, usize::MAX).unwrap(), part);
        let mut backward = scan(&engine, table, range, Direction::Backward, usize::MAX).unwrap();
        backward.reverse();
        assert_eq!(backward, part);
        assert_eq!(scan(&engine, table, range, Direction::Backward, 1).unwrap(), [part[part.len() - 1].clone()]);
        assert_eq!(scan(&engine, table, range, Direction::Forward, 3).unwrap(), part[..3]);
        // Ends that are not there, nothing between them, and nothing at all.
        let wider = ([range.0, b"\0"].concat(), [range.1, b"\0"].concat());
        assert_eq!(scan(&engine, table, (&wider.0, &wider.1), Direction::Forward, usize::MAX).unwrap(), part[1..]);
        assert_eq!(scan(&engine, table, (&wider.0, &wider.0), Direction::Backward, 1).unwrap(), []);
        assert_eq!(scan(&engine, table, (range.1, range.0), Direction::Forward, 1).unwrap(), []);
        assert_eq!(scan(&engine, table, (b"", range.0), Direction::Forward, usize::MAX).unwrap(), all[..8]);
        assert_eq!(scan(&engine, table, (b"", b""), Direction::Forward, 1).unwrap(), []);
    }
}

#[test]
fn many_keys_are_looked_up_in_their_order() {
    let directory = written(2);
    let engine = open(directory.path()).unwrap();
    let [_, ids, _] = expected(2);
    let missing = [ids[10].0.as_slice(), b"\0"].concat();
    let mut keys: Vec<&[u8]> = ids[..20].iter().map(|(key, _)| key.as_slice()).collect();
    keys.insert(11, &missing);
    for _ in 0..2 {
        let (mut found, mut visited) = (Vec::new(), 0);
        let snapshot = engine.snapshot().unwrap();
        let all = snapshot.get_many(Table::Ids, &keys, |place, value| {
            found.push((keys[place].to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        });
        all.unwrap();
        found.sort();
        assert_eq!(found, ids[..20]);
        let first = snapshot.get_many(Table::Ids, &keys, |_, _| {
            visited += 1;
            ControlFlow::Break(())
        });
        first.unwrap();
        assert_eq!(visited, 1);
        keys.reverse();
    }
}

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
            engine.write(&entries).expect("once more"); // not behind the last key now
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
        let copy = copy(directory.path());
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
    // The page that makes the last commit visible was not written: it has what it had two commits ago, here less than
    // that.
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
        let copy = copy(directory.path());
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
    // LMDB's lock file means nothing after the end of the process.
    for content in [None, Some(vec![]), Some(vec![0xff; 100]), Some(vec![0xff; 100_000])] {
        let copy = copy(directory.path());
        match content {
            Some(content) => fs::write(copy.path().join("lock.mdb"), content).unwrap(),
            None => fs::remove_file(copy.path().join("lock.mdb")).unwrap(),
        }
        let engine = open(copy.path()).unwrap();
        assert_eq!(self::content(&engine).unwrap(), expected(3));
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
        // Half of them in the pages that are read first, which are at the end, and in those that lead to them.
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
                // LMDB cannot tell what a value was, nor a key that is still in order; nor that a commit is missing.
                let found = content(&engine).unwrap();
                let rows = |of: &[Rows; 3]| of.iter().map(Vec::len).sum::<usize>();
                if found == expected || found == self::expected(3) {
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
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    /// Where the files are of the process that a test runs in.
    const CHILD: &str = "EVENTSTORE_TEST_DIRECTORY";

    /// Runs this test once more, in a process whose files grow no further than a few MiB and that must come to its end.
    fn in_a_process_with_small_files(test: &str, directory: &Path) {
        let run = format!("trap '' XFSZ; ulimit -f 4096; exec \"$0\" --exact {test} --nocapture");
        let mut command = Command::new("sh");
        command.args(["-c", &run]).arg(env::current_exe().unwrap()).env(CHILD, directory);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(90);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > until {
                child.kill().unwrap();
            }
            thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "{status}");
    }

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
