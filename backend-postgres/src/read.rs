//! Reads: statements on connections of the pool, retried while the server is away.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use deadpool::managed::PoolError;
use eventstore_api::limits::{MAX_AGGREGATE_ID_LEN, RECORDED_AT_END};
use eventstore_api::{
    AggregateInfo, AggregateOptions, AggregatePage, Context, Digest, Direction, Error, Event, Layout, LoadOptions,
    Page, PageSize, RecordedEvent, Result, Revision, Version,
};
use futures_util::TryStreamExt as _;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use tokio_util::task::AbortOnDropHandle;

use crate::connect::{InUse, Session, Sessions};
use crate::error::{ConnectError, Failed, PgError, Retries};
use crate::sql::{self, Query, Shape};
use crate::store::Shared;

/// The largest useful page.
const LARGEST: PageSize = PageSize::new(65_536, 64 << 20);

impl Shared {
    /// Runs work on a connection of the pool, and retries it while the server cannot be reached. When the context ends,
    /// or the future is dropped, the running statement is cancelled on the server.
    ///
    /// The work is a separate task: otherwise, a future that is no longer polled would occupy its connection.
    pub(crate) async fn read<W: Work>(
        &self,
        ctx: &Context,
        sessions: &Sessions,
        operation: &'static str,
        work: W,
    ) -> Result<W::Output> {
        let (mut retries, mut last) = (Retries::new(self.retry_for), None);
        let work = Arc::new(work);
        loop {
            let attempt = self.connector.handle().spawn(attempt(sessions.clone(), work.clone()));
            let failed = match ctx.run(AbortOnDropHandle::new(attempt)).await {
                Err(ended) => return Err(self.ended(ended, last)),
                Ok(Ok(Ok(found))) => return Ok(found),
                Ok(Ok(Err(PoolError::Backend(error)))) => Failed::of(error, &self.url, operation),
                Ok(Ok(Err(PoolError::Closed))) => return Err(Error::Closed),
                Ok(Ok(Err(error))) => return Err(Error::engine(operation, error.to_string())),
                Ok(Err(error)) if error.is_cancelled() => return Err(Error::Closed), // together with the runtime of the store
                Ok(Err(error)) => return Err(Error::engine(operation, error)),
            };
            let (pause, reason) = retries.after(failed, &self.url)?;
            tracing::debug!(reason, "a read is repeated");
            last = Some(reason);
            if let Err(ended) = ctx.run(tokio::time::sleep(pause)).await {
                return Err(self.ended(ended, last));
            }
        }
    }

    /// The error when the context ends: the last failure, if that is why there is no answer.
    fn ended(&self, ended: Error, last: Option<String>) -> Error {
        match (ended, last) {
            (Error::DeadlineExceeded, Some(reason)) => {
                Error::Unavailable { url: self.url.clone(), reason, source: None }
            }
            (ended, _) => ended,
        }
    }

    /// The rows of one statement.
    pub(crate) async fn rows(
        &self,
        ctx: &Context,
        operation: &'static str,
        query: &Arc<Query>,
        parameters: Parameters,
    ) -> Result<Vec<Row>> {
        self.read(ctx, &self.sessions, operation, Rows { query: query.clone(), parameters }).await
    }
}

async fn attempt<W: Work>(sessions: Sessions, work: Arc<W>) -> Result<W::Output, PoolError<ConnectError>> {
    let in_use = InUse::new(sessions.get().await?);
    let done = work.run(in_use.session()).await;
    in_use.done();
    Ok(done.map_err(ConnectError::from)?)
}

/// Repeatable work on a connection.
pub(crate) trait Work: Send + Sync + 'static {
    type Output: Send + 'static;

    fn run(&self, session: &Session) -> impl Future<Output = Result<Self::Output, PgError>> + Send;
}

pub(crate) type Parameters = Vec<Box<dyn ToSql + Send + Sync>>;

/// The rows of a statement with parameters.
struct Rows {
    query: Arc<Query>,
    parameters: Parameters,
}

impl Work for Rows {
    type Output = Vec<Row>;

    async fn run(&self, session: &Session) -> Result<Vec<Row>, PgError> {
        let parameters: Vec<_> = self.parameters.iter().map(|one| -> &(dyn ToSql + Sync) { &**one }).collect();
        session.query(&self.query, &parameters).await?.try_collect().await
    }
}

/// A required column of a row.
pub(crate) fn column<'r, T: tokio_postgres::types::FromSql<'r>>(row: &'r Row, column: usize) -> Result<T> {
    row.try_get(column).map_err(|error| damaged(None, &format!("a row cannot be read ({error})")))
}

pub(crate) fn number(row: &Row, at: usize) -> Result<u64> {
    let number: i64 = column(row, at)?;
    u64::try_from(number).map_err(|_| damaged(None, &format!("{number} stands where no number is negative")))
}

pub(crate) fn damaged(version: Option<Version>, reason: &str) -> Error {
    Error::Corrupt { version, reason: reason.to_owned() }
}

/// The events of some rows, from this column on as in [`sql::EVENT`]. They share one buffer.
pub(crate) fn events(rows: &[Row], first: usize) -> Result<Vec<RecordedEvent>> {
    const PARTS: usize = 5;
    let mut buffer = BytesMut::with_capacity(rows.iter().map(Row::raw_size_bytes).sum());
    let mut layouts = Vec::with_capacity(rows.len());
    for row in rows {
        let start = buffer.len();
        let mut lens = [0; PARTS];
        for (nth, len) in lens.iter_mut().enumerate() {
            let part: &[u8] = column(row, first + 3 + nth)?;
            *len = part.len();
            buffer.extend_from_slice(part);
        }
        layouts.push((start..buffer.len(), lens));
    }
    let buffer = buffer.freeze();
    rows.iter().zip(layouts).map(|(row, (range, lens))| event(row, first, buffer.slice(range), lens)).collect()
}

fn event(row: &Row, first: usize, bytes: Bytes, lens: [usize; 5]) -> Result<RecordedEvent> {
    let (version, revision) = (Version::new(number(row, first)?), Revision::new(number(row, first + 1)?));
    let recorded_at: SystemTime = column(row, first + 2)?;
    let [id, event_type, aggregate_id, metadata, _] = lens;
    let layout = || {
        Some(Layout {
            id_len: id.try_into().ok()?,
            type_len: event_type.try_into().ok()?,
            aggregate_id_len: aggregate_id.try_into().ok()?,
            metadata_len: metadata.try_into().ok()?,
        })
    };
    let event = layout().and_then(|layout| Event::from_stored(bytes, layout));
    let event = event.ok_or_else(|| damaged(Some(version), "its texts are not UTF-8, or empty"))?;
    Ok(RecordedEvent::new(version, revision, recorded_at, event))
}

/// A version as the server stores it.
pub(crate) fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The first whole microsecond at or after this time, clamped to the recordable times or just after them.
fn microsecond(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().min(RECORDED_AT_END);
    SystemTime::UNIX_EPOCH + Duration::from_micros(since.as_nanos().div_ceil(1000) as u64)
}

impl Shared {
    pub(crate) async fn load(
        &self,
        ctx: &Context,
        sessions: &Sessions,
        options: &LoadOptions,
        size: PageSize,
    ) -> Result<Page> {
        let most = (size.events.clamp(1, LARGEST.events) as u64).min(options.limit.unwrap_or(u64::MAX));
        let bytes = size.bytes.clamp(1, LARGEST.bytes) as u64;
        let (since, before) = (bigint(options.since.get()), bigint(options.before.map_or(u64::MAX, Version::get)));
        let is_backward = options.direction == Direction::Backward;
        let since_revision = bigint(options.since_revision.get());

        let mut parameters: Parameters =
            vec![Box::new(since), Box::new(before), Box::new(bigint(most)), Box::new(bigint(bytes))];
        let mut types = sql::PAGE.to_vec();
        if let Some(aggregate_id) = &options.aggregate_id {
            parameters.push(Box::new(aggregate_id.clone().into_bytes()));
            parameters.push(Box::new(since_revision));
            types.extend(sql::OF_AGGREGATE);
        }
        let mut filters = String::new();
        let mut filter = |condition: &str, type_: Type, value: Box<dyn ToSql + Send + Sync>| {
            types.push(type_);
            parameters.push(value);
            filters.push_str(&condition.replace("{}", &format!("${}", types.len())));
        };
        if options.aggregate_id.is_none() && since_revision > 0 {
            filter(" AND v.revision > {}", Type::INT8, Box::new(since_revision));
        }
        if !options.types.is_empty() {
            let wanted: Vec<_> = options.types.iter().map(|name| name.clone().into_bytes()).collect();
            filter(" AND v.type = ANY({})", Type::BYTEA_ARRAY, Box::new(wanted));
        }
        if let Some(prefix) = options.aggregate_prefix.as_ref().filter(|prefix| !prefix.is_empty()) {
            // Not as a range: the server might then use the index of aggregates and sort the result.
            let condition = " AND substr(v.aggregate_id, 1, octet_length({})) = {}";
            filter(condition, Type::BYTEA, Box::new(prefix.clone().into_bytes()));
        }
        if let Some(time) = options.recorded_since {
            filter(" AND v.recorded_at >= {}", Type::TIMESTAMPTZ, Box::new(microsecond(time)));
        }
        if let Some(time) = options.recorded_before {
            filter(" AND v.recorded_at < {}", Type::TIMESTAMPTZ, Box::new(microsecond(time)));
        }
        let query = match (filters.is_empty(), options.aggregate_id.is_some()) {
            (true, false) => self.queries.page[usize::from(is_backward)].clone(),
            (true, true) => self.queries.aggregate_page[usize::from(is_backward)].clone(),
            (false, is_of_aggregate) => {
                let shape = Shape { is_backward, is_of_aggregate, filters: &filters };
                Query::rare(sql::page(&self.queries.schema, &shape), types)
            }
        };
        let mut rows = self.read(ctx, sessions, "load events", Rows { query, parameters }).await?;
        let head = Version::new(number(rows.first().ok_or_else(no_head)?, 0)?);
        // A single row without an event means that there are none.
        rows.retain(|row| matches!(row.try_get::<_, Option<i64>>(1), Ok(Some(_)) | Err(_)));
        let mut loaded = self::events(&rows, 1)?;
        match is_backward {
            false if !loaded.is_sorted_by_key(|event| event.version) => {
                loaded.sort_unstable_by_key(|event| event.version)
            }
            true if !loaded.iter().rev().is_sorted_by_key(|event| event.version) => {
                loaded.sort_unstable_by_key(|event| std::cmp::Reverse(event.version));
            }
            _ => {}
        }
        self.has_seen(head);
        let came = loaded.len() as u64;
        let mut len = 0;
        let reaches = |event: &RecordedEvent| {
            len += event.event.len_bytes() as u64;
            len >= bytes
        };
        let end = loaded.iter().position(reaches);
        loaded.truncate(end.map_or(usize::MAX, |last| last + 1));
        Ok(Page::new(options, loaded, head, came < most && end.is_none()))
    }

    pub(crate) async fn list(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        let most = most.clamp(1, AggregatePage::MOST);
        let s = &self.queries.schema;
        // Steps from one aggregate to the next by the index. The prefix followed by a byte that never occurs in UTF-8
        // is greater than every id with the prefix.
        let text = format!(
            "SELECT h.version, l.* FROM {s}.head h LEFT JOIN LATERAL (\
               WITH RECURSIVE a(aggregate_id) AS (\
                 (SELECT e.aggregate_id FROM {s}.events e WHERE e.aggregate_id > $1 AND e.aggregate_id >= $2 \
                  AND e.aggregate_id < $3 ORDER BY e.aggregate_id LIMIT 1) \
                 UNION ALL \
                 SELECT (SELECT e.aggregate_id FROM {s}.events e WHERE e.aggregate_id > a.aggregate_id \
                         AND e.aggregate_id < $3 ORDER BY e.aggregate_id LIMIT 1) \
                 FROM a WHERE a.aggregate_id IS NOT NULL) \
               SELECT a.aggregate_id, n.revision, n.version FROM a CROSS JOIN LATERAL (\
                 SELECT e.revision, e.version FROM {s}.events e WHERE e.aggregate_id = a.aggregate_id AND e.version < $4 \
                 ORDER BY e.revision DESC LIMIT 1) n LIMIT $5) l ON true"
        );
        let types = vec![Type::BYTEA, Type::BYTEA, Type::BYTEA, Type::INT8, Type::INT8];
        let (after, prefix) = (options.after.clone().into_bytes(), options.prefix.clone().into_bytes());
        let end = [prefix.as_slice(), &[0xff]].concat();
        let (before, limit) = (bigint(options.before.map_or(u64::MAX, Version::get)), most as i64 + 1);
        let parameters: Parameters =
            vec![Box::new(after), Box::new(prefix), Box::new(end), Box::new(before), Box::new(limit)];
        let mut rows = self.rows(ctx, "list aggregates", &Query::rare(text, types), parameters).await?;
        let head = Version::new(number(rows.first().ok_or_else(no_head)?, 0)?);
        rows.retain(|row| matches!(row.try_get::<_, Option<&[u8]>>(1), Ok(Some(_)) | Err(_)));
        let aggregate = |row: &Row| {
            let id = String::from_utf8(column::<&[u8]>(row, 1)?.to_vec());
            let id = id.map_err(|_| damaged(None, "the id of an aggregate is not UTF-8"))?;
            Ok(AggregateInfo::new(id, Revision::new(number(row, 2)?), Version::new(number(row, 3)?)))
        };
        let is_complete = rows.len() <= most;
        rows.truncate(most);
        let mut aggregates = rows.iter().map(aggregate).collect::<Result<Vec<_>>>()?;
        aggregates.sort_unstable_by(|one, other| one.aggregate_id.cmp(&other.aggregate_id));
        Ok(AggregatePage::new(options, aggregates, head, is_complete))
    }

    pub(crate) async fn find(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        let rows =
            self.rows(ctx, "look an event up", &self.queries.get, vec![Box::new(id.as_bytes().to_vec())]).await?;
        let found = events(&rows, 0)?.pop();
        found.ok_or_else(|| Error::EventNotFound { id: id.to_owned() })
    }

    /// The newest version, and the version up to which everything is on disk.
    pub(crate) async fn head(&self, ctx: &Context) -> Result<(Version, Version)> {
        let rows = self.rows(ctx, "read the head", &self.queries.head, Vec::new()).await?;
        let row = rows.first().ok_or_else(no_head)?;
        let head = Version::new(number(row, 0)?);
        self.has_seen(head);
        Ok((head, Version::new(number(row, 1)?)))
    }

    pub(crate) async fn revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        if aggregate_id.len() > MAX_AGGREGATE_ID_LEN {
            return Ok(Revision::ZERO);
        }
        let parameters: Parameters = vec![Box::new(aggregate_id.as_bytes().to_vec())];
        let rows = self.rows(ctx, "read a revision", &self.queries.revision, parameters).await?;
        rows.first().map_or(Ok(Revision::ZERO), |row| number(row, 0).map(Revision::new))
    }

    pub(crate) async fn digest_at(&self, ctx: &Context, until: Version) -> Result<Digest> {
        let rows = self.rows(ctx, "read a digest", &self.queries.digest, vec![Box::new(bigint(until.get()))]).await?;
        let row = rows.first().ok_or_else(no_head)?;
        let until = until.min(Version::new(number(row, 0)?));
        match column::<Option<&[u8]>>(row, 1)? {
            None if until == Version::ZERO => Ok(Digest::EMPTY),
            None => Err(damaged(Some(until), "it is missing")),
            Some(digest) => {
                let digest = digest.try_into().map_err(|_| damaged(Some(until), "its digest has not 32 bytes"))?;
                Ok(Digest::from_bytes(digest))
            }
        }
    }
}

pub(crate) fn no_head() -> Error {
    damaged(None, "the table head has no row; restore a backup of the database")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_by_time_keeps_the_order_of_what_is_recorded() {
        let at = |nanos| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
        for (time, expected) in [(at(0), at(0)), (at(1), at(1000)), (at(1000), at(1000)), (at(1001), at(2000))] {
            assert_eq!(microsecond(time), expected);
        }
        assert_eq!(microsecond(at(0) - Duration::from_secs(1)), at(0));
        let end = SystemTime::UNIX_EPOCH + RECORDED_AT_END;
        assert_eq!(microsecond(end + Duration::from_secs(1)), end);
    }
}
