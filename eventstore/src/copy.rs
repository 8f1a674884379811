use eventstore_api::{
    Batch, Context, Digest, Durability, Error, EventStore, EventStoreExt, LoadOptions, Progress, RecordedEvent, Result,
    Version,
};

/// What a copy did.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct CopyReport {
    /// Events that this call copied.
    pub copied: u64,
    /// Events that were in the target before, from an earlier call.
    pub already_there: u64,
    /// The version up to which the two stores are the same.
    #[cfg_attr(feature = "serde", serde(rename = "latest_version"))]
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
/// The target is empty, or holds a beginning of the source, such as an earlier call left that was interrupted: then the
/// digests of the two up to there are compared, and the rest is copied. Digests leave out the times of recording, so those of
/// what is there already may differ. Events that are appended to the source meanwhile are left for the next call.
/// Everything is on stable storage when this returns. [`Progress`](crate::backend::Progress) counts in events, each twice.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use eventstore::backend::{self, Context, Event, EventStoreExt, Expected};
///
/// let ctx = Context::background();
/// let (from, to) = (backend::open("memory:").await?, backend::open("memory:").await?);
/// from.store(&ctx, Event::builder("OrderPlaced", "order-42").build()?, Expected::Any).await?;
/// let report = backend::copy(&from, &to, &ctx).await?;
/// assert_eq!(report.copied, 1);
/// assert_eq!(report.digest, backend::digest(&to, &ctx).await?);
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
    let copy = Copy { from, to, ctx, total: head.get() * 2 };
    if there > head {
        return Err(no_beginning(format!("it has {there} events, the source {head}")));
    }
    let compared = copy.compare(there).await?;
    copy.rest(there, head).await?;
    // Appending the last event once more writes nothing, and returns when all that was written is on stable storage, also by
    // an earlier call.
    let newest = to.load(ctx, LoadOptions::all().before(head.next()).backward().limit(1)).next().await.transpose()?;
    if let Some(newest) = newest {
        to.store_batch(ctx, Batch::new(vec![newest.event]).durability(Durability::Sync)).await?;
    }
    let digest = if head == there { compared } else { copy.check(head).await? };
    ctx.progress().report(copy.total, copy.total);
    Ok(CopyReport { copied: head.get() - there.get(), already_there: there.get(), version: head, digest })
}

struct Copy<'a, S, T> {
    from: &'a S,
    to: &'a T,
    ctx: &'a Context,
    /// Events to go through: each one is copied or there already, and counts in the digests.
    total: u64,
}

impl<S: EventStore + Clone, T: EventStore + Clone> Copy<'_, S, T> {
    /// Compares what is in the target with what it has to be.
    async fn compare(&self, up_to: Version) -> Result<Digest> {
        let (of_source, of_target) = self.digests(up_to, self.told_behind(Version::ZERO)).await?;
        if of_source == of_target {
            return Ok(of_source);
        }
        let version = self.first_difference(up_to).await?;
        Err(no_beginning(format!("the two have different events at version {version}")))
    }

    /// The first version at which the two differ, if they differ at this one: each step halves the versions that are left.
    async fn first_difference(&self, differs: Version) -> Result<Version> {
        let (mut same, mut differs) = (0, differs.get());
        while differs - same > 1 {
            let middle = Version::new(same + (differs - same) / 2);
            let (of_source, of_target) = self.digests(middle, Progress::none()).await?;
            *if of_source == of_target { &mut same } else { &mut differs } = middle.get();
        }
        Ok(Version::new(differs))
    }

    /// Copies what comes behind `since`, up to `head`: a batch is read while the one before it is stored.
    async fn rest(&self, since: Version, head: Version) -> Result<()> {
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
            if (recorded.version, recorded.revision.get()) != (stored.version, stored.revision.get()) {
                return Err(no_beginning(format!("the event at version {} got another position", recorded.version)));
            }
        }
        Ok(())
    }

    /// Compares the digests of both at the end.
    async fn check(&self, up_to: Version) -> Result<Digest> {
        let (expected, found) = self.digests(up_to, self.told_behind(up_to)).await?;
        if found != expected {
            return Err(Error::Corrupt {
                version: None,
                reason: format!(
                    "up to version {up_to} the digest of the source is {expected}, that of the target {found}"
                ),
            });
        }
        Ok(expected)
    }

    /// The digests of the source and of the target up to a version. The target's is the one whose progress is told: both have
    /// to read the same events, if they have to.
    async fn digests(&self, up_to: Version, progress: Progress) -> Result<(Digest, Digest)> {
        let of_target = self.ctx.clone().with_progress(progress);
        let of_source = self.ctx.clone().with_progress(Progress::none());
        tokio::try_join!(self.from.digest(&of_source, up_to), self.to.digest(&of_target, up_to))
    }

    /// Tells the copy's progress of a digest, when as many events as `done` were gone through before.
    fn told_behind(&self, done: Version) -> Progress {
        let (progress, total) = (self.ctx.progress().clone(), self.total);
        Progress::new(move |read, _| progress.report(done.get() + read, total))
    }

    fn took(&self, recorded: &RecordedEvent) {
        self.ctx.progress().report(recorded.version.get(), self.total);
    }
}

fn no_beginning(why: String) -> Error {
    Error::Unsupported { what: format!("the target of a copy must be empty or a prefix of the source: {why}") }
}

#[cfg(all(test, feature = "serde"))]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_names_that_the_command_prints() {
        let report = CopyReport { copied: 2, already_there: 5, version: Version::new(7), digest: Digest::EMPTY };
        let digest = "00".repeat(32);
        let text = format!(r#"{{"copied":2,"already_there":5,"latest_version":7,"digest":"{digest}"}}"#);
        assert_eq!(serde_json::to_string(&report).expect("written"), text);
        let read: CopyReport = serde_json::from_str(&text).expect("read");
        assert_eq!(format!("{read:?}"), format!("{report:?}"));
    }
}
