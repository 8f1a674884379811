//! `demo`: a guided tour of the store, in a temporary directory.

use std::fmt::{Debug, Display};
use std::path::Path;
use std::time::Duration;

use eventstore::{
    Aggregate, CancellationToken, Error, Event, Expected, RecordedEvent, Result, Revision, Store, StoreOutcome, Version,
};
use serde::{Deserialize, Serialize};

use super::Ending;
use crate::failure::Failure;
use crate::interrupt;
use crate::output::Output;

/// The engine to show: the default one, or memory if the program was built without it.
const SCHEME: &str = if cfg!(feature = "lmdb") { "lmdb" } else { "memory" };

pub(crate) async fn run() -> Result<Ending, Failure> {
    in_directory("Next: eventstore --help", async |directory, interrupted| {
        let url = match SCHEME {
            "memory" => "memory:".to_owned(),
            scheme => format!("{scheme}:{}", directory.join("store").display()),
        };
        super::with_store(&url, async |store| {
            let (store, stop) = (Store::from(store.clone()), interrupted.clone());
            let mut tour = Tour { store, stop, output: Output::of_printing(), step: 0 };
            tour.output.text(&format!("A tour of the event store, on {url}"))?;
            ended(tour.run().await)
        })
        .await
    })
    .await
}

/// The ending of a tour that a signal may have stopped.
pub(super) fn ended(done: Result<(), Failure>) -> Result<Ending, Failure> {
    match done {
        Err(failure) if failure.code() == Error::Cancelled.code() => Ok(Ending::Interrupted),
        done => done.map(|()| Ending::Finished),
    }
}

/// Runs a tour in a temporary directory, which is deleted at the end. `next` says how to continue.
pub(super) async fn in_directory(
    next: &str,
    tour: impl AsyncFnOnce(&Path, &CancellationToken) -> Result<Ending, Failure>,
) -> Result<Ending, Failure> {
    let directory = tempfile::tempdir().map_err(|error| Failure::io("make a temporary directory", &error))?;
    let interrupted = interrupt::token_of_work();
    let ending = tour(directory.path(), &interrupted).await?;
    let path = directory.path().display().to_string();
    directory.close().map_err(|error| Failure::io(format_args!("remove {path}"), &error))?;
    if ending == Ending::Interrupted {
        return Ok(ending);
    }
    let mut output = Output::of_printing();
    output.text(&format!("\nThat was all; the temporary directory has been deleted. {next}"))?;
    output.flush()?;
    Ok(Ending::Finished)
}

/// The events of the demo's orders.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum OrderEvent {
    Placed { cents: u32 },
    Paid { cents: u32 },
    Shipped,
    Cancelled,
}

/// The state of an order that the tour needs for decisions.
#[derive(Default)]
struct Order {
    is_shipped: bool,
}

impl Aggregate for Order {
    type Event = OrderEvent;
    type Error = &'static str;

    fn apply(&mut self, event: OrderEvent) {
        self.is_shipped |= matches!(event, OrderEvent::Shipped);
    }
}

impl Order {
    fn cancel(&self) -> Result<Vec<OrderEvent>, &'static str> {
        if self.is_shipped { Err("the order is shipped") } else { Ok(vec![OrderEvent::Cancelled]) }
    }
}

struct Tour {
    store: Store,
    stop: CancellationToken,
    output: Output,
    step: u32,
}

impl Tour {
    async fn run(&mut self) -> Result<(), Failure> {
        let placed = Event::of("order-42", &OrderEvent::Placed { cents: 1250 })?;
        self.append_one_event(&placed).await?;
        self.append_a_batch().await?;
        self.load_since_a_version().await?;
        self.load_an_aggregate().await?;
        self.run_into_a_conflict().await?;
        self.decide().await?;
        self.run_out_of_time().await?;
        self.retry(&placed).await?;
        self.follow().await
    }

    async fn append_one_event(&mut self, placed: &Event) -> Result<(), Failure> {
        self.title("Append one event. It is on disk when the call returns.")?;
        self.call("let placed = Event::of(\"order-42\", &OrderEvent::Placed { cents: 1250 })?;")?;
        self.call("store.append(placed).expected(Expected::NoEvents).await?")?;
        self.append([placed.clone()], Expected::NoEvents).await
    }

    async fn append_a_batch(&mut self) -> Result<(), Failure> {
        self.title("Append a batch, all or nothing, on the condition that nobody appended to the order in between.")?;
        let paid = Event::of("order-42", &OrderEvent::Paid { cents: 1250 })?;
        let shipped = Event::of("order-42", &OrderEvent::Shipped)?;
        self.call("store.append([paid, shipped]).expected(Expected::Revision(appended.revision)).await?")?;
        self.append([paid, shipped], Expected::Revision(Revision::new(1))).await?;
        let other = Event::of("order-43", &OrderEvent::Placed { cents: 990 })?;
        self.call("store.append(another_order).await?")?;
        self.append([other], Expected::Any).await
    }

    async fn load_since_a_version(&mut self) -> Result<(), Failure> {
        self.title("Load what is new since a version.")?;
        self.call("store.load(Version::new(2)).await?")?;
        let events = self.store.load(Version::new(2)).cancel_on(&self.stop).await?;
        events.iter().try_for_each(|recorded| self.result(summary(recorded)))
    }

    async fn load_an_aggregate(&mut self) -> Result<(), Failure> {
        self.title("Load the history of one order.")?;
        self.call("store.load(Version::ZERO).aggregate(\"order-42\").await?")?;
        let events = self.store.load(Version::ZERO).aggregate("order-42").cancel_on(&self.stop).await?;
        events.iter().try_for_each(|recorded| self.result(summary(recorded)))
    }

    async fn run_into_a_conflict(&mut self) -> Result<(), Failure> {
        self.title("Append on an outdated state: the order has changed, so the store refuses.")?;
        let cancelled = Event::of("order-42", &OrderEvent::Cancelled)?;
        self.call("store.append(cancelled).expected(Expected::Revision(old)).await")?;
        let append = self.store.append(cancelled).expected(Expected::Revision(Revision::new(1)));
        self.refused(append.cancel_on(&self.stop).await, "version_conflict")
    }

    async fn decide(&mut self) -> Result<(), Failure> {
        self.title("Decide on the state of an order: load it, decide, and append the resulting events.")?;
        for id in ["order-42", "order-43"] {
            self.call(&format!("store.decide::<Order>(\"{id}\", |order| order.cancel()).await"))?;
            match self.store.decide::<Order>(id, Order::cancel).cancel_on(&self.stop).await {
                Ok(decided) => self.result(format!("{id} is cancelled, at revision {}", decided.revision))?,
                Err(eventstore::DecideError::Rejected(reason)) => self.result(format!("refused: {reason}"))?,
                Err(eventstore::DecideError::Store(error)) => return Err(error.into()),
                Err(other) => self.result(other)?,
            }
        }
        Ok(())
    }

    async fn run_out_of_time(&mut self) -> Result<(), Failure> {
        self.title("Give a deadline. This one has passed already, so certainly nothing is written.")?;
        let late = Event::of("order-44", &OrderEvent::Placed { cents: 500 })?;
        self.call("store.append(late).timeout(Duration::ZERO).await")?;
        let outcome = self.store.append(late).cancel_on(&self.stop).timeout(Duration::ZERO).await;
        self.refused(outcome, "deadline_exceeded")
    }

    async fn retry(&mut self, placed: &Event) -> Result<(), Failure> {
        self.title("Append the first event again, as after a lost answer: same position, nothing is written twice.")?;
        self.call("store.append(the_same_event).expected(Expected::NoEvents).await?")?;
        self.append([placed.clone()], Expected::NoEvents).await?;
        self.call("store.latest_version().await?")?;
        let latest = self.store.latest_version().cancel_on(&self.stop).await?;
        self.result(format!("version {latest}"))
    }

    async fn follow(&mut self) -> Result<(), Failure> {
        self.title("Follow the store: a subscriber gets the stored events, then each new event as it is appended.")?;
        self.call("let mut events = store.subscribe(Version::new(4)).stream();")?;
        let mut events = self.store.subscribe(Version::new(4)).cancel_on(&self.stop).stream();
        self.received(events.next().await)?;
        for (order, cents) in [("order-45", 1990), ("order-46", 2990)] {
            let event = Event::of(order, &OrderEvent::Placed { cents })?;
            self.call(&format!("store.append(placed_{}).await?; events.next().await", &order[6..]))?;
            // The subscriber waits before the event is appended, like one in another task.
            let append = self.store.append(event).cancel_on(&self.stop).into_future();
            let (appended, received) = tokio::join!(append, events.next());
            appended?;
            self.received(received)?;
        }
        Ok(())
    }

    /// Appends events and shows their positions.
    async fn append<const N: usize>(&mut self, events: [Event; N], expected: Expected) -> Result<(), Failure> {
        let types: Vec<_> = events.iter().map(|event| event.event_type().to_owned()).collect();
        let appended = self.store.append(events).expected(expected).cancel_on(&self.stop).await?;
        for (event_type, place) in types.iter().zip(appended.places()) {
            let stored = match place.outcome {
                StoreOutcome::Written => "",
                StoreOutcome::AlreadyStored => ", as it was stored before",
            };
            self.result(format!("{event_type} has version {}, revision {}{stored}", place.version, place.revision))?;
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
            Ok(outcome) => self.result(format!("{outcome:?}, although {code} was expected")),
        }
    }

    fn title(&mut self, text: &str) -> Result<(), Failure> {
        self.step += 1;
        self.output.text(&format!("\n{}. {text}", self.step))
    }

    fn call(&mut self, code: &str) -> Result<(), Failure> {
        self.output.text(&format!("   {code}"))
    }

    /// Shows a result, and flushes: the tour is read while it runs.
    fn result(&mut self, result: impl Display) -> Result<(), Failure> {
        self.output.text(&format!("     -> {result}"))?;
        self.output.flush()
    }
}

fn summary(recorded: &RecordedEvent) -> String {
    let event = &recorded.event;
    let data = String::from_utf8_lossy(event.data());
    let (version, revision) = (recorded.version, recorded.revision.get());
    format!("version {version}: {} revision {revision} {} {data}", event.aggregate_id(), event.event_type())
}
