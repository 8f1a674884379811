//! An event as a row, and what is asked of rows. Everything but [`insert`] takes the head that is visible.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use eventstore_api::{Direction, Error, Event, Layout, LoadOptions, Page, PageSize, RecordedEvent, Result, Version};
use rusqlite::types::ToSql;
use rusqlite::{Connection, Row, params};

use crate::database::failed_to;

const COLUMNS: &str = "version, revision, recorded_at, checksum, id, event_type, aggregate_id, metadata, data";

/// SQLite's integers have a sign. No store comes to versions that large, but callers may ask for them.
fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Where and when an event stands.
#[derive(Clone, Copy)]
pub(crate) struct At {
    pub(crate) version: u64,
    pub(crate) revision: u64,
    pub(crate) recorded_at: SystemTime,
}

/// Writes an event at its place.
pub(crate) fn insert(db: &Connection, event: &Event, at: At) -> rusqlite::Result<()> {
    let micros = at.recorded_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let numbers = [integer(at.version), integer(at.revision), i64::try_from(micros).unwrap_or(i64::MAX)];
    let [id, event_type, aggregate_id] = [event.id(), event.event_type(), event.aggregate_id()].map(str::as_bytes);
    let texts = [id, event_type, aggregate_id, event.metadata().as_bytes(), event.data()];
    let sql = format!("INSERT INTO events ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)");
    let [version, revision, micros] = numbers;
    let [id, event_type, aggregate_id, metadata, data] = texts;
    let checksum = checksum(numbers, texts);
    let values = params![version, revision, micros, checksum, id, event_type, aggregate_id, metadata, data];
    db.prepare_cached(&sql)?.execute(values).map(drop)
}

/// Of everything in the row, with the lengths, so that nothing can move from one column to another. SQLite has no checksums
/// of its own (F3).
fn checksum(numbers: [i64; 3], texts: [&[u8]; 5]) -> u32 {
    let mut checksum = crc32fast::Hasher::new();
    numbers.iter().for_each(|number| checksum.update(&number.to_le_bytes()));
    texts.iter().for_each(|text| checksum.update(&(text.len() as u64).to_le_bytes()));
    texts.iter().for_each(|text| checksum.update(text));
    checksum.finalize()
}

/// Reads an event from a row of [`COLUMNS`]. Whatever does not fit is damage, and never another event.
pub(crate) fn read(row: &Row<'_>) -> Result<RecordedEvent> {
    let version: i64 = row.get(0).map_err(failed_to("read a version"))?;
    let version = u64::try_from(version).unwrap_or_default();
    read_at(row, Version::new(version)).map_err(|reason| corrupt(version, reason))
}

fn read_at(row: &Row<'_>, version: Version) -> std::result::Result<RecordedEvent, &'static str> {
    let number = |column| row.get::<_, i64>(column).map_err(|_| "a number of it is none");
    let text = |column| row.get_ref(column).ok().and_then(|value| value.as_blob().ok()).ok_or("a text of it is none");
    let numbers = [number(0)?, number(1)?, number(2)?];
    let texts = [text(4)?, text(5)?, text(6)?, text(7)?, text(8)?];
    if number(3)? != i64::from(checksum(numbers, texts)) {
        return Err("its checksum does not match its content");
    }
    let short = |text: &[u8]| u16::try_from(text.len()).map_err(|_| "a text of it is too long");
    let layout = Layout {
        id_len: short(texts[0])?,
        type_len: short(texts[1])?,
        aggregate_id_len: short(texts[2])?,
        metadata_len: u32::try_from(texts[3].len()).map_err(|_| "its metadata is too long")?,
    };
    let event = Event::from_stored(texts.concat().into(), layout).ok_or("its text is not UTF-8, or is empty")?;
    let unsigned = |number| u64::try_from(number).map_err(|_| "a number of it is negative");
    let recorded_at = UNIX_EPOCH.checked_add(Duration::from_micros(unsigned(numbers[2])?));
    let recorded_at = recorded_at.ok_or("its time of recording is beyond this system's clock")?;
    Ok(RecordedEvent::new(version, unsigned(numbers[1])?, recorded_at, event))
}

pub(crate) fn corrupt(version: u64, reason: &str) -> Error {
    Error::Corrupt { version: Some(Version::new(version)), reason: reason.to_owned() }
}

/// The newest version, published or not; what a store is opened with.
pub(crate) fn newest_version(db: &Connection) -> Result<Version> {
    let newest = db.query_row("SELECT coalesce(max(version), 0) FROM events", [], |row| row.get::<_, i64>(0));
    newest.map(|newest| Version::new(u64::try_from(newest).unwrap_or_default())).map_err(failed_to("read the head"))
}

/// The event with this id.
pub(crate) fn find(db: &Connection, id: &str, head: Version) -> Result<Option<RecordedEvent>> {
    let failed = failed_to("look an id up");
    let sql = format!("SELECT {COLUMNS} FROM events WHERE id = ?1 AND version <= ?2");
    let mut query = db.prepare_cached(&sql).map_err(&failed)?;
    let mut rows = query.query(params![id.as_bytes(), integer(head.get())]).map_err(&failed)?;
    let Some(row) = rows.next().map_err(&failed)? else { return Ok(None) };
    let found = read(row)?;
    if found.event.id() != id {
        return Err(corrupt(found.version.get(), "the index of ids leads to it, but it has another id"));
    }
    Ok(Some(found))
}

/// The revision of the aggregate's newest event, 0 if it has none: one step in the index, and the whole row, because no
/// number of it can be trusted without the rest.
pub(crate) fn revision(db: &Connection, aggregate_id: &str, head: Version) -> Result<u64> {
    let newest = LoadOptions::all().aggregate(aggregate_id).backward().limit(1);
    let page = page(db, &newest, PageSize::FIRST, head)?;
    Ok(page.events.first().map_or(0, |newest| newest.revision))
}

/// How many aggregates have events: a walk through a small index.
pub(crate) fn count_aggregates(db: &Connection, head: Version) -> Result<u64> {
    let sql = "SELECT count(*) FROM events INDEXED BY first_events WHERE revision = 1 AND version <= ?1";
    let count = db.query_row(sql, [integer(head.get())], |row| row.get::<_, i64>(0));
    count.map(|count| u64::try_from(count).unwrap_or_default()).map_err(failed_to("count the aggregates"))
}

/// Larger pages would only hold a snapshot, and a thread, for longer.
const MOST_EVENTS: usize = 65_536;
const MOST_BYTES: usize = 64 << 20;

/// One page, in one query and so from one snapshot. The log only grows, and every page of a load is bounded by the head
/// that the first one saw, so all of them show one prefix of the store (O5).
pub(crate) fn page(db: &Connection, options: &LoadOptions, size: PageSize, head: Version) -> Result<Page> {
    let failed = failed_to("read a page");
    let before = options.before.map_or(head.next(), |before| before.min(head.next()));
    let most_events = size.events.clamp(1, MOST_EVENTS);
    // One more than the page may have: if it comes, the page is not the last.
    let rows = options.limit.unwrap_or(u64::MAX).min(most_events as u64 + 1);
    let (since, until, rows) = (integer(options.since.get()), integer(before.get()), integer(rows));
    let aggregate_id = options.aggregate_id.as_ref().map(|id| id.as_bytes());
    let mut values: Vec<&dyn ToSql> = vec![&since, &until, &rows];
    // The planner is told what to use: without statistics it can only guess.
    let (index, condition) = match &aggregate_id {
        Some(id) => {
            values.push(id);
            ("INDEXED BY events_by_aggregate", "AND aggregate_id = ?4")
        }
        None => ("NOT INDEXED", ""),
    };
    let order = if options.direction == Direction::Forward { "ASC" } else { "DESC" };
    let mut query = db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM events {index} WHERE version > ?1 AND version < ?2 {condition} ORDER BY version {order} \
             LIMIT ?3"
        ))
        .map_err(&failed)?;
    let mut rows = query.query(values.as_slice()).map_err(&failed)?;
    let (mut events, mut bytes, mut complete) = (Vec::new(), 0, false);
    loop {
        let next = match rows.next().map_err(&failed) {
            Ok(None) => {
                complete = true;
                break;
            }
            Ok(Some(_)) if events.len() == most_events || bytes >= size.bytes.min(MOST_BYTES) && bytes > 0 => break,
            Ok(Some(row)) => read(row).and_then(|event| is_next(options, before, events.last(), event)),
            Err(error) => Err(error),
        };
        match next {
            Ok(event) => {
                bytes += event.event.len_bytes();
                events.push(event);
            }
            // What was read before the damage is sound. The next page begins with the damage, and fails.
            Err(_) if !events.is_empty() => break,
            Err(damage) => return Err(damage),
        }
    }
    Ok(Page::new(options, events, head, complete))
}

/// A load of all events has no gaps; one that is found is damage (O1).
fn is_next(
    options: &LoadOptions,
    before: Version,
    last: Option<&RecordedEvent>,
    event: RecordedEvent,
) -> Result<RecordedEvent> {
    let expected = match (options.direction, last) {
        (Direction::Forward, last) => last.map_or(options.since, |last| last.version).next().get(),
        (Direction::Backward, last) => last.map_or(before, |last| last.version).get() - 1,
    };
    match &options.aggregate_id {
        None if event.version.get() != expected => Err(corrupt(expected, "it is missing")),
        Some(id) if event.event.aggregate_id() != id => {
            Err(corrupt(event.version.get(), "the index of aggregates leads to it, but it belongs to another"))
        }
        _ => Ok(event),
    }
}
