//! Faults of filters and of the list of aggregates.

use eventstore_api::{
    AggregateOptions, AggregatePage, Context, EventStore, EventStoreExt, LoadOptions, Page, PageSize, RecordedEvent,
    Result, Version,
};

use crate::fault::Fault;
use crate::store::Mutant;

impl Mutant {
    /// The result of a load with filters; `None` if the fault does not concern filters.
    pub(crate) async fn search(&self, ctx: &Context, options: &LoadOptions, size: PageSize) -> Result<Option<Page>> {
        let mut asked = options.clone();
        let page = match self.fault {
            Fault::FiltersPagesAfterwards => {
                asked.types.clear();
                let mut page = self.inner.load_page(ctx, &asked, size).await?;
                page.events.retain(|event| options.matches(event));
                if let Some(next) = &mut page.next {
                    next.types.clone_from(&options.types);
                }
                return Ok(Some(page));
            }
            Fault::NextForgetsFilters => {
                let mut page = self.inner.load_page(ctx, options, size).await?;
                if let Some(next) = &mut page.next {
                    (next.recorded_since, next.recorded_before) = (None, None);
                }
                return Ok(Some(page));
            }
            Fault::FollowersForgetFilters if options.since > Version::ZERO && options.before.is_none() => {
                asked.types.clear();
                return Ok(Some(self.inner.load_page(ctx, &asked, size).await?));
            }
            Fault::SearchIsStaleBesideWriters if self.is_busy() && !options.types.is_empty() => {
                let head = self.inner.latest_version(ctx).await?;
                asked.before = Some(options.before.unwrap_or(head).min(head));
                let mut page = self.inner.load_page(ctx, &asked, size).await?;
                if let Some(next) = &mut page.next {
                    next.before = options.before.or(Some(page.head.next()));
                }
                return Ok(Some(page));
            }
            Fault::LimitCountsWhatDoesNotMatch => {
                let mut all = LoadOptions::since(options.since);
                (all.before, all.aggregate_id, all.limit) =
                    (options.before, options.aggregate_id.clone(), options.limit);
                all.direction = options.direction;
                self.page_of(ctx, options, size, all, |event| options.matches(event)).await?
            }
            Fault::TypesAreBeginnings => {
                asked.types.clear();
                let is_wanted = |event: &RecordedEvent| {
                    let begins = |wanted: &String| event.event.event_type().starts_with(wanted.as_str());
                    options.types.is_empty() || options.types.iter().any(begins)
                };
                self.page_of(ctx, options, size, asked, is_wanted).await?
            }
            Fault::PrefixIsAnywhere => {
                asked.aggregate_prefix = None;
                let prefix = options.aggregate_prefix.clone().unwrap_or_default();
                self.page_of(ctx, options, size, asked, |event| event.event.aggregate_id().contains(&prefix)).await?
            }
            Fault::PeriodsHaveTheirEnd | Fault::PeriodsLackTheirBegin => {
                (asked.recorded_since, asked.recorded_before) = (None, None);
                let has_end = self.has(Fault::PeriodsHaveTheirEnd);
                let is_wanted = |event: &RecordedEvent| {
                    let at = event.recorded_at;
                    options.recorded_since.is_none_or(|since| at > since || at == since && has_end)
                        && options.recorded_before.is_none_or(|before| at < before || at == before && has_end)
                };
                self.page_of(ctx, options, size, asked, is_wanted).await?
            }
            Fault::TimesAreTakenToRise => {
                asked.recorded_before = None;
                let mut is_over = false;
                let is_wanted = |event: &RecordedEvent| {
                    is_over |= options.recorded_before.is_some_and(|before| event.recorded_at >= before);
                    !is_over
                };
                self.page_of(ctx, options, size, asked, is_wanted).await?
            }
            Fault::SinceRevisionIsInclusive => {
                asked.since_revision = options.since_revision.get().saturating_sub(1).into();
                return Ok(Some(self.inner.load_page(ctx, &asked, size).await?));
            }
            _ => return Ok(None),
        };
        Ok(Some(page))
    }

    /// The page of the wanted ones of these events.
    async fn page_of(
        &self,
        ctx: &Context,
        options: &LoadOptions,
        size: PageSize,
        mut of: LoadOptions,
        is_wanted: impl FnMut(&RecordedEvent) -> bool,
    ) -> Result<Page> {
        let limit = if self.has(Fault::LimitCountsWhatDoesNotMatch) { None } else { of.limit.take() };
        let head = self.inner.latest_version(ctx).await?;
        let mut events = self.inner.load(ctx, of).into_vec().await?;
        events.retain(is_wanted);
        let mut bytes = 0;
        let filled = events.iter().position(|event| {
            bytes += event.event.len_bytes();
            bytes >= size.bytes
        });
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        let most = filled.map_or(usize::MAX, |last| last + 1).min(size.events.max(1)).min(limit);
        let complete = events.len() <= most;
        events.truncate(most);
        Ok(Page::new(options, events, head, complete))
    }

    pub(crate) async fn list(&self, ctx: &Context, options: &AggregateOptions, most: usize) -> Result<AggregatePage> {
        let ctx = &self.context(ctx)?;
        let mut asked = options.clone();
        match self.fault {
            Fault::ListRepeatsTheLast if !options.after.is_empty() => asked.after.pop().map_or((), drop),
            Fault::ListFollowsWriters => asked.before = None,
            _ => {}
        }
        let mut page = self.inner.list_aggregates(ctx, &asked, most).await?;
        match self.fault {
            // As in an index in which each id ends with something greater than all characters.
            Fault::ListIsInTheOrderOfKeys => {
                page.aggregates.sort_by_key(|aggregate| [aggregate.aggregate_id.as_bytes(), &[0xff]].concat());
            }
            Fault::ListTellsFirstVersions => {
                for aggregate in &mut page.aggregates {
                    let first = LoadOptions::all().aggregate(&aggregate.aggregate_id).limit(1);
                    let first = self.inner.load_page(ctx, &first, PageSize::FIRST).await?.events;
                    aggregate.version = first.first().map_or(aggregate.version, |first| first.version);
                }
            }
            Fault::ListHasOnePage => page.next = None,
            Fault::ListWantsEvents if page.head == Version::ZERO => {
                return Err(eventstore_api::Error::engine("list aggregates", "there are none"));
            }
            Fault::ListEndsWithItsOpening if options.before.is_some() && !self.remembers(&options.after) => {
                page.aggregates.clear();
                page.next = None;
            }
            _ => {}
        }
        self.remember(
            page.next.iter().filter(|_| self.has(Fault::ListEndsWithItsOpening)).map(|next| next.after.clone()),
        );
        Ok(page)
    }
}
