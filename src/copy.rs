use eventstore_api::{
    Batch, Context, Digest, Durability, Error, EventStore, EventStoreExt, LoadOptions, Progress, RecordedEvent, Result,
    Version,
};

/// What a copy did.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CopyReport {
    /// Events that this call copied.
    pub copied: u64,
    /// Events that were in the target before, from an earlier call.
    pub already_there: u64,
    /// The version up to which the two stores are the same.
    pub version: Version,
    /// The digest of both, up to that version.
    pub digest: Digest,
}

/// Events that are stored with one append.
const BATCH_EVENTS: usize = 4096;
const BATCH_BYTES: usize = 4 << 20;

/// Copies every event of a store to another, of whatever engines: with the same versions, revisions, times of recording and
/// bytes. At the end the [digests](EventStore::digest) of both are compared. A store that does not keep its digest reads every
/// event again for that; one that keeps it does not, and [`EventStore::verify`] is the way to read what was written.
///
/// The target is empty, or holds a beginning of the source, such as an earlier call left that was interrupted: then the two
/// are compared and the rest is copied. Events that are appended to the source meanwhile are left for the next call.
/// Everything is on stable storage when this returns. [`Progress`](crate::Progress) counts in events, each twice.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use eventstore::{Context, Event, EventStoreExt, Expected};
///
/// let ctx = Context::background();
/// let (from, to) = (eventstore::open("memory:").await?, eventstore::open("memory:").await?);
/// from.store(&ctx, Event::builder("OrderPlaced", "order-42").build()?, Expected::Any).await?;
/// let report = eventstore::copy(&from, &to, &ctx).await?;
/// assert_eq!(report.copied, 1);
/// assert_eq!(report.digest, eventstore::digest(&to, &ctx).await?);
/// # Ok::<(), eventstore::Error>(())
/// # }).unwrap();
/// ```
///
/// # Errors
///
/// `Unsupported` if the target holds something else than a beginning of the source; `VersionConflict` if somebody appends
/// to it meanwhile; those of loading and appending.
///
/// # Cancellation
///
/// If the context ends or the future is dropped, the target holds a beginning of the source. Call it again to go on.
pub async fn copy<S, T>(from: &S, to: &T, ctx: &Context) -> Result<CopyReport>
where
    S: EventStore + Clone,
    T: EventStore + Clone,
{
    let head = from.latest_version(ctx).await?;
    let there = to.latest_version(ctx).await?;
    let mut copy = Copy { from, to, ctx, total: head.get() * 2, last: None };
    if there > head {
        return Err(no_beginning(format!("it has {there} events, the source {head}")));
    }
    copy.compare(there).await?;
    copy.rest(there, head).await?;
    // Appending the last event once more writes nothing, and returns when all that was written is on stable storage.
    if let Some(last) = &copy.last {
        to.store_batch(ctx, Batch::new(vec![last.event.clone()]).durability(Durability::Sync)).await?;
    }
    let digest = copy.check(head).await?;
    Ok(CopyReport { copied: head.get() - there.get(), already_there: there.get(), version: head, digest })
}

struct Copy<'a, S, T> {
    from: &'a S,
    to: &'a T,
    ctx: &'a Context,
    /// Events to go through: each one is copied or compared, and then counts in the digests.
    total: u64,
    last: Option<RecordedEvent>,
}

impl<S: EventStore + Clone, T: EventStore + Clone> Copy<'_, S, T> {
    /// Compares what is in the target with what it has to be.
    async fn compare(&mut self, up_to: Version) -> Result<()> {
        let mut source = self.from.load(self.ctx, LoadOptions::all().before(up_to.next()));
        let mut target = self.to.load(self.ctx, LoadOptions::all().before(up_to.next()));
        while let Some(page) = source.next_page().await {
            for expected in page? {
                let found = target.next().await.transpose()?;
                if found.as_ref() != Some(&expected) {
                    let version = expected.version;
                    return Err(no_beginning(format!("the two have different events at version {version}")));
                }
                self.took(&expected);
            }
        }
        Ok(())
    }

    /// Copies what comes behind `since`, up to `head`: a batch is read while the one before it is stored.
    async fn rest(&mut self, since: Version, head: Version) -> Result<()> {
        let mut source = self.from.load(self.ctx, LoadOptions::since(since).before(head.next()));
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut storing: Vec<RecordedEvent> = Vec::new();
        loop {
            let gather = async {
                while batch.len() < BATCH_EVENTS && bytes < BATCH_BYTES {
                    match source.next().await.transpose()? {
                        Some(recorded) => {
                            bytes += recorded.event.len_bytes();
                            batch.push(recorded);
                        }
                        None => break,
                    }
                }
                Ok(())
            };
            tokio::try_join!(self.store(&storing), gather)?;
            storing.iter().for_each(|recorded| self.took(recorded));
            storing = std::mem::take(&mut batch);
            bytes = 0;
            if storing.is_empty() {
                return Ok(());
            }
        }
    }

    async fn store(&self, events: &[RecordedEvent]) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let stored = self.to.store_batch(self.ctx, Batch::copy_of(events).durability(Durability::Buffered)).await?;
        for (recorded, stored) in events.iter().zip(stored) {
            if (recorded.version, recorded.revision) != (stored.version, stored.revision) {
                return Err(no_beginning(format!("the event at version {} came to another place", recorded.version)));
            }
        }
        Ok(())
    }

    /// Compares the digests of both up to a version. The target's is the one whose progress is told: both have to read the same
    /// events, if they have to.
    async fn check(&self, up_to: Version) -> Result<Digest> {
        let (progress, total) = (self.ctx.progress().clone(), self.total);
        let second_half = Progress::new(move |done, _| progress.report(up_to.get() + done, total));
        let of_target = self.ctx.clone().with_progress(second_half);
        let of_source = self.ctx.clone().with_progress(Progress::none());
        let (expected, found) =
            tokio::try_join!(self.from.digest(&of_source, up_to), self.to.digest(&of_target, up_to))?;
        if found != expected {
            return Err(Error::Corrupt {
                version: None,
                reason: format!(
                    "up to version {up_to} the digest of the source is {expected}, that of the target {found}"
                ),
            });
        }
        self.ctx.progress().report(total, total);
        Ok(expected)
    }

    fn took(&mut self, recorded: &RecordedEvent) {
        self.ctx.progress().report(recorded.version.get(), self.total);
        self.last = Some(recorded.clone());
    }
}

fn no_beginning(why: String) -> Error {
    Error::Unsupported {
        what: format!("the target of a copy has to be empty or a beginning of the source, and is not: {why}"),
    }
}
