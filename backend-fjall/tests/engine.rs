//! The engine works as an index: what was written is there, in order, and damage is detected.

use std::path::Path;

use backend_fjall::{FjallEngine, Options};
use eventstore_api::{Context, Result};
use eventstore_kv::{Engine, Entries, Table, Task};

fn open(directory: &Path) -> Result<FjallEngine> {
    FjallEngine::open(directory, &Options::new(""))
}

engine_suite::tests!(open:
    what_was_written_is_there_after_opening_again,
    what_was_written_is_there_after_a_drop_and_a_kill,
    a_batch_may_lack_tables_and_change_the_mark,
    scans_go_both_ways_and_have_both_ends,
    scans_include_both_ends_and_keep_to_them,
    many_keys_are_looked_up_in_their_order,
    many_keys_are_looked_up_in_their_order_until_it_is_enough,
    a_file_that_is_damaged_or_missing_is_never_believed,
);

#[test]
fn many_openings_leave_few_tables() {
    engine_suite::many_openings_leave_few_tables(open, |file| {
        file.parent().is_some_and(|parent| parent.ends_with("tables"))
    });
}

/// Keys like the time-ordered ids of a program that appends little and restarts often.
#[test]
fn many_small_tables_that_do_not_overlap_become_few() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let engine = open(directory.path()).expect("opened");
    let (ctx, is_wanted) = (Context::background(), || Ok(()));
    let id = |number: u64| [b"\x01", &number.to_be_bytes()[..]].concat();
    for number in 0..1024 {
        let mut entries = Entries::new();
        entries.put(Table::Ids, &id(number), &number.to_be_bytes());
        engine.write(&entries).expect("written");
        if number % 8 == 7 {
            engine.compact(&Task::new(&ctx, &is_wanted)).expect("merged");
        }
    }
    let properties = engine.properties().expect("properties");
    let tables = properties.iter().find_map(|(name, value)| (*name == "tables").then(|| value.parse::<u64>().ok())?);
    assert!(tables.is_some_and(|tables| tables < 20), "{tables:?}");
    for number in 0..1024 {
        let found = engine_suite::get(&engine, Table::Ids, &id(number)).expect("read");
        assert_eq!(found, Some(number.to_be_bytes().to_vec()));
    }
}
