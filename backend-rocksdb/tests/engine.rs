//! The engine works as an index: what was written is there, in order, and damage is detected.

use std::path::Path;

use backend_rocksdb::{Options, RocksDbEngine};
use eventstore_api::Result;
use eventstore_kv::Engine;

fn open(directory: &Path) -> Result<RocksDbEngine> {
    RocksDbEngine::open(directory, &Options::new(""))
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
        file.extension().is_some_and(|extension| extension == "sst")
    });
}
