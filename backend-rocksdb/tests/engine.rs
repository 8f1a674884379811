//! The engine keeps what an index is: what was written is there, in order, and damage is found.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use backend_rocksdb::{Options, RocksDbEngine};
use eventstore_api::{Context, Direction, Error, Result};
use eventstore_kv::{Engine, Entries, KeyRange, Snapshot, Table, Task};
use tempfile::TempDir;

/// Far more than opening and reading takes. RocksDB never ends it with some damage.
const LIMIT: Duration = Duration::from_secs(60);

const BATCHES: u64 = 3;

const PER_BATCH: u64 = 120;

const AGGREGATES: u64 = 20;

fn open(directory: &Path) -> Result<RocksDbEngine> {
    RocksDbEngine::open(directory, &Options::new(""))
}

fn hash(number: u64) -> u64 {
    let mixed = (number ^ 0x9e37_79b9).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb)
}

fn id(number: u64) -> Vec<u8> {
    [&[0][..], &hash(number).to_be_bytes(), &hash(!number).to_be_bytes()].concat()
}

fn revision(aggregate: u64, revision: u64) -> Vec<u8> {
    [format!("aggregate-{aggregate}").as_bytes(), &[0xff], &revision.to_be_bytes()].concat()
}

/// The entries of the ids and aggregates of a batch.
fn batch(batch: u64) -> [BTreeMap<Vec<u8>, Vec<u8>>; 2] {
    let numbers = batch * PER_BATCH..(batch + 1) * PER_BATCH;
    let ids = numbers.clone().map(|number| (id(number), number.to_be_bytes().to_vec()));
    let revisions =
        numbers.map(|number| (revision(number % AGGREGATES, number / AGGREGATES), number.to_be_bytes().to_vec()));
    [ids.collect(), revisions.collect()]
}

fn write(engine: &RocksDbEngine, number: u64) -> Result<()> {
    let mut entries = Entries::new();
    entries.put(Table::Meta, b"mark", &number.to_be_bytes());
    for (table, of_table) in [Table::Ids, Table::Aggregates].into_iter().zip(batch(number)) {
        of_table.iter().for_each(|(key, value)| entries.put(table, key, value));
    }
    engine.write(&entries)
}

fn get(engine: &RocksDbEngine, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut value = Vec::new();
    Ok(engine.snapshot()?.get(table, key, &mut value)?.then_some(value))
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn scan(engine: &RocksDbEngine, table: Table, first: &[u8], last: &[u8], direction: Direction) -> Result<Pairs> {
    let mut found = Vec::new();
    engine.snapshot()?.scan(table, KeyRange { first, last }, direction, |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// The batches up to the mark are there, and nothing that was never written.
fn assert_sound(engine: &RocksDbEngine) -> Result<u64> {
    let mark = get(engine, Table::Meta, b"mark")?;
    let whole = mark.map_or(0, |mark| u64::from_be_bytes(mark.try_into().unwrap()) + 1);
    for number in 0..BATCHES + 1 {
        for (table, entries) in [Table::Ids, Table::Aggregates].into_iter().zip(batch(number)) {
            for (key, value) in entries {
                match get(engine, table, &key)? {
                    Some(found) => assert_eq!(found, value),
                    None => {
                        assert!(number >= whole, "an entry of batch {number} is not there, but the mark says {whole}")
                    }
                }
            }
        }
    }
    for (place, table) in [Table::Ids, Table::Aggregates].into_iter().enumerate() {
        let written: BTreeMap<_, _> = (0..=BATCHES).flat_map(|number| batch(number)[place].clone()).collect();
        let found = scan(engine, table, &[0], &[0xff; 40], Direction::Forward)?;
        assert!(found.is_sorted());
        assert!(found.iter().all(|(key, value)| written.get(key) == Some(value)));
        assert!(found.len() as u64 >= whole * PER_BATCH, "{} entries, but the mark says {whole}", found.len());
        let mut backward = scan(engine, table, &[0], &[0xff; 40], Direction::Backward)?;
        backward.reverse();
        assert_eq!(backward, found);
    }
    for aggregate in 0..AGGREGATES {
        let (first, last) = (revision(aggregate, 0), revision(aggregate, u64::MAX));
        let found = scan(engine, Table::Aggregates, &first, &last, Direction::Backward)?;
        assert!(found.len() as u64 >= whole * PER_BATCH / AGGREGATES, "{} entries of an aggregate", found.len());
    }
    assert_eq!(get(engine, Table::Ids, &id(u64::MAX))?, None);
    Ok(whole)
}

/// An index with some batches that is closed.
fn index() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path()).unwrap();
    (0..BATCHES).for_each(|number| write(&engine, number).unwrap());
    directory
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        match path.is_dir() {
            true => copy(&path, &to.join(name)),
            false => drop(fs::copy(&path, to.join(name)).unwrap()),
        }
    }
}

/// The files in a directory and those in it, by their paths from there.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        match path.is_dir() {
            true => files.extend(self::files(&path).into_iter().map(|file| name.join(file))),
            false => files.push(name),
        }
    }
    files.sort();
    files
}

#[test]
fn what_was_written_is_there_after_a_drop_and_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..BATCHES {
        let engine = open(directory.path()).unwrap();
        assert_eq!(assert_sound(&engine).unwrap(), number);
        write(&engine, number).unwrap();
        assert_eq!(assert_sound(&engine).unwrap(), number + 1);
        // What a kill would leave.
        let killed = tempfile::tempdir().unwrap();
        compact(&engine); // no file changes while it is copied
        copy(directory.path(), killed.path());
        assert_eq!(assert_sound(&open(killed.path()).unwrap()).unwrap(), number + 1);
    }
    assert_eq!(assert_sound(&open(directory.path()).unwrap()).unwrap(), BATCHES);
}

fn compact(engine: &RocksDbEngine) {
    let ctx = Context::background();
    let actions = engine.compact(&Task::new(&ctx, &|| Ok(()))).unwrap();
    assert_eq!(actions.len(), 1);
}

#[test]
fn a_batch_may_lack_tables_and_change_the_mark() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path()).unwrap();
    engine.write(&Entries::new()).unwrap();
    for number in [1, 2, 3_u64] {
        let mut entries = Entries::new();
        entries.put(Table::Meta, b"mark", &number.to_be_bytes());
        entries.put(Table::Meta, b"number", &[number as u8; 1000]);
        engine.write(&entries).unwrap();
        entries.clear();
        entries.put(Table::Ids, &id(number), b"value");
        engine.write(&entries).unwrap();
    }
    drop(engine);
    let engine = open(directory.path()).unwrap();
    let all = scan(&engine, Table::Meta, b"a", b"z", Direction::Forward).unwrap();
    assert_eq!(all, [(b"mark".to_vec(), 3_u64.to_be_bytes().to_vec()), (b"number".to_vec(), vec![3; 1000])]);
    let mut backward = scan(&engine, Table::Meta, b"a", b"z", Direction::Backward).unwrap();
    backward.reverse();
    assert_eq!(backward, all);
    assert_eq!(get(&engine, Table::Ids, &id(2)).unwrap().unwrap(), b"value");
    assert_eq!(get(&engine, Table::Aggregates, b"x").unwrap(), None);
    assert!(!engine.properties().unwrap().is_empty());
}

#[test]
fn scans_include_both_ends_and_keep_to_them() {
    let directory = index();
    let engine = open(directory.path()).unwrap();
    let all: BTreeMap<_, _> = (0..BATCHES).flat_map(|number| batch(number)[1].clone()).collect();
    let keys: Vec<_> = all.keys().cloned().collect();
    let mut ends = vec![(vec![0], vec![0xff; 9]), (b"aggregate-1".to_vec(), b"aggregate-2".to_vec())];
    for place in (0..keys.len() - 30).step_by(13) {
        let behind = [&keys[place][..], &[0]].concat();
        ends.push((keys[place].clone(), keys[place].clone()));
        ends.push((keys[place].clone(), keys[place + 29].clone()));
        ends.push((behind.clone(), keys[place + 1].clone()));
        ends.push((behind.clone(), behind));
    }
    for aggregate in 0..60 {
        ends.push((revision(aggregate, 0), revision(aggregate, u64::MAX)));
        ends.push((revision(aggregate, 3), revision(aggregate, 7)));
        ends.push((revision(aggregate, 18), revision(aggregate, 20)));
    }
    for (first, last) in ends {
        let expected: Pairs =
            all.range(first.clone()..=last.clone()).map(|(key, value)| (key.clone(), value.clone())).collect();
        let found = scan(&engine, Table::Aggregates, &first, &last, Direction::Forward).unwrap();
        assert_eq!(found, expected);
        let mut found = scan(&engine, Table::Aggregates, &first, &last, Direction::Backward).unwrap();
        found.reverse();
        assert_eq!(found, expected);
        let mut only = None;
        let range = KeyRange { first: &first, last: &last };
        let snapshot = engine.snapshot().unwrap();
        for (direction, end) in [(Direction::Forward, expected.first()), (Direction::Backward, expected.last())] {
            let one = |key: &[u8], _: &[u8]| {
                only = Some(key.to_vec());
                ControlFlow::Break(())
            };
            snapshot.scan(Table::Aggregates, range, direction, one).unwrap();
            assert_eq!(only.take().as_ref(), end.map(|(key, _)| key));
        }
    }
}

#[test]
fn many_keys_are_looked_up_in_their_order_until_it_is_enough() {
    let directory = index();
    let engine = open(directory.path()).unwrap();
    let mut keys: Vec<_> = (0..100).map(|number| id(number * 17)).collect(); // the last of them are not there
    keys.sort();
    for _ in 0..2 {
        let keys_: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let mut found = Vec::new();
        let snapshot = engine.snapshot().unwrap();
        let all = |place, value: &[u8]| {
            found.push((place, value.to_vec()));
            ControlFlow::Continue(())
        };
        snapshot.get_many(Table::Ids, &keys_, all).unwrap();
        let expected =
            keys.iter().enumerate().filter_map(|(place, key)| Some((place, get(&engine, Table::Ids, key).unwrap()?)));
        assert_eq!(found, expected.collect::<Vec<_>>());
        assert_eq!(found.len(), 22);
        let mut visits = 0;
        let some = |_, _: &[u8]| {
            visits += 1;
            if visits < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        snapshot.get_many(Table::Ids, &keys_, some).unwrap();
        assert_eq!(visits, 3);
        keys.reverse();
    }
}

#[test]
fn many_openings_leave_few_tables() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..300_u64 {
        let engine = open(directory.path()).unwrap();
        let mut entries = Entries::new();
        entries.put(Table::Meta, b"mark", &number.to_be_bytes());
        entries.put(Table::Ids, &id(number), &number.to_be_bytes());
        entries.put(Table::Aggregates, &revision(number % 7, number), &number.to_be_bytes());
        engine.write(&entries).unwrap();
    }
    let tables = tables(directory.path());
    assert!(tables < 50, "{tables} tables");
    let engine = open(directory.path()).unwrap();
    for number in 0..300 {
        assert_eq!(get(&engine, Table::Ids, &id(number)).unwrap().unwrap(), number.to_be_bytes());
        let found = get(&engine, Table::Aggregates, &revision(number % 7, number)).unwrap();
        assert_eq!(found.unwrap(), number.to_be_bytes());
    }
}

fn tables(directory: &Path) -> usize {
    files(directory).iter().filter(|file| file.extension().is_some_and(|extension| extension == "sst")).count()
}

#[test]
fn a_file_that_is_damaged_or_missing_is_never_believed() {
    let original = index();
    let mut found = 0;
    let mut changes = 0;
    let mut check = |file: &Path, what: &str, change: &dyn Fn(&Path)| {
        let directory = tempfile::tempdir().unwrap();
        copy(original.path(), directory.path());
        change(&directory.path().join(file));
        changes += 1;
        let (done, outcome) = mpsc::channel();
        let path = directory.path().to_owned();
        thread::spawn(move || {
            let look = || -> Result<u64> {
                let engine = open(&path)?;
                let whole = assert_sound(&engine)?;
                (whole..=BATCHES).try_for_each(|number| write(&engine, number))?; // as the store goes on
                assert_sound(&engine)
            };
            drop(done.send(look()));
        });
        match outcome.recv_timeout(LIMIT) {
            Ok(Ok(whole)) => assert_eq!(whole, BATCHES + 1, "{} {what}", file.display()),
            Ok(Err(Error::Corrupt { .. })) => found += 1,
            other => panic!("{} {what}: {other:?}", file.display()),
        }
    };
    for file in files(original.path()) {
        let bytes = fs::read(original.path().join(&file)).unwrap();
        check(&file, "is deleted", &|path| fs::remove_file(path).unwrap());
        check(&file, "is longer", &|path| fs::write(path, [&bytes[..], &[7; 100]].concat()).unwrap());
        for len in (0..bytes.len()).step_by((bytes.len() / 8).max(1)) {
            let what = format!("has {len} bytes");
            check(&file, &what, &|path| fs::write(path, &bytes[..len]).unwrap());
        }
        // Every bit of a byte is as likely as the others.
        for bit in (0..bytes.len() * 8).step_by(((bytes.len() * 8 / 40) | 1).max(3)) {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            check(&file, &format!("with bit {bit} flipped"), &|path| fs::write(path, &damaged).unwrap());
        }
    }
    assert!(found > changes / 3, "{found} of {changes} changes were found");
}
