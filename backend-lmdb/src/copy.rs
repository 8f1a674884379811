//! LMDB's own compacting copy, made so that it can be followed and stopped.

use std::fs::File;
use std::io::{self, Read, Write};
use std::thread;

use eventstore_api::{Error, Result};
use eventstore_kv::Task;
use heed::{CompactionOption, MdbError};

use crate::environment::Environment;
use crate::error::engine_error;
use crate::gate::Pass;
use crate::pipe::{Source, pipe};

/// Bytes between two looks at the task and the gate.
const CHUNK: usize = 256 << 10;

/// Bytes after which what was written is synced: a copy that the system kept in memory as a whole would hold up the syncs
/// of appends, and could not be stopped while its own is under way.
const SYNC_BYTES: u64 = 16 << 20;

/// Writes a copy of the environment without free pages into an empty file, as of one moment, and syncs it. Returns its
/// length, or `None` if the pass is in somebody's way: give it back, and begin again with another.
pub(crate) fn copy_compacted(pass: &Pass<'_, Environment>, into: &mut File, task: &Task<'_>) -> Result<Option<u64>> {
    let total = pass.len_compacted()?;
    // The source is dropped before the scope waits for the copying thread, also if this one panics.
    thread::scope(|scope| {
        let (mut source, mut sink) = pipe().map_err(failed)?;
        let copying = thread::Builder::new()
            .name("eventstore-copy".to_owned())
            .spawn_scoped(scope, move || pass.env().copy_to_file(sink.file(), CompactionOption::Enabled))
            .map_err(failed)?;
        let read = read_all(&mut source, pass, into, task, total);
        drop(source);
        let copied = copying.join();
        match (read?, copied) {
            // It ended because it was stopped.
            (None, _) => Ok(None),
            (len, Ok(Ok(()))) => Ok(len),
            (_, Ok(Err(heed::Error::Mdb(MdbError::Incompatible)))) => Err(Error::Corrupt {
                version: None,
                reason: "LMDB does not find all the pages it counts; copy the events into another store".to_owned(),
            }),
            (_, Ok(Err(error))) => Err(engine_error("copy the store", error)),
            (_, Err(_)) => Err(Error::engine("copy the store", "the copying thread panicked")),
        }
    })
}

fn read_all(
    source: &mut Source,
    pass: &Pass<'_, Environment>,
    into: &mut File,
    task: &Task<'_>,
    total: u64,
) -> Result<Option<u64>> {
    let mut buffer = vec![0; CHUNK];
    let (mut done, mut synced) = (0, 0);
    loop {
        task.report(done, total.max(done));
        task.check()?;
        if pass.is_in_the_way() {
            return Ok(None);
        }
        let read = match source.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        into.write_all(&buffer[..read]).map_err(failed)?;
        done += read as u64;
        if read == 0 || done - synced >= SYNC_BYTES {
            into.sync_data().map_err(failed)?;
            synced = done;
        }
        if read == 0 {
            return Ok(Some(done));
        }
    }
}

fn failed(error: io::Error) -> Error {
    Error::engine("write the copy", error)
}
