//! Work that takes long: backup and verification. Both read, with a connection of their own, beside everything else.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use eventstore_api::{
    BackupReport, CancellationToken, Context, Error, Finding, LoadOptions, PageSize, Result, VerifyReport, Version,
};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use crate::database::{self, PARTIAL, failed_to};
use crate::rows;
use crate::shared::Shared;

/// Long work for a caller, who may end it and is told how far it has come.
#[derive(Clone)]
pub(crate) struct Task {
    ctx: Context,
    /// Cancelled when the caller's future is dropped.
    dropped: CancellationToken,
    shared: Arc<Shared>,
}

impl Task {
    pub(crate) fn new(ctx: Context, dropped: CancellationToken, shared: Arc<Shared>) -> Self {
        Task { ctx, dropped, shared }
    }

    /// Does the work. It blocks.
    pub(crate) fn run<T>(self, work: impl FnOnce(&mut Connection, &Task) -> Result<T>) -> Result<T> {
        let mut db = self.shared.files.connect_to_read()?;
        // SQLite asks in the middle of a query as well.
        let asked = self.clone();
        db.progress_handler(10_000, Some(move || asked.check().is_err())).map_err(failed_to("follow a query"))?;
        let result = work(&mut db, &self);
        // A query that was interrupted is an error of SQLite; why it was is what the caller has to know.
        result.or_else(|error| self.check().and(Err(error)))
    }

    /// Whether to go on.
    fn check(&self) -> Result<()> {
        self.ctx.check()?;
        if self.dropped.is_cancelled() { Err(Error::Cancelled) } else { self.shared.head().map(drop) }
    }

    fn report(&self, done: u64, total: u64) {
        self.ctx.progress().report(done, total);
    }
}

/// Pages that are copied before somebody may stop it: half a megabyte.
const STEP: i32 = 128;

/// Copies the database as of one moment, page by page, while the writer goes on (M1).
pub(crate) fn backup(db: &mut Connection, target: &Path, task: &Task) -> Result<BackupReport> {
    let (directory, _lock) = database::begin_backup(target)?;
    let partial = directory.join(PARTIAL);
    let copied = copy(db, &partial, task).and_then(|latest_version| {
        let placed = database::put_in_place(&directory, PARTIAL);
        placed.map_err(|error| database::cannot_open(target, "the backup cannot be completed", error))?;
        Ok(latest_version)
    });
    let mut report = BackupReport::default();
    report.latest_version = copied.inspect_err(|_| {
        let _ = fs::remove_file(&partial); // what is left, if this fails, is nothing that opens (M2)
    })?;
    report.bytes_on_disk = database::len_bytes(&directory).map_err(|error| Error::engine("measure a backup", error))?;
    Ok(report)
}

fn copy(db: &mut Connection, partial: &Path, task: &Task) -> Result<Version> {
    let failed = failed_to("copy the database");
    // The snapshot that this reads is what is copied: the backup does not begin again whenever somebody writes.
    let snapshot = db.transaction().map_err(&failed)?;
    let latest = rows::newest_version(&snapshot)?;
    let mut copy = database::connect(partial, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)
        .map_err(&failed)?;
    // It is thrown away unless it is whole, and synced as a whole: until then nothing has to be safe.
    copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF").map_err(&failed)?;
    let backup = Backup::new(&snapshot, &mut copy).map_err(&failed)?;
    loop {
        task.check()?;
        let step = backup.step(STEP).map_err(&failed)?;
        let progress = backup.progress();
        let (left, all) = (progress.remaining.unsigned_abs().into(), progress.pagecount.unsigned_abs().into());
        task.report(u64::saturating_sub(all, left), all);
        match step {
            StepResult::Done => break,
            StepResult::More => {}
            _ => return Err(Error::engine("copy the database", "somebody else uses the copy")),
        }
    }
    drop(backup);
    copy.close().map_err(|(_, error)| failed(error))?;
    Ok(latest)
}

/// Reads every event, and lets SQLite compare every index with its table, in both directions (M3).
pub(crate) fn verify(db: &mut Connection, task: &Task) -> Result<VerifyReport> {
    let head = task.shared.head()?;
    let mut report = VerifyReport::default();
    report.events = head.get();
    // A page at a time, since a snapshot that is held for long keeps the log from being written back.
    let (mut seen, size) = (Version::ZERO, PageSize::LARGEST);
    while seen < head && report.findings.len() < VerifyReport::MOST_FINDINGS {
        task.check()?;
        task.report(seen.get(), head.get());
        let options = LoadOptions::since(seen).before(head.next());
        let events = match rows::page(db, &options, size, head) {
            Ok(page) if page.events.is_empty() => {
                report.findings.push(Finding::new(Some(seen.next()), "it and all later events are missing"));
                break;
            }
            Ok(page) => page.events,
            // At the begin of a page, damage is an error. It is about the next version, whatever it says.
            Err(Error::Corrupt { reason, .. }) => {
                seen = seen.next();
                report.findings.push(Finding::new(Some(seen), reason));
                continue;
            }
            Err(error) => return Err(error),
        };
        for event in &events {
            let before = Version::new(event.version.get() - 1);
            match rows::revision(db, event.event.aggregate_id(), before) {
                Ok(revision) if event.revision.get() == revision + 1 => {}
                Ok(revision) => {
                    let what = format!("its revision is {}, behind revision {revision}", event.revision.get());
                    report.findings.push(Finding::new(Some(event.version), what));
                }
                Err(Error::Corrupt { .. }) => {} // the one before is damaged, and was found
                Err(error) => return Err(error),
            }
            report.aggregates += u64::from(event.revision.get() == 1);
            seen = event.version;
        }
    }
    let failed = failed_to("check the database");
    let mut check = db.prepare("PRAGMA integrity_check").map_err(&failed)?;
    let mut answers = check.query([]).map_err(&failed)?;
    while let Some(answer) = answers.next().map_err(&failed)? {
        let what: String = answer.get(0).map_err(&failed)?;
        if what != "ok" {
            report.findings.push(Finding::new(None, what));
        }
    }
    report.findings.truncate(VerifyReport::MOST_FINDINGS);
    report.is_cut_short = report.findings.len() == VerifyReport::MOST_FINDINGS;
    task.report(head.get(), head.get());
    Ok(report)
}
