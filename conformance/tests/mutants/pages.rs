//! Faults of reading pages.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use eventstore_api::{Context, Direction, Error, EventStore, LoadOptions, Page, PageSize, Result, Version};

use crate::fault::Fault;
use crate::store::Mutant;

impl Mutant {
    pub(crate) async fn page(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Page> {
        if self.has(Fault::LeaksReadSlots)
            && let Ok(slot) = self.slots.acquire().await
        {
            slot.forget();
            tokio::task::yield_now().await;
            self.slots.add_permits(1);
        }
        let ctx = &self.context(ctx)?;
        if let Some(page) = self.search(ctx, options, size).await? {
            return Ok(page);
        }
        let (mut asked, mut size) = (options.clone(), size);
        let is_continued = options.before.is_some() && options.since > Version::ZERO;
        match self.fault {
            Fault::ZeroPagesAreEmpty if size.events == 0 => {
                let head = self.inner.latest_version(ctx).await?;
                return Ok(Page::new(options, vec![], head, true));
            }
            Fault::PagesIgnoreBytes if size.bytes > 1 => size.bytes = usize::MAX,
            Fault::PagesAreReadOnce if is_continued => {
                let name = format!("{options:?}");
                if self.remembers(&name) {
                    let head = self.inner.latest_version(ctx).await?;
                    return Ok(Page::new(options, vec![], head, true));
                }
                self.remember([name]);
            }
            Fault::PagesBelongToAnOpening if is_continued && !self.remembers(&format!("{options:?}")) => {
                return Err(Error::engine("go on with a page", "its session is over"));
            }
            Fault::SinceMaxGivesAll if options.since.get() == u64::MAX => asked.since = Version::ZERO,
            Fault::FollowsSinceOpening if options.since > Version::ZERO && options.before.is_none() => {
                asked.since = options.since.max(Version::new(self.latest_at_opening));
            }
            Fault::KnowsOneRuntime if !self.is_at_home() => {
                return Err(Error::engine("find the runtime", "it is another one"));
            }
            Fault::SinceIsInclusive => asked.since = Version::new(options.since.get().saturating_sub(1)),
            Fault::BackwardBeforeIsInclusive if options.direction == Direction::Backward => {
                asked.before = options.before.map(Version::next);
            }
            Fault::IgnoresLimit => asked.limit = None,
            Fault::AggregateByPrefix if options.aggregate_id.is_some() => asked.aggregate_id = None,
            _ => {}
        }
        let mut page = match (self.fault, self.inner.load_page(ctx, &asked, size).await) {
            (Fault::CancelledReadIsEmpty, Err(Error::Cancelled | Error::DeadlineExceeded)) => {
                Page::new(options, vec![], Version::ZERO, true)
            }
            (_, page) => page?,
        };
        match self.fault {
            Fault::EmptyPagesHaveNoHead if page.events.is_empty() => page.head = Version::ZERO,
            Fault::PagesBelongToAnOpening => self.remember(page.next.iter().map(|next| format!("{next:?}"))),
            Fault::ContentMovesWhenBusy
                if self.is_busy() && page.events.len() > 1 && page.events[0].version.get() == 1 =>
            {
                let first = page.events[0].event.clone();
                page.events[0].event = std::mem::replace(&mut page.events[1].event, first);
            }
            Fault::AggregateIsCutWhenBusy if self.is_busy() && options.aggregate_id.is_some() => {
                page.events.retain(|event| event.revision.get() != 2);
            }
            Fault::SkipsAnEvent => page.events.retain(|event| event.version != Version::new(3)),
            Fault::RepeatTakesTheNewTime if self.happened.load(Ordering::Relaxed) => {
                page.events.iter_mut().for_each(|event| event.recorded_at = SystemTime::UNIX_EPOCH);
            }
            Fault::GcLosesTheFirst | Fault::BackupLosesTheFirst if self.happened.load(Ordering::Relaxed) => {
                page.events.retain(|event| event.version != Version::new(1));
            }
            Fault::OutOfOrder if page.events.len() > 1 => page.events.swap(0, 1),
            Fault::SmallPagesAreEmpty if size.bytes < 100 => page = Page::new(options, vec![], page.head, true),
            Fault::HeadRunsAhead => page.head = page.head.next(),
            Fault::HeadRunsAheadOfWriters if self.is_busy() => page.head = page.head.next(),
            Fault::StaleBesideWriters if self.is_busy() => {
                page.head = Version::new(page.head.get().saturating_sub(1));
                page.events.retain(|event| event.version <= page.head);
            }
            Fault::LoadFollowsWriters => {
                if let Some(next) = &mut page.next {
                    next.before = options.before;
                }
            }
            Fault::AggregateByPrefix => {
                let prefix = options.aggregate_id.as_deref().unwrap_or_default();
                page.events.retain(|event| event.event.aggregate_id().starts_with(prefix));
                if let Some(next) = &mut page.next {
                    next.aggregate_id.clone_from(&options.aggregate_id);
                }
            }
            _ => {}
        }
        Ok(page)
    }
}
