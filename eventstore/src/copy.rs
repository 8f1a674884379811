use eventstore_api::{
    Batch, Context, Digest, Durability, Error, EventStore, EventStoreExt, LoadOptions, Progress, RecordedEvent, Result,
    Version,
};

/// The result of a copy.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct CopyReport {
    /// Events that this call copied.
    pub copied: u64,
    /// Events that were already in the target, from an earlier call.
    pub already_there: u64,
    /// The version up to which both stores are the same.
    #[cfg_attr(feature = "serde", serde(rename = "latest_version"))]
    pub version: Version,
    /// The digest of both stores at that version.
    pub digest: Digest,
}

/// The number of events in one append.
const BATCH_EVENTS: usize = 4096;
const BATCH_BYTES: usize = 4 << 20;

/// Copies every event of a store to another store, with any engine: with the same versions, revisions, recording times
/// and bytes. At the end, the [digests](EventStore::digest) of both are compared. A store that does not keep its digest
/// reads every event again for that; a store that keeps it does not. To read what was written, call
/// [`EventStore::verify`].
///
/// The target must be empty or a prefix of the source, as an interrupted earlier call leaves it. In the latter case,
/// the digests up to there are compared and the rest is copied. Digests leave out the recording times, so those of
/// events that were already in the target may differ. Events that are appended to the source meanwhile are left for the
/// next call. Everything is on stable storage when this returns. [`Progress`](crate::backend::Progress) counts in
/// events, each twice.
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
/// `Unsupported` if the target is not a prefix of the source; `VersionConflict` if somebody appends to it meanwhile;
/// those of loading and appending.
///
/// # Cancellation
///
/// If the context ends or the future is dropped, the target is a prefix of the source. Call it again to continue.
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
    // Appending the last event again writes nothing. It returns when everything written before is on stable storage,
    // including what an earlier call wrote.
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
    /// Events to process: each one is copied or already there, and counts again for the digests.
    total: u64,
}

impl<S: EventStore + Clone, T: EventStore + Clone> Copy<'_, S, T> {
    /// Compares the beginning of the target with that of the source.
    async fn compare(&self, up_to: Version) -> Result<Digest> {
        let (of_source, of_target) = self.digests(up_to, self.told_behind(Version::ZERO)).await?;
        if of_source == of_target {
            return Ok(of_source);
        }
        let version = self.first_difference(up_to).await?;
        Err(no_beginning(format!("the two stores have different events at version {version}")))
    }

    /// The first version at which the two stores differ, given that they differ at `differs`. A binary search.
    async fn first_difference(&self, differs: Version) -> Result<Version> {
        let (mut same, mut differs) = (0, differs.get());
        while differs - same > 1 {
            let middle = Version::new(same + (differs - same) / 2);
            let (of_source, of_target) = self.digests(middle, Progress::none()).await?;
            *if of_source == of_target { &mut same } else { &mut differs } = middle.get();
        }
        Ok(Version::new(differs))
    }

    /// Copies the events after `since`, up to `head`. A batch is read while the previous one is stored.
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

    /// Compares the digests of both stores at the end.
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

    /// The digests of the source and of the target at a version. Progress is reported for the target only: if they have
    /// to read events, both read the same ones.
    async fn digests(&self, up_to: Version, progress: Progress) -> Result<(Digest, Digest)> {
        let of_target = self.ctx.clone().with_progress(progress);
        let of_source = self.ctx.clone().with_progress(Progress::none());
        tokio::try_join!(self.from.digest(&of_source, up_to), self.to.digest(&of_target, up_to))
    }

    /// Reports the progress of a digest as part of the copy's progress, after `done` events.
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
