//! The store.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use eventstore_api::limits::MAX_ID_LEN;
use eventstore_api::{
    AggregateOptions, AggregatePage, BackupReport, Batch, CancellationToken, Context, Digest, Error, EventStore, Gc,
    GcReport, LoadOptions, Page, PageSize, Place, Pulled, Pushed, RecordedEvent, Result, Revision, Stats, Stored,
    VerifyReport, Version, async_trait, replication,
};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::SqlState;

use crate::connect::{Connector, Session, Sessions};
use crate::error::{ConnectError, Failed, PgError, Retries};
use crate::follow::Away;
use crate::mutants::{Mutant, Mutants};
use crate::options::{SynchronousCommit, invalid};
use crate::queue::Queue;
use crate::read::Work;
use crate::sql::{Queries, Query};
use crate::writer::Writer;
use crate::{NAME, Options, Reads, read, schema};

/// A store on PostgreSQL.
///
/// It keeps the contract of [`EventStore`], except the rules about files: any number of processes may have it open
/// (L2), and there is no backup (M1, M2).
///
/// # Clone
///
/// Cheap; clones are handles to the same store. Dropping the last one closes it in the background.
#[derive(Clone)]
pub struct PostgresStore {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    queue: Queue,
    is_read_only: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn close(&self) {
        self.queue.close();
        self.shared.closing.cancel();
        self.shared.sessions.close();
        if let Some(standby) = &self.shared.standby {
            standby.sessions.close();
        }
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("store", &self.inner.shared.url).finish_non_exhaustive()
    }
}

/// The state shared by the handles and tasks of a store.
pub(crate) struct Shared {
    /// The store's address, without secrets.
    pub(crate) url: String,
    pub(crate) queries: Queries,
    pub(crate) connector: Connector,
    pub(crate) sessions: Sessions,
    standby: Option<Standby>,
    pub(crate) retry_for: Duration,
    pub(crate) poll_interval: Duration,
    /// The setting of synced commits.
    pub(crate) synchronous_commit: String,
    /// The channel for notifications of new events.
    pub(crate) channel: String,
    /// The newest version known to this process.
    pub(crate) seen: watch::Sender<Version>,
    /// The version up to which a commit of this process was confirmed as synced on the current connection. `head` has
    /// what commits intended: it includes one whose wait for the standby was interrupted.
    pub(crate) confirmed: AtomicU64,
    /// Set when the following task was started.
    pub(crate) following: OnceLock<()>,
    /// Set while the following task has no connection.
    pub(crate) away: watch::Sender<Option<Away>>,
    /// Closing has begun.
    pub(crate) closing: CancellationToken,
    /// The writer has ended.
    pub(crate) ended: CancellationToken,
    pub(crate) commits: AtomicU64,
    pub(crate) events_written: AtomicU64,
    pub(crate) largest_group: AtomicU64,
    store_id: String,
    pub(crate) mutants: Mutants,
}

/// Read-only servers.
struct Standby {
    sessions: Sessions,
    /// None could be used; they are not tried again before this time.
    away_until: Mutex<Option<Instant>>,
}

impl Shared {
    /// Notes that this process has seen this version.
    pub(crate) fn has_seen(&self, version: Version) {
        self.seen.send_if_modified(|seen| {
            let is_newer = version > *seen;
            *seen = version.max(*seen);
            is_newer
        });
    }
}

fn pool(connector: Connector, size: usize) -> Result<Sessions> {
    Sessions::builder(connector).max_size(size).build().map_err(|error| Error::engine("open the store", error))
}

impl PostgresStore {
    pub(crate) async fn open(options: Options) -> Result<Self> {
        let config = options.config()?;
        let url = options.shown(&config);
        let (files, handle) = (options.clone(), Handle::current());
        let connector = tokio::task::spawn_blocking(move || Connector::new(&files, handle)).await;
        let connector = connector.map_err(|error| Error::engine("open the store", error))??;
        // Several hosts are one server that accepts writes, and its standbys.
        let target = if options.read_only { TargetSessionAttrs::Any } else { TargetSessionAttrs::ReadWrite };
        let primary = connector.to(target);
        let (store_id, synchronous_commit) = prepare(&primary, &options, &url).await?;
        let standby = match options.reads {
            Reads::Primary => None,
            Reads::Standby => {
                let sessions = pool(connector.to(TargetSessionAttrs::ReadOnly), options.max_connections)?;
                Some(Standby { sessions, away_until: Mutex::new(None) })
            }
        };
        tracing::debug!(store = url, "a store on PostgreSQL is open");
        let (queue, requests) = Queue::new(options.durability);
        let shared = Arc::new(Shared {
            url,
            queries: Queries::new(&options.schema),
            sessions: pool(primary.clone(), options.max_connections)?,
            connector: primary,
            standby,
            retry_for: options.retry_for,
            poll_interval: options.poll_interval,
            synchronous_commit,
            channel: format!("eventstore_{}", options.schema),
            seen: watch::Sender::new(Version::ZERO),
            confirmed: AtomicU64::new(0),
            following: OnceLock::new(),
            away: watch::Sender::new(None),
            closing: CancellationToken::new(),
            ended: CancellationToken::new(),
            commits: AtomicU64::new(0),
            events_written: AtomicU64::new(0),
            largest_group: AtomicU64::new(0),
            store_id,
            mutants: options.mutants,
        });
        tokio::spawn(Writer::new(shared.clone(), requests).run());
        Ok(PostgresStore { inner: Arc::new(Inner { shared, queue, is_read_only: options.read_only }) })
    }

    /// Closes the store, and deletes its tables and its schema.
    pub(crate) async fn delete(self) -> Result<()> {
        self.close().await?;
        let shared = &self.inner.shared;
        let s = &shared.queries.schema;
        // All or nothing: the schema is kept if it has other objects.
        let statements = format!("BEGIN; DROP TABLE {s}.events, {s}.head; DROP SCHEMA {s}; COMMIT");
        let deleted = async {
            let session = shared.connector.connect(None).await?;
            Ok(session.batch_execute(&statements).await?)
        };
        deleted
            .await
            .map_err(|error: ConnectError| Failed::of(error, &shared.url, "delete the store").into_error(&shared.url))
    }

    /// The store, unless the context has ended or the store is closed.
    fn shared(&self, ctx: &Context) -> Result<&Arc<Shared>> {
        ctx.check()?;
        match self.inner.shared.closing.is_cancelled() {
            true => Err(Error::Closed),
            false => Ok(&self.inner.shared),
        }
    }

    fn check_writable(&self, what: &str) -> Result<()> {
        match self.inner.is_read_only {
            true => Err(Error::Unsupported { what: format!("{what} to a store that was opened to be read only") }),
            false => Ok(()),
        }
    }
}

/// Ensures that the store exists. Returns its id, and the setting of synced commits.
async fn prepare(connector: &Connector, options: &Options, url: &str) -> Result<(String, String)> {
    let mut retries = Retries::new(options.connect_timeout.min(options.retry_for));
    loop {
        let attempt = async {
            let failed = |error: ConnectError| Failed::of(error, url, "open the store");
            let session = connector.connect(None).await.map_err(failed)?;
            let store_id = schema::prepare(&session, options, url).await?;
            let synchronous_commit = match (options.read_only, options.synchronous_commit) {
                (true, Some(chosen)) => chosen.to_string(),
                // Only for the statistics; it may be too weak for appends.
                (true, None) => {
                    let setting = setting(&session, "synchronous_commit", url).await?;
                    setting.unwrap_or_else(|| SynchronousCommit::On.to_string())
                }
                (false, _) => {
                    let synchronous_commit = check_durability(&session, options, url).await?;
                    // A commit of a process that is gone may still be undecided until it releases the lock. It must not
                    // become visible later.
                    let wait = format!("BEGIN; SELECT version FROM \"{}\".head FOR UPDATE; ROLLBACK", options.schema);
                    session.batch_execute(&wait).await.map_err(|error| failed(error.into()))?;
                    synchronous_commit
                }
            };
            Ok((store_id, synchronous_commit))
        };
        let failed = match attempt.await {
            Ok(prepared) => return Ok(prepared),
            Err(failed) => failed,
        };
        let (pause, _) = retries.after(failed, url)?;
        tokio::time::sleep(pause).await;
    }
}

/// The server's setting for this user and database.
async fn setting(session: &Session, name: &str, url: &str) -> Result<Option<String>, Failed> {
    match session.simple_query(&format!("SHOW {name}")).await {
        Ok(rows) => Ok(rows.into_iter().find_map(|row| match row {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })),
        // Another server that speaks the protocol may not have this setting.
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => Ok(None),
        Err(error) => Err(Failed::of(error, url, "open the store")),
    }
}

/// Checks that the server keeps what it confirms. Returns the setting of synced commits.
async fn check_durability(session: &Session, options: &Options, url: &str) -> Result<String, Failed> {
    if setting(session, "fsync", url).await?.as_deref() == Some("off") {
        return Err(Failed::Final(Error::Open {
            path: url.to_owned(),
            reason: "the server has fsync=off, and so loses what it confirmed when its machine fails; set fsync=on"
                .to_owned(),
            source: None,
        }));
    }
    if let Some(chosen) = options.synchronous_commit {
        return Ok(chosen.to_string());
    }
    match setting(session, "synchronous_commit", url).await?.as_deref() {
        None => Ok(SynchronousCommit::On.to_string()),
        Some(stronger @ ("on" | "remote_apply")) => Ok(stronger.to_owned()),
        Some(weaker) => Err(Failed::Final(invalid(
            "synchronous_commit",
            &format!(
                "the server has {weaker} for this user, which loses events that were confirmed; choose synchronous_commit=on in the \
                 store's URL, or set it for the user"
            ),
        ))),
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl EventStore for PostgresStore {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        self.shared(ctx)?;
        batch.validate()?;
        self.check_writable("an append")?;
        if batch.events.is_empty() {
            return Ok(Vec::new());
        }
        self.inner.queue.append(ctx, batch).await
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        let shared = self.shared(ctx)?;
        if let Some(page) = shared.load_from_standby(ctx, options, size).await? {
            return Ok(page);
        }
        shared.load(ctx, &shared.sessions, options, size).await
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        let shared = self.shared(ctx)?;
        if id.is_empty() || id.len() > MAX_ID_LEN {
            return Err(Error::EventNotFound { id: id.to_owned() });
        }
        shared.find(ctx, id).await
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        Ok(self.shared(ctx)?.head(ctx).await?.0)
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        self.shared(ctx)?.revision(ctx, aggregate_id).await
    }

    async fn list_aggregates(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        self.shared(ctx)?.list(ctx, options, most).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        self.shared(ctx)?.wait(ctx, after).await
    }

    async fn run_gc(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        let shared = self.shared(ctx)?;
        self.check_writable("a collection")?;
        shared.collect_garbage(ctx, gc).await
    }

    async fn backup(&self, ctx: &Context, _: &Path) -> Result<BackupReport> {
        self.shared(ctx)?;
        Err(Error::Unsupported {
            what: "a store on PostgreSQL writes no backup to a directory; copy it to an embedded store, or back the database up"
                .to_owned(),
        })
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        self.shared(ctx)?.verify(ctx).await
    }

    async fn digest(&self, ctx: &Context, until: Version) -> Result<Digest> {
        self.shared(ctx)?.digest_at(ctx, until).await
    }

    async fn sync(&self, ctx: &Context) -> Result<Version> {
        let shared = self.shared(ctx)?;
        let (head, synced) = shared.head(ctx).await?;
        if self.inner.is_read_only {
            return Ok(head.min(synced));
        }
        match head.get() <= shared.confirmed.load(Ordering::Acquire) {
            true => Ok(head),
            false => replication::sync_by_appending(self, ctx).await,
        }
    }

    async fn pull(&self, ctx: &Context, since: Place, size: PageSize) -> Result<Pulled> {
        replication::pull(self, ctx, since, size).await
    }

    async fn push(&self, ctx: &Context, at: Place, batches: Vec<Batch>) -> Result<Pushed> {
        replication::push(self, ctx, at, batches).await
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        self.shared(ctx)?.stats(ctx, &self.inner.queue).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close();
        self.inner.shared.ended.cancelled().await;
        Ok(())
    }
}

impl Shared {
    /// A page from a standby, if it is requested, a standby is available, and it has everything that this process knows
    /// of.
    async fn load_from_standby(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Option<Page>> {
        const AWAY: Duration = Duration::from_secs(5);
        let Some(standby) = &self.standby else { return Ok(None) };
        let until = *standby.away_until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.is_some_and(|until| until > Instant::now()) {
            return Ok(None);
        }
        let seen = *self.seen.borrow();
        // If the standby is not available, do not wait for it: use the primary.
        let once = ctx.clone().with_timeout(AWAY);
        match self.load(&once, &standby.sessions, options, size).await {
            Ok(page) if page.head >= seen || self.mutants.has(Mutant::TrustsStandby) => Ok(Some(page)),
            Ok(_) => Ok(None),
            Err(error) => {
                ctx.check()?;
                tracing::debug!(%error, "no standby can be read from");
                *standby.away_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + AWAY);
                Ok(None)
            }
        }
    }

    async fn collect_garbage(&self, ctx: &Context, gc: Gc) -> Result<GcReport> {
        let (how, done) = match gc {
            Gc::Quick => ("ANALYZE", "vacuumed"),
            Gc::Full => ("FULL, ANALYZE", "rewrote"),
            other => return Err(Error::Unsupported { what: format!("a {other} collection of a store on PostgreSQL") }),
        };
        let mut report = GcReport::default();
        report.bytes_before = Some(self.bytes(ctx).await?);
        for table in ["events", "head"] {
            ctx.check()?;
            let dead = self.dead_rows(ctx, table).await?;
            let vacuum = format!("VACUUM ({how}) {}.{table}", self.queries.schema);
            let warning = self.read(ctx, &self.sessions, "vacuum", Vacuum(vacuum)).await?;
            // The server skips a table that the user may not vacuum, with a warning. There are other warnings, too.
            if let Some(warning) = warning
                && !self.may_vacuum(ctx, table).await?
            {
                let what = format!("{}: {warning}; do it as the owner of the table or of the database", self.url);
                return Err(Error::Forbidden { what });
            }
            report.actions.push(match dead {
                Some(dead) => format!("{done} the table {table}, which had about {dead} dead rows"),
                None => format!("{done} the table {table}"),
            });
        }
        report.bytes_after = Some(self.bytes(ctx).await?);
        Ok(report)
    }

    async fn may_vacuum(&self, ctx: &Context, table: &str) -> Result<bool> {
        // PostgreSQL 17 has a privilege for it.
        let text = format!(
            "SELECT pg_has_role(d.datdba, 'USAGE') OR pg_has_role(c.relowner, 'USAGE') OR \
             CASE WHEN current_setting('server_version_num')::int >= 170000 \
             THEN has_table_privilege(c.oid, 'MAINTAIN') ELSE false END \
             FROM pg_class c, pg_database d WHERE c.oid = '{}.{table}'::regclass AND d.datname = current_database()",
            self.queries.schema
        );
        let rows = self.rows(ctx, "look who may vacuum", &Query::rare(text, Vec::new()), Vec::new()).await?;
        rows.first().map_or(Ok(false), |row| read::column(row, 0))
    }

    async fn bytes(&self, ctx: &Context) -> Result<u64> {
        let s = &self.queries.schema;
        let text = format!("SELECT pg_total_relation_size('{s}.events') + pg_total_relation_size('{s}.head')");
        let rows = self.rows(ctx, "read the size of the tables", &Query::rare(text, Vec::new()), Vec::new()).await?;
        rows.first().map_or(Ok(0), |row| read::number(row, 0))
    }

    async fn dead_rows(&self, ctx: &Context, table: &str) -> Result<Option<u64>> {
        let text = format!(
            "SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = '{}.{table}'::regclass",
            self.queries.schema
        );
        let rows = self.rows(ctx, "read the statistics", &Query::rare(text, Vec::new()), Vec::new()).await?;
        rows.first().map(|row| read::number(row, 0)).transpose()
    }

    async fn stats(&self, ctx: &Context, queue: &Queue) -> Result<Stats> {
        let s = &self.queries.schema;
        let text = format!("SELECT version, aggregates, synced FROM {s}.head");
        let rows = self.rows(ctx, "read the head", &Query::rare(text, Vec::new()), Vec::new()).await?;
        let row = rows.first().ok_or_else(read::no_head)?;
        let mut stats = Stats::default();
        stats.backend = NAME.into();
        stats.store_id = Some(self.store_id.clone());
        stats.latest_version = Version::new(read::number(row, 0)?);
        stats.aggregates = read::number(row, 1)?;
        let synced = read::number(row, 2)?;
        stats.bytes_on_disk = Some(self.bytes(ctx).await?);
        (stats.queued_requests, stats.queued_bytes) = queue.taken();
        stats.commits = self.commits.load(Ordering::Relaxed);
        stats.events_written = self.events_written.load(Ordering::Relaxed);
        stats.largest_group = self.largest_group.load(Ordering::Relaxed);
        let mut property = |name: &'static str, value: String| stats.properties.push((name.into(), value));
        property("synced_version", synced.to_string());
        property("synchronous_commit", self.synchronous_commit.clone());
        let status = self.sessions.status();
        property("connections", status.size.to_string());
        let facts = self.facts(ctx).await?;
        facts.into_iter().for_each(|(name, value)| property(name, value));
        Ok(stats)
    }

    /// Properties of the server and the tables. Other servers that speak the protocol may not provide them.
    async fn facts(&self, ctx: &Context) -> Result<Vec<(&'static str, String)>> {
        const NAMES: [&str; 7] = [
            "server_version",
            "in_recovery",
            "synchronous_standbys",
            "bytes_of_events",
            "bytes_of_indexes",
            "dead_rows",
            "last_autovacuum",
        ];
        let s = &self.queries.schema;
        let text = format!(
            "SELECT current_setting('server_version'), pg_is_in_recovery()::text, \
             (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum'))::text, \
             pg_table_size('{s}.events')::text, pg_indexes_size('{s}.events')::text, \
             sum(n_dead_tup)::text, max(last_autovacuum)::text \
             FROM pg_stat_all_tables WHERE relid IN ('{s}.events'::regclass, '{s}.head'::regclass)"
        );
        let told = self.read(ctx, &self.sessions, "read the statistics", Facts(text)).await?;
        let mut facts = Vec::new();
        for row in told {
            if let SimpleQueryMessage::Row(row) = row {
                let values = NAMES.iter().enumerate().filter_map(|(at, &name)| Some((name, row.get(at)?.to_owned())));
                facts.extend(values);
            }
        }
        Ok(facts)
    }
}

struct Vacuum(String);

impl Work for Vacuum {
    /// The server's warning.
    type Output = Option<String>;

    async fn run(&self, session: &Session) -> Result<Option<String>, PgError> {
        session.take_warning(); // of earlier statements
        session.batch_execute(&self.0).await?;
        Ok(session.take_warning())
    }
}

/// The properties that are available; empty if the server lacks the tables or functions.
struct Facts(String);

impl Work for Facts {
    type Output = Vec<SimpleQueryMessage>;

    async fn run(&self, session: &Session) -> Result<Vec<SimpleQueryMessage>, PgError> {
        match session.simple_query(&self.0).await {
            Err(error) if error.code().is_some_and(|code| code.code().starts_with("42") || code.code() == "0A000") => {
                Ok(Vec::new())
            }
            rows => rows,
        }
    }
}
