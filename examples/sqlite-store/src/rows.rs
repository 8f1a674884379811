//! An event as a row, and what is asked of rows. Everything but [`insert`] takes the head that is visible.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use eventstore_api::{
    AggregateInfo, AggregateOptions, AggregatePage, Direction, Error, Event, Layout, LoadOptions, Page, PageSize,
    RecordedEvent, Result, Version,
};
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
    let recorded_at = recorded_at.ok_or("its recording time is out of the range of this system's clock")?;
    Ok(RecordedEvent::new(version, unsigned(numbers[1])?.into(), recorded_at, event))
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
        return Err(corrupt(found.version.get(), "the index of ids points to it, but it has another id"));
    }
    Ok(Some(found))
}

/// The revision of the aggregate's newest event, 0 if it has none: one step in the index, and the whole row, because no
/// number of it can be trusted without the rest.
pub(crate) fn revision(db: &Connection, aggregate_id: &str, head: Version) -> Result<u64> {
    let newest = LoadOptions::all().aggregate(aggregate_id).backward().limit(1);
    let page = page(db, &newest, PageSize::FIRST, head)?;
    Ok(page.events.first().map_or(0, |newest| newest.revision.get()))
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

/// So many rows are looked at with one query.
const ROWS_AT_ONCE: usize = 4096;

/// One page, to its end.
pub(crate) fn page(db: &Connection, options: &LoadOptions, size: PageSize, head: Version) -> Result<Page> {
    let mut read = PageRead::new(options, size, head);
    while !read.is_done() {
        read.go_on(db)?;
    }
    Ok(read.finish())
}

/// A page on its way, one query after the other: one whose filters accept little holds no snapshot, and no connection, for
/// long, and its caller can leave between two of them (C5). The log only grows, and everything is bounded by the head that
/// the first page saw, so all of it shows one prefix of the store (O5).
///
/// What filters ask of events is answered by the events: a row that was not read was not checked either, and damage in it
/// could hide an event (F3).
pub(crate) struct PageRead {
    options: LoadOptions,
    size: PageSize,
    head: Version,
    /// Events with greater versions than `since` and smaller ones than `before` were not looked at yet.
    since: Version,
    before: Version,
    most_events: usize,
    events: Vec<RecordedEvent>,
    bytes: usize,
    /// No further event matches.
    complete: bool,
    /// The next row is damaged. What was read before it is sound; the next page begins with the damage, and fails.
    is_cut: bool,
}

impl PageRead {
    pub(crate) fn new(options: &LoadOptions, size: PageSize, head: Version) -> Self {
        let limit = options.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let before = options.before.map_or(head.next(), |before| before.min(head.next()));
        PageRead {
            options: options.clone(),
            size: PageSize::new(size.events.clamp(1, MOST_EVENTS), size.bytes.min(MOST_BYTES)),
            head,
            since: options.since,
            before,
            most_events: size.events.clamp(1, MOST_EVENTS).min(limit),
            events: Vec::new(),
            bytes: 0,
            complete: limit == 0 || options.since.next() >= before,
            is_cut: false,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.complete || self.is_cut || self.is_full()
    }

    fn is_full(&self) -> bool {
        self.events.len() >= self.most_events || self.bytes >= self.size.bytes && !self.events.is_empty()
    }

    /// Looks at the next rows.
    pub(crate) fn go_on(&mut self, db: &Connection) -> Result<()> {
        let failed = failed_to("read a page");
        let (since, before, rows) =
            (integer(self.since.get()), integer(self.before.get()), integer(ROWS_AT_ONCE as u64));
        let aggregate_id = self.options.aggregate_id.as_ref().map(|id| id.as_bytes().to_vec());
        let mut values: Vec<&dyn ToSql> = vec![&since, &before, &rows];
        // The planner is told what to use: without statistics it can only guess.
        let (index, condition) = match &aggregate_id {
            Some(id) => {
                values.push(id);
                ("INDEXED BY events_by_aggregate", "AND aggregate_id = ?4")
            }
            None => ("NOT INDEXED", ""),
        };
        let order = if self.options.direction == Direction::Forward { "ASC" } else { "DESC" };
        let mut query = db
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM events {index} WHERE version > ?1 AND version < ?2 {condition} \
                 ORDER BY version {order} LIMIT ?3"
            ))
            .map_err(&failed)?;
        let mut rows = query.query(values.as_slice()).map_err(&failed)?;
        for _ in 0..ROWS_AT_ONCE {
            let next = match rows.next().map_err(&failed) {
                Ok(None) => {
                    self.complete = true;
                    return Ok(());
                }
                Ok(Some(row)) => read(row).and_then(|event| self.check_next(event)),
                Err(error) => Err(error),
            };
            match next {
                Ok(event) => self.pass(event),
                Err(_) if !self.events.is_empty() => self.is_cut = true,
                Err(damage) => return Err(damage),
            }
            if self.is_done() {
                break;
            }
        }
        Ok(())
    }

    /// A load of all events has no gaps; one that is found is damage (O1).
    fn check_next(&self, event: RecordedEvent) -> Result<RecordedEvent> {
        let expected = match self.options.direction {
            Direction::Forward => self.since.next().get(),
            Direction::Backward => self.before.get() - 1,
        };
        match &self.options.aggregate_id {
            None if event.version.get() != expected => Err(corrupt(expected, "it is missing")),
            Some(id) if event.event.aggregate_id() != id => {
                Err(corrupt(event.version.get(), "the index of aggregates points to it, but it belongs to another"))
            }
            _ => Ok(event),
        }
    }

    /// Takes the event if it matches, and goes on behind it.
    fn pass(&mut self, event: RecordedEvent) {
        match self.options.direction {
            Direction::Forward => self.since = event.version,
            Direction::Backward => self.before = event.version,
        }
        self.complete = self.since.next() >= self.before;
        if self.options.matches(&event) {
            self.bytes += event.event.len_bytes();
            self.events.push(event);
        }
    }

    pub(crate) fn finish(self) -> Page {
        Page::new(&self.options, self.events, self.head, self.complete)
    }
}

/// A page of the list of aggregates on its way: from one id to the next in the index, and to the newest row of each, because
/// no number of it can be trusted without the rest.
pub(crate) struct ListRead {
    options: AggregateOptions,
    most: usize,
    head: Version,
    /// Every aggregate up to this one was looked at.
    last: String,
    found: Vec<AggregateInfo>,
    complete: bool,
}

impl ListRead {
    pub(crate) fn new(options: &AggregateOptions, most: usize, head: Version) -> Self {
        ListRead {
            most: most.clamp(1, AggregatePage::MOST),
            head,
            last: options.after.clone(),
            found: Vec::new(),
            complete: false,
            options: options.clone(),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.complete || self.found.len() >= self.most
    }

    /// Looks at the next aggregates.
    pub(crate) fn go_on(&mut self, db: &Connection) -> Result<()> {
        let newest = LoadOptions::all().backward().limit(1).before(self.options.before.unwrap_or(self.head.next()));
        for _ in 0..ROWS_AT_ONCE / 8 {
            let Some(aggregate_id) = self.next_id(db)?.filter(|id| id.starts_with(&self.options.prefix)) else {
                self.complete = true;
                return Ok(());
            };
            let newest = page(db, &newest.clone().aggregate(&aggregate_id), PageSize::FIRST, self.head)?;
            self.last.clone_from(&aggregate_id);
            // It may have none that counts yet.
            let found =
                newest.events.first().map(|event| AggregateInfo::new(aggregate_id, event.revision, event.version));
            self.found.extend(found);
            if self.is_done() {
                break;
            }
        }
        Ok(())
    }

    fn next_id(&self, db: &Connection) -> Result<Option<String>> {
        let failed = failed_to("list the aggregates");
        let prefix = &self.options.prefix;
        let (from, is_beyond) = if *prefix > self.last { (prefix, ">=") } else { (&self.last, ">") };
        let sql = format!(
            "SELECT aggregate_id FROM events INDEXED BY events_by_aggregate WHERE aggregate_id {is_beyond} ?1 \
             ORDER BY aggregate_id LIMIT 1"
        );
        let mut query = db.prepare_cached(&sql).map_err(&failed)?;
        let mut rows = query.query(params![from.as_bytes()]).map_err(&failed)?;
        let Some(row) = rows.next().map_err(&failed)? else { return Ok(None) };
        let id: Vec<u8> = row.get(0).map_err(&failed)?;
        let damaged =
            |_| Error::Corrupt { version: None, reason: "an aggregate id in the index is no text".to_owned() };
        String::from_utf8(id).map(Some).map_err(damaged)
    }

    pub(crate) fn finish(self) -> AggregatePage {
        AggregatePage::new(&self.options, self.found, self.head, self.complete)
    }
}
