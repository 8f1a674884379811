//! The engine on its own: what was written is there, or damage is reported.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::thread;

use backend_sled::{Options, SledEngine};
use engine_suite::{content, copied, entries, expected, is_corrupt};
use eventstore_api::{Context, Error, Result};
use eventstore_kv::{Engine, Entries, Table, Task};
use tempfile::TempDir;

fn open(directory: &Path) -> Result<SledEngine> {
    SledEngine::open(directory, &Options::new("elsewhere"))
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

#[test]
fn many_openings_leave_few_files() {
    engine_suite::many_openings_leave_few_tables(open, |_| true);
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
    assert!(is_corrupt(open(copied(directory.path()).path())), "as after a kill");
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
            let copy = copied(directory.path());
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
    assert!(engine.compact(&task).unwrap()[0].contains("not on request"));
    let is_unwanted = || Err(Error::Closed);
    assert!(matches!(engine.compact(&Task::new(&ctx, &is_unwanted)), Err(Error::Closed)));
}

#[cfg(unix)]
mod failing {
    use std::env;

    use engine_suite::{CHILD, in_a_process_with_small_files};

    use super::*;

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
