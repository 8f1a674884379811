//! The engine alone: what it was given is there, or it says that it is damaged.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;

use backend_sled::{Options, SledEngine};
use eventstore_api::{Context, Direction, Error, Result};
use eventstore_kv::{Engine, Entries, KeyRange, Snapshot, Table, Task};
use tempfile::TempDir;

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fn open(directory: &Path) -> Result<SledEngine> {
    SledEngine::open(directory, &Options::new("elsewhere"))
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

fn get(engine: &SledEngine, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut value = b"before".to_vec();
    let is_there = engine.snapshot()?.get(table, key, &mut value)?;
    assert!(value.starts_with(b"before"));
    Ok(is_there.then(|| value.split_off(6)))
}

fn scan(engine: &SledEngine, table: Table, range: (&[u8], &[u8]), direction: Direction, most: usize) -> Result<Rows> {
    let mut rows = Rows::new();
    engine.snapshot()?.scan(table, KeyRange { first: range.0, last: range.1 }, direction, |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        if rows.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(rows)
}

/// All rows of the tables.
fn content(engine: &SledEngine) -> Result<[Rows; 3]> {
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

fn is_corrupt(opened: Result<SledEngine>) -> bool {
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

#[test]
fn the_longest_entries_are_kept_in_sleds_one_file() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path()).unwrap();
    for round in 0..10_u8 {
        let mut entries = Entries::new();
        (0..200_u8).for_each(|n| entries.put(Table::Aggregates, &[vec![n; 488], vec![round]].concat(), &[n; 2 << 10]));
        engine.write(&entries).unwrap();
    }
    assert_eq!(content(&engine).unwrap()[2].len(), 2000);
    assert_eq!(fs::read_dir(directory.path().join("blobs")).unwrap().count(), 0);
    drop(engine);
    assert_eq!(content(&open(directory.path()).unwrap()).unwrap()[2].len(), 2000);
}

#[test]
fn readers_read_beside_a_writer() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path()).unwrap();
    thread::scope(|scope| {
        let writing = scope.spawn(|| (0..20).for_each(|round| engine.write(&entries(round)).unwrap()));
        while !writing.is_finished() {
            let [_, ids, _] = content(&engine).unwrap();
            assert!(ids.is_sorted());
        }
    });
    assert_eq!(content(&engine).unwrap(), expected(20));
}

#[test]
fn an_end_that_was_not_clean_is_told() {
    let directory = written(2);
    let engine = open(directory.path()).unwrap();
    engine.write(&entries(2)).unwrap();
    assert!(is_corrupt(open(copy(directory.path()).path())), "as after a kill");
    assert!(is_corrupt(open(directory.path())));
    std::mem::forget(engine);
    assert!(is_corrupt(open(directory.path())));
}

#[test]
fn damage_of_any_file_is_told() {
    let directory = written(4);
    let mut files = 0;
    for entry in fs::read_dir(directory.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        files += 1;
        let sound = fs::read(&path).unwrap();
        let damaged = |bytes: Option<&[u8]>| {
            let copy = copy(directory.path());
            let path = copy.path().join(path.file_name().unwrap());
            match bytes {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            is_corrupt(open(copy.path()))
        };
        assert!(damaged(None), "{path:?} was removed");
        for len in [0, 1, sound.len() / 2, sound.len() - 1] {
            assert!(damaged(Some(&sound[..len])), "{path:?} was cut to {len}");
        }
        for n in 0..40 {
            let mut bytes = sound.clone();
            let at = n * (sound.len() - 1) / 39;
            bytes[at] ^= 1 << (n % 8);
            assert!(damaged(Some(&bytes)), "bit {} of byte {at} of {path:?} was flipped", n % 8);
        }
    }
    assert!(files >= 4, "sled's file, its settings, its page table, and the seal");
    assert_eq!(content(&open(directory.path()).unwrap()).unwrap(), expected(4));
}

#[test]
fn it_tells_about_itself() {
    let directory = written(1);
    let engine = open(directory.path()).unwrap();
    let names: Vec<_> = engine.properties().unwrap().iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["size", "cache_capacity"]);
    let (ctx, is_wanted) = (Context::background(), || Ok(()));
    let task = Task::new(&ctx, &is_wanted);
    engine.check_files(&task).unwrap();
    assert!(engine.compact(&task).unwrap()[0].contains("cannot be asked"));
    let is_unwanted = || Err(Error::Closed);
    assert!(matches!(engine.compact(&Task::new(&ctx, &is_unwanted)), Err(Error::Closed)));
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
    fn a_write_that_fails_comes_to_its_end_and_the_files_are_not_used_again() {
        if let Some(directory) = env::var_os(CHILD) {
            let engine = open(directory.as_ref()).unwrap();
            let error = (0..1000).find_map(|round| engine.write(&entries(round)).err()).expect("its file is full");
            assert!(matches!(error, Error::Engine { .. } | Error::Corrupt { .. }), "{error}");
            assert!(engine.write(&entries(0)).is_err(), "once it has failed it fails");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let test = "failing::a_write_that_fails_comes_to_its_end_and_the_files_are_not_used_again";
        in_a_process_with_small_files(test, directory.path());
        assert!(is_corrupt(open(directory.path())));
    }
}
