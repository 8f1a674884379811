//! The SQL statements for one schema.

use std::sync::Arc;

use tokio_postgres::types::Type;

/// One statement.
#[derive(Debug)]
pub(crate) struct Query {
    pub(crate) text: String,
    /// The types of its parameters.
    pub(crate) types: Vec<Type>,
    /// Its index among the statements that are prepared once for each connection; `None` for rare ones.
    pub(crate) place: Option<usize>,
}

impl Query {
    pub(crate) fn rare(text: String, types: Vec<Type>) -> Arc<Self> {
        Arc::new(Query { text, types, place: None })
    }
}

/// The number of prepared statements.
pub(crate) const PREPARED: usize = 13;

/// The statements that run often.
#[derive(Debug)]
pub(crate) struct Queries {
    /// The store's name.
    pub(crate) schema: String,
    /// → version, synced.
    pub(crate) head: Arc<Query>,
    /// → version, synced, aggregates, largest, digest. Locks the row until the transaction ends.
    pub(crate) lock_head: Arc<Query>,
    /// The same without the lock, for a mutant.
    pub(crate) unlocked_head: Arc<Query>,
    /// ids → the events with these ids.
    pub(crate) find: Arc<Query>,
    /// aggregate ids → aggregate id, newest revision; those without events are left out.
    pub(crate) revisions: Arc<Query>,
    /// versions, revisions, times, ids, types, aggregate ids, metadata, data, digests.
    pub(crate) insert: Arc<Query>,
    /// version, synced, aggregates, largest, digest.
    pub(crate) update_head: Arc<Query>,
    /// since, before, events, bytes → head, and an event.
    pub(crate) page: [Arc<Query>; 2],
    /// since, before, events, bytes, aggregate id, since revision → head, and an event.
    pub(crate) aggregate_page: [Arc<Query>; 2],
    /// id → an event.
    pub(crate) get: Arc<Query>,
    /// aggregate id → revision.
    pub(crate) revision: Arc<Query>,
    /// version → head, digest; no digest for version 0.
    pub(crate) digest: Arc<Query>,
}

/// The columns of an event, in this order.
pub(crate) const EVENT: &str = "version, revision, recorded_at, id, type, aggregate_id, metadata, data";

/// The same for the row `e`.
fn columns_of_e() -> String {
    EVENT.split(", ").map(|column| format!("e.{column}")).collect::<Vec<_>>().join(", ")
}

/// Which events of a page are wanted. Each is a condition on `v`, with its parameters after the four of every page.
pub(crate) struct Shape<'a> {
    pub(crate) is_backward: bool,
    pub(crate) is_of_aggregate: bool,
    pub(crate) filters: &'a str,
}

/// A page: at most a number of matching events. If no event of the store is so large that these could exceed the
/// requested bytes by far, all are returned; otherwise those up to the one that reaches the bytes. There is one row
/// without an event if none matches. The head and the events are from one snapshot.
pub(crate) fn page(schema: &str, shape: &Shape<'_>) -> String {
    let Shape { is_backward, is_of_aggregate, filters } = shape;
    // For an aggregate, the order of revisions is that of versions, and there is an index of revisions. The start of
    // the page is looked up once: at the last event of the previous page, or else from the newest event down. That
    // event is looked up by its version alone: with the aggregate as well, the server may scan all events of the
    // aggregate in the index that includes versions.
    let (order, aggregate) = match is_of_aggregate {
        false => ("version", String::new()),
        true => (
            "revision",
            format!(
                "AND v.aggregate_id = $5 AND v.revision > greatest($6, CASE WHEN $1 = 0 THEN 0 ELSE coalesce(\
                   (SELECT CASE WHEN s.aggregate_id = $5 THEN s.revision END FROM {schema}.events s WHERE s.version = $1), \
                   (SELECT s.revision FROM {schema}.events s WHERE s.aggregate_id = $5 AND s.version <= $1 \
                    ORDER BY s.revision DESC LIMIT 1), 0) END) \
                 AND v.revision < coalesce(\
                   (SELECT CASE WHEN b.aggregate_id = $5 THEN b.revision END FROM {schema}.events b WHERE b.version = $2), \
                   9223372036854775807)"
            ),
        ),
    };
    let direction = if *is_backward { "DESC" } else { "ASC" };
    let columns = columns_of_e();
    let wanted = |condition: &str| {
        format!(
            "FROM {schema}.events v WHERE v.version > $1 AND v.version < $2 AND {condition} {aggregate} {filters} \
             ORDER BY v.{order} {direction} LIMIT $3"
        )
    };
    let (all, counted) =
        (wanted(&format!("h.largest * $3 <= {SPARE} * $4")), wanted(&format!("h.largest * $3 > {SPARE} * $4")));
    format!(
        "SELECT h.version, {columns} FROM (SELECT version, largest FROM {schema}.head LIMIT 1) h LEFT JOIN LATERAL (\
           (SELECT {EVENT} {all}) \
           UNION ALL \
           (SELECT {EVENT} FROM (\
              SELECT p.*, sum(p.size) OVER (ORDER BY p.{order} {direction} \
                                            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before FROM (\
                SELECT {EVENT}, octet_length(id) + octet_length(type) + octet_length(aggregate_id) + octet_length(metadata) \
                       + octet_length(data) AS size {counted}) p) w \
            WHERE w.before IS NULL OR w.before < $4)) e ON true"
    )
}

/// How many times the requested bytes may be sent and discarded, before the server has to count them: counting takes it
/// many times as long as reading the events.
const SPARE: u64 = 4;

/// The types of the parameters of every page.
pub(crate) const PAGE: [Type; 4] = [Type::INT8, Type::INT8, Type::INT8, Type::INT8];

/// The types of the two additional parameters of a page of an aggregate.
pub(crate) const OF_AGGREGATE: [Type; 2] = [Type::BYTEA, Type::INT8];

impl Queries {
    pub(crate) fn new(schema: &str) -> Self {
        let mut places = 0..PREPARED;
        let mut often =
            |text: String, types: &[Type]| Arc::new(Query { text, types: types.to_vec(), place: places.next() });
        // In a statement, a name is always quoted.
        let s = format!("\"{schema}\"");
        let columns = columns_of_e();
        let shape = |is_backward, is_of_aggregate| page(&s, &Shape { is_backward, is_of_aggregate, filters: "" });
        let of_aggregate = [&PAGE[..], &OF_AGGREGATE[..]].concat();
        Queries {
            head: often(format!("SELECT version, synced FROM {s}.head"), &[]),
            lock_head: often(
                format!("SELECT version, synced, aggregates, largest, digest FROM {s}.head FOR UPDATE"),
                &[],
            ),
            unlocked_head: Query::rare(
                format!("SELECT version, synced, aggregates, largest, digest FROM {s}.head"),
                Vec::new(),
            ),
            // Looks up each id by the index, however small the table was when the statement was planned: LIMIT prevents
            // another kind of join.
            find: often(
                format!(
                    "SELECT {columns} FROM unnest($1) AS wanted(id) CROSS JOIN LATERAL \
                     (SELECT * FROM {s}.events f WHERE f.id = wanted.id LIMIT 1) e"
                ),
                &[Type::BYTEA_ARRAY],
            ),
            revisions: often(
                format!(
                    "SELECT wanted.id, e.revision FROM unnest($1) AS wanted(id) CROSS JOIN LATERAL \
                     (SELECT n.revision FROM {s}.events n WHERE n.aggregate_id = wanted.id \
                      ORDER BY n.revision DESC LIMIT 1) e"
                ),
                &[Type::BYTEA_ARRAY],
            ),
            insert: often(
                format!(
                    "INSERT INTO {s}.events (version, revision, recorded_at, id, type, aggregate_id, metadata, data, digest) \
                     SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9)"
                ),
                &[
                    Type::INT8_ARRAY,
                    Type::INT8_ARRAY,
                    Type::TIMESTAMPTZ_ARRAY,
                    Type::BYTEA_ARRAY,
                    Type::BYTEA_ARRAY,
                    Type::BYTEA_ARRAY,
                    Type::BYTEA_ARRAY,
                    Type::BYTEA_ARRAY,
                    Type::BYTEA_ARRAY,
                ],
            ),
            update_head: often(
                format!("UPDATE {s}.head SET version = $1, synced = $2, aggregates = $3, largest = $4, digest = $5"),
                &[Type::INT8, Type::INT8, Type::INT8, Type::INT8, Type::BYTEA],
            ),
            page: [often(shape(false, false), &PAGE), often(shape(true, false), &PAGE)],
            aggregate_page: [often(shape(false, true), &of_aggregate), often(shape(true, true), &of_aggregate)],
            get: often(format!("SELECT {EVENT} FROM {s}.events WHERE id = $1"), &[Type::BYTEA]),
            revision: often(
                format!("SELECT revision FROM {s}.events WHERE aggregate_id = $1 ORDER BY revision DESC LIMIT 1"),
                &[Type::BYTEA],
            ),
            digest: often(
                format!(
                    "SELECT h.version, (SELECT e.digest FROM {s}.events e WHERE e.version = least($1, h.version)) \
                     FROM {s}.head h"
                ),
                &[Type::INT8],
            ),
            schema: s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_statement_has_a_place_of_its_own() {
        let queries = Queries::new("x");
        let Queries {
            schema: _,
            unlocked_head: _,
            head,
            lock_head,
            find,
            revisions,
            insert,
            update_head,
            page,
            aggregate_page,
            get,
            revision,
            digest,
        } = &queries;
        let all = [head, lock_head, find, revisions, insert, update_head, get, revision, digest];
        let mut places: Vec<_> = all.into_iter().chain(page).chain(aggregate_page).map(|query| query.place).collect();
        places.sort_unstable();
        assert_eq!(places, (0..PREPARED).map(Some).collect::<Vec<_>>());
    }
}
