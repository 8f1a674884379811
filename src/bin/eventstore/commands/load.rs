//! `load`: events as JSON lines or as a table, a page in memory at a time.

use eventstore::{CancellationToken, Context, Error, EventStoreExt, LoadOptions, RecordedEvent};

use super::{Ending, Store, reading};
use crate::cli::{Format, LoadArgs};
use crate::failure::Failure;
use crate::interrupt;
use crate::json;
use crate::output::Output;
use crate::table::Table;

pub(crate) async fn run(url: &str, args: LoadArgs) -> Result<Ending, Failure> {
    let mut options = LoadOptions::since(args.since.parse()?);
    options.aggregate_id = args.aggregate;
    options.limit = args.limit;
    if args.backward {
        options = options.backward();
    }
    let interrupted = interrupt::token();
    reading(url, async |store| match load(store, options, args.follow, args.format, &interrupted).await {
        Err(failure) if failure.code() == Error::Cancelled.code() && interrupted.is_cancelled() => {
            Ok(Ending::Interrupted)
        }
        result => result.map(|()| Ending::Finished),
    })
    .await
}

async fn load(
    store: &Store,
    options: LoadOptions,
    follow: bool,
    format: Format,
    interrupted: &CancellationToken,
) -> Result<(), Failure> {
    let ctx = Context::background().with_cancellation(interrupted.clone());
    let mut events = if follow { store.subscribe(&ctx, options) } else { store.load(&ctx, options) };
    let mut printer = Printer::new(format);
    while let Some(page) = events.next_page().await {
        let page = match page {
            Ok(page) => page,
            // What came before the error is shown all the same.
            Err(error) => return printer.finish().and(Err(error.into())),
        };
        printer.print(&page)?;
        // A page of a subscription is all that is there by now.
        if follow {
            printer.output.flush()?;
        }
    }
    printer.finish()
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
