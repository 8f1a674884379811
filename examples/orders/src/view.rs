//! What can be asked about all orders: rows in SQLite, made of the events.

use std::path::Path;
use std::sync::{Arc, Mutex};

use eventstore::{BoxError, Cursor, Projection, RecordedEvent, async_trait};
use rusqlite::{Connection, OptionalExtension, ToSql, Transaction};

use crate::domain::OrderEvent;

/// The cursor is a row beside the others, so that one transaction changes both. Nothing is synced, since what a power cut
/// takes is made of the events again.
const SCHEMA: &str = "
    PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
    CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, customer TEXT NOT NULL, status TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS customers (name TEXT PRIMARY KEY, orders INTEGER NOT NULL, paid INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS cursor (only INTEGER PRIMARY KEY CHECK (only = 1), place TEXT NOT NULL);";

/// The database, for the projection that writes it and the requests that read it.
#[derive(Clone, Debug)]
pub struct View(Arc<Mutex<Connection>>);

impl View {
    /// Without a path in memory.
    pub fn open(path: Option<&Path>) -> rusqlite::Result<Self> {
        let database = path.map_or_else(Connection::open_in_memory, Connection::open)?;
        database.execute_batch(SCHEMA)?;
        Ok(View(Arc::new(Mutex::new(database))))
    }

    /// SQLite holds up its thread, so it gets one that may be.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, BoxError> + Send + 'static,
    ) -> Result<T, BoxError> {
        let database = self.0.clone();
        tokio::task::spawn_blocking(move || work(&mut *database.lock().map_err(|_| "it panicked before")?)).await?
    }
}

#[async_trait]
impl Projection for View {
    async fn cursor(&mut self) -> Result<Cursor, BoxError> {
        self.with(|database| {
            let place = database.query_row("SELECT place FROM cursor", [], |row| row.get::<_, String>(0)).optional()?;
            Ok(place.map_or(Ok(Cursor::START), |place| place.parse())?)
        })
        .await
    }

    async fn apply(&mut self, events: &[RecordedEvent], cursor: Cursor) -> Result<(), BoxError> {
        let events = events.to_vec();
        self.with(move |database| {
            let transaction = database.transaction()?; // undone if it is dropped before the commit
            for event in &events {
                take_up(&transaction, event.event.aggregate_id(), event.decode()?)?;
            }
            transaction.execute("INSERT OR REPLACE INTO cursor VALUES (1, ?)", [cursor.to_string()])?;
            Ok(transaction.commit()?)
        })
        .await
    }
}

fn take_up(transaction: &Transaction<'_>, id: &str, event: OrderEvent) -> rusqlite::Result<usize> {
    let run = |sql: &str, parameters: &[&dyn ToSql]| transaction.prepare_cached(sql)?.execute(parameters);
    match event {
        OrderEvent::Placed { customer, .. } => {
            run("INSERT INTO orders VALUES (?, ?, 'open')", &[&id, &customer])?;
            run("INSERT INTO customers VALUES (?, 1, 0) ON CONFLICT DO UPDATE SET orders = orders + 1", &[&customer])
        }
        OrderEvent::Paid { cents } => {
            run("UPDATE customers SET paid = paid + ? FROM orders WHERE id = ? AND name = customer", &[&cents, &id])
        }
        OrderEvent::Shipped { .. } => run("UPDATE orders SET status = 'shipped' WHERE id = ?", &[&id]),
        OrderEvent::Cancelled { .. } => run("UPDATE orders SET status = 'cancelled' WHERE id = ?", &[&id]),
    }
}
