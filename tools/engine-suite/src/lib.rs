//! Tests of an [`Engine`] alone: that it keeps what it was given, in order and in both directions, over openings, and that
//! it says so if its files are damaged.
//!
//! A backend names the tests that hold for its engine, in its `tests/engine.rs`:
//!
//! ```ignore
//! fn open(directory: &Path) -> Result<MyEngine> { .. }
//!
//! engine_suite::tests!(open:
//!     what_was_written_is_there_after_opening_again,
//!     scans_go_both_ways_and_have_both_ends,
//! );
//! ```

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use eventstore_api::{Context, Direction, Error, Result};
use eventstore_kv::{Engine, Entries, KeyRange, Snapshot, Table, Task};
use tempfile::TempDir;

/// Makes a test of each of these functions of the suite, with this function that opens the engine.
#[macro_export]
macro_rules! tests {
    ($open:path: $($test:ident),+ $(,)?) => {
        $(
            #[test]
            fn $test() {
                $crate::$test($open);
            }
        )+
    };
}

/// Rows of a table: keys and values.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Entries as an index has them, as of some round of writing.
pub fn entries(round: u64) -> Entries {
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

/// The value of a key.
pub fn get(engine: &impl Engine, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut value = b"before".to_vec();
    let is_there = engine.snapshot()?.get(table, key, &mut value)?;
    assert!(value.starts_with(b"before"));
    Ok(is_there.then(|| value.split_off(6)))
}

/// At most so many rows of a range, with both its ends.
pub fn scan(
    engine: &impl Engine,
    table: Table,
    range: (&[u8], &[u8]),
    direction: Direction,
    most: usize,
) -> Result<Rows> {
    let mut rows = Rows::new();
    engine.snapshot()?.scan(table, KeyRange { first: range.0, last: range.1 }, direction, |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        if rows.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(rows)
}

/// All rows of the tables.
pub fn content(engine: &impl Engine) -> Result<[Rows; 3]> {
    let [mut meta, mut ids, mut aggregates] = [const { Rows::new() }; 3];
    for (table, rows) in [(Table::Meta, &mut meta), (Table::Ids, &mut ids), (Table::Aggregates, &mut aggregates)] {
        *rows = scan(engine, table, (b"", &[0xff; 489]), Direction::Forward, usize::MAX)?;
    }
    Ok([meta, ids, aggregates])
}

/// What the tables have after so many rounds.
pub fn expected(rounds: u64) -> [Rows; 3] {
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
pub fn written<E: Engine>(open: impl Fn(&Path) -> Result<E>, rounds: u64) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..rounds {
        open(directory.path()).unwrap().write(&entries(round)).unwrap();
    }
    directory
}

/// Copies a directory with all that is in it.
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

/// A new directory with all that is in another one.
pub fn copied(from: &Path) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    copy(from, directory.path());
    directory
}

/// The files in a directory and those in it, by their paths from there.
pub fn files(directory: &Path) -> Vec<PathBuf> {
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

/// Whether it is damage of the engine's files.
pub fn is_corrupt<T>(opened: Result<T>) -> bool {
    matches!(opened, Err(Error::Corrupt { version: None, .. }))
}

/// It keeps what each of some openings wrote, and nothing changes between.
pub fn what_was_written_is_there_after_opening_again<E: Engine>(open: impl Fn(&Path) -> Result<E>) {
    let directory = written(&open, 6);
    let engine = open(directory.path()).unwrap();
    assert_eq!(content(&engine).unwrap(), expected(6));
    assert_eq!(get(&engine, Table::Meta, b"mark").unwrap(), Some(5_u64.to_be_bytes().to_vec()));
    assert_eq!(get(&engine, Table::Ids, b"mark").unwrap(), None);
    drop(engine);
    assert_eq!(content(&open(directory.path()).unwrap()).unwrap(), expected(6), "nothing was written between");
}

/// Ranges in both directions, up to a number of rows.
pub fn scans_go_both_ways_and_have_both_ends<E: Engine>(open: impl Fn(&Path) -> Result<E>) {
    let directory = written(&open, 3);
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

/// Keys that are there and one that is not, until it is enough.
pub fn many_keys_are_looked_up_in_their_order<E: Engine>(open: impl Fn(&Path) -> Result<E>) {
    let directory = written(&open, 2);
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

/// So many batches an index has, of so many events, of so many aggregates.
const BATCHES: u64 = 3;
const PER_BATCH: u64 = 120;
const AGGREGATES: u64 = 20;

/// Far more than opening and reading takes.
const LIMIT: Duration = Duration::from_secs(60);

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

fn write(engine: &impl Engine, number: u64) -> Result<()> {
    let mut entries = Entries::new();
    entries.put(Table::Meta, b"mark", &number.to_be_bytes());
    for (table, of_table) in [Table::Ids, Table::Aggregates].into_iter().zip(batch(number)) {
        of_table.iter().for_each(|(key, value)| entries.put(table, key, value));
    }
    engine.write(&entries)
}

/// The batches up to the mark are there, and nothing that was never written.
fn assert_sound(engine: &impl Engine) -> Result<u64> {
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
        let found = scan(engine, table, (&[0], &[0xff; 40]), Direction::Forward, usize::MAX)?;
        assert!(found.is_sorted());
        assert!(found.iter().all(|(key, value)| written.get(key) == Some(value)));
        assert!(found.len() as u64 >= whole * PER_BATCH, "{} entries, but the mark says {whole}", found.len());
        let mut backward = scan(engine, table, (&[0], &[0xff; 40]), Direction::Backward, usize::MAX)?;
        backward.reverse();
        assert_eq!(backward, found);
    }
    for aggregate in 0..AGGREGATES {
        let (first, last) = (revision(aggregate, 0), revision(aggregate, u64::MAX));
        let found = scan(engine, Table::Aggregates, (&first, &last), Direction::Backward, usize::MAX)?;
        assert!(found.len() as u64 >= whole * PER_BATCH / AGGREGATES, "{} entries of an aggregate", found.len());
    }
    assert_eq!(get(engine, Table::Ids, &id(u64::MAX))?, None);
    Ok(whole)
}

/// An index with some batches that is closed.
fn index<E: Engine>(open: impl Fn(&Path) -> Result<E>) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path()).unwrap();
    (0..BATCHES).for_each(|number| write(&engine, number).unwrap());
    directory
}

/// It keeps what was written before its process was killed. Compacting it has to leave its files alone afterwards.
pub fn what_was_written_is_there_after_a_drop_and_a_kill<E: Engine>(open: impl Fn(&Path) -> Result<E>) {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..BATCHES {
        let engine = open(directory.path()).unwrap();
        assert_eq!(assert_sound(&engine).unwrap(), number);
        write(&engine, number).unwrap();
        assert_eq!(assert_sound(&engine).unwrap(), number + 1);
        // What a kill would leave.
        compact(&engine); // no file changes while it is copied
        let killed = copied(directory.path());
        assert_eq!(assert_sound(&open(killed.path()).unwrap()).unwrap(), number + 1);
    }
    assert_eq!(assert_sound(&open(directory.path()).unwrap()).unwrap(), BATCHES);
}

fn compact(engine: &impl Engine) {
    let ctx = Context::background();
    let actions = engine.compact(&Task::new(&ctx, &|| Ok(()))).unwrap();
    assert_eq!(actions.len(), 1);
}

/// Batches of no entries and of some tables, and values that are written over.
pub fn a_batch_may_lack_tables_and_change_the_mark<E: Engine>(open: impl Fn(&Path) -> Result<E>) {
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
    let all = scan(&engine, Table::Meta, (b"a", b"z"), Direction::Forward, usize::MAX).unwrap();
    assert_eq!(all, [(b"mark".to_vec(), 3_u64.to_be_bytes().to_vec()), (b"number".to_vec(), vec![3; 1000])]);
    let mut backward = scan(&engine, Table::Meta, (b"a", b"z"), Direction::Backward, usize::MAX).unwrap();
    backward.reverse();
    assert_eq!(backward, all);
    assert_eq!(get(&engine, Table::Ids, &id(2)).unwrap().unwrap(), b"value");
    assert_eq!(get(&engine, Table::Aggregates, b"x").unwrap(), None);
    assert!(!engine.properties().unwrap().is_empty());
}

/// Ranges whose ends are there, are not there, and have nothing between them.
pub fn scans_include_both_ends_and_keep_to_them<E: Engine>(open: impl Fn(&Path) -> Result<E>) {
    let directory = index(&open);
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
        let expected: Rows =
            all.range(first.clone()..=last.clone()).map(|(key, value)| (key.clone(), value.clone())).collect();
        let found = scan(&engine, Table::Aggregates, (&first, &last), Direction::Forward, usize::MAX).unwrap();
        assert_eq!(found, expected);
        let mut found = scan(&engine, Table::Aggregates, (&first, &last), Direction::Backward, usize::MAX).unwrap();
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

/// Keys of which most are not there, in both orders, until it is enough.
pub fn many_keys_are_looked_up_in_their_order_until_it_is_enough<E: Engine>(open: impl Fn(&Path) -> Result<E>) {
    let directory = index(&open);
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

/// Each opening may leave a file, but not for ever. `is_table` says which files are counted.
pub fn many_openings_leave_few_tables<E: Engine>(open: impl Fn(&Path) -> Result<E>, is_table: impl Fn(&Path) -> bool) {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..300_u64 {
        let engine = open(directory.path()).unwrap();
        let mut entries = Entries::new();
        entries.put(Table::Meta, b"mark", &number.to_be_bytes());
        entries.put(Table::Ids, &id(number), &number.to_be_bytes());
        entries.put(Table::Aggregates, &revision(number % 7, number), &number.to_be_bytes());
        engine.write(&entries).unwrap();
    }
    let tables = files(directory.path()).iter().filter(|file| is_table(file)).count();
    assert!(tables < 50, "{tables} tables");
    let engine = open(directory.path()).unwrap();
    for number in 0..300 {
        assert_eq!(get(&engine, Table::Ids, &id(number)).unwrap().unwrap(), number.to_be_bytes());
        let found = get(&engine, Table::Aggregates, &revision(number % 7, number)).unwrap();
        assert_eq!(found.unwrap(), number.to_be_bytes());
    }
}

/// Each file deleted, made longer, cut off, and with bits flipped: everything is there and it goes on, or it is `Corrupt`.
pub fn a_file_that_is_damaged_or_missing_is_never_believed<E: Engine>(
    open: impl Fn(&Path) -> Result<E> + Copy + Send + 'static,
) {
    let original = index(open);
    let mut found = 0;
    let mut changes = 0;
    let mut check = |file: &Path, what: &str, change: &dyn Fn(&Path)| {
        let directory = copied(original.path());
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

/// The variable with the directory where [`in_a_process_with_small_files`] has its files.
pub const CHILD: &str = "EVENTSTORE_TEST_DIRECTORY";

/// Runs this test once more, in a process whose files grow no further than a few MiB and that must come to its end.
pub fn in_a_process_with_small_files(test: &str, directory: &Path) {
    let run = format!("trap '' XFSZ; ulimit -f 4096; exec \"$0\" --exact {test} --nocapture");
    let mut command = Command::new("sh");
    command.args(["-c", &run]).arg(std::env::current_exe().unwrap()).env(CHILD, directory);
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
