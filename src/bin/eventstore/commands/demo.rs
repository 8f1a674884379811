//! `demo`: a guided tour of the store, in a temporary directory.

use std::fmt::{Debug, Display};
use std::time::Duration;

use eventstore::{
    Batch, Context, Error, Event, EventStore, EventStoreExt, Expected, LoadOptions, RecordedEvent, Result, Stored,
    Version,
};
use serde::Serialize;

use super::{Ending, Store};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::Output;

/// The engine to show: the default one, or memory if the program was built without it.
const SCHEME: &str = if cfg!(feature = "lmdb") { "lmdb" } else { "memory" };

pub(crate) async fn run() -> Result<Ending, Failure> {
    let directory = tempfile::tempdir().map_err(|error| Failure::io("make a temporary directory", &error))?;
    let url = match SCHEME {
        "memory" => "memory:".to_owned(),
        scheme => format!("{scheme}:{}", directory.path().join("store").display()),
    };
    // The directory is removed before it ends.
    let interrupted = interrupt::token_of_work();
    let ending = super::with_store(&url, async |store| {
        let ctx = Context::background().with_cancellation(interrupted.clone());
        let mut tour = Tour { store, ctx, output: Output::of_printing(), step: 0 };
        tour.output.text(&format!("A tour of the event store, on {url}"))?;
        match tour.run().await {
            Err(failure) if failure.code() == Error::Cancelled.code() => Ok(Ending::Interrupted),
            done => done.map(|()| Ending::Finished),
        }
    })
    .await?;
    let path = directory.path().display().to_string();
    directory.close().map_err(|error| Failure::io(format_args!("remove {path}"), &error))?;
    if ending == Ending::Interrupted {
        return Ok(ending);
    }
    let mut output = Output::of_printing();
    output.text("\nThat was all; the temporary directory is removed. Next: eventstore --help")?;
    output.flush()?;
    Ok(Ending::Finished)
}

/// What the demo's orders are about.
#[derive(Serialize)]
struct Amount {
    cents: u32,
}

fn order_event(id: &str, event_type: &str, order: &str, cents: u32) -> Result<Event> {
    Event::builder(event_type, order).id(id).json(&Amount { cents }).build()
}

struct Tour<'a> {
    store: &'a Store,
    ctx: Context,
    output: Output,
    step: u32,
}

impl Tour<'_> {
    async fn run(&mut self) -> Result<(), Failure> {
        self.store_one_event().await?;
        self.store_a_batch().await?;
        self.load_since_a_version().await?;
        self.load_an_aggregate().await?;
        self.run_into_a_conflict().await?;
        self.run_out_of_time().await?;
        self.retry().await?;
        self.follow().await
    }

    async fn store_one_event(&mut self) -> Result<(), Failure> {
        self.title("Store one event. It is on disk when the call returns.")?;
        let event = order_event("evt-1", "OrderPlaced", "order-42", 1250)?;
        self.call("store.store(&ctx, event, Expected::NoEvents)")?;
        let stored = self.store.store(&self.ctx, event, Expected::NoEvents).await?;
        self.result(place("evt-1", &stored))
    }

    async fn store_a_batch(&mut self) -> Result<(), Failure> {
        self.title("Store a batch: all of it or nothing, if nobody appended to the order in between.")?;
        let paid = order_event("evt-2", "OrderPaid", "order-42", 1250)?;
        let shipped = order_event("evt-3", "OrderShipped", "order-42", 0)?;
        self.call("store.store_batch(&ctx, Batch::new(vec![paid, shipped]).expected(Expected::Revision(1)))")?;
        let batch = Batch::new(vec![paid, shipped]).expected(Expected::Revision(1));
        let stored = self.store.store_batch(&self.ctx, batch).await?;
        for (id, stored) in ["evt-2", "evt-3"].iter().zip(&stored) {
            self.result(place(id, stored))?;
        }
        let other = order_event("evt-4", "OrderPlaced", "order-43", 990)?;
        self.call("store.store(&ctx, other_order, Expected::Any)")?;
        let stored = self.store.store(&self.ctx, other, Expected::Any).await?;
        self.result(place("evt-4", &stored))
    }

    async fn load_since_a_version(&mut self) -> Result<(), Failure> {
        self.title("Load what is new since a version.")?;
        self.call("store.load(&ctx, Version::new(2))")?;
        let events = self.store.load(&self.ctx, Version::new(2)).into_vec().await?;
        events.iter().try_for_each(|recorded| self.result(summary(recorded)))
    }

    async fn load_an_aggregate(&mut self) -> Result<(), Failure> {
        self.title("Load the history of one order.")?;
        self.call("store.load_by_aggregate(&ctx, \"order-42\", LoadOptions::all())")?;
        let events = self.store.load_by_aggregate(&self.ctx, "order-42", LoadOptions::all()).into_vec().await?;
        events.iter().try_for_each(|recorded| self.result(summary(recorded)))
    }

    async fn run_into_a_conflict(&mut self) -> Result<(), Failure> {
        self.title("Decide on an old state: the order has moved on, so the store refuses.")?;
        let cancelled = order_event("evt-5", "OrderCancelled", "order-42", 0)?;
        self.call("store.store(&ctx, cancelled, Expected::Revision(1))")?;
        let outcome = self.store.store(&self.ctx, cancelled, Expected::Revision(1)).await;
        self.refused(outcome, "version_conflict")
    }

    async fn run_out_of_time(&mut self) -> Result<(), Failure> {
        self.title("Give a deadline. This one has passed already, so certainly nothing is written.")?;
        let late = order_event("evt-6", "OrderPlaced", "order-44", 500)?;
        self.call("store.store(&ctx.with_timeout(Duration::ZERO), late, Expected::Any)")?;
        let ctx = self.ctx.clone().with_timeout(Duration::ZERO);
        let outcome = self.store.store(&ctx, late, Expected::Any).await;
        self.refused(outcome, "deadline_exceeded")
    }

    async fn retry(&mut self) -> Result<(), Failure> {
        self.title("Store the first event again, as after a lost answer: same place, nothing is written twice.")?;
        let again = order_event("evt-1", "OrderPlaced", "order-42", 1250)?;
        self.call("store.store(&ctx, the_same_event, Expected::NoEvents)")?;
        let stored = self.store.store(&self.ctx, again, Expected::NoEvents).await?;
        self.result(format!("{} ({:?})", place("evt-1", &stored), stored.outcome))?;
        self.call("store.latest_version(&ctx)")?;
        let latest = self.store.latest_version(&self.ctx).await?;
        self.result(format!("version {latest}"))
    }

    async fn follow(&mut self) -> Result<(), Failure> {
        self.title("Follow the store: a subscriber gets what is there, then each new event as it is appended.")?;
        self.call("store.subscribe(&ctx, Version::new(3))")?;
        let mut events = self.store.subscribe(&self.ctx, Version::new(3));
        self.received(events.next().await)?;
        for (id, cents) in [("evt-7", 1990), ("evt-8", 2990)] {
            let event = order_event(id, "OrderPlaced", &format!("order-{id}"), cents)?;
            self.call(&format!("store.store(&ctx, {id}, Expected::Any)"))?;
            // The subscriber waits before the event is there, as one in another task would.
            let (stored, received) = tokio::join!(self.store.store(&self.ctx, event, Expected::Any), events.next());
            self.result(place(id, &stored?))?;
            self.received(received)?;
        }
        Ok(())
    }

    fn received(&mut self, received: Option<Result<RecordedEvent>>) -> Result<(), Failure> {
        let recorded = received.unwrap_or(Err(Error::Closed))?;
        self.result(format!("the subscriber received {}", summary(&recorded)))
    }

    fn refused<T: Debug>(&mut self, outcome: Result<T>, code: &str) -> Result<(), Failure> {
        match outcome {
            Err(error) if error.code() == code => self.result(Failure::from(error)),
            Err(error) => Err(error.into()),
            Ok(outcome) => self.result(format!("{outcome:?}, although {code} was to be expected")),
        }
    }

    fn title(&mut self, text: &str) -> Result<(), Failure> {
        self.step += 1;
        self.output.text(&format!("\n{}. {text}", self.step))
    }

    fn call(&mut self, code: &str) -> Result<(), Failure> {
        self.output.text(&format!("   {code}"))
    }

    /// Shows a result, and what came before it: the tour is read while it runs.
    fn result(&mut self, result: impl Display) -> Result<(), Failure> {
        self.output.text(&format!("     -> {result}"))?;
        self.output.flush()
    }
}

fn place(id: &str, stored: &Stored) -> String {
    format!("{id} has version {}, revision {}", stored.version, stored.revision)
}

fn summary(recorded: &RecordedEvent) -> String {
    let event = &recorded.event;
    let data = String::from_utf8_lossy(event.data());
    let (version, revision) = (recorded.version, recorded.revision);
    format!("version {version}: {} revision {revision} {} {data}", event.aggregate_id(), event.event_type())
}
