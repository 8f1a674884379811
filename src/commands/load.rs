//! `load`: prints events as JSON lines or as a table, with one page in memory at a time.

use eventstore::backend::{CancellationToken, Context, Cursor, EventStoreExt, LoadOptions, RecordedEvent};

use super::{Ending, Store, ending, reading, version_or_cursor};
use crate::cli::{Format, LoadArgs};
use crate::failure::Failure;
use crate::interrupt;
use crate::json;
use crate::output::Output;
use crate::table::Table;

pub(crate) async fn run(url: &str, args: LoadArgs) -> Result<Ending, Failure> {
    let (since, cursor) = version_or_cursor(&args.since)?;
    let mut options = LoadOptions::since(since).types(args.types).since_revision(args.since_revision.into());
    options.aggregate_id = args.aggregate;
    options.aggregate_prefix = args.aggregate_prefix;
    options.recorded_since = args.recorded_since;
    options.recorded_before = args.recorded_until;
    options.limit = args.limit;
    if args.backward {
        options = options.backward();
    }
    #[cfg(feature = "http")]
    if args.follow && eventstore::backend::is_served(url) {
        crate::outages::tell();
    }
    let interrupted = interrupt::token();
    let load = Load { cursor, options, follow: args.follow, format: args.format };
    reading(url, async |store| ending(load.run(store, &interrupted).await, &interrupted)).await
}

struct Load {
    /// The cursor to start after, if one is given.
    cursor: Option<Cursor>,
    options: LoadOptions,
    follow: bool,
    format: Format,
}

impl Load {
    async fn run(&self, store: &Store, interrupted: &CancellationToken) -> Result<(), Failure> {
        let ctx = Context::background().with_cancellation(interrupted.clone());
        if let Some(cursor) = self.cursor {
            store.check_cursor(&ctx, cursor).await?;
        }
        let options = self.options.clone();
        let mut events = if self.follow { store.subscribe(&ctx, options) } else { store.load(&ctx, options) };
        let mut printer = Printer::new(self.format);
        while let Some(page) = events.next_page().await {
            let page = match page {
                Ok(page) => page,
                // Events before the error are printed all the same.
                Err(error) => return printer.finish().and(Err(error.into())),
            };
            printer.print(&page)?;
            // A page of a subscription has everything that exists by now.
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
        // The titles are printed with the first events, to get their column widths.
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
