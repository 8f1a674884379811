//! SQLite, as one writes an event store over it by hand.

use std::hint::black_box;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use eventstore::backend::Event;
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::blocking::{self, Blocking};
use super::{Appended, Contestant, Reader, Scan, Store, Work, file};
use crate::events::Sample;

pub(super) const CONTESTANT: Contestant = Contestant {
    name: "sqlite",
    guarantees: "durable when acknowledged: one fdatasync a transaction; atomic batches; unique ids; revisions without gaps",
    lacks: "no commit is shared: appenders wait for one another; a repeated append is an error; no checksums",
    settings: "journal_mode=WAL, synchronous=FULL, 128 MiB of cache, prepared statements, one transaction a batch, one \
               connection that writes and one that reads",
    floor: None,
    by_default: false,
    index: None,
    open,
    open_small: None,
};

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA cache_size = -131072;
    CREATE TABLE IF NOT EXISTS events (
        version INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        aggregate_id TEXT NOT NULL,
        revision INTEGER NOT NULL,
        type TEXT NOT NULL,
        metadata TEXT NOT NULL,
        data BLOB NOT NULL,
        UNIQUE (aggregate_id, revision)
    );
";

struct Sqlite {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
}

fn open(path: &Path) -> Result<Box<dyn Store>> {
    let connect = || {
        let connection = Connection::open(file(path))?;
        connection.execute_batch(SCHEMA)?;
        anyhow::Ok(Mutex::new(connection))
    };
    Ok(Box::new(Sqlite { writer: connect()?, reader: connect()? }))
}

fn locked(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Blocking for Sqlite {
    type Batch = Vec<Event>;

    fn prepare(&self, events: Vec<Event>) -> Result<Vec<Event>> {
        Ok(events)
    }

    fn append_batch(&self, batch: Vec<Event>) -> Result<()> {
        let mut connection = locked(&self.writer);
        let transaction = connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO events (id, aggregate_id, revision, type, metadata, data) VALUES (?1, ?2, (SELECT \
                 coalesce(max(revision), 0) + 1 FROM events WHERE aggregate_id = ?2), ?3, ?4, ?5)",
            )?;
            for event in &batch {
                let id = Uuid::try_parse(event.id())?;
                let row =
                    params![id.as_bytes(), event.aggregate_id(), event.event_type(), event.metadata(), event.data()];
                ensure!(insert.execute(row)? == 1, "no row");
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

impl Store for Sqlite {
    fn append(&self, work: Work) -> Result<Appended> {
        blocking::append(self, work)
    }

    fn scan(&self, how: Scan) -> Result<u64> {
        let mut reader = Reader::new(how);
        let connection = locked(&self.reader);
        let mut select = connection.prepare_cached("SELECT data FROM events ORDER BY version")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            reader.take(row.get_ref(0)?.as_blob()?);
        }
        Ok(reader.count)
    }

    fn load_aggregates(&self, aggregates: &[String]) -> Result<u64> {
        let connection = locked(&self.reader);
        let mut select =
            connection.prepare_cached("SELECT data FROM events WHERE aggregate_id = ? ORDER BY revision")?;
        let mut count = 0;
        for aggregate in aggregates {
            let mut rows = select.query([aggregate])?;
            while let Some(row) = rows.next()? {
                count += black_box(row.get_ref(0)?.as_blob()?.to_vec()).len().min(1) as u64;
            }
        }
        Ok(count)
    }

    fn get(&self, wanted: &Arc<[Sample]>) -> Result<()> {
        let connection = locked(&self.reader);
        let mut select = connection.prepare_cached("SELECT data FROM events WHERE id = ?")?;
        wanted.iter().try_for_each(|sample| {
            let found: Vec<u8> = select.query_row([sample.uuid.as_bytes()], |row| row.get(0))?;
            sample.check(&found)
        })
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
