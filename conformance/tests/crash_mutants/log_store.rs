//! The simplest store on disk that keeps the contract, and its faulty variants. One file has the concatenated batches,
//! and another one says how much of it counts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use eventstore_api::limits::clamp_recorded_at;
use eventstore_api::{
    BackupReport, Batch, Context, Durability, Error, Event, EventStore, Finding, Gc, GcReport, LoadOptions, Page,
    PageSize, RecordedEvent, Result, Revision, Stats, Stored, VerifyReport, Version, async_trait,
};

use crate::reference_store::Reference;

/// The fault of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    AnswersBeforeSync,
    AnswersBeforeWriting,
    BackupIsNotSynced,
    BackupOpensHalf,
    BufferedIsNeverSynced,
    CallsShortageDamage,
    ChecksumIsNotLookedAt,
    CollectsInPlace,
    CollectsWithoutSync,
    DeletesWhatCannotBeRead,
    EndIsNotLookedAt,
    ForgetsItsDirectory,
    IgnoresFailedWrites,
    IgnoresShortWrites,
    LocksNothing,
    PanicsOnDamage,
    RecordsAnyTime,
    RefusesAClockThatGoesBack,
    RefusesWhatMayBeThere,
    RetriesFailedSyncs,
    RewritesWhenClosing,
    RewritesWhenOpening,
    SplitsBatches,
    SubscribersBreakIt,
    TrustsTheCache,
    TrustsTheOrderOfSectors,
    TrustsTheLength,
}

impl Fault {
    pub(crate) const ALL: &[Fault] = &[
        Fault::None,
        Fault::AnswersBeforeSync,
        Fault::AnswersBeforeWriting,
        Fault::BackupIsNotSynced,
        Fault::BackupOpensHalf,
        Fault::BufferedIsNeverSynced,
        Fault::CallsShortageDamage,
        Fault::ChecksumIsNotLookedAt,
        Fault::CollectsInPlace,
        Fault::CollectsWithoutSync,
        Fault::DeletesWhatCannotBeRead,
        Fault::EndIsNotLookedAt,
        Fault::ForgetsItsDirectory,
        Fault::IgnoresFailedWrites,
        Fault::IgnoresShortWrites,
        Fault::LocksNothing,
        Fault::PanicsOnDamage,
        Fault::RecordsAnyTime,
        Fault::RefusesAClockThatGoesBack,
        Fault::RefusesWhatMayBeThere,
        Fault::RetriesFailedSyncs,
        Fault::RewritesWhenClosing,
        Fault::RewritesWhenOpening,
        Fault::SplitsBatches,
        Fault::SubscribersBreakIt,
        Fault::TrustsTheCache,
        Fault::TrustsTheOrderOfSectors,
        Fault::TrustsTheLength,
    ];
}

/// The batches: for each its length, a checksum, its bytes.
const LOG: &str = "log";

/// The preallocated space of the log, if a fault needs that.
const ROOM: u64 = 256 << 10;

/// The valid length of the log, and its checksum. Written after the log is synced.
const END: &str = "end";

/// A handle to the store; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct LogStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fault: Fault,
    directory: PathBuf,
    /// The state visible to readers.
    visible: Reference,
    /// The same, including what is being written, for the decisions on appends.
    planned: Reference,
    files: Mutex<Files>,
    is_fenced: AtomicBool,
}

#[derive(Debug)]
struct Files {
    log: Arc<File>,
    end: Arc<File>,
    len: u64,
    /// The time of the newest append.
    newest: SystemTime,
    /// Locked while the store is open.
    lock: Option<File>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notifies listeners, and handles their panics.
fn tell(fault: Fault, tell: impl FnOnce()) {
    match fault {
        Fault::SubscribersBreakIt => tell(),
        _ => drop(catch_unwind(AssertUnwindSafe(tell))),
    }
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::engine(operation, error)
}

fn corrupt(reason: &str) -> Error {
    Error::Corrupt { version: None, reason: reason.to_owned() }
}

impl LogStore {
    pub(crate) fn open(directory: &Path, fault: Fault) -> Result<Self> {
        Self::open_files(directory, fault).inspect_err(|error| {
            if fault == Fault::DeletesWhatCannotBeRead && matches!(error, Error::Engine { .. }) {
                let _ = fs::remove_dir_all(directory);
            }
            assert!(fault != Fault::PanicsOnDamage || !matches!(error, Error::Corrupt { .. }), "{error}");
        })
    }

    fn open_files(directory: &Path, fault: Fault) -> Result<Self> {
        fs::create_dir_all(directory).map_err(failed("create the directory"))?;
        let open = |name: &str| {
            let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
            options.open(directory.join(name)).map_err(failed("open a file"))
        };
        let lock = open("lock")?;
        if fault != Fault::LocksNothing {
            lock.try_lock().map_err(|_| Error::Locked { path: directory.display().to_string() })?;
        }
        let (log, end) = (open(LOG)?, open(END)?);
        let len = match fault {
            Fault::TrustsTheOrderOfSectors | Fault::TrustsTheLength => {
                find_end(&log, fault).map_err(failed("look for the end"))?
            }
            _ => read_end(&end)?,
        };
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let number = OPENED.fetch_add(1, Ordering::Relaxed);
        let memory = |name: &str| Reference::open(&directory.join(format!("{name}-{number}")));
        let (visible, planned) = (memory("visible")?, memory("planned")?);
        let batches = read_batches(&log, len, fault)?;
        for batch in &batches {
            for store in [&visible, &planned] {
                store.append(batch.clone()).map_err(|_| corrupt("a batch does not fit those before it"))?;
            }
        }
        log.set_len(len).and_then(|()| log.sync_all()).map_err(failed("cut the log at its end"))?;
        if len == 0 {
            write_end(&end, 0).map_err(failed("begin the store"))?;
        }
        // What a killed process left in the cache is not durable.
        if len == 0 || fault != Fault::TrustsTheCache {
            let synced = end.sync_all().and_then(|()| sync_names(fault, directory));
            synced.map_err(failed("sync what is there"))?;
        }
        if fault == Fault::RewritesWhenOpening {
            rewrite(&log, len).map_err(failed("rewrite the log"))?;
        }
        let files =
            Files { log: Arc::new(log), end: Arc::new(end), len, newest: SystemTime::UNIX_EPOCH, lock: Some(lock) };
        let inner = Inner {
            fault,
            directory: directory.to_owned(),
            visible,
            planned,
            files: Mutex::new(files),
            is_fenced: AtomicBool::new(false),
        };
        Ok(LogStore(Arc::new(inner)))
    }

    fn append(&self, mut batch: Batch) -> Result<Vec<Stored>> {
        let inner = &*self.0;
        let mut files = lock(&inner.files);
        if files.lock.is_none() {
            return Err(Error::Closed);
        }
        if inner.is_fenced.load(Ordering::SeqCst) {
            return inner.answer_fenced(batch);
        }
        inner.record_times(&mut batch, &mut files)?;
        let is_buffered = batch.durability == Some(Durability::Buffered);
        if inner.fault == Fault::SplitsBatches && batch.events.len() > 1 {
            let mut stored = Vec::new();
            for event in batch.events {
                stored.extend(inner.write(&mut files, event.into(), is_buffered)?);
                inner.tell(|| tracing::trace!(name: "between", "a part of the batch is written"));
            }
            return Ok(stored);
        }
        inner.write(&mut files, batch, is_buffered)
    }
}

impl Inner {
    /// Sets the recording times, if the caller did not.
    fn record_times(&self, batch: &mut Batch, files: &mut Files) -> Result<()> {
        if batch.recorded_at.is_some() {
            return Ok(());
        }
        let now = SystemTime::now();
        if self.fault == Fault::RefusesAClockThatGoesBack && now < files.newest {
            return Err(Error::engine("append", "the clock goes back"));
        }
        files.newest = now;
        let now = if self.fault == Fault::RecordsAnyTime { now } else { clamp_recorded_at(now) };
        batch.recorded_at = Some(vec![now; batch.events.len()]);
        Ok(())
    }

    fn tell(&self, tell: impl FnOnce()) {
        crate::log_store::tell(self.fault, tell);
    }

    fn write(&self, files: &mut Files, mut batch: Batch, is_buffered: bool) -> Result<Vec<Stored>> {
        self.record_times(&mut batch, files)?;
        let before = self.planned_latest();
        let stored = self.planned.append(batch.clone())?;
        if self.planned_latest() == before {
            return Ok(stored);
        }
        let record = encode(&batch);
        let (log, end, at) = (files.log.clone(), files.end.clone(), files.len);
        let (len, fault) = (at + record.len() as u64, self.fault);
        let write = move || -> io::Result<()> {
            match fault {
                Fault::IgnoresShortWrites => log.write_at(&record, at).map(drop)?,
                Fault::TrustsTheOrderOfSectors => {
                    if log.metadata()?.len() < len + 4 {
                        log.set_len(len + ROOM)?;
                        log.sync_all()?;
                    }
                    log.write_all_at(&record[4..], at + 4)?;
                    log.write_all_at(&record[..4], at)?;
                }
                _ => log.write_all_at(&record, at)?,
            }
            let syncs = fault != Fault::AnswersBeforeSync && !(is_buffered && fault == Fault::BufferedIsNeverSynced);
            let sync = |file: &File| match file.sync_data() {
                Err(_) if fault == Fault::RetriesFailedSyncs => file.sync_data(),
                synced => synced,
            };
            tell(fault, || tracing::trace!(name: "written", "a batch is in the log"));
            if syncs {
                sync(&log)?;
            }
            write_end(&end, len)?;
            if syncs { sync(&end) } else { Ok(()) }
        };
        let written = match fault {
            Fault::AnswersBeforeWriting => {
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_micros(300));
                    write()
                });
                Ok(())
            }
            _ => write(),
        };
        if let Err(error) = written
            && fault != Fault::IgnoresFailedWrites
        {
            self.is_fenced.store(true, Ordering::SeqCst);
            return Err(Error::OutcomeUnknown { reason: "the commit failed".to_owned(), source: Some(error.into()) });
        }
        files.len = len;
        self.visible.append(batch)?;
        self.tell(|| tracing::trace!(name: "published", "readers see a batch"));
        Ok(stored)
    }

    /// A caller relies on being told that nothing was written, even on the second attempt (F1).
    fn answer_fenced(&self, batch: Batch) -> Result<Vec<Stored>> {
        let fenced = || Error::Fenced { reason: "a write or a sync has failed".to_owned() };
        if self.fault == Fault::RefusesWhatMayBeThere {
            return Err(fenced());
        }
        let all_in = |store: &Reference| batch.events.iter().all(|event| store.has(event.id()));
        if all_in(&self.visible) {
            return self.visible.append(batch);
        }
        if batch.events.iter().any(|event| self.planned.has(event.id()) && !self.visible.has(event.id())) {
            let reason = "an earlier attempt has failed".to_owned();
            return Err(Error::OutcomeUnknown { reason, source: Some(fenced().into()) });
        }
        Err(fenced())
    }

    fn planned_latest(&self) -> Version {
        self.planned.latest()
    }

    fn close(&self) -> Result<()> {
        let mut files = lock(&self.files);
        if files.lock.take().is_none() {
            return Ok(());
        }
        let closed = match self.fault {
            Fault::RewritesWhenClosing => rewrite(&files.log, files.len).map_err(failed("close")),
            _ => Ok(()),
        };
        files.log = files.end.clone(); // release the handle to the log
        closed
    }

    /// Rewrites the log.
    fn collect(&self) -> io::Result<()> {
        let mut files = lock(&self.files);
        if self.is_fenced.load(Ordering::SeqCst) {
            return Err(io::Error::other("the store is fenced"));
        }
        let collected = self.collect_files(&mut files);
        if collected.is_err() {
            self.is_fenced.store(true, Ordering::SeqCst); // it is unknown which log is in effect
        }
        collected
    }

    fn collect_files(&self, files: &mut Files) -> io::Result<()> {
        let content = read_log(&files.log, files.len)?;
        match self.fault {
            Fault::CollectsInPlace => rewrite(&files.log, files.len),
            fault => {
                let (new, old) = (self.directory.join("log.new"), self.directory.join(LOG));
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&new)?;
                file.write_all_at(&content, 0)?;
                if fault != Fault::CollectsWithoutSync {
                    file.sync_all()?;
                }
                fs::rename(&new, old)?;
                sync_names(fault, &self.directory)?;
                files.log = Arc::new(file);
                Ok(())
            }
        }
    }

    fn copy_to(&self, target: &Path) -> io::Result<u64> {
        let files = lock(&self.files);
        let latest = self.visible.latest().get();
        fs::create_dir_all(target)?;
        let (mut log, end) = (File::create(target.join(LOG))?, File::create(target.join(END))?);
        let content = read_log(&files.log, files.len)?;
        if self.fault == Fault::BackupOpensHalf {
            let half = first_half(&content);
            log.write_all(&content[..half])?;
            write_end(&end, half as u64)?;
            log.sync_all().and_then(|()| end.sync_all())?;
            sync_names(self.fault, target)?;
            log.write_all(&content[half..])?;
        } else {
            log.write_all(&content)?;
        }
        let syncs = self.fault != Fault::BackupIsNotSynced;
        if syncs {
            log.sync_all()?;
        }
        write_end(&end, files.len)?;
        if syncs {
            end.sync_all()?;
            sync_names(self.fault, target)?;
        }
        Ok(latest)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.close();
    }
}

/// Makes the names in a directory durable, and its own name.
fn sync_names(fault: Fault, directory: &Path) -> io::Result<()> {
    if fault == Fault::ForgetsItsDirectory {
        return Ok(());
    }
    File::open(directory)?.sync_all()?;
    directory.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Empties the log and writes it again.
fn rewrite(log: &File, len: u64) -> io::Result<()> {
    let content = read_log(log, len)?;
    log.set_len(0)?;
    log.write_all_at(&content, 0)?;
    log.sync_all()
}

fn read_log(log: &File, len: u64) -> io::Result<Vec<u8>> {
    let mut content = vec![0; len as usize];
    log.read_exact_at(&mut content, 0)?;
    Ok(content)
}

fn checksum(bytes: &[u8]) -> u32 {
    // FNV-1a, which detects a single flipped bit.
    bytes.iter().fold(0x811c_9dc5, |sum: u32, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn write_end(end: &File, len: u64) -> io::Result<()> {
    let len = len.to_le_bytes();
    end.write_all_at(&[&len[..], &checksum(&len).to_le_bytes()].concat(), 0)
}

/// The end of the records in the log: after the last complete one, and before one without a length, which is written
/// last.
fn find_end(log: &File, fault: Fault) -> io::Result<u64> {
    let len = log.metadata()?.len();
    let mut at = 0;
    while at + 8 <= len {
        let mut body = [0; 4];
        log.read_exact_at(&mut body, at)?;
        let body = u64::from(u32::from_le_bytes(body));
        if at + 8 + body > len || (body == 0 && fault == Fault::TrustsTheOrderOfSectors) {
            break;
        }
        at += 8 + body;
    }
    Ok(at)
}

fn read_end(mut end: &File) -> Result<u64> {
    let mut bytes = Vec::new();
    end.read_to_end(&mut bytes).map_err(failed("read the end"))?;
    match bytes.as_slice() {
        [] => Ok(0),
        bytes => {
            let (len, sum) = bytes.split_first_chunk::<8>().ok_or_else(|| corrupt("the end is cut short"))?;
            match sum == checksum(len).to_le_bytes() {
                true => Ok(u64::from_le_bytes(*len)),
                false => Err(corrupt("the end's checksum does not match")),
            }
        }
    }
}

fn read_batches(mut log: &File, len: u64, fault: Fault) -> Result<Vec<Batch>> {
    let mut content = Vec::new();
    log.read_to_end(&mut content).map_err(failed("read the log"))?;
    if (content.len() as u64) < len {
        match fault {
            Fault::EndIsNotLookedAt => {}
            _ => return Err(corrupt("the log is cut short")),
        }
    }
    content.truncate(len as usize);
    let (mut rest, mut batches) = (content.as_slice(), Vec::new());
    while !rest.is_empty() {
        let Some((batch, behind)) = decode(rest, fault != Fault::ChecksumIsNotLookedAt) else {
            match fault {
                Fault::EndIsNotLookedAt => break,
                _ => return Err(corrupt("a batch in the log is damaged")),
            }
        };
        batches.push(batch);
        rest = behind;
    }
    Ok(batches)
}

/// The middle of a record.
fn first_half(content: &[u8]) -> usize {
    let mut at = 0;
    while at < content.len() / 2 {
        let Some(len) = content[at..].first_chunk() else { break };
        at += 8 + u32::from_le_bytes(*len) as usize;
    }
    at
}

fn encode(batch: &Batch) -> Vec<u8> {
    let mut body = Vec::new();
    let times = batch.recorded_at.iter().flatten();
    for (event, time) in batch.events.iter().zip(times) {
        let micros = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let texts = [event.id(), event.event_type(), event.aggregate_id(), event.metadata()];
        for field in texts.iter().map(|text| text.as_bytes()).chain([event.data(), &micros.to_le_bytes()]) {
            body.extend_from_slice(&(field.len() as u32).to_le_bytes());
            body.extend_from_slice(field);
        }
    }
    [&(body.len() as u32).to_le_bytes()[..], &checksum(&body).to_le_bytes(), &body].concat()
}

fn decode(record: &[u8], checks: bool) -> Option<(Batch, &[u8])> {
    let (len, rest) = record.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk()?;
    let (mut body, behind) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    if checks && checksum(body) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (mut events, mut times) = (Vec::new(), Vec::new());
    while !body.is_empty() {
        let mut field = || -> Option<&[u8]> {
            let (len, rest) = body.split_first_chunk()?;
            let (field, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
            body = rest;
            Some(field)
        };
        let [id, event_type, aggregate_id, metadata, data, micros] =
            [field()?, field()?, field()?, field()?, field()?, field()?];
        let text = |bytes| std::str::from_utf8(bytes).ok();
        let builder = Event::builder(text(event_type)?, text(aggregate_id)?).id(text(id)?).data(data.to_vec());
        events.push(builder.metadata_json(text(metadata)?).build().ok()?);
        let micros = u64::from_le_bytes(micros.try_into().ok()?);
        times.push(SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(micros))?);
    }
    Some((Batch::new(events).recorded_at(times), behind))
}

#[async_trait]
impl EventStore for LogStore {
    async fn store_batch(&self, ctx: &Context, batch: Batch) -> Result<Vec<Stored>> {
        ctx.check()?;
        batch.validate()?;
        self.append(batch)
    }

    async fn load_page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        self.0.visible.load_page(ctx, options, size).await
    }

    async fn get(&self, ctx: &Context, id: &str) -> Result<RecordedEvent> {
        self.0.visible.get(ctx, id).await
    }

    async fn latest_version(&self, ctx: &Context) -> Result<Version> {
        self.0.visible.latest_version(ctx).await
    }

    async fn aggregate_revision(&self, ctx: &Context, aggregate_id: &str) -> Result<Revision> {
        self.0.visible.aggregate_revision(ctx, aggregate_id).await
    }

    async fn wait_for_events(&self, ctx: &Context, after: Version) -> Result<Version> {
        self.0.visible.wait_for_events(ctx, after).await
    }

    async fn run_gc(&self, ctx: &Context, _: Gc) -> Result<GcReport> {
        ctx.check()?;
        self.0.collect().map_err(failed("write the log anew"))?;
        Ok(GcReport::default())
    }

    async fn backup(&self, ctx: &Context, target: &Path) -> Result<BackupReport> {
        ctx.check()?;
        let mut report = BackupReport::default();
        report.latest_version = Version::new(self.0.copy_to(target).map_err(failed("write a backup"))?);
        Ok(report)
    }

    async fn verify(&self, ctx: &Context) -> Result<VerifyReport> {
        let mut report = self.0.visible.verify(ctx).await?;
        match File::open(self.0.directory.join(LOG)) {
            Ok(log) => {
                let len = lock(&self.0.files).len;
                if read_batches(&log, len, self.0.fault).is_err() {
                    report.findings.push(Finding::new(None, "the log is damaged"));
                }
            }
            Err(_) if self.0.fault == Fault::CallsShortageDamage => {
                report.findings.push(Finding::new(None, "the log cannot be read"));
            }
            Err(error) => return Err(failed("read the log")(error)),
        }
        Ok(report)
    }

    async fn stats(&self, ctx: &Context) -> Result<Stats> {
        let mut stats = self.0.visible.stats(ctx).await?;
        stats.fenced = self.0.is_fenced.load(Ordering::SeqCst).then(|| "a write or a sync has failed".to_owned());
        Ok(stats)
    }

    async fn close(&self) -> Result<()> {
        self.0.visible.close().await?;
        self.0.close()
    }
}
