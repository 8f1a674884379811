//! Verification: reads every event, hashes it again, and looks it up by each index.

use eventstore_api::{Context, Digest, Finding, LoadOptions, PageSize, Result, VerifyReport, Version};
use futures_util::future::join3;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use crate::connect::Session;
use crate::error::{PgError, reason};
use crate::read::{self, Work, bigint, column, number};
use crate::sql::Query;
use crate::store::Shared;

/// The size of one read.
const PAGE: PageSize = PageSize::new(2_000, 8 << 20);

impl Shared {
    pub(crate) async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        let s = self.queries.schema.clone();
        let text = format!("SELECT version, aggregates, digest, synced, largest FROM {s}.head");
        let rows = self.rows(ctx, "read the head", &Query::rare(text, Vec::new()), Vec::new()).await?;
        let head = rows.first().ok_or_else(read::no_head)?;
        let latest = Version::new(number(head, 0)?);
        let mut report = VerifyReport::default();
        report.events = latest.get();

        // Reads the events page by page, up to the current head. They do not change.
        let mut digest = Digest::EMPTY;
        let (mut seen, mut aggregates, mut largest) = (Version::ZERO, 0, 0);
        while seen < latest && !report.is_cut_short {
            let options = LoadOptions::since(seen).before(latest.next());
            let page = match self.load(ctx, &self.sessions, &options, PAGE).await {
                Ok(page) => page,
                Err(eventstore_api::Error::Corrupt { version, reason }) => {
                    tell(&mut report, version, format!("it cannot be read: {reason}"));
                    break; // the digest of everything after it is unknown
                }
                Err(error) => return Err(error),
            };
            let Some(last) = page.events.last().map(|last| last.version) else {
                tell(&mut report, Some(seen.next()), "it and all later events are missing".to_owned());
                break;
            };
            let digests = self.digests(ctx, seen, last).await?;
            for (place, event) in page.events.iter().enumerate() {
                let expected = seen.next();
                if event.version != expected {
                    tell(
                        &mut report,
                        Some(expected),
                        format!("it is missing: the next event has version {}", event.version),
                    );
                }
                digest = digest.chain(event);
                if digests.get(place) != Some(&Some(digest)) {
                    tell(&mut report, Some(event.version), "its digest is not that of the events up to it".to_owned());
                    // A wrong digest is reported once.
                    digest = digests.get(place).copied().flatten().unwrap_or(digest);
                }
                largest = largest.max(event.event.len_bytes() as u64);
                aggregates += u64::from(event.revision.get() == 1);
                seen = event.version;
            }
            let first = page.events.first().map_or(last, |first| first.version);
            for (version, what) in self.disagreeing(ctx, first, last).await? {
                tell(&mut report, Some(version), what);
            }
            ctx.progress().report(seen.get(), latest.get());
        }
        report.aggregates = aggregates;
        if !report.is_clean() {
            return Ok(report);
        }
        if column::<&[u8]>(head, 2)? != digest.as_bytes().as_slice() {
            tell(&mut report, None, "the digest in the table head is not that of the events".to_owned());
        }
        if number(head, 1)? != aggregates {
            let what = format!("the table head counts {} aggregates, and there are {aggregates}", number(head, 1)?);
            tell(&mut report, None, what);
        }
        if number(head, 3)? > latest.get() {
            tell(&mut report, None, "the table head says that more is synced than exists".to_owned());
        }
        if number(head, 4)? < largest {
            let what = format!(
                "the table head says that no event has more than {} bytes: one has {largest}",
                number(head, 4)?
            );
            tell(&mut report, None, what);
        }
        for what in self.index_damage(ctx).await? {
            tell(&mut report, None, what);
        }
        Ok(report)
    }

    /// The stored digests of the events after one version, up to another.
    async fn digests(&self, ctx: &Context, since: Version, until: Version) -> Result<Vec<Option<Digest>>> {
        let text = format!(
            "SELECT digest FROM {}.events WHERE version > $1 AND version <= $2 ORDER BY version",
            self.queries.schema
        );
        let query = Query::rare(text, vec![Type::INT8, Type::INT8]);
        let rows = self
            .rows(ctx, "read digests", &query, vec![Box::new(bigint(since.get())), Box::new(bigint(until.get()))])
            .await?;
        let digest = |row: &Row| Ok(column::<&[u8]>(row, 0)?.try_into().ok().map(Digest::from_bytes));
        rows.iter().map(digest).collect()
    }

    /// Events whose revision does not follow the previous one, or that an index does not find.
    async fn disagreeing(&self, ctx: &Context, first: Version, last: Version) -> Result<Vec<(Version, String)>> {
        let s = &self.queries.schema;
        let checks = [
            (
                "it has no event of its aggregate with the revision before",
                format!(
                    "v.revision > 1 AND NOT EXISTS (SELECT 1 FROM {s}.events p WHERE p.aggregate_id = v.aggregate_id \
                     AND p.revision = v.revision - 1 AND p.version < v.version)"
                ),
            ),
            (
                "it is not found by its aggregate",
                format!(
                    "NOT EXISTS (SELECT 1 FROM {s}.events p WHERE p.aggregate_id = v.aggregate_id \
                     AND p.revision = v.revision AND p.version = v.version)"
                ),
            ),
            (
                "it is not found by its id",
                format!("NOT EXISTS (SELECT 1 FROM {s}.events p WHERE p.id = v.id AND p.version = v.version)"),
            ),
        ];
        let mut found = Vec::new();
        for (what, condition) in checks {
            let text = format!(
                "SELECT v.version FROM {s}.events v WHERE v.version >= {first} AND v.version <= {last} AND {condition} \
                 ORDER BY v.version LIMIT {}",
                VerifyReport::MOST_FINDINGS
            );
            let rows = self.read(ctx, &self.sessions, "verify", ByIndex(text)).await?;
            for row in rows {
                found.push((Version::new(number(&row, 0)?), what.to_owned()));
            }
        }
        Ok(found)
    }

    /// Damage to the indexes that the server finds, if it has the extension for that and this user may use it.
    async fn index_damage(&self, ctx: &Context) -> Result<Vec<String>> {
        let s = &self.queries.schema;
        let text = "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
                    WHERE e.extname = 'amcheck'";
        let rows = self.rows(ctx, "look for amcheck", &Query::rare(text.to_owned(), Vec::new()), Vec::new()).await?;
        let Some(row) = rows.first() else { return Ok(Vec::new()) };
        let place: &str = column(row, 0)?;
        let mut damage = Vec::new();
        for index in ["events_pkey", "events_id", "events_aggregate"] {
            let text = format!("SELECT \"{place}\".bt_index_check('{s}.{index}'::regclass, true)");
            let found = self.read(ctx, &self.sessions, "check an index", CheckIndex(text)).await?;
            damage.extend(found.map(|what| format!("the index {index} is damaged: {what}")));
        }
        Ok(damage)
    }
}

/// The rows of a statement that uses indexes wherever it can.
struct ByIndex(String);

impl Work for ByIndex {
    type Output = Vec<Row>;

    async fn run(&self, session: &Session) -> Result<Vec<Row>, PgError> {
        let begin = "BEGIN READ ONLY; SET LOCAL enable_seqscan TO off; SET LOCAL enable_hashjoin TO off; \
                     SET LOCAL enable_mergejoin TO off";
        // All at once: a caller that leaves in the middle must not leave a transaction to the next user of the
        // connection.
        let (begun, rows, ended) =
            join3(session.batch_execute(begin), session.query_typed(&self.0, &[]), session.batch_execute("COMMIT"))
                .await;
        begun?;
        let rows = rows?;
        ended.map(|()| rows)
    }
}

/// The damage of an index; nothing if this user may not check it.
struct CheckIndex(String);

impl Work for CheckIndex {
    type Output = Option<String>;

    async fn run(&self, session: &Session) -> Result<Option<String>, PgError> {
        match session.batch_execute(&self.0).await {
            Err(error) if error.code().is_some_and(|code| code.code().starts_with("XX")) => Ok(Some(reason(&error))),
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(None),
            checked => checked.map(|()| None),
        }
    }
}

fn tell(report: &mut VerifyReport, version: Option<Version>, what: String) {
    if report.findings.len() >= VerifyReport::MOST_FINDINGS {
        report.is_cut_short = true;
        return;
    }
    report.findings.push(Finding::new(version, what));
}
