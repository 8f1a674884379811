//! `load`: events as JSON lines or as a table, a page in memory at a time.

use std::time::SystemTime;

use eventstore::{CancellationToken, Context, EventStoreExt, LoadOptions, RecordedEvent};

use super::{Ending, Store, ending, reading};
use crate::cli::{Format, LoadArgs};
use crate::failure::Failure;
use crate::interrupt;
use crate::json;
use crate::output::Output;
use crate::table::Table;

pub(crate) async fn run(url: &str, args: LoadArgs) -> Result<Ending, Failure> {
    let mut options = LoadOptions::since(args.since.parse()?);
    options.aggregate_id = args.aggregate;
    if args.backward {
        options = options.backward();
    }
    let filter = Filter {
        types: args.types,
        aggregate_prefix: args.aggregate_prefix,
        recorded_since: args.recorded_since,
        recorded_until: args.recorded_until,
    };
    // What is counted is what is printed: the store does not know which events that will be.
    if filter.accepts_all() {
        options.limit = args.limit;
    }
    let interrupted = interrupt::token();
    let load = Load { options, filter, limit: args.limit, follow: args.follow, format: args.format };
    reading(url, async |store| ending(load.run(store, &interrupted).await, &interrupted)).await
}

/// What is printed of the events that the store gives.
#[derive(Debug, Default)]
struct Filter {
    /// One of these; empty for any.
    types: Vec<String>,
    aggregate_prefix: Option<String>,
    recorded_since: Option<SystemTime>,
    /// Not this time itself, so that one period ends where the next one begins.
    recorded_until: Option<SystemTime>,
}

impl Filter {
    fn accepts_all(&self) -> bool {
        let Filter { types, aggregate_prefix, recorded_since, recorded_until } = self;
        types.is_empty() && aggregate_prefix.is_none() && recorded_since.is_none() && recorded_until.is_none()
    }

    fn accepts(&self, recorded: &RecordedEvent) -> bool {
        let RecordedEvent { event, recorded_at, .. } = recorded;
        (self.types.is_empty() || self.types.iter().any(|wanted| wanted == event.event_type()))
            && self.aggregate_prefix.as_ref().is_none_or(|prefix| event.aggregate_id().starts_with(prefix))
            && self.recorded_since.is_none_or(|since| *recorded_at >= since)
            && self.recorded_until.is_none_or(|until| *recorded_at < until)
    }
}

struct Load {
    options: LoadOptions,
    filter: Filter,
    limit: Option<u64>,
    follow: bool,
    format: Format,
}

impl Load {
    async fn run(&self, store: &Store, interrupted: &CancellationToken) -> Result<(), Failure> {
        let ctx = Context::background().with_cancellation(interrupted.clone());
        let options = self.options.clone();
        let mut events = if self.follow { store.subscribe(&ctx, options) } else { store.load(&ctx, options) };
        let mut printer = Printer::new(self.format);
        let mut left = self.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        while left > 0
            && let Some(page) = events.next_page().await
        {
            let mut page = match page {
                Ok(page) => page,
                // What came before the error is shown all the same.
                Err(error) => return printer.finish().and(Err(error.into())),
            };
            page.retain(|recorded| self.filter.accepts(recorded));
            page.truncate(left);
            left -= page.len();
            if page.is_empty() {
                continue;
            }
            printer.print(&page)?;
            // A page of a subscription is all that is there by now.
            if self.follow {
                printer.output.flush()?;
            }
        }
        printer.finish()
    }
}

struct Printer {
    output: Output,
    /// `None` prints JSON lines.
    table: Option<Table>,
    has_titles: bool,
}

impl Printer {
    fn new(format: Format) -> Self {
        let table = (format == Format::Table).then(Table::new);
        Printer { output: Output::of_printing(), table, has_titles: false }
    }

    fn print(&mut self, page: &[RecordedEvent]) -> Result<(), Failure> {
        let Printer { output, table, has_titles } = self;
        let Some(table) = table else {
            return page.iter().try_for_each(|recorded| output.line(|out| json::write(out, recorded)));
        };
        table.fit(page);
        // The titles wait for the first events, to have their widths.
        if !std::mem::replace(has_titles, true) {
            output.line(|out| table.write_titles(out))?;
        }
        page.iter().try_for_each(|recorded| output.line(|out| table.write(out, recorded)))
    }

    fn finish(mut self) -> Result<(), Failure> {
        if !self.has_titles {
            self.print(&[])?;
        }
        self.output.flush()
    }
}
